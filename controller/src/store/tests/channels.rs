//! Channels and their leases, attachments, what sweeps find.

use std::collections::{BTreeSet, HashSet};

use horizon_controller_core::{GrantFacts, ServerStanding, grant};
use horizon_model::{Capability, Digest, Incarnation, PublicKey, ServerId, SessionId, SessionUsage};
use jiff::Timestamp;
use uuid::Uuid;

use super::kit::{Kit, REPLICA, at, attach, conformance, device_info, factors, reported, request};
use crate::store::{
    Answered, AppliedState, Attachment, ChallengeId, ChallengeType, ChannelLease, EndReason, NewSession,
    ReplicaId, ReplicaInfo, Revision, SessionOutcome, StateNumber, Store, StoreError,
};

const KEY: PublicKey = PublicKey([5; 32]);
const OTHER: ReplicaId = ReplicaId(Uuid::from_u128(2));

fn run(n: u128) -> Incarnation {
    Incarnation(Uuid::from_u128(n))
}

/// Takes a server's channel, as an attachment does.
async fn take(
    store: &Store,
    server: ServerId,
    replica: ReplicaId,
    incarnation: Incarnation,
    expected: Option<ChannelLease>,
    now: Timestamp,
) -> Option<ChannelLease> {
    attach(store, server, replica, incarnation, expected, now).await.map(|attached| attached.lease)
}

fn applied() -> AppliedState {
    AppliedState { epoch: 1, generation: 0, digest: None, problems: Vec::new(), addresses: Vec::new() }
}

fn servers(n: usize) -> String {
    (0..n)
        .map(|n| {
            format!(
                "[[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'Server'\nmetadata.name = 's{n}'\n[resource.spec]\n"
            )
        })
        .collect()
}

async fn a_channel_is_taken_by_one_at_a_time() {
    let kit = Kit::with_basics().await;
    let server = kit.register(KEY).await.server;
    let other = kit.replica().await;
    assert_eq!(kit.store.channel_of(server).await.unwrap(), None);
    assert_eq!(kit.store.arrival(server).await.unwrap().unwrap().1, None);
    assert!(kit.store.arrival(ServerId(Uuid::from_u128(1))).await.unwrap().is_none());
    let first = take(&kit.store, server, REPLICA, run(1), None, at(1)).await.unwrap();
    assert_eq!(take(&other, server, OTHER, run(2), None, at(2)).await, None, "it is held");
    let holder = other.channel_of(server).await.unwrap().unwrap();
    let (record, seen) = other.arrival(server).await.unwrap().unwrap();
    assert_eq!((record.server, seen), (server, Some(holder)));
    assert_eq!((holder.lease, holder.replica, holder.incarnation), (first, REPLICA, run(1)));
    assert_eq!((holder.key, holder.replica_alive), (Some(KEY), false), "nobody heard of the replica");
    let info = ReplicaInfo { name: "a".into(), addresses: Vec::new(), draining: false, version: "1".into() };
    kit.store.replica_beat(REPLICA, &info).await.unwrap();
    assert!(other.channel_of(server).await.unwrap().unwrap().replica_alive);
    let second = take(&other, server, OTHER, run(2), Some(first), at(3)).await.unwrap();
    assert!(second > first);
    assert_eq!(take(&kit.store, server, REPLICA, run(1), Some(first), at(4)).await, None);
    assert_eq!(kit.store.release_channels(&[(server, first)]).await.unwrap(), [false]);
    let rows = kit.store.presences().await.unwrap();
    assert_eq!(rows, kit.store.presences_of(&[server]).await.unwrap());
    assert_eq!((rows.len(), rows[0].lease, rows[0].replica, rows[0].since), (1, second, OTHER, at(3)));
    let nobody = ServerId(Uuid::from_u128(9));
    // Also when it is done again, because nobody knows whether the first time was committed.
    for _ in 0..2 {
        let released = other.release_channels(&[(nobody, first), (server, second)]).await.unwrap();
        assert_eq!(released, [false, true]);
    }
    assert_eq!(kit.store.channel_of(server).await.unwrap(), None);
    let third = take(&kit.store, server, REPLICA, run(1), None, at(5)).await.unwrap();
    assert!(third > second, "numbers only rise");
    // Another appliance of the server ends the hold of the first.
    kit.put("apiVersion = 'horizon.dev/v1alpha1'\nkind = 'RegistrationKey'\nmetadata.name = 'berlin-2'\nspec.serverRef = 'berlin'\n")
        .await;
    let key = kit.uid("RegistrationKey", "berlin-2").await;
    let secret = kit.store.issue_registration_secret(key, at(6)).await.unwrap();
    let mut again = request(secret, PublicKey([6; 32]));
    again.key_name = "berlin-2".into();
    let registered = kit.store.register_server(&again, at(6)).await.unwrap();
    assert_eq!(registered.ended, Some(ChannelLease(third.0 + 1)));
    assert_eq!(kit.store.channel_of(server).await.unwrap(), None);
}

async fn of_many_that_take_a_channel_one_gets_it() {
    let kit = Kit::with_basics().await;
    let server = kit.register(KEY).await.server;
    let stores = [kit.store.clone(), kit.replica().await];
    let mut expected = None;
    for round in 0..5 {
        let mut tries = tokio::task::JoinSet::new();
        for n in 0..10_u128 {
            let store = stores[usize::from(n % 2 == 0)].clone();
            tries.spawn(async move {
                take(&store, server, ReplicaId(Uuid::from_u128(n)), run(n), expected, at(round)).await
            });
        }
        let won: Vec<ChannelLease> = tries.join_all().await.into_iter().flatten().collect();
        assert_eq!(won.len(), 1);
        expected = Some(won[0]);
    }
}

async fn whoever_lost_the_channel_changes_nothing() {
    let kit = Kit::with_basics().await;
    let server = kit.register(KEY).await.server;
    let (old, new) = (kit.lease(server).await, kit.lease(server).await);
    assert!(new > old);
    let before = kit.store.server(server).await.unwrap().unwrap();
    let store = &kit.store;
    let answered = Answered {
        challenge: ChallengeId(Uuid::from_u128(8)),
        kind: ChallengeType::Hmac,
        asked: at(1),
        right: false,
        detail: String::new(),
        tolerated: 1,
        newest_secret: false,
        arrival: None,
    };
    let state = AppliedState { generation: 7, ..applied() };
    let usage = SessionUsage {
        session: SessionId(Uuid::from_u128(1)),
        connected: true,
        remote: None,
        bytes_sent: 1,
        bytes_received: 1,
        rtt_micros: 1,
    };
    let results = [
        store.number_state(server, old, Digest([1; 32]), Revision(9)).await.map(drop),
        store.note_applied(server, old, &state).await.map(drop),
        store.note_usage(server, old, &[usage], at(2)).await.map(drop),
        store.note_unreachable(server, old, Some("no")).await.map(drop),
        store
            .observe_factors(server, old, reported(&factors(&[("dmi/board_serial", "z")])), at(2))
            .await
            .map(drop),
        store.note_challenges(server, old).await,
        store.note_public_address(server, old, "192.0.2.9".parse().unwrap()).await,
        store.note_challenge(server, old, &answered, at(2)).await.map(drop),
        store.distrust_server(server, old, "test", "because", at(2)).await,
    ];
    for (i, result) in results.into_iter().enumerate() {
        assert!(matches!(result, Err(StoreError::LostChannel)), "{i}: {result:?}");
    }
    assert_eq!(store.server(server).await.unwrap().unwrap(), before);
    assert!(store.list_security_events(&Default::default()).await.unwrap().is_empty());
    assert!(store.note_challenge(server, new, &answered, at(2)).await.unwrap());
    assert!(!store.note_challenge(server, new, &answered, at(3)).await.unwrap(), "it was answered");
    assert_eq!(store.server_standing(server).await.unwrap(), Some(ServerStanding::Quarantined));
}

async fn an_appliance_attaches_in_one_go() {
    let kit = Kit::with_basics().await;
    let registered = kit.register(KEY).await;
    let server = registered.server;
    let attachment = Attachment {
        server,
        replica: REPLICA,
        incarnation: run(1),
        expected: None,
        key: KEY,
        address: "203.0.113.4".parse().unwrap(),
        version: "0.3.0".into(),
        capabilities: vec![Capability::Relay],
        held: AppliedState { addresses: vec!["192.0.2.7:7443".parse().unwrap()], ..applied() },
    };
    let attached = kit.store.attach(&attachment, at(3)).await.unwrap().unwrap();
    assert_eq!((attached.standing, attached.state, attached.reissued), (ServerStanding::Good, None, false));
    assert_eq!(attached.secret.expose(), registered.secret.expose());
    assert!(attached.previous.is_none());
    assert_eq!(attached.factors.len(), 3);
    let record = kit.store.server(server).await.unwrap().unwrap();
    assert_eq!((record.version.as_deref(), record.incarnation), (Some("0.3.0"), Some(run(1))));
    assert_eq!((record.capabilities, record.addresses.len()), (vec![Capability::Relay], 1));
    assert!(kit.store.attach(&attachment, at(4)).await.unwrap().is_none(), "it is held");
    let stranger =
        Attachment { key: PublicKey([9; 32]), expected: Some(attached.lease), ..attachment.clone() };
    assert!(kit.store.attach(&stranger, at(4)).await.unwrap().is_none());
    kit.store.number_state(server, attached.lease, Digest([3; 32]), Revision(1)).await.unwrap();
    let again = Attachment { replica: OTHER, expected: Some(attached.lease), ..attachment };
    let again = kit.store.attach(&again, at(5)).await.unwrap().unwrap();
    assert!(again.lease > attached.lease);
    assert_eq!(again.state, Some((StateNumber { epoch: 1, generation: 1 }, Digest([3; 32]))));
    assert_eq!(kit.store.channel_of(server).await.unwrap().unwrap().replica, OTHER);
}

async fn applied_states_decide_about_sessions() {
    let kit = Kit::with_basics().await;
    let server = kit.register(KEY).await.server;
    let lease = kit.lease(server).await;
    let (key, secret) = kit.personal_key().await;
    let public = PublicKey([1; 32]);
    kit.store.enrol_device(key, &secret, public, &device_info("laptop"), at(1)).await.unwrap();
    let device = kit.store.device_by_key(public).await.unwrap().unwrap();
    let grant = grant(&kit.index().await, GrantFacts::POLICY_ONLY, device.user, server).unwrap();
    let wish = NewSession { device: &device, grant: &grant, client: "198.51.100.9".parse().unwrap() };
    let ask = async || match kit.store.request_session(&wish, at(2)).await.unwrap() {
        SessionOutcome::Requested { session, .. } => session.id,
        other => panic!("{other:?}"),
    };
    let applied = async |held: &[SessionId], refused: &[(SessionId, String)]| {
        let held: HashSet<_> = held.iter().copied().collect();
        kit.store.note_sessions_applied(server, lease, &held, refused, at(3)).await.unwrap()
    };
    let first = ask().await;
    assert_eq!(applied(&[], &[]).await, Default::default(), "its appliance does not know of it yet");
    assert_eq!(applied(&[first], &[]).await.activated, [first]);
    assert_eq!(applied(&[first], &[]).await, Default::default());
    kit.store.end_session(first, &EndReason::broker("test"), at(4)).await.unwrap().unwrap();
    assert!(!kit.store.session_released(first).await.unwrap());
    applied(&[first], &[]).await;
    assert!(!kit.store.session_released(first).await.unwrap(), "its appliance still admits it");
    applied(&[], &[]).await;
    assert!(kit.store.session_released(first).await.unwrap());
    let second = ask().await;
    let failed = applied(&[second], &[(second, "no room".into())]).await.failed;
    assert_eq!((failed.len(), failed[0].session, failed[0].reason.as_str()), (1, second, "no room"));
    assert_eq!(kit.store.list_sessions(1).await.unwrap()[0].status, "failed");
}

async fn what_sessions_move_is_kept_by_the_minute() {
    let kit = Kit::with_basics().await;
    let server = kit.register(KEY).await.server;
    let lease = kit.lease(server).await;
    let (key, secret) = kit.personal_key().await;
    let public = PublicKey([1; 32]);
    kit.store.enrol_device(key, &secret, public, &device_info("laptop"), at(1)).await.unwrap();
    let device = kit.store.device_by_key(public).await.unwrap().unwrap();
    let grant = grant(&kit.index().await, GrantFacts::POLICY_ONLY, device.user, server).unwrap();
    let wish = NewSession { device: &device, grant: &grant, client: "198.51.100.9".parse().unwrap() };
    let SessionOutcome::Requested { session, .. } = kit.store.request_session(&wish, at(2)).await.unwrap()
    else {
        panic!("no session")
    };
    for (time, sent, rtt) in [(0, 100, 7), (20, 250, 9), (59, 250, 3), (60, 300, 4), (130, 20, 0)] {
        let usage = SessionUsage {
            session: session.id,
            connected: true,
            remote: None,
            bytes_sent: sent,
            bytes_received: sent * 2,
            rtt_micros: rtt,
        };
        kit.store.note_usage(server, lease, &[usage], at(time)).await.unwrap();
    }
    let minutes = kit.store.session_minutes(session.id, 10).await.unwrap();
    let moved: Vec<_> =
        minutes.iter().map(|m| (m.minute, m.bytes_sent, m.bytes_received, m.rtt_micros)).collect();
    assert_eq!(moved, [(at(120), 20, 40, 0), (at(60), 50, 100, 4), (at(0), 250, 500, 9)]);
}

async fn sweeps_find_what_changed_since() {
    let kit = Kit::with_basics().await;
    let server = kit.register(KEY).await.server;
    let (none, cursor) = kit.store.servers_changed(None).await.unwrap();
    assert!(none.is_empty());
    let lease = kit.lease(server).await;
    kit.store.note_applied(server, lease, &AppliedState { generation: 4, ..applied() }).await.unwrap();
    kit.store.number_state(server, lease, Digest([1; 32]), Revision(1)).await.unwrap();
    let (nothing, cursor) = kit.store.servers_changed(Some(&cursor)).await.unwrap();
    assert!(nothing.is_empty(), "what its state is made of is as it was");
    kit.store.distrust_server(server, lease, "test", "because", at(1)).await.unwrap();
    let (found, cursor) = kit.store.servers_changed(Some(&cursor)).await.unwrap();
    assert_eq!(found, [server]);
    let (nothing, cursor) = kit.store.servers_changed(Some(&cursor)).await.unwrap();
    assert!(nothing.is_empty(), "each change is found once");
    kit.remove("Server", "berlin").await;
    assert_eq!(kit.store.servers_changed(Some(&cursor)).await.unwrap().0, [server]);
}

/// Writers that commit in another order than they began, some late, some not at all: a sweep that runs all the while
/// finds every change that was made.
async fn sweeps_miss_nothing() {
    const WRITERS: usize = 6;
    const ROUNDS: usize = 25;
    let kit = Kit::new().await;
    kit.put(&servers(WRITERS * ROUNDS)).await;
    let ids: Vec<ServerId> = kit.stored().await.iter().map(|stored| ServerId(stored.uid)).collect();
    let (_, start) = kit.store.servers_changed(None).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let own: Vec<_> = ids.iter().copied().skip(writer * ROUNDS).take(ROUNDS).collect();
        let store = kit.store.clone();
        writers.spawn(async move {
            for (round, server) in own.iter().enumerate() {
                let mut tx = store.begin().await.unwrap();
                crate::store::changed::touch(&mut tx, &server.to_string()).await.unwrap();
                // Begun early, committed late.
                for _ in 0..(writer * 7 + round * 3) % 11 {
                    tokio::task::yield_now().await;
                }
                if round % 5 == 4 {
                    drop(tx);
                    continue;
                }
                tx.commit().await.unwrap();
            }
        });
    }
    let sweeper = kit.replica().await;
    let (mut found, mut cursor, mut last) = (BTreeSet::new(), start, false);
    loop {
        let (servers, next) = sweeper.servers_changed(Some(&cursor)).await.unwrap();
        for server in servers {
            assert!(found.insert(server), "each of them changes once");
        }
        cursor = next;
        if last {
            break;
        }
        // One more after all have ended.
        while writers.try_join_next().is_some() {}
        last = writers.is_empty();
    }
    let made: BTreeSet<_> =
        ids.iter().copied().enumerate().filter(|(i, _)| (i % ROUNDS) % 5 != 4).map(|(_, id)| id).collect();
    assert_eq!(found, made);
}

/// Two replicas are asked for a session of one user at once.
async fn two_devices_of_a_user_get_one_session_between_them() {
    let kit = Kit::with_basics().await;
    let server = kit.register(KEY).await.server;
    let (key, secret) = kit.personal_key().await;
    let mut devices = Vec::new();
    for n in 1..=2 {
        let public = PublicKey([n; 32]);
        kit.store.enrol_device(key, &secret, public, &device_info("x"), at(1)).await.unwrap();
        devices.push(kit.store.device_by_key(public).await.unwrap().unwrap());
    }
    let grant = grant(&kit.index().await, GrantFacts::POLICY_ONLY, devices[0].user, server).unwrap();
    let stores = [kit.store.clone(), kit.replica().await];
    for round in 0..6 {
        let mut tries = tokio::task::JoinSet::new();
        for (store, device) in stores.iter().zip(&devices) {
            let (store, device, grant) = (store.clone(), device.clone(), grant.clone());
            tries.spawn(async move {
                let wish =
                    NewSession { device: &device, grant: &grant, client: "198.51.100.9".parse().unwrap() };
                store.request_session(&wish, at(round)).await.unwrap()
            });
        }
        let outcomes = tries.join_all().await;
        let won: Vec<_> = outcomes
            .iter()
            .filter_map(|o| match o {
                SessionOutcome::Requested { session, .. } => Some(session.id),
                SessionOutcome::Conflict { .. } | SessionOutcome::Unreleased { .. } => None,
            })
            .collect();
        assert_eq!(won.len(), 1, "{outcomes:?}");
        kit.store.end_session(won[0], &EndReason::broker("next"), at(round)).await.unwrap().unwrap();
    }
}

/// A session is asked for while its key is revoked: either it is refused, or whoever revoked hears of its server.
async fn no_session_slips_past_a_revocation() {
    for _ in 0..6 {
        let kit = Kit::with_basics().await;
        let server = kit.register(KEY).await.server;
        let (key, secret) = kit.personal_key().await;
        let public = PublicKey([1; 32]);
        kit.store.enrol_device(key, &secret, public, &device_info("x"), at(1)).await.unwrap();
        let device = kit.store.device_by_key(public).await.unwrap().unwrap();
        let grant = grant(&kit.index().await, GrantFacts::POLICY_ONLY, device.user, server).unwrap();
        let other = kit.replica().await;
        let asking = tokio::spawn(async move {
            let wish = NewSession { device: &device, grant: &grant, client: "198.51.100.9".parse().unwrap() };
            other.request_session(&wish, at(2)).await
        });
        let revoked = kit.remove("PersonalKey", "ana-1").await;
        match asking.await.unwrap() {
            Ok(_) => assert_eq!(revoked.servers, [server]),
            Err(error) => assert!(matches!(error, crate::store::SessionError::Device(_)), "{error}"),
        }
    }
}

conformance!(
    a_channel_is_taken_by_one_at_a_time,
    of_many_that_take_a_channel_one_gets_it,
    whoever_lost_the_channel_changes_nothing,
    an_appliance_attaches_in_one_go,
    applied_states_decide_about_sessions,
    what_sessions_move_is_kept_by_the_minute,
    sweeps_find_what_changed_since,
    sweeps_miss_nothing,
    two_devices_of_a_user_get_one_session_between_them,
    no_session_slips_past_a_revocation,
);
