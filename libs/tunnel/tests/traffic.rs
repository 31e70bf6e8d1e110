//! What goes through a tunnel arrives as it was.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stops at the first surprise and says why"
)]

mod lab;

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, TcpListener, TcpStream},
    time::Instant,
};

use aws_lc_rs::digest::{Context, SHA256};
use horizon_tunnel::TunnelEvent;
use lab::{Host, Lab, Options, PATIENCE, in_lab};

const LENGTH: usize = 8 << 20;

/// Bytes that show any exchange, loss or repetition.
fn content(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 8).to_le_bytes()
    });
    words.take(LENGTH / 8).flatten().collect()
}

fn hash(bytes: &[u8]) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    context.update(bytes);
    context.finish().as_ref().to_vec()
}

/// Sends one content and receives another at the same time; returns the hash of what came.
fn exchange(stream: &TcpStream, seed: u64) -> Vec<u8> {
    let mut received = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (&*stream).write_all(&content(seed)).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        (&*stream).read_to_end(&mut received).unwrap();
    });
    hash(&received)
}

fn transfer(server: &Host, address: IpAddr, client: &Host) {
    let listener = server.run(|| TcpListener::bind((address, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    let (at_server, at_client) = std::thread::scope(|scope| {
        let server = scope.spawn(|| exchange(&listener.accept().unwrap().0, 1));
        let at_client = exchange(&client.run(|| TcpStream::connect(target).unwrap()), 2);
        (server.join().unwrap(), at_client)
    });
    assert_eq!(at_server, hash(&content(2)));
    assert_eq!(at_client, hash(&content(1)));
}

#[test]
fn pings_are_answered() {
    in_lab("pings_are_answered", || {
        let lab = Lab::up();
        lab.client_host.ping_soon("10.9.0.1");
        lab.client_host.ping_soon("fd09::1");
        let counters = lab.appliance.session(2).counters;
        assert!(counters.packets_from_peer >= 2 && counters.packets_to_peer >= 2, "{counters:?}");
    });
}

#[test]
fn tcp_carries_its_content_both_ways() {
    in_lab("tcp_carries_its_content_both_ways", || {
        let lab = Lab::up();
        transfer(&lab.appliance_host, "10.9.0.1".parse().unwrap(), &lab.client_host);
        transfer(&lab.appliance_host, "fd09::1".parse().unwrap(), &lab.client_host);
    });
}

#[test]
fn an_end_without_offloads_gets_on_with_one_that_has_them() {
    in_lab("an_end_without_offloads_gets_on_with_one_that_has_them", || {
        for offload in [[true, false], [false, true]] {
            let lab = Lab::new(&Options { offload, ..Options::default() });
            lab.client.wait_up();
            transfer(&lab.appliance_host, "10.9.0.1".parse().unwrap(), &lab.client_host);
        }
    });
}

#[test]
fn ip_fragments_pass() {
    in_lab("ip_fragments_pass", || {
        let lab = Lab::up();
        lab.client_host.ping_soon("-s 5000 10.9.0.1");
        lab.client_host.ping_soon("-s 5000 fd09::1");
    });
}

#[test]
fn every_packet_passes_while_the_path_is_narrow_or_unknown() {
    in_lab("every_packet_passes_while_the_path_is_narrow_or_unknown", || {
        // Datagrams stay far below IPv6's minimum MTU: what is larger has to travel in parts.
        let lab = Lab::new(&Options { udp_payload: 1200, ..Options::default() });
        let up = |event| match event {
            TunnelEvent::SessionUp { mtu, .. } => Some(mtu),
            _ => None,
        };
        let mtu = lab.client.wait("a session to come up", up);
        assert!(mtu < 1200);
        // Whole packets of 1280 bytes, which must pass at any time, and of 1400 bytes, which may at first.
        lab.client_host.ping_soon("-M do -s 1232 fd09::1");
        lab.client_host.ping_soon("-M do -s 1372 10.9.0.1");

        // Later the sender of larger ones is told what fits, and TCP goes on with that.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, output) = lab.client_host.command("ping -c 1 -W 1 -M do -s 1372 10.9.0.1");
            if output.contains("mtu = 1280") || output.contains("mtu=1280") {
                break;
            }
            assert!(Instant::now() < deadline, "nobody was told: {output}");
        }
        lab.client_host.ping_soon("-M do -s 1232 fd09::1");
        transfer(&lab.appliance_host, "10.9.0.1".parse().unwrap(), &lab.client_host);
    });
}
