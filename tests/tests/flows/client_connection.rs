//! Client Connection Process, 1 to 4.

use horizon_tests::products::{Client, World};
use horizon_tests::services::http_get;

use crate::kit::{Seen, connected, items, soon, step};

#[test]
fn client_connection_process() {
    let mut world = World::for_test().unwrap();
    let key = world.controller.invite("ada").unwrap();
    let mut laptop = Client::new(world.home.host("laptop").unwrap(), &world.programs);
    laptop.start().unwrap();
    let count = |world: &World, sql: &str| {
        world.controller.row(&format!("SELECT CAST(COUNT(*) AS TEXT) FROM {sql}")).unwrap()
    };

    // 1. Authentication
    step("Client provides personal key to broker", || laptop.add_key(&key).unwrap());
    step("Broker validates key and checks rotation status", || {
        assert_eq!(count(&world, "personal_keys WHERE status = 'active' AND key_hash IS NOT NULL"), "1");
        let swapped = if key.ends_with('x') { 'y' } else { 'x' };
        let mangled = format!("{}{swapped}", &key[..key.len() - 1]);
        laptop.cli(["key", "add"]).stdin(format!("{mangled}\n")).refused().unwrap();
    });
    step("Broker recognizes device if previously used", || {
        laptop.add_key(&key).unwrap();
        assert_eq!(count(&world, "devices"), "1", "the same device, not a second one");
    });
    step("Broker registers new device if first connection", || {
        let mut tablet = Client::new(world.home.host("tablet").unwrap(), &world.programs);
        tablet.start().unwrap();
        tablet.add_key(&key).unwrap();
        assert_eq!(count(&world, "devices"), "2");
        soon("the user's status counts them", || world.controller.status("user", "ada", "/deviceCount") == 2);
        let device =
            world.controller.row("SELECT device_name FROM devices ORDER BY first_seen DESC").unwrap();
        assert!(
            items(&world.controller, "audit").iter().any(|entry| entry["actorType"] == "device"),
            "{device}"
        );
    });

    // 2. Server Discovery
    step("Client requests available server list", || laptop.cli(["servers"]).ok().unwrap());
    let listed = step("Broker returns servers with capabilities", || {
        let list = laptop.cli(["servers", "-o", "json"]).ok().unwrap();
        assert!(list.contains("gateway") && list.contains("vpn"), "{list}");
        list
    });
    step("Client selects appropriate server", || {
        assert!(!listed.contains("berlin"), "only what policy allows")
    });
    step("Client requests connection permission", || laptop.connect("gateway").unwrap());

    // 3. Connection Establishment
    step("Broker records connection intent", || {
        assert_eq!(count(&world, "connections WHERE connection_start IS NOT NULL AND kind = 'access'"), "1");
    });
    step("Broker notifies server of pending connection", || {
        assert_eq!(
            count(&world, "servers WHERE applied_generation > 0 AND applied_generation = state_generation"),
            "1"
        );
    });
    step("Client initiates direct P2P connection to server", || {
        let status = laptop.status().unwrap();
        let remote = status["session"]["remote"].as_str().unwrap().to_owned();
        let ends = [world.appliance.host().v4().to_string(), world.appliance.host().v6().to_string()];
        assert!(ends.iter().any(|end| remote.contains(end)), "{remote}");
    });
    step("Server accepts connection if authorized", || assert!(connected(&laptop)));
    step("Broker updates connection status", || {
        soon("the row", || count(&world, "connections WHERE status = 'active' AND connected") == "1");
        let sessions = items(&world.controller, "sessions");
        assert_eq!(sessions.len(), 1, "{sessions:?}");
    });
    step("Server verifies all traffic routes through broker", || {
        // What no ticket of the controller's allows gets no answer: the broker away from the packets, and in every permission.
        let seen = http_get(laptop.host(), world.web_host.v4()).unwrap();
        assert_eq!(seen, world.appliance.host().v4().to_string());
        world.controller.edit("policy.toml", "0.0.0.0/0", "192.0.2.0/24").unwrap();
        soon("packets follow the broker's word", || http_get(laptop.host(), world.web_host.v4()).is_err());
        world.controller.edit("policy.toml", "192.0.2.0/24", "0.0.0.0/0").unwrap();
        soon("and back", || http_get(laptop.host(), world.web_host.v4()).is_ok());
    });

    // 4. Active Connection
    step("Server provides network services", || {
        let visitors = world.web.visitors().len();
        http_get(laptop.host(), world.web_host.v4()).unwrap();
        assert!(world.web.visitors().len() > visitors);
    });
    step("Client uses VPN/LAN functionality", || {
        let v6 = http_get(laptop.host(), world.web_host.v6()).unwrap();
        assert_eq!(v6, world.appliance.host().v6().to_string());
    });
    step("Both maintain security boundaries", || {
        let picture = laptop.status().unwrap();
        assert!(
            picture["session"]["violations"].as_object().is_none_or(serde_json::Map::is_empty),
            "{picture}"
        );
    });
    step("Broker periodically verifies connection status", || {
        let used = "connections WHERE bytes_sent > 0 AND bytes_received > 0 AND status = 'active'";
        soon("what both ends report arrives in the row", || count(&world, used) == "1");
    });
}
