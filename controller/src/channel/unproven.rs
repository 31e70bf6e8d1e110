//! Peers that have not proved who they are: so many of one party, and so many in all, that those who have always find room.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use crate::live::party;

/// The most of them of one party.
const MOST_OF_A_PARTY: usize = 256;

/// Counts them.
#[derive(Clone, Default)]
pub(super) struct Unproven(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    all: usize,
    parties: HashMap<IpAddr, usize>,
}

/// One of them, until it is dropped: when the peer has proved who it is, or is gone.
pub(super) struct Place {
    all: Unproven,
    party: IpAddr,
}

impl Unproven {
    /// A place for a peer, if there is one.
    pub(super) fn enter(&self, from: IpAddr, most: usize) -> Option<Place> {
        let party = party(from);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_party = counts.parties.get(&party).copied().unwrap_or(0);
        if of_party >= MOST_OF_A_PARTY || counts.all >= most {
            return None;
        }
        Some(self.place(&mut counts, party))
    }

    /// A place for a peer whose key is known: strangers do not keep it out, however many they are.
    pub(super) fn enter_known(&self, from: IpAddr) -> Place {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.place(&mut counts, party(from))
    }

    fn place(&self, counts: &mut Counts, party: IpAddr) -> Place {
        counts.all += 1;
        *counts.parties.entry(party).or_default() += 1;
        Place { all: self.clone(), party }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all -= 1;
        match counts.parties.get_mut(&self.party) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                counts.parties.remove(&self.party);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_and_given_back() {
        let unproven = Unproven::default();
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let mut held: Vec<_> = (0..MOST_OF_A_PARTY).map(|_| unproven.enter(a, 1000).unwrap()).collect();
        assert!(unproven.enter(a, 1000).is_none());
        held.push(unproven.enter(b, 1000).unwrap());
        assert!(unproven.enter(b, held.len()).is_none());
        held.push(unproven.enter_known(a));
        held.clear();
        assert!(unproven.enter(a, 1).is_some());
        assert!(unproven.0.lock().unwrap().parties.is_empty());
    }
}
