//! While connected, names are asked through the tunnel; afterwards everything is as before, whatever ended it.

use std::net::Ipv4Addr;

use horizon_tests::lab::{eventually, within};
use horizon_tests::products::{Client, World};
use horizon_tests::services::{NameServer, resolve};

use super::PROMPTLY;

const AT_HOME: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const BEHIND_THE_GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// A laptop that asks the home's router for names, and a gateway that tells its clients to ask the web server's host.
fn world() -> (World, Client, NameServer) {
    let mut world = World::for_test().unwrap();
    let home = world.home.router();
    NameServer::start(home, AT_HOME).unwrap();
    let far = NameServer::start(&world.web_host, BEHIND_THE_GATEWAY).unwrap();
    let server = world.controller.file("server.toml").unwrap();
    let dns = format!("{server}\n[spec.egress]\ndns = [\"{}\"]\n", world.web_host.v4());
    world.controller.put("server.toml", &dns).unwrap();
    let resolver =
        format!("# written by hand\nnameserver {}\nsearch home.example\n", world.home.router().v4());
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.host().write("/etc/resolv.conf", resolver).unwrap();
    (world, laptop, far)
}

#[test]
fn names_go_through_the_tunnel_and_the_old_resolver_returns() {
    let (world, laptop, far) = world();
    let before = laptop.host().read("/etc/resolv.conf").unwrap();
    assert_eq!(resolve(laptop.host(), "example.org").unwrap(), Some(AT_HOME));
    within(PROMPTLY, "connected with the gateway's resolver", || {
        laptop.connect("gateway").ok();
        (resolve(laptop.host(), "example.org").ok()? == Some(BEHIND_THE_GATEWAY)).then_some(())
    })
    .unwrap();
    assert_eq!(far.askers().last(), Some(&world.appliance.host().v4()), "asked through the tunnel");
    laptop.disconnect().unwrap();
    assert_eq!(laptop.host().read("/etc/resolv.conf").unwrap(), before);
    assert_eq!(resolve(laptop.host(), "example.org").unwrap(), Some(AT_HOME));
}

#[test]
fn the_old_resolver_returns_after_a_kill() {
    let (_world, mut laptop, _far) = world();
    let before = laptop.host().read("/etc/resolv.conf").unwrap();
    within(PROMPTLY, "connected with the gateway's resolver", || {
        laptop.connect("gateway").ok();
        (laptop.host().read("/etc/resolv.conf").ok()? != before).then_some(())
    })
    .unwrap();
    laptop.service().unwrap().kill().unwrap();
    // Either something that outlived the service repairs it, or the service's next start.
    let repaired = |laptop: &Client| (laptop.host().read("/etc/resolv.conf").ok()? == before).then_some(());
    if within(PROMPTLY, "repaired at once", || repaired(&laptop)).is_err() {
        laptop.start().unwrap();
        eventually("repaired by the next start", || repaired(&laptop)).unwrap();
    }
}
