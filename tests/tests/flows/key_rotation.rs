//! Key Rotation System.

use horizon_tests::products::World;
use horizon_tests::services::http_get;

use crate::kit::{Seen, connected, items, soon, step};

fn key_name(world: &World) -> String {
    world.controller.row("SELECT name FROM personal_keys").unwrap()
}

/// How many versions of the key are so.
fn versions(world: &World, filter: &str) -> u64 {
    let sql = format!("SELECT CAST(COUNT(*) AS TEXT) FROM personal_key_versions WHERE {filter}");
    world.controller.row(&sql).unwrap().parse().unwrap()
}

#[test]
fn regular_updates() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    let session = laptop.status().unwrap()["session"]["id"].clone();
    let name = key_name(&world);
    let delivered = |filter: &str| {
        let sql = format!("SELECT CAST(COUNT(*) AS TEXT) FROM key_deliveries WHERE {filter}");
        world.controller.row(&sql).as_deref() != Some("0")
    };

    step("System generates new keys on schedule", || {
        let policy = format!(
            "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"KeyRotation\"\nmetadata.name = \"yearly\"\n[spec]\n\
             target = \"personalKeys\"\nnames = [\"{name}\"]\ntype = \"scheduled\"\nreason = \"a year went by\"\n"
        );
        world.controller.put("rotation.toml", &policy).unwrap();
        soon("there is a new version of the key", || versions(&world, "number = 2") == 1);
        soon("an event tells of it", || world.controller.events("key_rotation_begun") > 0);
    });
    step("Client receives key update notification", || {
        soon("the device is told", || delivered("delivered_date IS NOT NULL"));
    });
    step("Automatic transition without manual input", || {
        assert!(connected(&laptop));
        assert_eq!(laptop.status().unwrap()["session"]["id"], session, "no session is touched");
        let egress = world.appliance.host().v4().to_string();
        assert_eq!(http_get(laptop.host(), world.web_host.v4()).unwrap(), egress);
    });
    step("Old key remains valid during transition period", || {
        assert_eq!(versions(&world, "number = 1 AND status = 'compromised'"), 0);
        let ends = "SELECT CAST(COUNT(*) AS TEXT) FROM key_rotation_history WHERE overlap_end IS NOT NULL";
        assert_eq!(world.controller.row(ends).as_deref(), Some("1"), "it has a time of its own");
    });
    step("Client confirms receipt of new key", || {
        soon("it confirms", || delivered("confirmed_date IS NOT NULL"));
        soon("the rotation is over", || world.controller.status("keyrotation", "yearly", "/completed") == 1);
        soon("an event tells of it", || world.controller.events("key_rotated") > 0);
    });
}

#[test]
fn manual_updates() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    let name = key_name(&world);

    let said = step("Administrator initiates key revocation", || {
        let args = ["rotate", "personalkey", &name, "--compromised", "--reason", "found on a wall"];
        world.controller.cli(args).ok().unwrap()
    });
    step("All devices using key receive notification", || {
        soon("the session ends", || !connected(&laptop));
        soon("the device says what to do", || {
            laptop
                .cli(["status"])
                .run()
                .is_ok_and(|status| status.text().contains("manual rotation is required"))
        });
    });
    step("Previous key immediately invalidated", || {
        assert_eq!(versions(&world, "number = 1 AND status = 'compromised' AND ended_date IS NOT NULL"), 1);
        laptop.cli(["connect", "gateway"]).refused().unwrap();
    });
    step("User must manually input new key", || {
        let new = said.split_whitespace().find(|word| word.starts_with("hzn-key-")).map(str::to_owned);
        let new = new.unwrap_or_else(|| world.controller.invite("ada").unwrap());
        laptop.cli(["key", "enter"]).stdin(format!("{new}\n")).ok().unwrap();
        laptop.connect("gateway").unwrap();
    });
    step("Broker records key transition", || {
        assert!(world.controller.events("key_replaced") > 0 || world.controller.events("key_rotated") > 0);
        assert!(items(&world.controller, "audit").iter().any(|entry| entry["target"]
            == format!("default/{name}").as_str()
            && entry["action"] == "rotate"));
    });
}
