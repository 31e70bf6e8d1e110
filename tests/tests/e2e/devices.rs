//! Devices that an administrator decides about, settings between devices, and a session that moves when its server dies.

use std::time::Duration;

use horizon_tests::lab::within;
use horizon_tests::products::{Appliance, World};
use serde_json::Value;

use super::{PROMPTLY, connected, rotation::settled, seen_by, tokens::names, wait_until_ended};

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
    within(PROMPTLY, "the settings arrive", || {
        tablet.cli(["settings"]).ok().ok()?.contains("alias.home").then_some(())
    })
    .unwrap();
    tablet.connect("home").unwrap();
    assert!(connected(&tablet));

    // They outlive the keys that made the devices Ada's.
    let keys = names(&world.controller.cli(["get", "personalkeys", "-o", "json"]).ok().unwrap());
    for key in &keys {
        world.controller.cli(["rotate", "personalkey", key, "--reason", "every now and then"]).ok().unwrap();
    }
    for key in &keys {
        within(PROMPTLY, "the key is rotated", || settled(&world, key).then_some(())).unwrap();
    }
    tablet.cli(["settings", "set", "alias.quokka-burrow", "gateway"]).ok().unwrap();
    within(PROMPTLY, "what the other device set arrives", || {
        let shown = laptop.cli(["settings"]).ok().ok()?;
        (shown.contains("alias.home") && shown.contains("alias.quokka-burrow")).then_some(())
    })
    .unwrap();

    // Nothing of them is anywhere in what the controller keeps.
    let mut looked_at = 0;
    for entry in std::fs::read_dir(world.controller.config().with_file_name("data")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(13).any(|found| found == b"quokka-burrow"), "{}", path.display());
            looked_at += 1;
        }
    }
    assert!(looked_at > 0, "the database is in files");
}

/// Declares and starts a second server, which Ada may use; the policy that lets her has more to say.
fn second_server(world: &mut World, more: &str) -> Appliance {
    let second = "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"Server\"\nmetadata.name = \"second\"\n[spec]\n\
                  capabilities = [\"vpn\"]\n";
    world.controller.put("second.toml", second).unwrap();
    let policy = format!(
        "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"AccessPolicy\"\nmetadata.name = \"second\"\n[spec]\n\
         servers = [\"*\"]\nsubjects.users = [\"ada\"]\n{more}\n[[spec.destinations]]\ncidr = \"0.0.0.0/0\"\n"
    );
    world.controller.put("second-policy.toml", &policy).unwrap();
    let host = world.lab.public_host("second").unwrap();
    let mut other = Appliance::new(host, &world.programs);
    let token = within(PROMPTLY, "the server is declared", || world.controller.token("second").ok());
    other.enroll(&token.unwrap()).unwrap();
    other.start().unwrap();
    other.wait_until_applied().unwrap();
    world.wait_until_available("second").unwrap();
    other
}

#[test]
fn a_session_moves_to_another_server_when_its_own_dies() {
    let mut world = World::for_test().unwrap();
    let other = second_server(&mut world, "");
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

#[test]
fn a_policy_requires_failover_of_who_did_not_ask_for_it() {
    let mut world = World::for_test().unwrap();
    let other = second_server(&mut world, "failover = \"required\"");
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    world.appliance.process().unwrap().kill().unwrap();
    within(MOVE, "the session moves", || {
        let status = laptop.status().ok()?;
        (status["phase"] == "connected" && status["server"] == "second").then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", laptop.log()));
    assert_eq!(seen_by(&laptop, world.web_host.v4()), Some(other.host().v4()));
}

#[test]
fn a_policy_forbids_failover_and_the_session_stays_down_and_says_why() {
    let mut world = World::for_test().unwrap();
    let _other = second_server(&mut world, "failover = \"never\"");
    let laptop = world.device("laptop", "ada").unwrap();
    let refused = laptop.cli(["connect", "gateway", "--failover"]).refused().unwrap();
    assert!(refused.contains("a policy of your organisation forbids failover from gateway"), "{refused}");
    // The liking in one's settings gives way.
    laptop.cli(["settings", "set", "failover", "on"]).ok().unwrap();
    laptop.connect("gateway").unwrap();
    world.appliance.process().unwrap().kill().unwrap();
    // The controller knows that the server is away, by which a session that may move has moved.
    let reason = within(MOVE * 2, "the session says why it stays", || {
        let status = laptop.status().ok()?;
        let since = status["session"]["pathlessSeconds"].as_u64()?;
        let reason = status["failure"]["remedy"].as_str()?.to_owned();
        (status["phase"] == "reconnecting" && since >= 30).then_some(reason)
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", laptop.log()));
    assert!(reason.contains("forbids failover"), "{reason}");
    assert_eq!(laptop.status().unwrap()["server"], "gateway");
}
