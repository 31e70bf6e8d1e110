//! What is not allowed does not pass, and is counted.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stops at the first surprise and says why"
)]

mod lab;

use std::{io::ErrorKind, net::UdpSocket, time::Duration};

use horizon_tunnel::{
    Delivery, DestinationRule, DestinationRules, DropReason, Inbound, NetworkConfig, NetworkId, PortRange,
    Role, RuleProtocol, TunnelEvent, ViolationKind,
};
use lab::{
    APPLIANCE_INNER, Host, Lab, Options, PATIENCE, Peer, TUN, admit, attachment, config, granted, identity,
    in_lab, join_client, session,
};

fn violation(expected: ViolationKind) -> impl FnMut(TunnelEvent) -> Option<()> {
    move |event| matches!(event, TunnelEvent::Violation { kind, .. } if kind == expected).then_some(())
}

#[test]
fn a_spoofed_source_is_dropped_and_counted() {
    in_lab("a_spoofed_source_is_dropped_and_counted", || {
        let lab = Lab::up();
        lab.client_host.ping_soon("10.9.0.1");
        lab.client_host.ip(&format!("address add 10.9.0.77/24 dev {TUN}"));
        assert!(!lab.client_host.ping("-I 10.9.0.77 10.9.0.1"));
        lab.appliance.wait("a violation", violation(ViolationKind::SpoofedSource));
        assert!(lab.appliance.drops(2, DropReason::SpoofedSource) >= 1);
        lab.client_host.ping_soon("10.9.0.1");
    });
}

#[test]
fn a_forbidden_destination_is_refused_with_a_word() {
    in_lab("a_forbidden_destination_is_refused_with_a_word", || {
        let lab = Lab::up();
        let server = lab.appliance_host.run(|| UdpSocket::bind("10.9.0.1:0").unwrap());
        let port = server.local_addr().unwrap().port();
        let client = lab.client_host.run(|| UdpSocket::bind("10.9.0.2:0").unwrap());
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        client.connect(("10.9.0.1", port)).unwrap();
        client.send(b"allowed").unwrap();
        assert_eq!(server.recv(&mut [0; 16]).unwrap(), 7);

        // The session changes in place: only another port is allowed now.
        let mut narrowed = granted(2);
        let ports = vec![PortRange { first: port ^ 1, last: port ^ 1 }];
        let rule =
            DestinationRule { prefix: "10.9.0.1/32".parse().unwrap(), protocol: RuleProtocol::Udp, ports };
        narrowed.from_peer = DestinationRules::new(vec![rule]).unwrap();
        let session = session(2, &identity(2), Role::Accept, vec![narrowed]);
        lab.appliance.handle().upsert_session(session).unwrap();
        // Answered after the change, because commands keep their order.
        lab.appliance.handle().stats().unwrap();
        client.send(b"forbidden").unwrap();
        let error = client.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
        lab.appliance.wait("a violation", violation(ViolationKind::ForbiddenDestination));
        assert!(lab.appliance.drops(2, DropReason::Forbidden) >= 1);
        let down = lab.client.events.try_iter().any(|event| matches!(event, TunnelEvent::SessionDown { .. }));
        assert!(!down, "changing a session must not end its connection");
    });
}

#[test]
fn the_client_refuses_what_it_did_not_ask_for() {
    in_lab("the_client_refuses_what_it_did_not_ask_for", || {
        let lab = Lab::up();
        lab.client_host.ping_soon("10.9.0.1");
        assert!(!lab.appliance_host.ping("10.9.0.2"));
        assert!(!lab.appliance_host.ping("fd09::2"));
        lab.client.wait("a violation", violation(ViolationKind::UnsolicitedInbound));
        assert!(lab.client.drops(2, DropReason::Unsolicited) >= 2);
    });
}

#[test]
fn unknown_packets_are_dropped_unread() {
    in_lab("unknown_packets_are_dropped_unread", || {
        let lab = Lab::up();
        let socket = lab.client_host.run(|| UdpSocket::bind("10.0.0.2:0").unwrap());
        socket.connect(("10.0.0.1", lab.appliance.port())).unwrap();
        let mut first = vec![0xc0, 0, 0, 0, 1, 20];
        first.extend([7; 20]);
        first.resize(1200, 0);
        let mut version = first.clone();
        version[4] = 9;
        let before = lab.appliance.handle().stats().unwrap().global.foreign_payloads;
        for payload in [&first[..], &version, b"noise", &[0x40; 64][..]] {
            socket.send(payload).unwrap();
        }
        let mut after = before;
        while after < before + 3 {
            lab.client_host.ping_soon("10.9.0.1");
            after = lab.appliance.handle().stats().unwrap().global.foreign_payloads;
        }
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(socket.recv(&mut [0; 2000]).is_err(), "nothing may come back");
    });
}

#[test]
fn a_client_without_the_key_is_refused() {
    in_lab("a_client_without_the_key_is_refused", || {
        let lab = Lab::new(&Options { client_identity: identity(9), ..Options::default() });
        lab.appliance.wait("a violation", violation(ViolationKind::WrongKey));
        let refused = |event| match event {
            TunnelEvent::AttemptFailed { reason, .. } => Some(reason),
            TunnelEvent::SessionUp { .. } => panic!("the session came up"),
            _ => None,
        };
        let reason = lab.client.wait("a refusal", refused);
        assert!(matches!(reason, horizon_tunnel::DownReason::Authentication(_)), "{reason:?}");
        assert!(!lab.client_host.ping("10.9.0.1"));
    });
}

#[test]
fn an_appliance_without_the_key_is_refused() {
    in_lab("an_appliance_without_the_key_is_refused", || {
        let lab = Lab::new(&Options { expected_appliance: identity(9), ..Options::default() });
        let refused = |event| match event {
            TunnelEvent::AttemptFailed { reason, .. } => Some(reason),
            TunnelEvent::SessionUp { .. } => panic!("the session came up"),
            _ => None,
        };
        let reason = lab.client.wait("a refusal", refused);
        assert!(matches!(reason, horizon_tunnel::DownReason::Authentication(_)), "{reason:?}");
    });
}

#[test]
fn members_of_one_network_meet_and_of_two_never() {
    in_lab("members_of_one_network_meet_and_of_two_never", || {
        let host = Host::new();
        let appliance = Peer::start(&host, config(identity(1), &Options::default()));
        for id in [1, 2] {
            let network = NetworkConfig { id: NetworkId(id), delivery: Delivery::Switch };
            appliance.handle().set_network(network).unwrap();
        }
        let (_second, second_host) = join_client(&appliance, &host, 2, &[1]);
        let (third, third_host) = join_client(&appliance, &host, 3, &[1]);
        second_host.ping_soon("10.9.0.3");
        third_host.ping_soon("fd09::2");
        second_host.ping_soon("-s 4000 fd09::3");

        // The third moves to the other network; its connection stays.
        third.handle().set_network(NetworkConfig { id: NetworkId(2), delivery: Delivery::Tun }).unwrap();
        let moved =
            |role| session(3, &identity(1), role, vec![attachment(2, &["10.9.0.0/24"], Inbound::Any)]);
        let remote = third.session(3).path.unwrap().remote;
        third.handle().upsert_session(moved(Role::Dial { addresses: vec![remote] })).unwrap();
        admit(&appliance, 3, &[2]);
        appliance.handle().stats().unwrap();
        assert!(!second_host.ping("10.9.0.3"));
        assert!(!third_host.ping("10.9.0.2"));
        assert!(appliance.drops(2, DropReason::NoRoute) >= 1);
        assert!(appliance.drops(3, DropReason::NoRoute) >= 1);

        admit(&appliance, 2, &[1, 2]);
        appliance.handle().stats().unwrap();
        assert!(!second_host.ping("10.9.0.3"), "the second still speaks in the first network only");
        let down = third.events.try_iter().any(|event| matches!(event, TunnelEvent::SessionDown { .. }));
        assert!(!down, "changing a session must not end its connection");
    });
}

#[test]
fn a_dead_session_holds_up_no_other() {
    in_lab("a_dead_session_holds_up_no_other", || {
        let host = Host::new();
        let appliance = Peer::start(&host, config(identity(1), &Options::default()));
        appliance.handle().attach_tun(host.tun(1400, true, &APPLIANCE_INNER)).unwrap();
        let (_second, second_host) = join_client(&appliance, &host, 2, &[0]);
        let (_third, third_host) = join_client(&appliance, &host, 3, &[0]);
        third_host.ping_soon("10.9.0.1");
        third_host.ip("link set eth0 down");
        let socket = host.run(|| UdpSocket::bind("10.9.0.1:0").unwrap());
        let mut sent = 0;
        while appliance.drops(3, DropReason::QueueFull) == 0 {
            for _ in 0..1000 {
                // A full device queue is as good as a full tunnel queue here.
                let _ = socket.send_to(&[0; 1200], "10.9.0.3:9");
            }
            sent += 1000;
            assert!(sent < 1_000_000, "the dead session's queue never filled");
        }
        second_host.ping_soon("10.9.0.1");
        assert!(appliance.session(3).path.is_some(), "its death was not even noticed yet");
    });
}
