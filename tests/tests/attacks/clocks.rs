//! Clocks that lie, by a year.

use horizon_tests::lab::{Lab, within};
use horizon_tests::products::{Clock, Programs, World, WorldOptions};
use jiff::Timestamp;

use super::{SOON, assert_served};

#[test]
fn appliances_and_devices_whose_clocks_are_a_year_off_are_served() {
    for (of_appliance, of_client) in [("+365d", "-365d"), ("-365d", "+365d")] {
        let lab = Lab::new().unwrap();
        let mut programs = Programs::for_tests().unwrap().clone();
        let clock = |name: &str, offset| Clock::new(lab.dir().join(name), offset).unwrap();
        programs.appliance = clock("appliance-clock", of_appliance).on(&programs.appliance).unwrap();
        programs.client = clock("client-clock", of_client).on(&programs.client).unwrap();
        let mut world = World::start(lab, programs, &WorldOptions::default()).unwrap();
        assert!(is_a_year_off(&world.appliance.process().unwrap().log()));
        assert!(!is_a_year_off(&world.controller.process().unwrap().log()));
        assert_served(&mut world, "laptop");
        // What a machine thinks of the time is no reason to doubt it.
        let events = world.controller.cli(["get", "events"]).ok().unwrap();
        assert!(!events.contains("quarantine") && !events.contains("replayed"), "{events}");
        world.appliance.process().unwrap().stop().unwrap();
        world.appliance.start().unwrap();
        world.appliance.wait_until_applied().unwrap();
        world.wait_until_available("gateway").unwrap();
        assert_served(&mut world, "tablet");
    }
}

/// Whether what a program logged first is a year away from now.
fn is_a_year_off(log: &str) -> bool {
    const MOST_OF_A_YEAR: i64 = 300 * 24;
    let first = log.split_whitespace().find_map(|word| word.parse::<Timestamp>().ok());
    let first = first.unwrap_or_else(|| panic!("no time in {log}"));
    first.duration_since(Timestamp::now()).as_hours().abs() > MOST_OF_A_YEAR
}

/// What was written and counted while the clock was early keeps nobody out for the year that it was early by.
#[test]
fn a_controller_whose_clock_was_a_year_early_serves_on_when_it_is_set_right() {
    let lab = Lab::new().unwrap();
    let mut programs = Programs::for_tests().unwrap().clone();
    let clock = Clock::new(lab.dir().join("controller-clock"), "+365d").unwrap();
    programs.controller = clock.on(&programs.controller).unwrap();
    let mut world = World::start(lab, programs, &WorldOptions::default()).unwrap();
    assert!(is_a_year_off(&world.controller.process().unwrap().log()));
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    clock.set("+0").unwrap();
    assert_served(&mut world, "tablet");
    within(SOON, "whoever was connected is again", || {
        laptop.cli(["connect", "gateway", "--take-over"]).ok().ok()?;
        (laptop.status().ok()?["phase"] == "connected").then_some(())
    })
    .unwrap();
    world.controller.process().unwrap().stop().unwrap();
    world.controller.start().unwrap();
    world.wait_until_available("gateway").unwrap();
    assert_served(&mut world, "phone");
}
