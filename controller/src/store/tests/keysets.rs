//! KeySets in the database: each is the next, and replicas that were away take them from here.

use std::path::Path;

use horizon_crds::RotationType;
use horizon_wire::{
    Message as _,
    key::SigningKey,
    rotation::{self, KeyClass, Reached, Step},
};
use jiff::SignedDuration;

use super::kit::{Kit, REPLICA, at, conformance};
use crate::{
    keys::{self, Keys},
    store::{
        FreshKey, KeySetHolders, KeySetRotation, LeaderEpoch, NewKeySet, NewKeySetRotation, StoreError,
        dialect::query, row::Columns as _,
    },
};

fn first_keys() -> Keys {
    Keys::read(&Keys::fresh(at(0)), Path::new("test"), at(0)).unwrap()
}

async fn begin(kit: &Kit, class: KeyClass, kind: RotationType, epoch: LeaderEpoch) -> Option<KeySetRotation> {
    let overlap = SignedDuration::from_secs(60);
    let new =
        NewKeySetRotation { class, kind, reason: "a test", by: "ana", run: None, policy: None, overlap };
    let id = kit.store.begin_keyset_rotation(&new, Some(epoch), at(1)).await.unwrap()?;
    let open = kit.store.keyset_rotations(None).await.unwrap();
    open.into_iter().find(|rotation| rotation.id == id)
}

/// Takes a step, up to what reaches the database.
async fn step(
    kit: &Kit,
    keys: &Keys,
    rotation: &KeySetRotation,
    step: Step,
    epoch: LeaderEpoch,
) -> Result<bool, StoreError> {
    let fresh =
        step.brings_key().then(|| SigningKey::from_seed(horizon_model::Secret::new(crate::store::random())));
    let public = fresh.as_ref().map(SigningKey::public);
    let next = rotation::take(&keys.keyset, rotation.class, step, public, at(2).as_millisecond()).unwrap();
    let root = fresh.as_ref().filter(|_| rotation.class == KeyClass::Root).unwrap_or(&keys.root);
    let new = NewKeySet {
        version: next.version,
        signed: next.sign(root, Some(&keys.root)).encode_to_vec(),
        key: fresh.as_ref().map(|key| FreshKey {
            name: format!("{}-{}", rotation.class.as_str(), next.version),
            public: key.public(),
            secret: key.seed(),
        }),
        needed: rotation::needed(&next),
        rotation,
        step,
    };
    kit.store.append_keyset(&new, Some(epoch), at(2)).await
}

async fn refresh(kit: &Kit, rotation: &KeySetRotation) -> Option<KeySetRotation> {
    let open = kit.store.keyset_rotations(None).await.unwrap();
    open.into_iter().find(|other| other.id == rotation.id)
}

/// Has a KeySet bring in a key. Returns its private half.
pub(super) async fn bring_in(kit: &Kit) -> horizon_model::Secret {
    let epoch = kit.store.take_leadership(REPLICA, "one", at(0)).await.unwrap();
    let first = first_keys();
    keys::follow(&kit.store, &first, at(0)).await.unwrap();
    let rotation = begin(kit, KeyClass::Tls, RotationType::Scheduled, epoch).await.unwrap();
    assert!(step(kit, &first, &rotation, Step::Publish, epoch).await.unwrap());
    let rows = kit.store.keysets_after(0).await.unwrap();
    rows.into_iter().find_map(|row| row.key).unwrap().1
}

async fn a_replica_that_was_away_takes_the_keys_from_the_database() {
    let kit = Kit::new().await;
    let epoch = kit.store.take_leadership(REPLICA, "one", at(0)).await.unwrap();
    let first = first_keys();
    assert!(keys::follow(&kit.store, &first, at(0)).await.unwrap().is_none(), "there is nothing newer");
    // After each step somebody comes who has the first keys alone: as after a crash between any two steps.
    let mut newest = first.clone();
    for class in KeyClass::ALL {
        let mut rotation = begin(&kit, class, RotationType::Scheduled, epoch).await.unwrap();
        let steps: &[Step] = match class {
            KeyClass::Root => &[Step::Publish],
            _ => &[Step::Publish, Step::Use, Step::Retire],
        };
        for next in steps {
            assert!(step(&kit, &newest, &rotation, *next, epoch).await.unwrap());
            let late = keys::follow(&kit.store, &first, at(3)).await.unwrap().unwrap();
            newest = keys::follow(&kit.store, &newest, at(3)).await.unwrap().unwrap();
            assert_eq!(late.keyset, newest.keyset);
            for (a, b) in [(&late.tls, &newest.tls), (&late.state, &newest.state), (&late.root, &newest.root)]
            {
                assert_eq!(a.public(), b.public());
            }
            if let Some(further) = refresh(&kit, &rotation).await {
                rotation = further;
            }
        }
        assert!(refresh(&kit, &rotation).await.is_none(), "it is over");
    }
    assert_eq!(newest.keyset.version, 11);
    // Of the private halves those remain that are needed.
    let rows = query("SELECT key_name FROM keysets WHERE key_sealed IS NOT NULL ORDER BY version");
    let rows = rows.fetch_all(kit.store.readers()).await.unwrap();
    let names: Vec<_> = rows.iter().map(|row| row.text("key_name").unwrap()).collect();
    assert_eq!(names, ["tls-2", "state-5", "ticket-8", "root-11"]);
    let events = kit.store.list_security_events(&Default::default()).await.unwrap();
    assert_eq!(events.len(), 10);
    let audit = kit.store.list_audit(20).await.unwrap();
    assert_eq!(audit.iter().filter(|entry| entry.action == "rotate").count(), 10);
}

async fn a_keyset_is_the_next_one_or_none() {
    let kit = Kit::new().await;
    let epoch = kit.store.take_leadership(REPLICA, "one", at(0)).await.unwrap();
    let keys = first_keys();
    keys::follow(&kit.store, &keys, at(0)).await.unwrap();
    let rotation = begin(&kit, KeyClass::Tls, RotationType::Scheduled, epoch).await.unwrap();
    assert!(
        begin(&kit, KeyClass::Tls, RotationType::Scheduled, epoch).await.is_none(),
        "one of a class at a time"
    );
    assert!(step(&kit, &keys, &rotation, Step::Publish, epoch).await.unwrap());
    // A second leader that knows no better, and one that was deposed.
    assert!(!step(&kit, &keys, &rotation, Step::Publish, epoch).await.unwrap());
    let newer = kit.store.take_leadership(REPLICA, "two", at(4)).await.unwrap();
    let keys = keys::follow(&kit.store, &keys, at(3)).await.unwrap().unwrap();
    let rotation = refresh(&kit, &rotation).await.unwrap();
    assert!(matches!(rotation.reached, Some(Reached::Published(_))));
    assert!(matches!(step(&kit, &keys, &rotation, Step::Use, epoch).await, Err(StoreError::Fenced)));
    // An emergency overtakes it: its step changes nothing any more.
    let emergency = begin(&kit, KeyClass::Tls, RotationType::Emergency, newer).await.unwrap();
    assert!(!step(&kit, &keys, &rotation, Step::Use, newer).await.unwrap());
    assert!(step(&kit, &keys, &emergency, Step::Replace, newer).await.unwrap());
    let keys = keys::follow(&kit.store, &keys, at(3)).await.unwrap().unwrap();
    assert_eq!((keys.keyset.version, keys.keyset.revoked.len()), (3, 2));
    assert!(kit.store.keyset_rotations(None).await.unwrap().is_empty());
}

async fn keys_that_went_another_way_are_refused() {
    let kit = Kit::new().await;
    let epoch = kit.store.take_leadership(REPLICA, "one", at(0)).await.unwrap();
    let keys = first_keys();
    keys::follow(&kit.store, &keys, at(0)).await.unwrap();
    let error = keys::follow(&kit.store, &first_keys(), at(0)).await.unwrap_err().to_string();
    assert!(error.contains("KeySet 1 of the database is not the one of the keys"), "{error}");
    // A database that was restored from an older backup learns what it lacks from the keys.
    let rotation = begin(&kit, KeyClass::State, RotationType::Manual, epoch).await.unwrap();
    assert!(step(&kit, &keys, &rotation, Step::Replace, epoch).await.unwrap());
    let newer = keys::follow(&kit.store, &keys, at(3)).await.unwrap().unwrap();
    let other = Kit::new().await;
    keys::follow(&other.store, &keys, at(0)).await.unwrap();
    assert!(keys::follow(&other.store, &newer, at(0)).await.unwrap().is_none());
    assert_eq!(other.store.keysets_after(0).await.unwrap().len(), 2);
}

async fn who_holds_what_is_counted_over_all_replicas() {
    let kit = Kit::new().await;
    let other = crate::store::ReplicaId::random();
    let row = |role: &str, version, peers| KeySetHolders { role: role.into(), version, peers };
    kit.store.put_keyset_holders(REPLICA, &[row("appliance", 1, 2), row("appliance", 2, 3)]).await.unwrap();
    kit.store.put_keyset_holders(other, &[row("appliance", 2, 4), row("replica", 2, 1)]).await.unwrap();
    let all = [row("appliance", 1, 2), row("appliance", 2, 7), row("replica", 2, 1)];
    assert_eq!(kit.store.keyset_holders(None).await.unwrap(), all);
    // One that is not on the roll counts for nobody but itself.
    assert_eq!(
        kit.store.keyset_holders(Some(REPLICA)).await.unwrap(),
        all[..1].iter().cloned().chain([row("appliance", 2, 3)]).collect::<Vec<_>>()
    );
    kit.store.forget_keyset_holders(REPLICA).await.unwrap();
    assert_eq!(kit.store.keyset_holders(None).await.unwrap().len(), 2);
}

conformance!(
    a_replica_that_was_away_takes_the_keys_from_the_database,
    a_keyset_is_the_next_one_or_none,
    keys_that_went_another_way_are_refused,
    who_holds_what_is_counted_over_all_replicas,
);
