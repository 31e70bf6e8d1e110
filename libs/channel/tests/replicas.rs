//! Replicas of a controller under one address: what one of them began, another can end or go on with.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use horizon_channel::{Channel, ConnectOptions, Listener, Peer, connect};
use horizon_model::Secret;
use horizon_wire::{
    key::{self, SigningKey},
    keyset::{Anchor, KeySet, KeySetKey},
    proto::{self, KeyPhase, KeyUse, from_controller, to_controller},
    version,
};
use tokio::{join, runtime::Runtime, time::timeout};

/// Far below the idle timeout of a connection, after which a peer would find out by itself.
const AT_ONCE: Duration = Duration::from_secs(10);

fn signing(n: u8) -> SigningKey {
    SigningKey::from_seed(Secret::new([n; 32]))
}

/// Takes a peer in, as every replica does.
async fn welcome(listener: &Listener) -> Peer {
    let tls = signing(2).public();
    let tls = KeySetKey {
        usage: KeyUse::Tls,
        key: tls,
        not_before: 0,
        not_after: i64::MAX,
        phase: KeyPhase::Current,
    };
    let keyset =
        KeySet { version: 1, root: signing(1).public(), keys: vec![tls], issued: 0, revoked: Vec::new() };
    let welcome = from_controller::Message::Welcome(proto::Welcome {
        version: version::MAX,
        keysets: vec![keyset.sign(&signing(1), None)],
        now: 0,
        software: "test".into(),
        newest_keyset: 1,
    });
    let mut peer = listener.accept().await.unwrap().handshake().await.unwrap();
    peer.sender.send(&proto::FromController { request: 0, message: Some(welcome) }).await.unwrap();
    peer
}

async fn dial(address: SocketAddr) -> Channel {
    let hello = proto::Hello { role: proto::Role::Appliance.into(), ..Default::default() };
    let anchor = Anchor::Root(key::root_id(&signing(1).public()));
    let options = ConnectOptions {
        addresses: &[address.to_string()],
        identity: &signing(3),
        anchor: &anchor,
        hello,
        fwmark: None,
        timeout: AT_ONCE,
    };
    connect(options).await.unwrap()
}

#[tokio::test]
async fn a_replica_resets_the_connections_of_one_that_was_killed() {
    // The first replica has a runtime of its own: shut down, it says no word, as when it is killed.
    let killed = Runtime::new().unwrap();
    let first = {
        let _inside = killed.enter();
        Listener::bind("127.0.0.1:0".parse().unwrap(), &signing(2)).unwrap()
    };
    let address = first.local_addr().unwrap();
    killed.spawn(async move {
        let peer = welcome(&first).await;
        std::future::pending::<()>().await;
        drop((first, peer));
    });
    let mut channel = dial(address).await;
    tokio::task::spawn_blocking(move || killed.shutdown_timeout(AT_ONCE)).await.unwrap();
    let second = loop {
        // The address is free once the first replica's socket is closed.
        match Listener::bind(address, &signing(2)) {
            Ok(second) => break second,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let report = to_controller::Message::Report(proto::Report::default());
    channel.requests.notify(report).await.unwrap();
    assert!(timeout(AT_ONCE, channel.inbox.recv()).await.unwrap().is_none());
    assert_eq!(channel.requests.close_reason().unwrap(), "reset by peer");
    let (_peer, again) = join!(welcome(&second), dial(address));
    drop(again);
}

#[tokio::test]
async fn an_address_that_was_proved_to_one_replica_is_proved_to_all() {
    let any = "127.0.0.1:0".parse().unwrap();
    let (first, second) =
        (Listener::bind(any, &signing(2)).unwrap(), Listener::bind(any, &signing(2)).unwrap());
    let (a, b) = (first.local_addr().unwrap(), second.local_addr().unwrap());
    // In front of them, what balances the load: packets go to the first replica until it asks for a proof.
    let bind = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        tokio::net::UdpSocket::from_std(socket).unwrap()
    };
    let (outside, inside) = (bind(), bind());
    let address = outside.local_addr().unwrap();
    let balance = async {
        let (mut target, mut client) = (a, None);
        let (mut up, mut down) = ([0; 2048], [0; 2048]);
        loop {
            tokio::select! {
                got = outside.recv_from(&mut up) => {
                    let (size, from) = got.unwrap();
                    client = Some(from);
                    inside.send_to(&up[..size], target).await.unwrap();
                }
                got = inside.recv_from(&mut down) => {
                    let (size, _) = got.unwrap();
                    target = b;
                    outside.send_to(&down[..size], client.unwrap()).await.unwrap();
                }
            }
        }
    };
    let serve = async {
        let incoming = first.accept().await.unwrap();
        assert!(!incoming.address_validated());
        incoming.retry();
        let incoming = second.accept().await.unwrap();
        assert!(incoming.address_validated());
        incoming.ignore();
    };
    tokio::select! {
        done = timeout(AT_ONCE, serve) => done.unwrap(),
        () = balance => unreachable!("it goes on for ever"),
        _ = dial(address) => unreachable!("nobody takes it in"),
    }
}
