//! However narrow the path is or becomes, nothing disappears in it.

use std::net::SocketAddr;
use std::time::Duration;

use horizon_tests::lab::eventually;
use horizon_tests::products::{Client, World};
use horizon_tests::services::{UdpEcho, http, udp_ask};

/// Whether a megabyte comes back within the web server's patience.
fn megabyte(client: &Client, world: &World) -> Option<()> {
    let to = SocketAddr::new(world.web_host.v4(), 80);
    http(client.host(), to, "/large").is_ok_and(|(_, body)| body.len() > 1 << 20).then_some(())
}

/// Narrows the way between the home and the internet.
fn narrow(world: &World, mtu: u16) {
    world.home.router().ip(&format!("link set eth0 mtu {mtu}")).unwrap();
}

#[test]
fn large_answers_and_large_packets_pass_a_narrow_path() {
    let mut world = World::for_test().unwrap();
    narrow(&world, 1300);
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    eventually("a megabyte comes through", || megabyte(&laptop, &world)).unwrap();

    // Three IP fragments inside the tunnel.
    let echo = UdpEcho::start(&world.web_host, world.web_host.v4()).unwrap();
    let large = vec![7; 3500];
    // One that is lost, as any datagram may be, proves nothing.
    eventually("large packets come back", || {
        let answer = udp_ask(laptop.host(), echo.address(), &large, Duration::from_secs(5)).unwrap()?;
        (answer == large).then_some(())
    })
    .unwrap();
}

#[test]
fn a_path_that_becomes_narrow_under_a_connection_is_noticed() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    eventually("a megabyte comes through", || megabyte(&laptop, &world)).unwrap();
    narrow(&world, 1300);
    eventually("a megabyte comes through the narrower path", || megabyte(&laptop, &world)).unwrap();
}
