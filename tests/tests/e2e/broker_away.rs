//! The controller is away: what is, goes on; what is not, waits.

use horizon_tests::lab::eventually;
use horizon_tests::products::World;

use super::{connect_eventually, connected, seen_by};

#[test]
fn sessions_live_on_new_ones_are_refused_and_all_returns() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    let tablet = world.device("tablet", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    world.controller.process().unwrap().kill().unwrap();

    let egress = Some(world.appliance.host().v4());
    assert_eq!(seen_by(&laptop, world.web_host.v4()), egress, "a live session continues");
    let refusal = tablet.cli(["connect", "gateway"]).refused().unwrap();
    assert!(refusal.contains("controller"), "{refusal}");

    // The appliance comes back into its last good state, with the session in it.
    world.appliance.process().unwrap().kill().unwrap();
    world.appliance.start().unwrap();
    world.appliance.wait_until_applied().unwrap();
    eventually("the session continues", || (seen_by(&laptop, world.web_host.v4()) == egress).then_some(()))
        .unwrap();

    world.controller.start().unwrap();
    world.wait_until_available("gateway").unwrap();
    assert!(connected(&laptop));
    laptop.disconnect().unwrap();
    connect_eventually(&tablet, "gateway");
    assert_eq!(seen_by(&tablet, world.web_host.v4()), egress);
}

#[test]
fn what_was_acknowledged_before_a_kill_is_there_after_it() {
    let mut world = World::for_test().unwrap();
    let token = world.controller.token("gateway");
    let key = world.controller.invite("ada").unwrap();
    world.controller.process().unwrap().kill().unwrap();
    world.controller.start().unwrap();
    world.wait_until_available("gateway").unwrap();
    // A server that has its appliance may refuse a second token; if it gave one, it must still know it.
    if token.is_ok() {
        assert!(world.controller.cli(["get", "registrationkeys"]).ok().unwrap().contains("gateway"));
    }
    let mut laptop =
        horizon_tests::products::Client::new(world.home.host("laptop").unwrap(), &world.programs);
    laptop.start().unwrap();
    laptop.add_key(&key).unwrap();
    connect_eventually(&laptop, "gateway");
}

#[test]
fn a_change_made_while_the_appliance_was_away_reaches_it_on_return() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    world.appliance.process().unwrap().kill().unwrap();
    world.controller.edit("policy.toml", "0.0.0.0/0", "192.0.2.0/24").unwrap();
    world.appliance.start().unwrap();
    world.wait_until_available("gateway").unwrap();
    eventually("the destination is forbidden", || {
        seen_by(&laptop, world.web_host.v4()).is_none().then_some(())
    })
    .unwrap();
}
