//! Personal keys are replaced: on schedule nobody notices, at once everybody does.

use std::time::Duration;

use horizon_tests::lab::{eventually, within};
use horizon_tests::products::{Client, World};
use horizon_tests::services::{Probe, Stream, TcpEcho, WhoAmI};

use super::{GAP, PROMPTLY, connected, tokens::names, wait_until_ended};

fn personal_key(world: &World) -> String {
    names(&world.controller.cli(["get", "personalkeys", "-o", "json"]).ok().unwrap()).pop().unwrap()
}

fn status(world: &World, key: &str) -> serde_json::Value {
    world.controller.get("personalkey", key).unwrap()["status"].clone()
}

/// Whether a scheduled rotation of a key is over, and every device has the new one.
pub(crate) fn settled(world: &World, key: &str) -> bool {
    let status = status(world, key);
    status["rotations"] == 1 && status["phase"] == "active"
}

/// A device with a running service and no key.
fn stranger(world: &mut World, name: &str) -> Client {
    let mut client = Client::new(world.home.host(name).unwrap(), &world.programs);
    client.start().unwrap();
    client
}

#[test]
fn a_scheduled_rotation_breaks_no_flow_and_the_old_key_ends() {
    let mut world = World::for_test().unwrap();
    let mut laptop = Client::new(world.home.host("laptop").unwrap(), &world.programs);
    laptop.start().unwrap();
    let old = world.controller.invite("ada").unwrap();
    laptop.add_key(&old).unwrap();
    laptop.connect("gateway").unwrap();
    let who = WhoAmI::start(&world.web_host).unwrap();
    let mut probe = Probe::new(laptop.host(), &who).unwrap();
    let key = personal_key(&world);
    world.controller.cli(["rotate", "personalkey", &key, "--reason", "every now and then"]).ok().unwrap();

    // A packet every millisecond while the key is made, delivered, confirmed, and the old one ends.
    let appliance = world.appliance.host().v4();
    let gap = probe.longest_silence(Duration::from_secs(60), appliance, || settled(&world, &key)).unwrap();
    assert!(gap < GAP, "the longest silence was {gap:?}");
    assert!(connected(&laptop));
    assert_eq!(laptop.status().unwrap()["keyNotice"], serde_json::Value::Null);

    // The string that was pasted then enrols nothing any more; the device goes on.
    let refusal =
        stranger(&mut world, "stranger").cli(["key", "add"]).stdin(format!("{old}\n")).refused().unwrap();
    assert!(refusal.contains("replaced"), "{refusal}");
    laptop.disconnect().unwrap();
    laptop.connect("gateway").unwrap();
    let rotations = world.controller.cli(["get", "keyrotations", "-o", "json"]).ok().unwrap();
    assert!(rotations.contains("\"completed\""), "{rotations}");
}

#[test]
fn verification_secrets_rotate_under_a_flow_and_no_tunnel_ends() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    let session = laptop.status().unwrap()["session"]["id"].clone();
    let stream =
        Stream::start(laptop.host(), &TcpEcho::start(&world.web_host, world.web_host.v4()).unwrap()).unwrap();
    let who = WhoAmI::start(&world.web_host).unwrap();
    let mut probe = Probe::new(laptop.host(), &who).unwrap();
    let appliance = world.appliance.host().v4();
    let held = |condition: &str| {
        let status = world.controller.get("server", "gateway").unwrap()["status"].clone();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == condition && c["status"] == "True")
    };
    for round in 1..=3 {
        world
            .controller
            .cli(["rotate", "secrets", "gateway", "--reason", "every now and then"])
            .ok()
            .unwrap();
        let settled = || {
            let list = world.controller.cli(["get", "keyrotations", "-o", "json"]).ok().unwrap();
            list.matches("\"completedAt\"").count() == round && held("Online") && held("Verified")
        };
        let gap = probe.longest_silence(PROMPTLY, appliance, settled).unwrap();
        assert!(gap < GAP, "the longest silence was {gap:?}");
        assert_eq!(laptop.status().unwrap()["session"]["id"], session, "no session is touched");
    }
    stream.stands().unwrap();
    let events = world.controller.cli(["get", "events", "-o", "json"]).ok().unwrap();
    for wrong in ["heartbeat_failed", "challenge_failed"] {
        assert!(!events.contains(wrong), "{events}");
    }
}

#[test]
fn an_emergency_ends_the_session_until_the_new_key_is_entered() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    let key = personal_key(&world);
    let said = world
        .controller
        .cli(["rotate", "personalkey", &key, "--emergency", "--reason", "left in a train"])
        .ok()
        .unwrap();
    wait_until_ended(&laptop);
    let shown = within(PROMPTLY, "the client says what is to be done", || {
        let text = laptop.cli(["status"]).ok().ok()?;
        text.contains("manual rotation is required").then_some(text)
    })
    .unwrap();
    assert!(shown.contains("left in a train") && shown.contains("horizon key enter"), "{shown}");
    let refusal = laptop.cli(["connect", "gateway"]).refused().unwrap();
    assert!(refusal.contains("replaced"), "{refusal}");
    let shown = eventually("the status says it", || {
        let status = status(&world, &key);
        let conditions = status["conditions"].as_array()?.clone();
        let required = conditions.into_iter().find(|c| c["type"] == "ManualRotationRequired")?;
        (required["status"] == "True").then_some(status)
    });
    shown.unwrap();

    let new = said.lines().find(|line| line.starts_with("hzn-key-")).expect("the new string is shown");
    laptop.cli(["key", "enter"]).stdin(format!("{new}\n")).ok().unwrap();
    laptop.connect("gateway").unwrap();
    let text = laptop.cli(["status"]).ok().unwrap();
    assert!(!text.contains("manual rotation"), "{text}");
}

#[test]
fn a_key_is_handed_over_with_a_string_and_a_code() {
    let mut world = World::for_test().unwrap();
    let unused = world.controller.invite("ada").unwrap();
    let key = personal_key(&world);
    let made = world.controller.cli(["handover", "personalkey", &key]).ok().unwrap();
    let mut lines = made.lines();
    let string = lines.find(|line| line.starts_with("hzn-hand-")).unwrap().to_owned();
    let code = lines.next().unwrap().to_owned();
    let client = stranger(&mut world, "laptop");
    let wrong = client.cli(["key", "add"]).stdin(format!("{string}\nAAAA-AAAA\n")).refused().unwrap();
    assert!(wrong.contains("4 tries"), "{wrong}");
    client.cli(["key", "add"]).stdin(format!("{string}\n{code}\n")).ok().unwrap();
    client.connect("gateway").unwrap();
    // What was shown before the hand-over is worth nothing any more, and neither is the hand-over.
    let other = stranger(&mut world, "other");
    other.cli(["key", "add"]).stdin(format!("{unused}\n")).refused().unwrap();
    other.cli(["key", "add"]).stdin(format!("{string}\n{code}\n")).refused().unwrap();
}
