//! Devices that an administrator decides about, settings between devices, and a session that moves when its server dies.

use std::time::Duration;

use horizon_tests::lab::within;
use horizon_tests::products::{Appliance, World};
use serde_json::Value;

use super::{connected, seen_by, wait_until_ended};

/// How long a session may take to move: the path's idle time-out, the controller's word, and a second handshake.
const MOVE: Duration = Duration::from_secs(90);

fn id_of(world: &World, name: &str) -> String {
    let devices = world.controller.cli(["get", "devices", "-o", "json"]).ok().unwrap();
    let devices: Value = serde_json::from_str(&devices).unwrap();
    let found = devices["items"].as_array().unwrap().iter().find(|device| device["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {devices}"))["id"].as_str().unwrap().to_owned()
}

#[test]
fn an_admin_blocks_a_device_and_allows_it_again() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    let id = id_of(&world, "laptop");
    world.controller.cli(["device", "block", &id, "--reason", "seen at the airport"]).ok().unwrap();
    wait_until_ended(&laptop);
    let refusal = laptop.cli(["connect", "gateway"]).refused().unwrap();
    assert!(refusal.contains("blocked"), "{refusal}");
    let told = world.controller.cli(["describe", "device", &id]).ok().unwrap();
    for word in ["blocked", "seen at the airport", "gateway", "device_blocked", "enrol"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    world.controller.cli(["device", "allow", &id, "--reason", "it was Ada"]).ok().unwrap();
    laptop.connect("gateway").unwrap();
    world.controller.cli(["device", "rename", &id, "--name", "Ada's", "--reason", "clearer"]).ok().unwrap();
    assert_eq!(id_of(&world, "Ada's"), id);
    world.controller.cli(["device", "forget", &id, "--reason", "given away"]).ok().unwrap();
    wait_until_ended(&laptop);
    assert!(laptop.cli(["connect", "gateway"]).refused().unwrap().contains("not enrolled"));
}

#[test]
fn settings_follow_their_user_and_the_controller_cannot_read_them() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.cli(["settings", "set", "alias.home", "gateway"]).ok().unwrap();
    let tablet = world.device("tablet", "ada").unwrap();
    // The laptop wraps the key for the tablet when it next looks.
    assert!(tablet.cli(["settings"]).ok().unwrap().contains("wait for another of your devices"));
    laptop.cli(["settings"]).ok().unwrap();
    within(Duration::from_secs(30), "the settings arrive", || {
        tablet.cli(["settings"]).ok().ok()?.contains("alias.home").then_some(())
    })
    .unwrap();
    tablet.connect("home").unwrap();
    assert!(connected(&tablet));
}

#[test]
fn a_session_moves_to_another_server_when_its_own_dies() {
    let mut world = World::for_test().unwrap();
    let second = "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"Server\"\nmetadata.name = \"second\"\n[spec]\n\
                  capabilities = [\"vpn\"]\n";
    world.controller.put("second.toml", second).unwrap();
    let policy = "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"AccessPolicy\"\nmetadata.name = \"second\"\n[spec]\n\
                  servers = [\"second\"]\nsubjects.users = [\"ada\"]\n[[spec.destinations]]\ncidr = \"0.0.0.0/0\"\n";
    world.controller.put("second-policy.toml", policy).unwrap();
    let host = world.lab.public_host("second").unwrap();
    let mut other = Appliance::new(host, &world.programs);
    let token =
        within(Duration::from_secs(20), "the server is declared", || world.controller.token("second").ok());
    other.enroll(&token.unwrap()).unwrap();
    other.start().unwrap();
    other.wait_until_applied().unwrap();
    world.wait_until_available("second").unwrap();

    let laptop = world.device("laptop", "ada").unwrap();
    laptop.cli(["connect", "gateway", "--failover"]).ok().unwrap();
    world.appliance.process().unwrap().kill().unwrap();
    within(MOVE, "the session moves", || {
        let status = laptop.status().ok()?;
        (status["phase"] == "connected" && status["server"] == "second").then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", laptop.log()));
    assert_eq!(laptop.status().unwrap()["moved"]["from"], "gateway");
    assert_eq!(seen_by(&laptop, world.web_host.v4()), Some(other.host().v4()));
}
