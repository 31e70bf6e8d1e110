//! Finds out that messages were lost: each replica numbers its own, and a number that does not come is missed. Messages may
//! overtake each other by a little.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use crate::store::ReplicaId;

/// For how long a message may be overtaken by later ones.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many messages of a replica may be missing before that is called a loss at once.
const MAX_MISSING: u64 = 64;
/// After so much silence a replica is forgotten.
const FORGET: Duration = Duration::from_secs(60);
/// How many replicas are followed.
const MAX_REPLICAS: usize = 1024;

struct Sender {
    next: u64,
    missing: BTreeMap<u64, Instant>,
    heard: Instant,
    deaf: bool,
}

/// What was heard from others on one bus.
#[derive(Default)]
pub(super) struct Sequence(HashMap<ReplicaId, Sender>);

impl Sequence {
    /// A message came. Returns whether it shows that others were lost.
    pub(super) fn heard(&mut self, from: ReplicaId, number: u64, deaf: bool, now: Instant) -> bool {
        if self.0.len() >= MAX_REPLICAS && !self.0.contains_key(&from) {
            return false;
        }
        let next = number.saturating_add(1);
        let sender =
            self.0.entry(from).or_insert(Sender { next, missing: BTreeMap::new(), heard: now, deaf });
        (sender.heard, sender.deaf) = (now, deaf);
        sender.missing.remove(&number);
        if number < sender.next {
            return false;
        }
        let skipped = number - sender.next;
        let lost = skipped + sender.missing.len() as u64 > MAX_MISSING;
        if lost {
            sender.missing.clear();
        } else {
            sender.missing.extend((sender.next..number).map(|missing| (missing, now)));
        }
        sender.next = next;
        lost
    }

    /// Whether a message is missed for too long. Asked every now and then.
    pub(super) fn overdue(&mut self, now: Instant) -> bool {
        self.0.retain(|_, sender| now.saturating_duration_since(sender.heard) < FORGET);
        let mut lost = false;
        for sender in self.0.values_mut() {
            if sender.missing.values().any(|since| now.saturating_duration_since(*since) >= PATIENCE) {
                sender.missing.clear();
                lost = true;
            }
        }
        lost
    }

    /// Whether a replica that was heard from lately hears nothing over Redis.
    pub(super) fn anybody_deaf(&self, now: Instant, lately: Duration) -> bool {
        self.0.values().any(|sender| sender.deaf && now.saturating_duration_since(sender.heard) < lately)
    }

    /// Forgets what is missing: everything is looked at anyway.
    pub(super) fn reset(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const A: ReplicaId = ReplicaId(Uuid::from_u128(1));
    const B: ReplicaId = ReplicaId(Uuid::from_u128(2));

    #[test]
    fn a_gap_is_a_loss_once_it_lasts() {
        let (mut heard, start) = (Sequence::default(), Instant::now());
        let later = |ms| start + Duration::from_millis(ms);
        assert!(!heard.heard(A, 7, false, start));
        assert!(!heard.heard(B, 100, false, start));
        // Overtaken, then there.
        assert!(!heard.heard(A, 9, false, start));
        assert!(!heard.heard(A, 8, false, later(500)));
        assert!(!heard.overdue(later(5000)));
        // Lost.
        assert!(!heard.heard(A, 11, false, later(5000)));
        assert!(!heard.overdue(later(5999)));
        assert!(heard.overdue(later(6000)));
        assert!(!heard.overdue(later(7000)), "a loss is told once");
        // Doubled.
        assert!(!heard.heard(A, 11, false, later(7000)));
        // Very many at once.
        assert!(heard.heard(B, 1_000_000, false, later(7000)));
        assert!(heard.heard(B, u64::MAX, false, later(7000)));
        assert!(!heard.heard(B, u64::MAX, true, later(7000)));
        assert!(heard.anybody_deaf(later(7500), Duration::from_secs(1)));
        assert!(!heard.anybody_deaf(later(8000), Duration::from_secs(1)));
    }
}
