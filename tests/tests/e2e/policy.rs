//! What is declared is enforced, on live sessions too.

use horizon_tests::lab::{eventually, within};
use horizon_tests::products::World;
use horizon_tests::services::WebServer;

use super::{PROMPTLY, READ_LIMIT, connected, seen_by, wait_until_ended};

#[test]
fn traffic_leaves_under_the_appliances_addresses_and_never_the_clients() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    let (gateway, web) = (world.appliance.host(), &world.web_host);
    assert_eq!(seen_by(&laptop, web.v4()), Some(gateway.v4()));
    assert_eq!(seen_by(&laptop, web.v6()), Some(gateway.v6()));
    assert_eq!(world.web.visitors(), [gateway.v4(), gateway.v6()]);
    laptop.disconnect().unwrap();
    assert_eq!(seen_by(&laptop, web.v4()), Some(world.home.router().v4()));
}

#[test]
fn removing_a_user_from_a_policy_ends_the_session() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    world.controller.edit("user.toml", "\"friends\"", "\"strangers\"").unwrap();
    wait_until_ended(&laptop);
    let refusal = laptop.cli(["connect", "gateway"]).refused().unwrap();
    assert!(refusal.contains("AccessPolicy") && refusal.contains("gateway"), "{refusal}");
    assert!(refusal.contains("apiVersion"), "the document that would allow it: {refusal}");
}

#[test]
fn a_forbidden_destination_is_dropped_at_the_appliance_and_the_rest_goes_on() {
    let mut world = World::for_test().unwrap();
    let other_host = world.lab.public_host("other").unwrap();
    let other = WebServer::start(&other_host).unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    assert!(seen_by(&laptop, other_host.v4()).is_some());

    world.controller.edit("policy.toml", "0.0.0.0/0", &format!("{}/32", world.web_host.v4())).unwrap();
    // The client's own time-out is in here too.
    within(PROMPTLY + READ_LIMIT, "the other web server is out of reach", || {
        seen_by(&laptop, other_host.v4()).is_none().then_some(())
    })
    .unwrap();
    let visits = other.visitors().len();
    assert_eq!(seen_by(&laptop, other_host.v4()), None);
    assert_eq!(other.visitors().len(), visits, "not a packet arrived");
    assert!(connected(&laptop));
    assert_eq!(seen_by(&laptop, world.web_host.v4()), Some(world.appliance.host().v4()));
}

#[test]
fn suspending_a_user_ends_the_session_and_keeps_the_device() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    let file = world.controller.file("user.toml").unwrap();
    world.controller.put("user.toml", &format!("{file}suspended = true\n")).unwrap();
    wait_until_ended(&laptop);
    world.controller.put("user.toml", &file).unwrap();
    within(PROMPTLY, "Ada may connect again", || laptop.connect("gateway").ok()).unwrap();
}

#[test]
fn a_server_in_maintenance_keeps_its_sessions_and_takes_no_new_ones() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    let file = world.controller.file("server.toml").unwrap();
    world
        .controller
        .put("server.toml", &format!("{file}\n[spec.lifecycle]\nstate = \"maintenance\"\n"))
        .unwrap();
    eventually("the phase shows it", || {
        (world.controller.get("server", "gateway").ok()?["status"]["phase"] == "maintenance").then_some(())
    })
    .unwrap();
    assert_eq!(seen_by(&laptop, world.web_host.v4()), Some(world.appliance.host().v4()));
    laptop.disconnect().unwrap();
    let refusal = laptop.cli(["connect", "gateway"]).refused().unwrap();
    assert!(refusal.contains("maintenance"), "{refusal}");
}
