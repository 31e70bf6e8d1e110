//! Sessions and devices come and go.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stops at the first surprise and says why"
)]

mod lab;

use std::net::{SocketAddr, UdpSocket};

use horizon_tunnel::{CloseCode, DownReason, Role, TunnelEvent};
use lab::{
    CLIENT_INNER, Lab, Options, Peer, attachment, client_session, config, granted, identity, in_lab, session,
    session_id,
};

fn down(event: TunnelEvent) -> Option<DownReason> {
    match event {
        TunnelEvent::SessionDown { reason, .. } => Some(reason),
        _ => None,
    }
}

#[test]
fn a_deleted_device_is_reported_and_can_be_made_again() {
    in_lab("a_deleted_device_is_reported_and_can_be_made_again", || {
        let lab = Lab::up();
        lab.client_host.ping_soon("10.9.0.1");
        lab.client_host.ip("link delete hzn0");
        lab.client.wait("the loss of the device", |event| {
            matches!(event, TunnelEvent::TunLost { .. }).then_some(())
        });
        assert!(!lab.client.handle().stats().unwrap().tun_attached);
        lab.client.handle().attach_tun(lab.client_host.tun(1400, true, &CLIENT_INNER)).unwrap();
        lab.client_host.ping_soon("10.9.0.1");
        assert!(lab.client.session(2).path.is_some(), "the connection lasts");
        lab.client.handle().detach_tun().unwrap();
        assert!(!lab.client.handle().stats().unwrap().tun_attached);
    });
}

#[test]
fn a_shutdown_is_said_and_a_restart_is_found() {
    in_lab("a_shutdown_is_said_and_a_restart_is_found", || {
        let Lab { appliance, client, appliance_host, client_host } = Lab::up();
        let mut config = config(identity(1), &Options::default());
        config.listen = SocketAddr::new(config.listen.ip(), appliance.port());
        let accept = session(2, &identity(2), Role::Accept, vec![granted(2)]);

        appliance.tunnel.shutdown();
        let reason = client.wait("the session to end", down);
        let DownReason::ClosedByPeer { code: CloseCode::ShuttingDown, .. } = reason else {
            panic!("{reason:?}")
        };
        let again = Peer::start(&appliance_host, config.clone());
        again.handle().upsert_session(accept.clone()).unwrap();
        client.wait_up();

        // Killed without a word: the next start tells the client that it knows nothing of the connection.
        drop(again);
        let again = Peer::start(&appliance_host, config);
        again.handle().upsert_session(accept).unwrap();
        client_host.ping("10.9.0.1");
        assert_eq!(client.wait("the session to end", down), DownReason::Reset);
        client.wait_up();
    });
}

#[test]
fn the_reason_of_an_end_is_seen_by_the_peer() {
    in_lab("the_reason_of_an_end_is_seen_by_the_peer", || {
        let lab = Lab::up();
        lab.appliance.handle().remove_session(session_id(2), "removed from the policy").unwrap();
        assert_eq!(lab.appliance.wait("the session to end", down), DownReason::Local);
        let reason = lab.client.wait("the session to end", down);
        let text = "removed from the policy".to_owned();
        assert_eq!(reason, DownReason::ClosedByPeer { code: CloseCode::SessionEnded, text });
        assert!(!lab.client_host.ping("10.9.0.1"));
    });
}

#[test]
fn a_newer_connection_takes_over() {
    in_lab("a_newer_connection_takes_over", || {
        let lab = Lab::up();
        let second = Peer::start(&lab.client_host, config(identity(2), &Options::default()));
        second.handle().upsert_session(client_session(&identity(1), lab.appliance.port())).unwrap();
        second.wait_up();
        lab.appliance.wait("the newer connection", |event| {
            matches!(event, TunnelEvent::SessionUp { replaced: true, .. }).then_some(())
        });
        let reason = lab.client.wait("the older connection to end", down);
        assert!(matches!(reason, DownReason::ClosedByPeer { code: CloseCode::Replaced, .. }), "{reason:?}");
        assert!(lab.appliance.session(2).path.unwrap().remote.port() == second.port());
    });
}

#[test]
fn a_client_may_move_to_another_address() {
    in_lab("a_client_may_move_to_another_address", || {
        let lab = Lab::up();
        lab.client_host.ping_soon("10.9.0.1");
        lab.client_host.ip("address add 10.0.0.3/24 dev eth0");
        lab.client_host.ip("address delete 10.0.0.2/24 dev eth0");
        // Removing the first address of a subnet removes the others too unless the kernel promotes them.
        lab.client_host.ip("address replace 10.0.0.3/24 dev eth0");
        lab.client_host.ping_soon("10.9.0.1");
        lab.appliance.wait("the new address", |event| match event {
            TunnelEvent::PathChanged { remote, .. } => (remote.ip().to_string() == "10.0.0.3").then_some(()),
            TunnelEvent::SessionDown { reason, .. } => panic!("the session ended: {reason}"),
            _ => None,
        });
    });
}

#[test]
fn the_first_address_that_answers_is_used() {
    in_lab("the_first_address_that_answers_is_used", || {
        let lab = Lab::up();
        lab.client.handle().remove_session(session_id(2), "").unwrap();
        lab.client.wait("the session to end", down);
        let port = lab.appliance.port();
        let addresses = ["10.0.0.99", "fd00::99", "fd00::1"];
        let addresses = addresses.map(|a| SocketAddr::new(a.parse().unwrap(), port)).to_vec();
        let attachments = vec![attachment(0, &["0.0.0.0/0"], horizon_tunnel::Inbound::AnswersOnly)];
        let dial = session(2, &identity(1), Role::Dial { addresses }, attachments);
        lab.client.handle().upsert_session(dial).unwrap();
        lab.client.wait_up();
        assert_eq!(lab.client.session(2).path.unwrap().remote.ip().to_string(), "fd00::1");
        lab.client_host.ping_soon("10.9.0.1");
    });
}

#[test]
fn a_session_that_is_tried_often_still_comes_up() {
    in_lab("a_session_that_is_tried_often_still_comes_up", || {
        let lab = Lab::up();
        // More at once than are admitted without a proof of the client's address.
        for _ in 0..25 {
            let again = Peer::start(&lab.client_host, config(identity(2), &Options::default()));
            again.handle().upsert_session(client_session(&identity(1), lab.appliance.port())).unwrap();
            again.wait_up();
        }
        assert!(lab.appliance.handle().stats().unwrap().global.address_proofs > 0);
    });
}

#[test]
fn a_dial_back_probe_is_reported_at_a_limited_rate() {
    in_lab("a_dial_back_probe_is_reported_at_a_limited_rate", || {
        let lab = Lab::up();
        let socket = lab.client_host.run(|| UdpSocket::bind("10.0.0.2:0").unwrap());
        socket.connect(("10.0.0.1", lab.appliance.port())).unwrap();
        for n in 0..200u8 {
            socket.send(&[b"\0HZNPRB1", &[n; 16][..]].concat()).unwrap();
        }
        let probe = |event| match event {
            TunnelEvent::Probe { nonce, from } => Some((nonce, from)),
            _ => None,
        };
        let first = lab.appliance.wait("a probe", probe);
        assert_eq!(first, ([0; 16], socket.local_addr().unwrap()));
        lab.client_host.ping_soon("10.9.0.1");
        assert!(lab.appliance.events.try_iter().filter_map(probe).count() < 100);
    });
}

#[test]
fn marked_packets_can_be_routed_apart() {
    in_lab("marked_packets_can_be_routed_apart", || {
        let lab = Lab::new(&Options { client_fwmark: Some(7), ..Options::default() });
        lab.client.wait_up();
        // What a client does to keep the tunnel's own packets out of the tunnel, turned into a check.
        lab.client_host.ip("rule add pref 9 to 10.0.0.1 fwmark 7 lookup main");
        lab.client_host.ip("rule add pref 10 to 10.0.0.1 prohibit");
        assert!(!lab.client_host.ping("10.0.0.1"));
        lab.client_host.ping_soon("10.9.0.1");
    });
}
