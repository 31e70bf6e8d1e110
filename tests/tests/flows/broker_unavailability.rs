//! Broker Unavailability Handling.

use horizon_tests::lab::within;
use horizon_tests::products::World;
use horizon_tests::services::http_get;

use crate::kit::{RETURN, Seen, connected, soon, step, told};

#[test]
fn server_behavior() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    let egress = world.appliance.host().v4().to_string();
    world.controller.process().unwrap().kill().unwrap();

    step("If serving client: continue operation normally", || {
        assert_eq!(http_get(laptop.host(), world.web_host.v4()).unwrap(), egress);
    });
    step("If idle: enter standby mode with periodic broker reconnection attempts", || {
        laptop.disconnect().unwrap();
        soon("it stands by, and says when it tries again", || {
            let controller = &told(&world.appliance)["controller"];
            controller["connected"] == false && controller["nextAttempt"].is_string()
        });
    });
    step("Handle broker unavailability gracefully without crashing", || {
        assert!(world.appliance.process().unwrap().running());
    });
    step("Store last known good state for recovery", || {
        world.appliance.process().unwrap().kill().unwrap();
        world.appliance.start().unwrap();
        world.appliance.wait_until_applied().unwrap();
    });
    step("Resume normal operation when broker returns online", || {
        world.controller.start().unwrap();
        within(RETURN, "the appliance is back", || {
            (world.controller.condition("server", "gateway", "Online") == Some(true)
                && world.controller.status("server", "gateway", "/phase") == "active")
                .then_some(())
        })
        .unwrap();
    });
}

#[test]
fn client_behavior() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    let tablet = world.device("tablet", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    world.controller.process().unwrap().kill().unwrap();

    step("Maintain current connection if active", || {
        let egress = world.appliance.host().v4().to_string();
        assert_eq!(http_get(laptop.host(), world.web_host.v4()).unwrap(), egress);
        assert!(connected(&laptop));
    });
    step("Cannot establish new connections during broker unavailability", || {
        let refusal = tablet.cli(["connect", "gateway"]).refused().unwrap();
        assert!(refusal.contains("controller"), "{refusal}");
    });
    step("Continue broker reconnection attempts", || {
        world.controller.start().unwrap();
        within(RETURN, "it connects without being started again", || {
            let output = tablet.cli(["connect", "gateway", "--take-over"]).run().ok()?;
            output.success().then_some(())
        })
        .unwrap();
    });
}
