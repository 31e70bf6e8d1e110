use std::collections::{BTreeMap, BTreeSet};

use horizon_model::Secret;
use proptest::prelude::*;

use super::*;
use crate::{
    key::{self, SigningKey},
    keyset::{Anchor, MAX_CHAIN, walk},
    proto::SignedKeySet,
};

const USES: [KeyUse; 3] = [KeyUse::Tls, KeyUse::State, KeyUse::Ticket];

/// A controller with its private keys, and what it published.
struct World {
    seeds: u64,
    private: BTreeMap<[u8; 32], SigningKey>,
    sets: Vec<KeySet>,
    chain: Vec<SignedKeySet>,
    now: i64,
}

impl World {
    fn new() -> Self {
        let mut world =
            Self { seeds: 0, private: BTreeMap::new(), sets: Vec::new(), chain: Vec::new(), now: 1 };
        let root = world.fresh();
        let key = |usage, key| KeySetKey {
            usage,
            key,
            not_before: 0,
            not_after: VALIDITY,
            // As a controller wrote it before there were phases.
            phase: KeyPhase::Unspecified,
        };
        let keys = USES.map(|usage| key(usage, world.fresh())).to_vec();
        let first = KeySet { version: 1, root, keys, issued: 1, revoked: Vec::new() };
        world.chain.push(first.sign(&world.private[&root.0], None));
        world.sets.push(first);
        world
    }

    fn fresh(&mut self) -> PublicKey {
        self.seeds += 1;
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seeds.to_be_bytes());
        let key = SigningKey::from_seed(Secret::new(seed));
        let public = key.public();
        self.private.insert(public.0, key);
        public
    }

    fn newest(&self) -> &KeySet {
        self.sets.last().unwrap()
    }

    fn take(&mut self, class: KeyClass, step: Step) -> Result<(), StepError> {
        let fresh = step.brings_key().then(|| self.fresh());
        let next = take(self.newest(), class, step, fresh, self.now)?;
        let signed = next.sign(&self.private[&next.root.0], Some(&self.private[&self.newest().root.0]));
        self.chain.push(signed);
        // Private halves that are not needed any more are erased.
        let needed: BTreeSet<_> = needed(&next).into_iter().map(|k| k.0).collect();
        self.private.retain(|public, _| needed.contains(public));
        self.sets.push(next);
        Ok(())
    }
}

/// A rotation as the controller keeps it, in one transaction with the KeySet of its last step.
#[derive(Clone, Copy, Debug)]
struct Rotation {
    class: KeyClass,
    emergency: bool,
    reached: Reached,
}

fn advance(world: &mut World, rotation: &mut Rotation, behind: bool, overlap: i64) -> bool {
    let Rotation { class, emergency, reached } = *rotation;
    match due(world.newest(), class, emergency, reached, behind, overlap, world.now) {
        Due::Wait(_) => false,
        Due::Done => true,
        Due::Take(step) => {
            world.take(class, step).unwrap();
            rotation.reached = match step {
                Step::Publish => Reached::Published(world.now),
                Step::Use => Reached::InUse(world.now),
                Step::Retire if reached == Reached::Requested => Reached::Requested,
                Step::Retire | Step::Replace => return true,
            };
            false
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Ask(KeyClass, bool),
    Tick(i64, bool),
}

fn act() -> impl Strategy<Value = Act> {
    let class = prop::sample::select(KeyClass::ALL.to_vec());
    prop_oneof![
        (class, prop::bool::weighted(0.2)).prop_map(|(class, emergency)| Act::Ask(class, emergency)),
        (-5..200_i64, any::<bool>()).prop_map(|(time, behind)| Act::Tick(time, behind)),
    ]
}

proptest! {
    /// At every moment and for a peer with any earlier version or any root, what the controller uses is verified by walking;
    /// no key is used before it was published or after it was left out; every rotation ends.
    #[test]
    fn what_is_used_is_always_vouched_for(acts in prop::collection::vec(act(), 1..60)) {
        const OVERLAP: i64 = 100;
        let mut world = World::new();
        // One rotation of a class at a time; an emergency overtakes it.
        let mut rotations: BTreeMap<KeyClass, Rotation> = BTreeMap::new();
        for act in acts {
            match act {
                Act::Ask(class, emergency) => {
                    if emergency || !rotations.contains_key(&class) {
                        rotations.insert(class, Rotation { class, emergency, reached: Reached::Requested });
                    }
                }
                Act::Tick(time, behind) => {
                    world.now += time;
                    rotations.retain(|_, rotation| !advance(&mut world, rotation, behind, OVERLAP));
                }
            }
        }
        for _ in 0..8 {
            world.now += OVERLAP;
            rotations.retain(|_, rotation| !advance(&mut world, rotation, true, OVERLAP));
        }
        prop_assert!(rotations.is_empty(), "every rotation ends: {rotations:?}");

        let newest = world.newest().clone();
        for (held, set) in world.sets.iter().enumerate() {
            let anchors = [Anchor::KeySet(set.clone()), Anchor::Root(key::root_id(&set.root))];
            let parts = [&world.chain[held..], &world.chain[..]];
            for (anchor, part) in anchors.iter().zip(parts) {
                prop_assert_eq!(walk(anchor, part), Ok(newest.clone()));
            }
        }
        let mut left_out: BTreeSet<[u8; 32]> = BTreeSet::new();
        for (index, set) in world.sets.iter().enumerate() {
            let listed: BTreeSet<_> = set.keys.iter().map(|k| k.key.0).collect();
            prop_assert!(left_out.is_disjoint(&listed), "no key comes back");
            for usage in USES {
                let used = set.current(usage).unwrap();
                prop_assert!(set.allows(usage, &used, set.issued) && !set.revokes(&used));
                let in_use = set.keys.iter().filter(|k| k.usage == usage && phase_of(k) == KeyPhase::Current);
                prop_assert_eq!(in_use.count(), 1);
                // Known since the version before, if it is not the answer to an emergency.
                if let Some(before) = index.checked_sub(1).map(|i| &world.sets[i])
                    && before.current(usage) != Some(used)
                {
                    let replaced = before.keys.iter().filter(|k| k.usage == usage).all(|k| set.revokes(&k.key));
                    prop_assert!(replaced || before.allows(usage, &used, set.issued));
                }
            }
            if let Some(before) = index.checked_sub(1).map(|i| &world.sets[i]) {
                left_out.extend(before.keys.iter().map(|k| k.key.0).filter(|key| !listed.contains(key)));
            }
        }
        // What signs is there.
        for key in needed(&newest) {
            prop_assert!(world.private.contains_key(&key.0));
        }
    }
}

#[test]
fn a_key_is_published_used_and_retired() {
    let mut world = World::new();
    let old = world.newest().current(KeyUse::State).unwrap();
    let mut rotation = Rotation { class: KeyClass::State, emergency: false, reached: Reached::Requested };
    assert!(!advance(&mut world, &mut rotation, true, 100));
    assert_eq!(world.newest().current(KeyUse::State), Some(old), "published, not used");
    world.now += 99;
    assert!(!advance(&mut world, &mut rotation, true, 100));
    assert_eq!(world.newest().version, 2, "somebody is behind");
    assert!(!advance(&mut world, &mut rotation, false, 100));
    let new = world.newest().current(KeyUse::State).unwrap();
    assert!(new != old && world.newest().allows(KeyUse::State, &old, world.now));
    assert!(!needed(world.newest()).contains(&old), "its private half can go");
    world.now += 100;
    assert!(advance(&mut world, &mut rotation, false, 100));
    assert!(!world.newest().allows(KeyUse::State, &old, world.now));
    assert!(!world.newest().revokes(&old), "it was not stolen");
    assert_eq!(world.newest().version, 4);
}

#[test]
fn an_emergency_drops_the_old_keys_at_once() {
    let mut world = World::new();
    world.take(KeyClass::Tls, Step::Publish).unwrap();
    let before = world.newest().clone();
    world.take(KeyClass::Tls, Step::Replace).unwrap();
    let after = world.newest();
    let tls =
        |set: &KeySet| set.keys.iter().filter(|k| k.usage == KeyUse::Tls).map(|k| k.key).collect::<Vec<_>>();
    for old in tls(&before) {
        assert!(after.revokes(&old) && !after.allows(KeyUse::Tls, &old, world.now));
    }
    assert_eq!(tls(after), [after.current(KeyUse::Tls).unwrap()]);
    for _ in 0..2 * MAX_REVOKED {
        world.take(KeyClass::Root, Step::Replace).unwrap();
    }
    assert_eq!(world.newest().revoked.len(), MAX_REVOKED);
    assert!(walk(&Anchor::KeySet(before), &world.chain).is_ok());
}

#[test]
fn steps_out_of_turn_are_refused() {
    let mut world = World::new();
    for (class, step) in [
        (KeyClass::Tls, Step::Use),
        (KeyClass::Tls, Step::Retire),
        (KeyClass::Root, Step::Use),
        (KeyClass::Root, Step::Retire),
    ] {
        assert!(matches!(world.take(class, step), Err(StepError::OutOfTurn(_))), "{class:?} {step:?}");
    }
    world.take(KeyClass::Tls, Step::Publish).unwrap();
    assert!(matches!(world.take(KeyClass::Tls, Step::Publish), Err(StepError::OutOfTurn("tls"))));
    let set = world.newest();
    assert_eq!(take(set, KeyClass::State, Step::Publish, Some(set.root), 5), Err(StepError::KnownKey));
    assert!(take(set, KeyClass::State, Step::Publish, None, 5).is_err());
}

#[test]
fn a_machine_that_slept_for_a_hundred_versions_follows() {
    let mut world = World::new();
    let (asleep, pinned) = (world.newest().clone(), key::root_id(&world.newest().root));
    while world.sets.len() < 101 {
        world.now += 1000;
        for class in KeyClass::ALL {
            world.take(class, Step::Publish).unwrap();
            if class != KeyClass::Root {
                world.take(class, Step::Use).unwrap();
                world.take(class, Step::Retire).unwrap();
            }
        }
    }
    assert!(world.sets.len() > 100 && world.sets.len() < MAX_CHAIN);
    assert_eq!(walk(&Anchor::KeySet(asleep.clone()), &world.chain).as_ref(), Ok(world.newest()));
    assert_eq!(walk(&Anchor::Root(pinned), &world.chain).as_ref(), Ok(world.newest()));
    // In parts, as when there are more than one message may carry.
    let half = walk(&Anchor::KeySet(asleep), &world.chain[..50]).unwrap();
    assert_eq!(walk(&Anchor::KeySet(half), &world.chain[49..]).as_ref(), Ok(world.newest()));
}
