//! The organisation's own keys rotate: nobody notices, and whoever was away finds back.

use std::time::Duration;

use horizon_tests::lab::{eventually, within};
use horizon_tests::products::{Client, World};
use horizon_tests::services::{Probe, WhoAmI};

use super::{GAP, PROMPTLY, connect_eventually, connected};

fn status(world: &World) -> serde_json::Value {
    let text = world.controller.cli(["status", "-o", "json"]).ok().unwrap();
    serde_json::from_str(&text).unwrap()
}

fn keyset(world: &World) -> u64 {
    status(world)["keyset"].as_u64().unwrap()
}

#[test]
fn every_key_of_the_organisation_rotates_and_no_flow_breaks() {
    let mut world = World::for_test().unwrap();
    let mut laptop = Client::new(world.home.host("laptop").unwrap(), &world.programs);
    laptop.start().unwrap();
    laptop.add_key(&world.controller.invite("ada").unwrap()).unwrap();
    laptop.connect("gateway").unwrap();
    let who = WhoAmI::start(&world.web_host).unwrap();
    let mut probe = Probe::new(laptop.host(), &who).unwrap();
    assert_eq!(keyset(&world), 1);
    let rotate =
        ["rotate", "keys", "--class", "tls,state,ticket,root", "--overlap", "2s", "--reason", "every year"];
    world.controller.cli(rotate).ok().unwrap();

    // A packet every millisecond while each key is published, used and retired: three steps for each, and one for the root.
    let appliance = world.appliance.host().v4();
    let settled = || {
        let status = status(&world);
        status["rotations"].as_array().is_some_and(Vec::is_empty) && status["keyset"] == 11
    };
    let gap = probe.longest_silence(Duration::from_secs(90), appliance, settled).unwrap();
    assert!(gap < GAP, "the longest silence was {gap:?}");
    assert!(connected(&laptop));
    // Everybody who is connected holds the newest, and what was handed out before goes on to work.
    let text = eventually("all hold the newest", || {
        let text = world.controller.cli(["status"]).ok().ok()?;
        text.contains("KeySet 11, held by 1 appliance and 1 device").then_some(text)
    });
    text.unwrap();
    laptop.disconnect().unwrap();
    laptop.connect("gateway").unwrap();
    let done = world.controller.cli(["get", "keyrotations", "-o", "json"]).ok().unwrap();
    assert!(done.contains("\"completed\""), "{done}");

    // The keys are those of the newest KeySet after a restart too.
    world.controller.process().unwrap().kill().unwrap();
    world.controller.start().unwrap();
    world.wait_until_available("gateway").unwrap();
    assert_eq!(keyset(&world), 11);
    assert!(connected(&laptop));

    // The audit trail tells of it, and is as it was written.
    within(PROMPTLY, "the trail is sealed and verified", || {
        let said = world.controller.cli(["audit", "verify"]).ok().ok()?;
        said.contains("is as it was written").then_some(())
    })
    .unwrap();
}

#[test]
fn an_appliance_that_was_off_during_three_rotations_comes_back() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    world.appliance.process().unwrap().kill().unwrap();
    for _ in 0..3 {
        let before = keyset(&world);
        let rotate =
            ["rotate", "keys", "--class", "state,tls,root", "--emergency", "--reason", "a stolen backup"];
        world.controller.cli(rotate).ok().unwrap();
        within(PROMPTLY, "the keys are replaced", || (keyset(&world) == before + 3).then_some(())).unwrap();
    }
    world.appliance.start().unwrap();
    world.wait_until_available("gateway").unwrap();
    connect_eventually(&laptop, "gateway");
    assert_eq!(keyset(&world), 10);
}
