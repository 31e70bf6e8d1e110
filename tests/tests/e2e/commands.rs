//! What people type to see how things are, and what they are told.

use std::fs;

use horizon_tests::products::World;

use super::connected;

#[test]
fn a_change_is_shown_with_whom_it_affects_before_it_is_made() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    let plan = tempfile::tempdir().unwrap();
    for file in ["server.toml", "policy.toml"] {
        fs::copy(world.controller.resources().join(file), plan.path().join(file)).unwrap();
    }
    let user = world.controller.file("user.toml").unwrap();
    fs::write(plan.path().join("user.toml"), user.replace("\"friends\"", "\"strangers\"")).unwrap();
    let folder = plan.path().to_str().unwrap();
    let diff = world.controller.cli(["diff", folder]).run().unwrap().text();
    assert!(diff.contains("ada") && diff.contains("strangers") && diff.contains("gateway"), "{diff}");
    assert!(connected(&laptop), "looking changes nothing");
}

#[test]
fn the_controller_answers_in_tables_json_and_yaml() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    let say = |args: &[&str]| match args {
        [a] => world.controller.cli([a]).ok().unwrap(),
        [a, b] => world.controller.cli([a, b]).ok().unwrap(),
        [a, b, c] => world.controller.cli([a, b, c]).ok().unwrap(),
        [a, b, c, d] => world.controller.cli([a, b, c, d]).ok().unwrap(),
        _ => unreachable!("no such test"),
    };
    let servers = say(&["get", "servers"]);
    assert!(servers.contains("gateway") && servers.contains("active"), "{servers}");
    assert!(say(&["get", "users", "-o", "yaml"]).contains("kind: User"));
    let sessions = say(&["get", "sessions"]);
    assert!(sessions.contains("ada") && sessions.contains("gateway"), "{sessions}");
    let described = say(&["describe", "server", "gateway"]);
    for word in ["gateway", "Registered", "Verified", "Online"] {
        assert!(described.contains(word), "{word}: {described}");
    }
    let audit = say(&["get", "audit"]);
    assert!(audit.contains("ada"), "{audit}");
    assert!(say(&["config", "print"]).contains("listen"));
    let status = say(&["status"]);
    assert!(!status.is_empty(), "{status}");
}

#[test]
fn a_device_lists_what_it_may_use() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    let servers = laptop.cli(["servers"]).ok().unwrap();
    assert!(servers.contains("gateway"), "{servers}");
    let key = laptop.cli(["key", "add", "hzn-key-secret"]).refused().unwrap();
    assert!(!key.contains("hzn-key-secret"), "a key on the command line is refused and not repeated: {key}");
}

#[test]
fn an_appliance_tells_how_it_is() {
    let world = World::for_test().unwrap();
    let status = world.appliance.cli(["status"]).ok().unwrap();
    assert!(status.contains("gateway"), "{status}");
    let json: serde_json::Value =
        serde_json::from_str(&world.appliance.cli(["status", "-o", "json"]).ok().unwrap()).unwrap();
    assert!(json.is_object());
    let diagnosis = world.appliance.cli(["diagnose"]).run().unwrap().text();
    for word in ["tun", "nft"] {
        assert!(diagnosis.to_lowercase().contains(word), "{word}: {diagnosis}");
    }
}
