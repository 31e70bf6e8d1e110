//! The life of a key under anything that may happen, in any order.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::{BeginError, Change, Ending, Life, VersionState};

const OVERLAP: Duration = Duration::from_secs(100);

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn states(life: &Life) -> Vec<VersionState> {
    life.versions().iter().map(|version| version.state).collect()
}

#[test]
fn both_keys_work_until_all_have_confirmed() {
    use VersionState::{Active, Deactivated, Pending, Rotating};
    let mut life = Life::first(true);
    assert_eq!(life.begin(OVERLAP, at(0)), Ok(2));
    assert_eq!(states(&life), [Rotating, Pending]);
    assert!(life.works(1, at(50)) && life.works(2, at(50)));
    assert_eq!(life.begin(OVERLAP, at(1)), Err(BeginError::UnderWay));
    assert_eq!(life.settle(true, false, at(10)), Change::None);
    assert_eq!(states(&life), [Rotating, Active]);
    assert_eq!(life.settle(true, true, at(20)), Change::Confirmed);
    assert_eq!(states(&life), [Deactivated, Active]);
    assert_eq!(life.settle(true, true, at(21)), Change::None);
    assert!(!life.works(1, at(20)) && life.works(2, at(20)));
}

#[test]
fn the_overlap_ends_without_anybody() {
    let mut life = Life::first(true);
    life.begin(OVERLAP, at(0)).unwrap();
    assert!(life.works(1, at(99)));
    assert!(!life.works(1, at(100)), "before anybody has written it down");
    assert_eq!(life.settle(false, false, at(100)), Change::OverlapOver);
    assert_eq!(states(&life), [VersionState::Deactivated, VersionState::Active]);
    assert!(!life.manual_rotation_required());
}

#[test]
fn what_is_replaced_at_once_is_dead_at_once() {
    use VersionState::{Active, Compromised, Pending};
    let mut life = Life::first(true);
    life.begin(OVERLAP, at(0)).unwrap();
    assert_eq!(life.replace(Ending::Compromised, at(5)), 3);
    assert_eq!(states(&life), [Compromised, Compromised, Pending]);
    assert!(!life.works(1, at(5)) && !life.works(2, at(5)) && life.works(3, at(5)));
    assert!(life.manual_rotation_required());
    assert_eq!(life.begin(OVERLAP, at(6)), Err(BeginError::Unused));
    life.used(1);
    assert!(life.manual_rotation_required() && !life.works(1, at(6)), "what has ended stays so");
    life.used(3);
    assert_eq!(states(&life), [Compromised, Compromised, Active]);
    assert!(!life.manual_rotation_required());
}

#[test]
fn a_key_that_nobody_uses_is_not_rotated() {
    assert_eq!(Life::first(false).begin(OVERLAP, at(0)), Err(BeginError::Unused));
    assert_eq!(VersionState::parse("rotating"), Some(VersionState::Rotating));
    assert_eq!(VersionState::parse("gone"), None);
}

#[derive(Clone, Copy, Debug)]
enum Happens {
    Begin(u64),
    Confirmed {
        any: bool,
        all: bool,
    },
    Replace(bool),
    Used(u32),
    Time(i64),
    /// Whoever worked on it broke off, and another goes on from the rows.
    Crash,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        (1u64..200).prop_map(Happens::Begin),
        any::<(bool, bool)>().prop_map(|(any, all)| Happens::Confirmed { any: any || all, all }),
        any::<bool>().prop_map(Happens::Replace),
        (1u32..6).prop_map(Happens::Used),
        (0i64..150).prop_map(Happens::Time),
        Just(Happens::Crash),
    ]
}

proptest! {
    #[test]
    fn there_is_always_a_key_and_none_outlives_its_end(steps in prop::collection::vec(happens(), 0..60)) {
        let mut life = Life::first(true);
        let mut now = at(0);
        let mut dead = std::collections::BTreeSet::new();
        for step in steps {
            let before = life.clone();
            match step {
                Happens::Begin(seconds) => {
                    let began = life.begin(Duration::from_secs(seconds), now);
                    prop_assert_eq!(began.is_err(), life == before, "an error changes nothing");
                    if began.is_ok() {
                        // Nothing stops working because a scheduled rotation begins.
                        for version in before.versions() {
                            prop_assert_eq!(version.works(now), life.works(version.number, now));
                        }
                    }
                }
                Happens::Confirmed { any, all } => {
                    life.settle(any, all, now);
                }
                Happens::Replace(compromised) => {
                    let ending = if compromised { Ending::Compromised } else { Ending::Deactivated };
                    let new = life.replace(ending, now);
                    for version in life.versions() {
                        prop_assert_eq!(version.works(now), version.number == new);
                    }
                }
                Happens::Used(number) => life.used(number),
                Happens::Time(seconds) => {
                    now += SignedDuration::from_secs(seconds);
                    life.settle(false, false, now);
                }
                Happens::Crash => {
                    let mut rows = life.versions().to_vec();
                    rows.reverse();
                    life = Life::of(rows, life.manual_rotation_required()).unwrap();
                    prop_assert_eq!(&life, &before);
                }
            }
            prop_assert!(life.newest().works(now), "there is always a key that works");
            prop_assert!(life.versions().iter().filter(|version| version.works(now)).count() <= 2);
            for version in life.versions() {
                if let Some(end) = version.overlap_end {
                    prop_assert!(!version.works(end), "none outlives its overlap");
                }
                prop_assert_eq!(version.ended.is_some(), version.state.is_over());
                if version.state.is_over() {
                    dead.insert(version.number);
                }
                prop_assert!(!(dead.contains(&version.number) && version.works(now)), "none comes back");
            }
            // Looking again changes nothing.
            let mut again = life.clone();
            prop_assert_eq!(again.settle(false, false, now), Change::None);
            prop_assert_eq!(again, life.clone());
        }
    }
}
