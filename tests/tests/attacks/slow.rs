//! Peers that connect and then say nothing, or next to nothing.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use horizon_tests::lab::{Host, within};
use horizon_tests::products::World;

use super::{SOON, assert_served};

/// How many of them there are: more than are served at once.
const CROWD: usize = 100;

/// Where metrics and readiness are served.
const METRICS: u16 = 7441;

/// The first half of a request.
const HALF: &[u8] = b"GET /readyz HTTP/1.1\r\nHost: x\r\nX-Slow: ";

/// Whether the other side has hung up.
fn is_over(stream: &mut impl Read) -> bool {
    let mut some = [0; 512];
    loop {
        match stream.read(&mut some) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => {
                return !matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                );
            }
        }
    }
}

/// Sends what begins like the first packet of a QUIC connection and leads nowhere, from many ports.
fn throw_first_packets(from: &Host, to: SocketAddr) {
    from.run(move || {
        for n in 0..200_u16 {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            let mut packet = vec![0xc3, 0, 0, 0, 1, 8];
            packet.extend([n.to_be_bytes(), [0; 2], [1; 2], [2; 2]].concat());
            packet.resize(1_200, 0x55);
            for _ in 0..10 {
                let _ = socket.send_to(&packet, to);
            }
        }
    });
}

#[test]
fn slow_peers_on_every_port_keep_nobody_out() {
    let mut world = World::for_test().unwrap();
    let stranger = world.lab.public_host("stranger").unwrap();
    let socket = world.controller.config().parent().unwrap().join("data/horizon.sock");
    let host = world.controller.host();
    let mut requests: Vec<TcpStream> = host.run(|| {
        let open = |_| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, METRICS)).unwrap();
            stream.write_all(HALF).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            stream
        };
        (0..CROWD).map(open).collect()
    });
    let mut local: Vec<UnixStream> = host.run(move || {
        let open = |_| {
            let mut stream = UnixStream::connect(&socket).ok()?;
            stream.write_all(HALF).ok()?;
            stream.set_read_timeout(Some(Duration::from_millis(10))).ok()?;
            Some(stream)
        };
        (0..CROWD).filter_map(open).collect()
    });
    for (host, port) in [(world.controller.host().v4(), 7440), (world.appliance.host().v4(), 7443)] {
        throw_first_packets(&stranger, SocketAddr::new(host, port));
    }
    // One line more every now and then does not make a request.
    for stream in &mut requests {
        let _ = stream.write_all(b"a");
    }
    assert_served(&mut world, "laptop");
    within(SOON, "readiness is told", || world.controller.is_ready().then_some(())).unwrap();
    within(SOON, "slow requests are hung up on", || requests.iter_mut().all(is_over).then_some(())).unwrap();
    within(SOON, "slow commands are hung up on", || local.iter_mut().all(is_over).then_some(())).unwrap();
}

/// Asks again and again and reads nothing of the answers.
fn ask_without_reading(mut stream: impl Write) -> impl Write {
    let question = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    // As many as there is room for, which is more than for their answers.
    while let Ok(1..) = stream.write(&question) {}
    stream
}

#[test]
fn peers_that_ask_and_do_not_read_keep_nobody_out() {
    let world = World::for_test().unwrap();
    let socket = world.controller.config().parent().unwrap().join("data/horizon.sock");
    let host = world.controller.host();
    let _tcp: Vec<_> = host.run(|| {
        let open = |_| {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, METRICS)).unwrap();
            stream.set_nonblocking(true).unwrap();
            ask_without_reading(stream)
        };
        (0..CROWD).map(open).collect()
    });
    let _unix: Vec<_> = host.run(move || {
        let open = |_| {
            let stream = UnixStream::connect(&socket).ok()?;
            stream.set_nonblocking(true).ok()?;
            Some(ask_without_reading(stream))
        };
        (0..CROWD).filter_map(open).collect()
    });
    // They have all places at first. None of them hangs up.
    within(SOON * 4, "readiness is told", || world.controller.is_ready().then_some(())).unwrap();
    within(SOON * 4, "commands are answered", || world.controller.cli(["get", "users"]).ok().ok()).unwrap();
}
