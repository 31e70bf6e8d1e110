//! How many connections each party has: an address, or the /64 of an IPv6 one.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use crate::live::party;

/// Counts them, and lets in so many of each.
#[derive(Debug)]
pub(crate) struct Parties {
    most: usize,
    known: Mutex<HashMap<IpAddr, usize>>,
}

/// A place among the connections of a party, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<Parties>, IpAddr);

impl Parties {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, known: Mutex::default() })
    }

    /// A place for one more of the party of an address, if there is one.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let party = party(address);
        // Each change is one step, so it is whole whatever thread panics.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let count = known.get(&party).copied().unwrap_or(0);
        if count >= self.most {
            return None;
        }
        known.insert(party, count + 1);
        Some(Place(self.clone(), party))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = known.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                known.remove(&self.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_party_has_its_share_and_gives_it_back() {
        let parties = Parties::new(3);
        let enter = |text: &str| parties.enter(text.parse().unwrap());
        let places: Vec<_> = (0..3).map(|_| enter("2001:db8::1").unwrap()).collect();
        assert!(enter("2001:db8::2").is_none(), "the same /64");
        assert!(enter("192.0.2.1").is_some());
        drop(places);
        assert!(enter("2001:db8::2").is_some());
        assert_eq!(parties.known.lock().unwrap().len(), 0);
    }
}
