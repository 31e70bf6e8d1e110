//! Rotation of the organisation's keys under live peers, and who is refused after it.

use std::time::Duration;

use horizon_channel::{ConnectError, Listener};
use horizon_crds::RotationType;
use horizon_wire::{
    key::SigningKey,
    keyset::{self, Anchor, FEATURE, KeySetError},
    proto::{self, KeyUse, Role, from_controller::Message as Said},
    rotation::KeyClass,
    version,
};
use jiff::{SignedDuration, Timestamp};
use tokio::{task::JoinHandle, time::sleep};

use super::kit::{Appliance, Controller, fresh_key, soon};
use crate::{
    replica::Leadership,
    stop::{Stopper, stop},
    store::{LeaderEpoch, NewEnvelopeRotation, NewKeySetRotation, tests::kit::BASICS},
};

/// A controller whose keys rotate.
struct Rotating {
    controller: Controller,
    epoch: LeaderEpoch,
    stopper: Stopper,
    task: JoinHandle<()>,
}

impl Rotating {
    async fn start() -> Self {
        let controller = Controller::start(BASICS).await;
        let epoch =
            controller.store.take_leadership(controller.replica, "test", Timestamp::now()).await.unwrap();
        crate::keys::follow(&controller.store, &controller.ring.now(), Timestamp::now()).await.unwrap();
        let (stopper, stopped) = stop();
        let task = tokio::spawn(controller.rotator(Leadership::always(epoch)).run(stopped));
        Self { controller, epoch, stopper, task }
    }

    async fn rotate(&self, class: KeyClass, kind: RotationType, overlap: SignedDuration) {
        let new =
            NewKeySetRotation { class, kind, reason: "a test", by: "test", run: None, policy: None, overlap };
        let begun =
            self.controller.store.begin_keyset_rotation(&new, Some(self.epoch), Timestamp::now()).await;
        assert!(begun.unwrap().is_some());
        self.controller.live.publish(crate::live::Hint::KeysetsChanged);
    }

    /// Waits until no rotation is under way.
    async fn settled(&self) {
        let done = async {
            while !self.controller.store.keyset_rotations(None).await.unwrap().is_empty() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        soon(done).await;
    }

    async fn stop(self) {
        self.stopper.stop();
        self.task.await.unwrap();
        self.controller.stop().await;
    }
}

/// Serves until the peer has kept a version, answering as a peer does.
async fn hold(appliance: &mut Appliance, version: u64) {
    loop {
        match appliance.next().await.expect("the controller ended the conversation") {
            Said::Challenge(challenge) => appliance.answer(&challenge).await,
            Said::Keysets(_) => {
                let held = appliance.channel.requests.keyset().0;
                appliance.channel.requests.keyset_held(held.version).await.unwrap();
                appliance.state_key = held.current(KeyUse::State).unwrap();
                if held.version >= version {
                    return;
                }
            }
            Said::DialBack(_) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
}

/// A broker of somebody else, who has a key and shows KeySets.
async fn rogue(tls: &SigningKey, keysets: Vec<proto::SignedKeySet>) -> (String, JoinHandle<()>) {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), tls).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        while let Some(incoming) = listener.accept().await {
            let Ok(mut peer) = incoming.handshake().await else { continue };
            let welcome = proto::Welcome {
                version: version::MAX,
                newest_keyset: keysets.len() as u64,
                keysets: keysets.clone(),
                now: 0,
                software: "rogue/1".into(),
            };
            let message = Some(Said::Welcome(welcome));
            let _ = peer.sender.send(&proto::FromController { request: 0, message }).await;
            let _ = peer.receiver.next().await;
        }
    });
    (address, task)
}

async fn meet(address: &str, anchor: &Anchor, role: Role) -> ConnectError {
    let hello = proto::Hello { role: role.into(), software: "test/1".into(), ..Default::default() };
    let options = horizon_channel::ConnectOptions {
        addresses: &[address.to_owned()],
        identity: &fresh_key(),
        anchor,
        hello,
        fwmark: None,
        timeout: Duration::from_secs(20),
    };
    soon(horizon_channel::connect(options)).await.expect_err("a rogue broker is refused")
}

#[tokio::test]
async fn every_class_rotates_under_a_live_channel() {
    let rotating = Rotating::start().await;
    let controller = &rotating.controller;
    let mut appliance = Appliance::enrol(controller).await;
    // As an appliance of this version: it takes KeySets at any time.
    let first = appliance.channel.keyset.clone();
    appliance.channel = controller
        .dial_from(&appliance.key, Role::Appliance, &[FEATURE], Anchor::KeySet(first.clone()))
        .await
        .unwrap();
    appliance.attach().await.unwrap();
    appliance.take_state().await;
    for class in [KeyClass::State, KeyClass::Tls, KeyClass::Ticket] {
        rotating.rotate(class, RotationType::Scheduled, SignedDuration::from_millis(300)).await;
    }
    hold(&mut appliance, 1 + 3 * 3).await;
    rotating.settled().await;
    rotating.rotate(KeyClass::Root, RotationType::Scheduled, SignedDuration::ZERO).await;
    hold(&mut appliance, 11).await;
    rotating.settled().await;
    let newest = appliance.channel.requests.keyset().0;
    assert_eq!(newest, controller.ring.now().keyset);
    for usage in [KeyUse::Tls, KeyUse::State, KeyUse::Ticket] {
        let old = first.current(usage).unwrap();
        assert!(
            newest.current(usage) != Some(old) && !newest.allows(usage, &old, newest.issued),
            "{usage:?}"
        );
    }
    // The channel still stands, and its states are signed by the new key.
    controller.put(&BASICS.replacen("[resource.spec]\n", "[resource.spec]\ntunnel.port = 7777\n", 1)).await;
    appliance.take_state().await;
    // One that comes now, or was away, or pins the first root, finds its way.
    for anchor in
        [Anchor::KeySet(first.clone()), Anchor::Root(controller.keys.root_id()), Anchor::KeySet(newest)]
    {
        let channel = controller.dial_from(&fresh_key(), Role::Device, &[], anchor).await.unwrap();
        assert_eq!(channel.keyset, controller.ring.now().keyset);
    }
    // It becomes known that everybody who is connected holds the newest.
    let known = async {
        loop {
            let holders = controller.store.keyset_holders(None).await.unwrap();
            let mut appliances = holders.iter().filter(|h| h.role == "appliance");
            if appliances.all(|h| h.version == 11) && holders.iter().any(|h| h.role == "appliance") {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    soon(known).await;
    let events = controller.events().await;
    for kind in ["controller_key_published", "controller_key_used", "controller_key_retired"] {
        assert!(events.iter().any(|event| event == kind), "{kind}");
    }
    rotating.stop().await;
}

#[tokio::test]
async fn the_envelope_rotates_under_a_live_channel() {
    let rotating = Rotating::start().await;
    let controller = &rotating.controller;
    let mut appliance = Appliance::enrol(controller).await;
    appliance.take_state().await;
    let store = &controller.store;
    let (before, envelope) = (store.envelope_state().await.unwrap(), store.envelope().id());
    let new = NewEnvelopeRotation {
        kind: RotationType::Emergency,
        reason: "a test",
        by: "test",
        run: None,
        policy: None,
        new_envelope: true,
    };
    assert!(store.begin_envelope_rotation(&new, Some(rotating.epoch), Timestamp::now()).await.unwrap());
    let done = async {
        while store.envelope_rotation(None).await.unwrap().is_some() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    soon(done).await;
    let after = store.envelope_state().await.unwrap();
    assert!(after.sealing != before.sealing && after.older.is_empty(), "{after:?}");
    assert_ne!(store.envelope().id(), envelope);
    // The channel still stands, and the appliance proves itself by what was sealed anew when it comes again.
    controller.put(&BASICS.replacen("[resource.spec]\n", "[resource.spec]\ntunnel.port = 7777\n", 1)).await;
    appliance.take_state().await;
    appliance.reconnect(controller).await.unwrap();
    rotating.stop().await;
}

#[tokio::test]
async fn a_peer_of_an_older_version_connects_anew_for_a_key_that_it_does_not_know() {
    let rotating = Rotating::start().await;
    let controller = &rotating.controller;
    let mut appliance = Appliance::enrol(controller).await;
    appliance.take_state().await;
    rotating.rotate(KeyClass::State, RotationType::Emergency, SignedDuration::ZERO).await;
    rotating.settled().await;
    controller.put(&BASICS.replacen("[resource.spec]\n", "[resource.spec]\ntunnel.port = 7777\n", 1)).await;
    loop {
        match appliance.next().await {
            Some(Said::GoElsewhere(go)) => break assert!(go.addresses.is_empty()),
            Some(Said::Challenge(challenge)) => appliance.answer(&challenge).await,
            Some(Said::DialBack(_)) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    appliance.reconnect(controller).await.unwrap();
    appliance.take_state().await;
    rotating.stop().await;
}

#[tokio::test]
async fn a_rogue_broker_is_refused() {
    let rotating = Rotating::start().await;
    let controller = &rotating.controller;
    let before = controller.ring.now();
    rotating.rotate(KeyClass::Tls, RotationType::Compromised, SignedDuration::ZERO).await;
    rotating.settled().await;
    let after = controller.ring.now();
    assert!(
        after.keyset.revokes(&before.tls.public())
            && controller.events().await.contains(&"controller_key_replaced".into())
    );
    let (held, pinned) = (Anchor::KeySet(after.keyset.clone()), Anchor::Root(after.root_id()));
    for role in [Role::Appliance, Role::Device] {
        // It has another root.
        let other = fresh_key();
        let foreign = crate::keys::Keys::read(
            &crate::keys::Keys::fresh(Timestamp::now()),
            std::path::Path::new("rogue"),
            Timestamp::now(),
        )
        .unwrap();
        let (address, task) = rogue(&other, foreign.chain_from(0)).await;
        let error = meet(&address, &pinned, role).await;
        assert!(matches!(error, ConnectError::Trust { error: KeySetError::UnknownRoot(_), .. }), "{error}");
        let error = meet(&address, &held, role).await;
        assert!(matches!(error, ConnectError::Trust { .. }), "{error}");
        task.abort();
        // It has the true KeySets, which are no secret, and no key of theirs.
        let (address, task) = rogue(&other, after.chain_from(0)).await;
        assert!(matches!(meet(&address, &held, role).await, ConnectError::UntrustedTlsKey { .. }));
        task.abort();
        // It has the stolen key, and shows the KeySets from before the emergency or those after it.
        let (address, task) = rogue(&before.tls, before.chain_from(0)).await;
        let error = meet(&address, &held, role).await;
        let back = KeySetError::RolledBack { held: 2, offered: 1 };
        assert!(matches!(&error, ConnectError::Trust { error, .. } if *error == back), "{error}");
        task.abort();
        let (address, task) = rogue(&before.tls, after.chain_from(0)).await;
        assert!(matches!(meet(&address, &pinned, role).await, ConnectError::UntrustedTlsKey { .. }));
        task.abort();
        let (address, task) = rogue(&before.tls, Vec::new()).await;
        assert!(matches!(meet(&address, &held, role).await, ConnectError::UntrustedTlsKey { .. }));
        task.abort();
    }
    rotating.stop().await;
}

#[tokio::test]
async fn a_peer_that_slept_for_more_versions_than_a_welcome_carries_follows() {
    let rotating = Rotating::start().await;
    let controller = &rotating.controller;
    let first = Anchor::KeySet(controller.ring.now().keyset.clone());
    let mut keys = (*controller.ring.now()).clone();
    let mut previous = keys.keyset.clone();
    // As many as no rotation of this test's lifetime could make.
    let mut chain = keys.chain.clone();
    for _ in 0..keyset::MAX_CHAIN + 100 {
        let next = keyset::KeySet { version: previous.version + 1, ..previous.clone() };
        chain.push(next.sign(&keys.root, Some(&keys.root)));
        previous = next;
    }
    (keys.keyset, keys.chain) = (previous.clone(), chain);
    controller.ring.replace(keys.into());
    let channel = controller.dial_from(&fresh_key(), Role::Device, &[], first).await.unwrap();
    assert_eq!(channel.keyset, previous);
    let pinned = Anchor::Root(controller.keys.root_id());
    let channel = controller.dial_from(&fresh_key(), Role::Device, &[], pinned).await.unwrap();
    assert_eq!(channel.keyset, previous);
    rotating.stop().await;
}
