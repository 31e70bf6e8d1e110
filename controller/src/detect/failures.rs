//! Wrong secrets since they were last looked at, counted by address and by key; and what the payload rules refused.

use std::{collections::HashMap, net::IpAddr};

use horizon_controller_core::payload::Hit;
use uuid::Uuid;

use crate::live::party;

/// The most addresses and keys that are counted; further ones are not until the next look.
const MOST_COUNTED: usize = 10_000;
/// The most of them that are taken in at a look, those with the most failures first.
const MOST_TAKEN: usize = 64;

#[derive(Default)]
pub(super) struct Failures {
    addresses: HashMap<IpAddr, (u32, Option<()>)>,
    keys: HashMap<Uuid, (u32, Option<IpAddr>)>,
    payloads: HashMap<IpAddr, (u32, Option<(Door, Hit)>)>,
}

/// By which way something came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The REST API.
    Rest,
    /// The control channel.
    Channel,
}

impl Door {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::Channel => "channel",
        }
    }
}

/// What failed, how often, and the other side of one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    At(IpAddr, u32),
    Of(Uuid, u32, Option<IpAddr>),
    /// Refused by the payload rules, and why the last one was.
    Payload(IpAddr, u32, Option<(Door, Hit)>),
}

impl Failures {
    pub(super) fn at(&mut self, from: IpAddr) {
        count(&mut self.addresses, party(from), None);
    }

    pub(super) fn of(&mut self, key: Uuid, from: IpAddr) {
        count(&mut self.keys, key, Some(party(from)));
    }

    pub(super) fn payload(&mut self, from: IpAddr, door: Door, hit: Hit) {
        count(&mut self.payloads, party(from), Some((door, hit)));
    }

    /// Takes those with the most failures, and forgets the rest if there are too many.
    pub(super) fn take(&mut self) -> Vec<Failed> {
        let addresses = self.addresses.drain().map(|(at, (count, _))| Failed::At(at, count));
        let keys = self.keys.drain().map(|(key, (count, from))| Failed::Of(key, count, from));
        let payloads = self.payloads.drain().map(|(at, (count, why))| Failed::Payload(at, count, why));
        let mut all: Vec<_> = addresses.chain(keys).chain(payloads).collect();
        let most = |failed: &Failed| match failed {
            Failed::At(_, count) | Failed::Of(_, count, _) | Failed::Payload(_, count, _) => {
                std::cmp::Reverse(*count)
            }
        };
        all.sort_by_key(most);
        all.truncate(MOST_TAKEN);
        all
    }
}

fn count<K: Eq + std::hash::Hash, V>(counts: &mut HashMap<K, (u32, Option<V>)>, key: K, other: Option<V>) {
    if let Some((count, last)) = counts.get_mut(&key) {
        *count = count.saturating_add(1);
        *last = other.or(last.take());
    } else if counts.len() < MOST_COUNTED {
        counts.insert(key, (1, other));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_are_taken_first_and_memory_is_bounded() {
        let mut failures = Failures::default();
        let key = Uuid::from_u128(1);
        for i in 0..20_000_u32 {
            failures.at(IpAddr::V4((0x0a00_0000 + i).into()));
        }
        assert_eq!(failures.addresses.len(), MOST_COUNTED);
        let worst: IpAddr = "10.0.0.7".parse().unwrap();
        for _ in 0..9 {
            failures.at(worst);
            failures.of(key, worst);
        }
        let taken = failures.take();
        assert_eq!(taken.len(), MOST_TAKEN);
        assert_eq!(taken[0], Failed::At(worst, 10));
        assert_eq!(taken[1], Failed::Of(key, 9, Some(worst)));
        assert!(failures.take().is_empty());
    }
}
