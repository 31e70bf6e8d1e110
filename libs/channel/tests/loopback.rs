//! The channel over loopback: trust, refusals, requests, limits and ends.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::time::Duration;

use horizon_channel::{
    Channel, ConnectError, ConnectOptions, HandshakeError, Listener, Peer, RequestError, connect,
};
use horizon_model::{PublicKey, RootId, Secret};
use horizon_wire::{
    key::{self, SigningKey},
    keyset::{Anchor, KeySet, KeySetKey},
    proto::{self, KeyPhase, KeyUse, RefusalCode, from_controller, to_controller},
    refusal::Refusal,
    version,
};
use tokio::join;

fn signing(n: u8) -> SigningKey {
    SigningKey::from_seed(Secret::new([n; 32]))
}

fn keyset(tls: PublicKey) -> KeySet {
    let tls = KeySetKey {
        usage: KeyUse::Tls,
        key: tls,
        not_before: 0,
        not_after: i64::MAX,
        phase: KeyPhase::Current,
    };
    KeySet { version: 1, root: signing(1).public(), keys: vec![tls], issued: 0, revoked: Vec::new() }
}

fn root() -> RootId {
    key::root_id(&signing(1).public())
}

fn welcome(tls: PublicKey) -> from_controller::Message {
    from_controller::Message::Welcome(proto::Welcome {
        version: version::MAX,
        keysets: vec![keyset(tls).sign(&signing(1), None)],
        now: 0,
        software: "test".into(),
        newest_keyset: 1,
    })
}

fn listener() -> (Listener, String) {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &signing(2)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

async fn accept(listener: &Listener, answer: from_controller::Message) -> Peer {
    let mut peer = listener.accept().await.unwrap().handshake().await.unwrap();
    peer.sender.send(&proto::FromController { request: 0, message: Some(answer) }).await.unwrap();
    peer
}

async fn dial(addresses: &[String], root: RootId) -> Result<Channel, ConnectError> {
    let hello =
        proto::Hello { role: proto::Role::Device.into(), software: "test".into(), ..Default::default() };
    let anchor = Anchor::Root(root);
    let options = ConnectOptions {
        addresses,
        identity: &signing(3),
        anchor: &anchor,
        hello,
        fwmark: None,
        timeout: Duration::from_secs(5),
    };
    connect(options).await
}

#[tokio::test]
async fn both_sides_know_each_other_and_talk() {
    let (listener, address) = listener();
    let addresses = [address];
    let (peer, channel) = join!(accept(&listener, welcome(signing(2).public())), dial(&addresses, root()));
    let (mut peer, mut channel) = (peer, channel.unwrap());
    assert_eq!(peer.key, signing(3).public());
    assert_eq!(peer.hello.role(), proto::Role::Device);

    let list = to_controller::Message::ListServers(proto::ListServers {});
    let answer = async {
        let asked = peer.receiver.next().await.unwrap().unwrap();
        let servers = from_controller::Message::Servers(proto::Servers::default());
        peer.sender
            .send(&proto::FromController { request: asked.request, message: Some(servers) })
            .await
            .unwrap();
        let unasked = from_controller::Message::Done(proto::Done {});
        peer.sender.send(&proto::FromController { request: 0, message: Some(unasked) }).await.unwrap();
    };
    let (reply, ()) = join!(channel.requests.request(list.clone()), answer);
    assert!(matches!(reply, Ok(from_controller::Message::Servers(_))));
    assert!(matches!(channel.inbox.recv().await, Some(from_controller::Message::Done(_))));

    let refusal = Refusal::new(RefusalCode::Policy, "no", "ask");
    let answer = async {
        let asked = peer.receiver.next().await.unwrap().unwrap();
        peer.refuse(asked.request, refusal.clone()).await;
    };
    let (reply, ()) = join!(channel.requests.request(list.clone()), answer);
    assert!(matches!(reply, Err(RequestError::Refused(r)) if r == refusal));
    assert!(channel.inbox.recv().await.is_none());
    assert!(matches!(channel.requests.request(list).await, Err(RequestError::Gone)));
}

#[tokio::test]
async fn a_controller_without_the_pinned_root_or_a_listed_key_is_refused() {
    let (listener, address) = listener();
    let address = [address];
    let (_peer, refused) =
        join!(accept(&listener, welcome(signing(2).public())), dial(&address, RootId([9; 32])));
    assert!(matches!(refused, Err(ConnectError::Trust { .. })));
    // The KeySet is genuine, but lists another TLS key than the one that was proved.
    let (_peer, refused) = join!(accept(&listener, welcome(signing(8).public())), dial(&address, root()));
    assert!(matches!(refused, Err(ConnectError::UntrustedTlsKey { key, .. }) if key == signing(2).public()));
}

#[tokio::test]
async fn refusals_arrive_and_dead_addresses_are_named() {
    let (listener, address) = listener();
    let refuse = async {
        let peer = listener.accept().await.unwrap().handshake().await.unwrap();
        peer.refuse(0, Refusal::new(RefusalCode::Limit, "too many", "wait").retry_after(3)).await;
    };
    let addresses = [address];
    let ((), refused) = join!(refuse, dial(&addresses, root()));
    assert!(matches!(refused, Err(ConnectError::Refused(r)) if r.retry_after_seconds == 3));

    // A name that leads nowhere does not hold up the address after it.
    let both = ["no.such.name.invalid:1".to_owned(), addresses[0].clone()];
    let (_peer, channel) = join!(accept(&listener, welcome(signing(2).public())), dial(&both, root()));
    channel.unwrap();

    listener.close("over").await;
    drop(listener);
    let error = dial(&["no.such.name.invalid:1".into()], root()).await.unwrap_err();
    assert!(error.to_string().contains("no.such.name.invalid:1"), "{error}");
}

#[tokio::test]
async fn a_refusal_is_final_only_from_who_holds_a_key_of_the_organisation() {
    let (listener, address) = listener();
    let addresses = [address];
    let refuse = async || {
        let peer = listener.accept().await.unwrap().handshake().await.unwrap();
        peer.refuse(0, Refusal::new(RefusalCode::Revoked, "you are\u{1b}[2J out", "run this")).await;
    };
    let hello = || proto::Hello { role: proto::Role::Device.into(), ..Default::default() };
    let dial = async |anchor: &Anchor| {
        let timeout = Duration::from_secs(5);
        let (addresses, identity) = (&addresses[..], &signing(3));
        let options = ConnectOptions { addresses, identity, anchor, hello: hello(), fwmark: None, timeout };
        match connect(options).await {
            Err(ConnectError::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    };
    let known = Anchor::KeySet(keyset(signing(2).public()));
    let ((), refusal) = join!(refuse(), dial(&known));
    assert_eq!((refusal.code, refusal.remedy.as_str()), (RefusalCode::Revoked, "run this"));
    for strange in [Anchor::KeySet(keyset(signing(8).public())), Anchor::Root(root())] {
        let ((), refusal) = join!(refuse(), dial(&strange));
        assert_eq!((refusal.code, refusal.remedy.as_str()), (RefusalCode::Unavailable, ""));
        assert!(refusal.message.contains("without proof") && refusal.message.ends_with("you are[2J out"));
    }
}

#[tokio::test]
async fn strangers_get_room_for_what_they_may_say_and_no_more() {
    let (listener, address) = listener();
    let addresses = [address];
    let dial = async |role: proto::Role, software: String| {
        let hello = proto::Hello { role: role.into(), software, ..Default::default() };
        let (identity, anchor) = (&signing(3), &Anchor::Root(root()));
        let timeout = Duration::from_secs(5);
        connect(ConnectOptions { addresses: &addresses, identity, anchor, hello, fwmark: None, timeout })
            .await
    };
    let long = async || listener.accept().await.unwrap().handshake().await.err();
    let (error, _) = join!(long(), dial(proto::Role::Appliance, "x".repeat(5000)));
    assert!(matches!(error, Some(HandshakeError::Receive(_))), "{error:?}");

    let name = "x".repeat(20_000);
    for (role, fits) in [(proto::Role::Device, false), (proto::Role::Appliance, true)] {
        let (mut peer, channel) =
            join!(accept(&listener, welcome(signing(2).public())), dial(role, "test".into()));
        let enrol = proto::EnrolDevice { name: name.clone(), ..Default::default() };
        channel.unwrap().requests.notify(to_controller::Message::EnrolDevice(enrol)).await.unwrap();
        assert_eq!(peer.receiver.next().await.is_ok(), fits, "{role:?}");
    }
}
