//! What is known of each object besides what it declares: enough to write its status and to see what changed.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use horizon_crds::{ConditionStatus, KindName, ResourceId};
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::Notify;
use uuid::Uuid;

/// Which object, by its kind, namespace and name as the API server has them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) kind: KindName,
    pub(super) namespace: Box<str>,
    pub(super) name: Box<str>,
}

impl From<&ResourceId> for Key {
    fn from(id: &ResourceId) -> Self {
        Self { kind: id.kind, namespace: id.namespace.as_str().into(), name: id.name.as_str().into() }
    }
}

/// An object as it was seen last, without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) uid: Uuid,
    pub(super) generation: i64,
    pub(super) version: Box<str>,
    /// A hash of what it declares and of who wrote that.
    pub(super) content: u64,
    /// A hash of its status.
    pub(super) status: u64,
    /// What its status says about being accepted, and since when.
    pub(super) accepted: Option<(ConditionStatus, Timestamp)>,
    /// The status written last: a hash of what was sent, and of what it became.
    pub(super) wrote: Option<(u64, u64)>,
}

impl Entry {
    /// Whether the object shows this status already.
    pub(super) fn shows(&self, status: u64) -> bool {
        self.status == status || self.wrote == Some((status, self.status))
    }
}

/// Every object that is known. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Objects(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    entries: Mutex<HashMap<Key, Entry>>,
    changed: Notify,
}

impl Objects {
    fn entries(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        // Each entry is replaced as a whole, so the map is right whatever thread panicked.
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many objects are known.
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn get(&self, key: &Key) -> Option<Entry> {
        self.entries().get(key).cloned()
    }

    /// Notes an object that was seen, in a listing or as a change. Returns the one before. A change that is told after the
    /// answer to a later write leaves what that answer showed; a listing is taken as it is, so that the versions of an API
    /// server that was restored from a backup are known again.
    pub(super) fn saw(&self, key: Key, mut entry: Entry, listed: bool) -> Option<Entry> {
        let mut entries = self.entries();
        if let Some(old) = entries.get(&key).filter(|old| old.uid == entry.uid) {
            entry.wrote = old.wrote;
            if !listed && is_later(&old.version, &entry.version) {
                entry.version.clone_from(&old.version);
                entry.status = old.status;
            }
        }
        let old = entries.insert(key, entry);
        drop(entries);
        self.0.changed.notify_waiters();
        old
    }

    /// Notes that an object is gone, unless another has its name by now. Returns it.
    pub(super) fn gone(&self, key: &Key, uid: Uuid) -> Option<Entry> {
        let mut entries = self.entries();
        entries.get(key).filter(|entry| entry.uid == uid)?;
        entries.remove(key)
    }

    /// Notes a status that was written, the version it led to, and what it became there. The watch may have told of a later
    /// version already: what that shows stays, for nothing else would tell of it again.
    pub(super) fn wrote(&self, key: &Key, uid: Uuid, version: &str, sent: u64, became: u64) {
        if let Some(entry) = self.entries().get_mut(key).filter(|entry| entry.uid == uid) {
            entry.wrote = Some((sent, became));
            if !is_later(&entry.version, version) {
                entry.version = version.into();
                entry.status = became;
            }
        }
    }

    /// Forgets the objects of a kind, in a namespace or in all, that are not among these. Returns them.
    pub(super) fn keep_only(
        &self,
        kind: KindName,
        namespace: Option<&str>,
        listed: &HashSet<Key>,
    ) -> Vec<(Key, Entry)> {
        let of_list =
            |key: &Key| key.kind == kind && namespace.is_none_or(|namespace| *key.namespace == *namespace);
        self.entries().extract_if(|key, _| of_list(key) && !listed.contains(key)).collect()
    }

    pub(super) fn clear(&self) {
        self.entries().clear();
    }

    /// Ends when some object changed after this was called.
    pub(super) fn changed(&self) -> impl Future<Output = ()> + '_ {
        self.0.changed.notified()
    }
}

/// Whether a resource version of an object is later than another of it: they are decimal numbers that grow (Kubernetes API
/// concepts, "Resource versions"). Of what is not, nothing can be said.
fn is_later(version: &str, other: &str) -> bool {
    matches!((version.parse::<u128>(), other.parse::<u128>()), (Ok(version), Ok(other)) if version > other)
}

/// A hash of a piece of JSON; objects have their keys in order.
pub(super) fn hash_json(json: &Value) -> u64 {
    hash(&json.to_string())
}

pub(super) fn hash(what: &(impl Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_does_not_undo_what_the_watch_told_of_later() {
        let objects = Objects::default();
        let key = Key { kind: KindName::Server, namespace: "default".into(), name: "a".into() };
        let entry = |version: &str, status| Entry {
            uid: Uuid::nil(),
            generation: 1,
            version: version.into(),
            content: 0,
            status,
            accepted: None,
            wrote: None,
        };
        objects.saw(key.clone(), entry("9", 1), true);
        objects.wrote(&key, Uuid::nil(), "10", 7, 2);
        let known = objects.get(&key).unwrap();
        assert_eq!((&*known.version, known.shows(7), known.shows(1)), ("10", true, false));
        // The watch tells of version 12 before the answer to the write that led to version 11 comes.
        objects.saw(key.clone(), entry("12", 3), false);
        objects.wrote(&key, Uuid::nil(), "11", 8, 4);
        let known = objects.get(&key).unwrap();
        assert_eq!((&*known.version, known.shows(8), known.shows(3)), ("12", false, true));
        // The other way round: the watch is behind the answers.
        objects.wrote(&key, Uuid::nil(), "14", 9, 5);
        objects.saw(key.clone(), entry("13", 6), false);
        let known = objects.get(&key).unwrap();
        assert_eq!((&*known.version, known.shows(9), known.shows(6)), ("14", true, false));
        objects.saw(key.clone(), entry("2", 6), true);
        assert_eq!(&*objects.get(&key).unwrap().version, "2", "a listing counts");
    }
}
