//! Members of one virtual network reach one another; members of two never do.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use horizon_tests::products::{Client, World, WorldOptions, repository};
use horizon_tests::services::{UdpEcho, udp_ask};

/// The address of a device inside a network, by its first octets.
fn address(client: &Client, prefix: &str) -> IpAddr {
    let addresses = client.host().ip_show("-o -4 addr").unwrap();
    let found = addresses.split_whitespace().find(|word| word.starts_with(prefix));
    found.unwrap_or_else(|| panic!("no {prefix} in\n{addresses}")).split('/').next().unwrap().parse().unwrap()
}

fn reaches(from: &Client, to: SocketAddr) -> bool {
    udp_ask(from.host(), to, b"are you there", Duration::from_millis(500)).unwrap().is_some()
}

#[test]
fn one_network_is_shared_and_two_are_apart() {
    let options = WorldOptions {
        resources: repository().join("examples/game-night"),
        server: "host".to_owned(),
        ..WorldOptions::default()
    };
    let mut world = World::with(&options).unwrap();
    let [mary, john, edith] = ["mary", "john", "edith"].map(|user| {
        let device = world.device(user, user).unwrap();
        device.connect("host").unwrap();
        device
    });
    let echo =
        |client: &Client, prefix| UdpEcho::start(client.host(), address(client, prefix)).unwrap().address();
    let (at_mary, at_john, at_edith) =
        (echo(&mary, "10.101."), echo(&john, "10.101."), echo(&edith, "10.102."));

    assert!(reaches(&mary, at_john) && reaches(&john, at_mary), "one table");
    assert!(!reaches(&mary, at_edith) && !reaches(&edith, at_mary), "two tables");

    // Not even when a member claims to be at the other table: the appliance knows who is where.
    edith.host().ip(&format!("addr add 10.101.0.200/24 dev {}", tunnel(&edith))).unwrap();
    edith
        .host()
        .ip(&format!("route replace {} dev {} src 10.101.0.200", at_mary.ip(), tunnel(&edith)))
        .unwrap();
    assert!(!reaches(&edith, at_mary), "a spoofed source");
}

/// The device that carries a network.
fn tunnel(client: &Client) -> String {
    let links = client.host().ip_show("-o link show type tun").unwrap();
    links.split(':').nth(1).unwrap().trim().to_owned()
}
