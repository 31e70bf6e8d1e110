//! Client Connection Process, 5: Connection Termination.

use horizon_tests::products::{World, WorldOptions};
use horizon_tests::services::http_get;

use crate::kit::{Seen, connected, items, soon, step, told};

fn ended(world: &World, status: &str, by: &str) -> bool {
    let sql = format!(
        "SELECT CAST(COUNT(*) AS TEXT) FROM connections WHERE status = '{status}' AND initiated_by = '{by}' \
         AND connection_end IS NOT NULL AND termination_reason IS NOT NULL"
    );
    world.controller.row(&sql).as_deref() != Some("0")
}

#[test]
fn connection_termination() {
    let options =
        WorldOptions { settings: "session_idle_timeout = \"10s\"\n".into(), ..WorldOptions::default() };
    let mut world = World::with(&options).unwrap();
    let mut laptop = world.device("laptop", "ada").unwrap();
    let home = world.home.router().v4().to_string();

    laptop.connect("gateway").unwrap();
    step("User initiated disconnection", || {
        laptop.disconnect().unwrap();
        soon("the row says who", || ended(&world, "terminated", "client"));
    });
    step("Graceful disconnection process", || {
        assert_eq!(http_get(laptop.host(), world.web_host.v4()).unwrap(), home, "back on its own way");
        assert!(!connected(&laptop));
    });
    laptop.connect("gateway").unwrap();
    step("Broker termination request", || {
        world.controller.edit("user.toml", "groups = [\"friends\"]", "groups = []").unwrap();
        soon("the session ends", || !connected(&laptop));
        soon("the row says who", || ended(&world, "terminated", "broker"));
        assert!(world.controller.audited("update", "ada"));
        world.controller.edit("user.toml", "groups = []", "groups = [\"friends\"]").unwrap();
    });
    soon("connecting works again", || laptop.connect("gateway").is_ok());
    step("Connection timeout", || {
        laptop.service().unwrap().kill().unwrap();
        soon("nobody uses it for too long", || ended(&world, "timeout", "broker"));
    });
    step("Server returns to available status", || {
        soon("it has no sessions", || {
            told(&world.appliance)["sessions"].as_array().is_none_or(Vec::is_empty)
        });
        assert_eq!(world.controller.condition("server", "gateway", "Available"), Some(true));
    });
    step("Broker records connection end", || {
        let open = "SELECT CAST(COUNT(*) AS TEXT) FROM connections WHERE connection_end IS NULL";
        assert_eq!(world.controller.row(open).as_deref(), Some("0"));
        let sessions = items(&world.controller, "sessions");
        assert!(sessions.iter().all(|session| session["status"] != "active"), "{sessions:?}");
    });
}
