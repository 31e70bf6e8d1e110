//! One access connection per user, which another device may take over.

use horizon_tests::products::World;

use super::{connected, seen_by, wait_until_ended};

#[test]
fn a_second_device_is_told_who_is_connected_and_takes_over_when_asked() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    let tablet = world.device("tablet", "ada").unwrap();
    laptop.connect("gateway").unwrap();

    let refusal = tablet.cli(["connect", "gateway"]).refused().unwrap();
    assert!(refusal.contains("laptop") && refusal.contains("--take-over"), "{refusal}");
    assert!(connected(&laptop) && !connected(&tablet));

    tablet.cli(["connect", "gateway", "--take-over"]).ok().unwrap();
    wait_until_ended(&laptop);
    let egress = Some(world.appliance.host().v4());
    assert_eq!(seen_by(&tablet, world.web_host.v4()), egress);
}

#[test]
fn the_same_device_reconnects_without_a_conflict() {
    let mut world = World::for_test().unwrap();
    let mut laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    laptop.service().unwrap().kill().unwrap();
    laptop.start().unwrap();
    if !connected(&laptop) {
        laptop.connect("gateway").unwrap();
    }
    assert_eq!(seen_by(&laptop, world.web_host.v4()), Some(world.appliance.host().v4()));
}
