//! Leadership, and what it and versions guard.

use std::time::Duration;

use serde_json::json;

use super::kit::{BASICS, Kit, REPLICA, at, conformance, puts, removal, who_leads};
use crate::store::{
    Actor, CommitError, Guard, LeaderEpoch, LeaseOutcome, ReplicaId, ReplicaInfo, Revision, Store,
    StoreError, dialect::query,
};

const LONG: Duration = Duration::from_secs(600);

fn replica(n: u128) -> ReplicaId {
    ReplicaId(uuid::Uuid::from_u128(n))
}

fn user(name: &str) -> String {
    format!("apiVersion = 'horizon.dev/v1alpha1'\nkind = 'User'\nmetadata.name = '{name}'\n[spec]\n")
}

async fn commit(store: &Store, toml: &str, guard: Guard) -> Result<Revision, CommitError> {
    let done = store.commit_resources(&puts(toml), &Actor::System("test"), at(0), guard).await;
    done.map(|done| done.revision)
}

async fn every_commit_that_changes_something_moves_the_version() {
    let kit = Kit::with_basics().await;
    let (resources, revision) = kit.store.load_resources().await.unwrap();
    assert_eq!((resources.len(), revision), (5, Revision(1)));
    let done = kit.commit(&puts(BASICS), at(1)).await;
    assert_eq!(done.revision, Revision(1), "nothing changed");
    assert_eq!(kit.remove("User", "nobody").await.revision, Revision(1));
    assert_eq!(commit(&kit.store, &user("ben"), Guard::NONE).await.unwrap(), Revision(2));
    let ben = kit.uid("User", "ben").await;
    kit.remove("User", "ben").await;
    kit.put(&user("ben")).await;
    let news = kit.store.resources_since(Revision(1)).await.unwrap();
    assert_eq!(news.revision, Revision(4));
    assert_eq!(news.removed.iter().map(|(_, uid)| *uid).collect::<Vec<_>>(), [ben]);
    assert_eq!(news.put.len(), 1);
    assert_ne!(news.put[0].uid, ben);
    let nothing = kit.store.resources_since(Revision(4)).await.unwrap();
    assert_eq!((nothing.put.len(), nothing.removed.len(), nothing.revision), (0, 0, Revision(4)));
}

async fn what_was_planned_on_an_older_version_is_not_committed() {
    let kit = Kit::with_basics().await;
    let other = kit.replica().await;
    let guard = Guard { expected: Some(Revision(1)), leader: None };
    assert_eq!(commit(&kit.store, &user("a"), guard).await.unwrap(), Revision(2));
    let late = commit(&other, &user("b"), guard).await;
    assert!(matches!(late, Err(CommitError::Behind { revision: Revision(2) })), "{late:?}");
    assert_eq!(kit.stored().await.len(), 6);
    // Many at once on one version: one is committed.
    let guard = Guard { expected: Some(Revision(2)), leader: None };
    let mut tries = tokio::task::JoinSet::new();
    for n in 0..8 {
        let store = if n % 2 == 0 { kit.store.clone() } else { other.clone() };
        tries.spawn(async move { commit(&store, &user(&format!("u{n}")), guard).await });
    }
    let done = tries.join_all().await;
    assert_eq!(done.iter().filter(|done| done.is_ok()).count(), 1);
    assert!(done.iter().all(|d| matches!(d, Ok(_) | Err(CommitError::Behind { .. }))), "{done:?}");
}

async fn whoever_was_followed_as_leader_writes_nothing() {
    let kit = Kit::with_basics().await;
    let other = kit.replica().await;
    let first = kit.store.take_leadership(REPLICA, "a", at(0)).await.unwrap();
    let leader = |epoch| Guard { expected: None, leader: Some(epoch) };
    commit(&kit.store, &user("a"), leader(first)).await.unwrap();
    let user_uid = kit.uid("User", "ana").await;
    let status = [(user_uid, json!({ "deviceCount": 1 }))];
    kit.store.put_statuses(&status, at(0), Some(first)).await.unwrap();
    let second = other.take_leadership(replica(2), "b", at(1)).await.unwrap();
    assert!(second > first);
    assert_eq!(who_leads(&kit.store).await, (second, Some("b".to_owned())));
    let before = kit.store.list_audit(1000).await.unwrap().len();
    assert!(matches!(commit(&kit.store, &user("b"), leader(first)).await, Err(CommitError::Fenced)));
    let fenced = kit.store.put_statuses(&[(user_uid, json!({}))], at(2), Some(first)).await;
    assert!(matches!(fenced, Err(StoreError::Fenced)));
    let fenced = kit.store.put_note("leader.test", Some(&json!(1)), at(2), Some(first)).await;
    assert!(matches!(fenced, Err(StoreError::Fenced)));
    assert_eq!(kit.stored().await.len(), 6);
    assert_eq!(kit.store.status_of(user_uid).await.unwrap(), Some(json!({ "deviceCount": 1 })));
    assert_eq!(kit.store.list_audit(1000).await.unwrap().len(), before);
    commit(&other, &user("b"), leader(second)).await.unwrap();
}

/// The new leader waits for what the old one has begun, and what comes after is refused.
async fn a_leader_that_is_overtaken_in_the_middle_is_seen_by_the_next() {
    let kit = Kit::with_basics().await;
    let first = kit.store.take_leadership(REPLICA, "a", at(0)).await.unwrap();
    let (commits, takes) = (kit.store.clone(), kit.replica().await);
    let writer = tokio::spawn(async move {
        let mut last = Revision(0);
        for n in 0..1000 {
            let guard = Guard { expected: None, leader: Some(first) };
            match commit(&commits, &user(&format!("u{n}")), guard).await {
                Ok(revision) => last = revision,
                Err(CommitError::Fenced) => return last,
                Err(other) => panic!("{other}"),
            }
        }
        panic!("it was never fenced");
    });
    // Some commits are made before; the leadership changes in the middle of others.
    while kit.store.resources_since(Revision(1)).await.unwrap().revision < Revision(4) {
        tokio::task::yield_now().await;
    }
    takes.take_leadership(replica(2), "b", at(1)).await.unwrap();
    let seen = takes.load_resources().await.unwrap().1;
    assert_eq!(writer.await.unwrap(), seen, "nothing of the old one came after the new one looked");
}

async fn a_lease_is_one_replicas() {
    let kit = Kit::new().await;
    let other = kit.replica().await;
    let LeaseOutcome::Held(first) = kit.store.try_lease(REPLICA, "a", LONG).await.unwrap() else { panic!() };
    assert_eq!(kit.store.try_lease(REPLICA, "a", LONG).await.unwrap(), LeaseOutcome::Held(first), "renewed");
    let refused = other.try_lease(replica(2), "b", LONG).await.unwrap();
    assert!(matches!(refused, LeaseOutcome::Other { name, .. } if name == "a"));
    // Given back, it is free at once.
    kit.store.release_lease(REPLICA).await.unwrap();
    let LeaseOutcome::Held(second) = other.try_lease(replica(2), "b", LONG).await.unwrap() else { panic!() };
    assert!(second > first);
    kit.store.release_lease(REPLICA).await.unwrap();
    let refused = kit.store.try_lease(REPLICA, "a", LONG).await.unwrap();
    assert!(matches!(refused, LeaseOutcome::Other { .. }), "only its holder gives it back");
}

async fn a_lease_that_is_over_is_anybodys() {
    let kit = Kit::new().await;
    let other = kit.replica().await;
    let short = Duration::from_millis(1);
    let LeaseOutcome::Held(first) = kit.store.try_lease(REPLICA, "a", short).await.unwrap() else { panic!() };
    let second = loop {
        match other.try_lease(replica(2), "b", LONG).await.unwrap() {
            LeaseOutcome::Held(epoch) => break epoch,
            LeaseOutcome::Other { .. } => tokio::task::yield_now().await,
        }
    };
    assert_eq!(second, LeaderEpoch(first.0 + 1));
    assert!(matches!(kit.store.try_lease(REPLICA, "a", LONG).await.unwrap(), LeaseOutcome::Other { .. }));
}

async fn a_clock_that_was_set_back_keeps_nobody_waiting() {
    let kit = Kit::new().await;
    let other = kit.replica().await;
    kit.store.try_lease(REPLICA, "a", LONG).await.unwrap();
    // As if the database's clock had been an hour ahead when the lease was taken, and its holder died.
    kit.place.admin("UPDATE leadership SET held_until = held_until + 3600000").await;
    let ttl = Duration::from_millis(50);
    let outcome = other.try_lease(replica(2), "b", ttl).await.unwrap();
    assert!(matches!(outcome, LeaseOutcome::Other { .. }), "it may have been renewed just now");
    tokio::time::sleep(ttl).await;
    assert!(matches!(other.try_lease(replica(2), "b", ttl).await.unwrap(), LeaseOutcome::Held(_)));
}

async fn replicas_are_known_while_they_are_heard_of() {
    let kit = Kit::new().await;
    let info = |name: &str, draining| ReplicaInfo {
        name: name.into(),
        addresses: vec!["pod-0.horizon:7443".into()],
        draining,
        version: "0.3.0".into(),
    };
    kit.store.replica_beat(REPLICA, &info("a", false)).await.unwrap();
    kit.store.replica_beat(replica(2), &info("b", false)).await.unwrap();
    kit.store.replica_beat(REPLICA, &info("a", true)).await.unwrap();
    let rows = kit.store.replicas().await.unwrap();
    assert_eq!(rows.len(), 2);
    let first = rows.iter().find(|row| row.replica == REPLICA).unwrap();
    assert_eq!(first.info, info("a", true));
    assert!(first.alive());
    kit.place.admin("UPDATE replicas SET last_beat = last_beat - 60000 WHERE name = 'b'").await;
    let rows = kit.store.replicas().await.unwrap();
    let second = rows.iter().find(|row| row.replica == replica(2)).unwrap();
    assert!(!second.alive() && second.age >= Duration::from_secs(59));
    // Its device channels go with a replica.
    let device = horizon_model::DeviceId(uuid::Uuid::from_u128(5));
    let phone = horizon_model::DeviceId(uuid::Uuid::from_u128(6));
    kit.store.put_device_channels(REPLICA, true, &[device, phone], &[]).await.unwrap();
    kit.store.put_device_channels(replica(2), false, &[device], &[phone]).await.unwrap();
    kit.store.put_device_channels(replica(3), false, &[device], &[]).await.unwrap();
    let of = async |devices: &[_]| {
        let mut found = kit.store.device_channels_of(devices).await.unwrap();
        found.sort();
        found
    };
    assert_eq!(of(&[device]).await, [(device, REPLICA), (device, replica(2))], "nobody knows the third");
    kit.store.put_device_channels(REPLICA, true, &[phone], &[]).await.unwrap();
    assert_eq!(of(&[device, phone]).await, [(device, replica(2)), (phone, REPLICA)]);
    kit.store.remove_replica(replica(2)).await.unwrap();
    assert_eq!(kit.store.device_channels().await.unwrap(), [(phone, REPLICA)]);
    assert_eq!(kit.store.replicas().await.unwrap().len(), 1);
}

async fn who_changed_an_object_is_in_the_audit_trail() {
    let kit = Kit::new().await;
    let mut changes = puts(&user("ana"));
    for change in &mut changes {
        if let crate::store::Change::Put { actor, .. } = change {
            *actor = Some(Actor::Kubernetes("eva@example.org".into()));
        }
    }
    changes.extend(puts(&user("ben")));
    kit.commit(&changes, at(0)).await;
    kit.commit(&[removal("User", "ben")], at(1)).await;
    let audit = kit.store.list_audit(10).await.unwrap();
    let who: Vec<_> =
        audit.iter().map(|e| (e.target.as_str(), e.actor_type.as_str(), e.actor.as_str())).collect();
    assert_eq!(
        who,
        [
            ("default/ben", "file", "test"),
            ("default/ben", "file", "test"),
            ("default/ana", "kubernetes", "eva@example.org"),
        ]
    );
}

/// What a statement locks of the leadership is held until the end of the transaction, on the engine that has such locks.
async fn nobody_takes_over_in_the_middle_of_a_transaction() {
    let kit = Kit::new().await;
    let epoch = kit.store.take_leadership(REPLICA, "a", at(0)).await.unwrap();
    let other = kit.replica().await;
    let mut tx = kit.store.begin().await.unwrap();
    assert!(crate::store::leadership::leads(&mut tx, epoch).await.unwrap());
    let taking = tokio::spawn(async move { other.take_leadership(replica(2), "b", at(1)).await });
    // Still in force, as often as it is asked in this transaction.
    for _ in 0..20 {
        query("UPDATE counters SET value = value").execute(&mut *tx).await.unwrap();
        assert!(crate::store::leadership::leads(&mut tx, epoch).await.unwrap());
        tokio::task::yield_now().await;
    }
    assert!(!taking.is_finished());
    tx.commit().await.unwrap();
    assert!(taking.await.unwrap().unwrap() > epoch);
}

conformance!(
    every_commit_that_changes_something_moves_the_version,
    what_was_planned_on_an_older_version_is_not_committed,
    whoever_was_followed_as_leader_writes_nothing,
    a_leader_that_is_overtaken_in_the_middle_is_seen_by_the_next,
    a_lease_is_one_replicas,
    a_lease_that_is_over_is_anybodys,
    a_clock_that_was_set_back_keeps_nobody_waiting,
    replicas_are_known_while_they_are_heard_of,
    who_changed_an_object_is_in_the_audit_trail,
    nobody_takes_over_in_the_middle_of_a_transaction,
);
