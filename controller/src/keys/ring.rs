//! The keys in use, which a rotation changes while everything runs, and who of those that are connected holds which KeySet.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::Keys;
use crate::store::KeySetHolders;

/// What somebody is who holds a KeySet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// An appliance.
    Appliance,
    /// A device.
    Device,
}

impl Role {
    /// As the database and the figures spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Appliance => "appliance",
            Self::Device => "device",
        }
    }
}

type Counts = BTreeMap<(Role, u64), u64>;

#[derive(Debug)]
struct Inner {
    keys: watch::Sender<Arc<Keys>>,
    held: Mutex<Counts>,
}

/// The keys in use. A clone is the same ring.
#[derive(Clone, Debug)]
pub struct KeyRing(Arc<Inner>);

impl From<Arc<Keys>> for KeyRing {
    fn from(keys: Arc<Keys>) -> Self {
        Self(Arc::new(Inner { keys: watch::Sender::new(keys), held: Mutex::default() }))
    }
}

impl KeyRing {
    /// The keys now.
    pub fn now(&self) -> Arc<Keys> {
        self.0.keys.borrow().clone()
    }

    /// The keys, whenever they change.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Keys>> {
        self.0.keys.subscribe()
    }

    /// Uses newer keys. Older ones change nothing.
    pub fn replace(&self, newer: Arc<Keys>) {
        self.0.keys.send_if_modified(|keys| {
            let is_newer = newer.keyset.version > keys.keyset.version;
            if is_newer {
                *keys = newer;
            }
            is_newer
        });
    }

    /// Counts somebody who is connected and holds a KeySet, until the guard is dropped.
    pub fn holds(&self, role: Role, version: u64) -> Held {
        count(&mut self.counts(), (role, version), 1);
        Held { ring: self.clone(), role, version }
    }

    /// How many of those that are connected hold which KeySet.
    pub fn holders(&self) -> Vec<KeySetHolders> {
        let row = |(&(role, version), &peers): (&(Role, u64), &u64)| KeySetHolders {
            role: role.as_str().to_owned(),
            version,
            peers,
        };
        self.counts().iter().map(row).collect()
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Each change is one step, so the counts are whole whatever thread panics.
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(counts: &mut Counts, key: (Role, u64), by: i64) {
    let left = counts.get(&key).copied().unwrap_or(0).saturating_add_signed(by);
    match left {
        0 => drop(counts.remove(&key)),
        left => drop(counts.insert(key, left)),
    }
}

/// Somebody who holds a KeySet.
#[derive(Debug)]
pub struct Held {
    ring: KeyRing,
    role: Role,
    version: u64,
}

impl Held {
    /// It holds a newer one.
    pub fn set(&mut self, version: u64) {
        if version > self.version {
            let mut counts = self.ring.counts();
            count(&mut counts, (self.role, self.version), -1);
            count(&mut counts, (self.role, version), 1);
            drop(counts);
            self.version = version;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        count(&mut self.ring.counts(), (self.role, self.version), -1);
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn holders_are_counted_as_they_come_learn_and_go() {
        let now = Timestamp::now();
        let keys = Keys::read(&Keys::fresh(now), std::path::Path::new("test"), now).unwrap();
        let ring = KeyRing::from(Arc::new(keys));
        let mut first = ring.holds(Role::Appliance, 1);
        let second = ring.holds(Role::Appliance, 1);
        let _device = ring.holds(Role::Device, 2);
        first.set(3);
        first.set(2);
        let row = |role: &str, version, peers| KeySetHolders { role: role.into(), version, peers };
        assert_eq!(ring.holders(), [row("appliance", 1, 1), row("appliance", 3, 1), row("device", 2, 1)]);
        drop((first, second));
        assert_eq!(ring.holders(), [row("device", 2, 1)]);
        // The same keys again are no news.
        let changed = ring.subscribe();
        ring.replace(ring.now());
        assert!(!changed.has_changed().unwrap());
    }
}
