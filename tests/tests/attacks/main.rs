//! Attacks on the real programs, from outside: what a hostile network, a hostile author of documents and a hostile machine
//! can send. The programs go on to serve the others.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod authors;
mod clocks;
mod slow;
mod words;

use std::time::Duration;

use horizon_tests::lab::within;
use horizon_tests::products::World;
use horizon_tests::services::http_get;

/// Within which time those who mean well are served.
const SOON: Duration = Duration::from_secs(60);

/// Asserts that a new person can enrol a device, connect, and reach the web server.
#[track_caller]
fn assert_served(world: &mut World, device: &str) {
    let device = world.device(device, "ada").unwrap();
    // An appliance that was started again may still be on its way to the controller.
    within(SOON, "it is let in", || device.cli(["connect", "gateway", "--take-over"]).ok().ok()).unwrap();
    let egress = world.appliance.host().v4().to_string();
    let served = || (http_get(device.host(), world.web_host.v4()).ok()? == egress).then_some(());
    within(SOON, "traffic passes", served)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", world.controller.log()));
}
