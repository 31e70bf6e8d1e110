//! Multi-Device Management.

use horizon_tests::products::{Client, World};
use horizon_tests::services::http_get;

use crate::kit::{Seen, connected, items, soon, step};

#[test]
fn multi_device_management() {
    let mut world = World::for_test().unwrap();
    let key = world.controller.invite("ada").unwrap();
    let mut devices = Vec::new();
    for name in ["laptop", "tablet"] {
        let mut device = Client::new(world.home.host(name).unwrap(), &world.programs);
        device.start().unwrap();
        devices.push(device);
    }
    let count =
        |sql: &str| world.controller.row(&format!("SELECT CAST(COUNT(*) AS TEXT) FROM {sql}")).unwrap();

    // 1. Same-User Authentication
    step("All devices use identical personal key", || {
        devices.iter().for_each(|device| drop(device.add_key(&key).unwrap()));
        assert_eq!(count("personal_keys"), "1");
        assert_eq!(count("devices"), "2");
    });
    let [laptop, tablet] = &devices[..] else { panic!("two devices") };
    step("Broker identifies devices by hardware fingerprint", || {
        let sql = "SELECT CAST(COUNT(DISTINCT hardware_fingerprint) AS TEXT) FROM devices";
        assert_eq!(world.controller.row(sql).as_deref(), Some("2"));
    });
    laptop.connect("gateway").unwrap();
    laptop.disconnect().unwrap();
    step("Connection history tracked per device", || {
        let sql = "SELECT d.device_name FROM connections c JOIN devices d ON d.device_id = c.device_id";
        assert_eq!(world.controller.row(sql).as_deref(), Some("laptop"));
    });

    // 2. Concurrent Connection Handling
    laptop.connect("gateway").unwrap();
    let refusal = step("Broker detects connection from new device", || {
        tablet.cli(["connect", "gateway"]).refused().unwrap()
    });
    step("Prompt user for action", || {
        assert!(refusal.contains("laptop") && refusal.contains("--take-over"), "{refusal}");
        assert!(connected(laptop) && !connected(tablet));
    });
    step("Terminate previous connection if confirmed", || {
        tablet.cli(["connect", "gateway", "--take-over"]).ok().unwrap();
        soon("the laptop's session ends", || !connected(laptop));
    });
    step("Establish new connection", || {
        let egress = world.appliance.host().v4().to_string();
        assert_eq!(http_get(tablet.host(), world.web_host.v4()).unwrap(), egress);
        assert_eq!(count("connections WHERE status IN ('requested', 'active')"), "1");
    });
    step("Log device transition", || {
        let sql = "SELECT termination_reason FROM connections WHERE status NOT IN ('requested', 'active') \
                   ORDER BY connection_end DESC";
        let reason = world.controller.row(sql).unwrap();
        assert!(reason.contains("tablet") || reason.contains("device"), "{reason}");
        let sessions = items(&world.controller, "sessions");
        assert!(sessions.iter().any(|session| session["device"] == "tablet"), "{sessions:?}");
    });
}
