use std::net::IpAddr;

use super::*;
use crate::{
    rules::{DestinationRule, DestinationRules, RuleProtocol},
    test_packets::{echo, tcp as tcp_packet, udp},
};

const LAN: NetworkId = NetworkId(1);
const OTHER_LAN: NetworkId = NetworkId(2);

struct World {
    forwarder: Forwarder,
    now: Instant,
}

fn attachment(network: NetworkId, addresses: &[&str], inbound: Inbound) -> Attachment {
    Attachment {
        network,
        peer_addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        from_peer: DestinationRules::allow_all(),
        inbound,
    }
}

impl World {
    /// An appliance with the access network and two virtual networks.
    fn new() -> Self {
        let mut forwarder = Forwarder::default();
        forwarder.set_network(NetworkConfig { id: NetworkId::ACCESS, delivery: Delivery::Tun });
        for id in [LAN, OTHER_LAN] {
            forwarder.set_network(NetworkConfig { id, delivery: Delivery::Switch });
        }
        Self { forwarder, now: Instant::now() }
    }

    fn session(&mut self, slot: u32, attachments: Vec<Attachment>) {
        self.forwarder.set_session(Slot(slot), attachments, SessionLimits::default());
    }

    fn from(&mut self, slot: u32, network: NetworkId, bytes: &[u8]) -> Verdict {
        let packet = Packet::parse(bytes).unwrap();
        self.forwarder.from_session(self.now, Slot(slot), network, &packet, bytes)
    }

    fn device(&mut self, bytes: &[u8]) -> Verdict {
        self.forwarder.from_tun(self.now, &Packet::parse(bytes).unwrap())
    }

    fn drops(&self, slot: u32, reason: DropReason) -> u64 {
        self.forwarder.counters(Slot(slot)).drops.get(reason)
    }
}

fn to(slot: u32, network: NetworkId) -> Verdict {
    Verdict::ToSession { slot: Slot(slot), network }
}

#[test]
fn the_access_network_leads_to_the_device_and_back() {
    let mut world = World::new();
    world.session(0, vec![attachment(NetworkId::ACCESS, &["10.9.0.2/32", "fd09::2/128"], Inbound::Any)]);
    let out = udp(("10.9.0.2", 1), ("192.0.2.1", 53), b"query");
    assert_eq!(world.from(0, NetworkId::ACCESS, &out), Verdict::ToTun);
    assert_eq!(world.device(&udp(("192.0.2.1", 53), ("10.9.0.2", 1), b"")), to(0, NetworkId::ACCESS));
    assert_eq!(world.device(&echo("fd09::1", "fd09::2", 128, 1)), to(0, NetworkId::ACCESS));
    assert_eq!(world.device(&echo("10.9.0.1", "10.9.0.3", 8, 1)), Verdict::Drop(DropReason::NoRoute));
    assert_eq!(world.forwarder.counters(Slot(0)).packets_from_peer, 1);
    assert_eq!(world.forwarder.counters(Slot(0)).bytes_from_peer, out.len() as u64);
}

#[test]
fn a_source_that_is_not_the_peers_is_dropped_and_counted() {
    let mut world = World::new();
    world.session(0, vec![attachment(NetworkId::ACCESS, &["10.9.0.2/32"], Inbound::Any)]);
    // Also right after a genuine packet between the same ports.
    assert_eq!(
        world.from(0, NetworkId::ACCESS, &udp(("10.9.0.2", 1), ("192.0.2.1", 53), b"")),
        Verdict::ToTun
    );
    for _ in 0..3 {
        let spoofed = udp(("10.9.0.3", 1), ("192.0.2.1", 53), b"");
        assert_eq!(world.from(0, NetworkId::ACCESS, &spoofed), Verdict::Drop(DropReason::SpoofedSource));
    }
    assert_eq!(world.drops(0, DropReason::SpoofedSource), 3);
}

#[test]
fn a_forbidden_destination_is_answered_at_a_limited_rate() {
    let mut world = World::new();
    let mut only_web = attachment(NetworkId::ACCESS, &["10.9.0.2/32"], Inbound::Any);
    let rule = DestinationRule {
        prefix: "192.0.2.1/32".parse().unwrap(),
        protocol: RuleProtocol::Tcp,
        ports: vec![],
    };
    only_web.from_peer = DestinationRules::new(vec![rule]).unwrap();
    world.session(0, vec![only_web.clone()]);
    let good = tcp_packet(("10.9.0.2", 1), ("192.0.2.1", 80), tcp::ACK, 1, &[], b"");
    assert_eq!(world.from(0, NetworkId::ACCESS, &good), Verdict::ToTun);
    let bad = tcp_packet(("10.9.0.2", 1), ("192.0.2.9", 80), tcp::ACK, 1, &[], b"");
    let Verdict::Reply { message, reason } = world.from(0, NetworkId::ACCESS, &bad) else { panic!() };
    assert_eq!(reason, DropReason::Forbidden);
    assert_eq!(Packet::parse(&message).unwrap().destination, "10.9.0.2".parse::<IpAddr>().unwrap());
    let replies =
        (0..1000).filter(|_| matches!(world.from(0, NetworkId::ACCESS, &bad), Verdict::Reply { .. })).count();
    assert!(replies < 100);
    assert_eq!(world.drops(0, DropReason::Forbidden), 1001);

    // Narrowing takes effect at once, also on a flow that was just allowed; counters stay.
    only_web.from_peer = DestinationRules::default();
    world.session(0, vec![only_web]);
    assert!(!matches!(world.from(0, NetworkId::ACCESS, &good), Verdict::ToTun));
    assert_eq!(world.drops(0, DropReason::Forbidden), 1002);
}

#[test]
fn networks_never_meet() {
    let mut world = World::new();
    world.session(0, vec![attachment(LAN, &["10.1.0.1/32"], Inbound::Any)]);
    world.session(1, vec![attachment(LAN, &["10.1.0.2/32"], Inbound::Any)]);
    // The same addresses exist in the other network.
    world.session(2, vec![attachment(OTHER_LAN, &["10.1.0.1/32"], Inbound::Any)]);
    world.session(3, vec![attachment(OTHER_LAN, &["10.1.0.3/32"], Inbound::Any)]);
    assert_eq!(world.from(0, LAN, &echo("10.1.0.1", "10.1.0.2", 8, 1)), to(1, LAN));
    assert_eq!(world.from(1, LAN, &echo("10.1.0.2", "10.1.0.1", 0, 1)), to(0, LAN));
    assert_eq!(world.from(3, OTHER_LAN, &echo("10.1.0.3", "10.1.0.1", 8, 1)), to(2, OTHER_LAN));
    assert_eq!(world.from(0, LAN, &echo("10.1.0.1", "10.1.0.3", 8, 1)), Verdict::Drop(DropReason::NoRoute));
    let jump = world.from(0, OTHER_LAN, &echo("10.1.0.1", "10.1.0.3", 8, 1));
    assert_eq!(jump, Verdict::Drop(DropReason::WrongNetwork));
    assert_eq!(
        world.from(0, NetworkId::ACCESS, &echo("10.1.0.1", "192.0.2.1", 8, 1)),
        Verdict::Drop(DropReason::WrongNetwork)
    );
    let from_device = world.device(&echo("192.0.2.1", "10.1.0.1", 8, 1));
    assert_eq!(from_device, Verdict::Drop(DropReason::NoRoute), "the device leads to no switched network");
}

#[test]
fn the_client_end_accepts_answers_only() {
    let mut world = World::new();
    world.session(0, vec![attachment(NetworkId::ACCESS, &["0.0.0.0/0"], Inbound::AnswersOnly)]);
    let unasked = tcp_packet(("192.0.2.1", 4444), ("10.9.0.2", 22), tcp::SYN, 1, &[], b"");
    assert_eq!(world.from(0, NetworkId::ACCESS, &unasked), Verdict::Drop(DropReason::Unsolicited));
    let opening = tcp_packet(("10.9.0.2", 1), ("192.0.2.1", 443), tcp::SYN, 1, &[], b"");
    assert_eq!(world.device(&opening), to(0, NetworkId::ACCESS));
    let answer = tcp_packet(("192.0.2.1", 443), ("10.9.0.2", 1), tcp::SYN | tcp::ACK, 1, &[], b"");
    assert_eq!(world.from(0, NetworkId::ACCESS, &answer), Verdict::ToTun);
    // Changing the session in place keeps its flows.
    world.session(0, vec![attachment(NetworkId::ACCESS, &["192.0.2.0/24"], Inbound::AnswersOnly)]);
    let data = tcp_packet(("192.0.2.1", 443), ("10.9.0.2", 1), tcp::ACK, 2, &[], b"data");
    assert_eq!(world.from(0, NetworkId::ACCESS, &data), Verdict::ToTun);
}

#[test]
fn the_longest_prefix_wins_and_leaves_with_its_session() {
    let mut world = World::new();
    world.session(0, vec![attachment(NetworkId::ACCESS, &["0.0.0.0/0"], Inbound::Any)]);
    world.session(1, vec![attachment(NetworkId::ACCESS, &["10.1.0.0/16"], Inbound::Any)]);
    let packet = echo("10.9.0.2", "10.1.2.3", 8, 1);
    assert_eq!(world.device(&packet), to(1, NetworkId::ACCESS));
    world.forwarder.remove_session(Slot(1));
    assert_eq!(world.device(&packet), to(0, NetworkId::ACCESS));
    world.forwarder.remove_network(NetworkId::ACCESS);
    assert_eq!(world.device(&packet), Verdict::Drop(DropReason::NoRoute));
    world.forwarder.set_network(NetworkConfig { id: NetworkId::ACCESS, delivery: Delivery::Tun });
    assert_eq!(
        world.device(&packet),
        to(0, NetworkId::ACCESS),
        "a network that comes back finds its members"
    );
}

#[test]
fn rates_are_limited_both_ways() {
    let mut world = World::new();
    let limit = Some(RateLimit { bytes_per_second: 60_000, burst: 0 });
    let limits = SessionLimits { from_peer: limit, to_peer: limit };
    let attached = vec![attachment(NetworkId::ACCESS, &["10.9.0.2/32"], Inbound::Any)];
    world.forwarder.set_session(Slot(0), attached, limits);
    let out = udp(("10.9.0.2", 1), ("192.0.2.1", 53), &[0; 59_972]);
    assert_eq!(world.from(0, NetworkId::ACCESS, &out), Verdict::ToTun);
    assert_eq!(world.from(0, NetworkId::ACCESS, &out), Verdict::ToTun);
    assert_eq!(world.from(0, NetworkId::ACCESS, &out), Verdict::Drop(DropReason::RateLimited));
    let back = udp(("192.0.2.1", 53), ("10.9.0.2", 1), &[0; 59_972]);
    assert_eq!(world.device(&back), to(0, NetworkId::ACCESS));
    assert_eq!(world.device(&back), to(0, NetworkId::ACCESS));
    assert_eq!(world.device(&back), Verdict::Drop(DropReason::RateLimited));
    world.now += Duration::from_secs(1);
    assert_eq!(world.from(0, NetworkId::ACCESS, &out), Verdict::ToTun);
}

#[test]
fn what_never_leaves_a_link_is_dropped_without_blame() {
    let mut world = World::new();
    world.session(0, vec![attachment(NetworkId::ACCESS, &["0.0.0.0/0", "::/0"], Inbound::Any)]);
    for (source, destination) in [
        ("fe80::1", "ff02::2"),
        ("fd09::2", "ff02::fb"),
        ("fe80::1", "fe80::2"),
        ("10.9.0.2", "224.0.0.251"),
        ("10.9.0.2", "255.255.255.255"),
        ("10.9.0.2", "127.0.0.1"),
        ("0.0.0.0", "10.9.0.1"),
    ] {
        let packet = udp((source, 5353), (destination, 5353), b"who is there");
        assert_eq!(world.device(&packet), Verdict::Drop(DropReason::NoRoute), "{source} to {destination}");
        assert_eq!(world.from(0, NetworkId::ACCESS, &packet), Verdict::Drop(DropReason::NoRoute));
    }
}
