//! Who sits at the other end of an SSH connection must not saw off the branch.

use std::time::Duration;

use horizon_tests::lab::{eventually, within};
use horizon_tests::products::World;
use horizon_tests::services::{UdpEcho, udp_ask};

use super::{connected, seen_by};

#[test]
fn an_ssh_login_stays_reachable_and_the_connection_reverts_unless_confirmed() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    let admin = world.lab.public_host("admin").unwrap();
    let ssh = format!("{} 50000 {} 22", admin.v4(), laptop.host().v4());
    let output = laptop.cli(["connect", "gateway"]).env("SSH_CONNECTION", &ssh).ok().unwrap();
    assert!(
        output.contains("reverted") && output.contains("horizon confirm"),
        "it says what will happen: {output}"
    );
    assert_eq!(seen_by(&laptop, world.web_host.v4()), Some(world.appliance.host().v4()));

    // Packets to the administrator go the old way: the home's router, not the appliance, is whom they come from.
    let route = laptop.host().ip_show(&format!("route get {}", admin.v4())).unwrap();
    assert!(route.contains("eth0"), "{route}");
    let echo = UdpEcho::start(&admin, admin.v4()).unwrap();
    eventually("the administrator answers", || {
        udp_ask(laptop.host(), echo.address(), b"still there", Duration::from_secs(5)).unwrap()
    })
    .unwrap();

    within(Duration::from_secs(90), "the connection is reverted", || (!connected(&laptop)).then_some(()))
        .unwrap();
    assert_eq!(seen_by(&laptop, world.web_host.v4()), Some(world.home.router().v4()));
}
