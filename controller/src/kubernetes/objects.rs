//! What is known of each object besides what it declares: enough to write its status and to see what changed.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use horizon_crds::{ConditionStatus, KindName, ResourceId};
use jiff::Timestamp;
use serde_json::Value;
use tokio::{sync::Notify, time::Instant};
use uuid::Uuid;

/// How long a status may differ from what was written before that counts as somebody else's doing: the answer to a write of
/// our own may come after the watch told of it.
const SETTLE: Duration = Duration::from_secs(1);
/// The longest that a status stays as somebody else wrote it: who goes on to write it has to be found by people.
const LONGEST: Duration = Duration::from_secs(600);

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
    /// Whether somebody else wrote the status since this controller did.
    fn is_overwritten(&self) -> bool {
        self.wrote.is_some_and(|(_, became)| became != self.status)
    }

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
    overwritten: Mutex<HashMap<Key, Overwritten>>,
    changed: Notify,
}

/// What is remembered of an object whose status somebody else wrote.
#[derive(Clone, Copy, Debug)]
struct Overwritten {
    /// When the status is to be written again; `None` once that was asked for.
    due: Option<Instant>,
    /// How often it was asked for lately.
    times: u32,
    /// When it was asked for last.
    last: Instant,
}

impl Overwritten {
    /// How long the status stays as it is this time.
    fn wait(self) -> Duration {
        SETTLE.saturating_mul(2_u32.saturating_pow(self.times.min(10))).min(LONGEST)
    }
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
        if entry.is_overwritten() {
            self.note_overwritten(&key, Instant::now());
        }
        let old = entries.insert(key, entry);
        drop(entries);
        self.0.changed.notify_waiters();
        old
    }

    fn overwritten(&self) -> MutexGuard<'_, HashMap<Key, Overwritten>> {
        self.0.overwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A status is not as it was written: it is looked at again, the later the more often that happened.
    fn note_overwritten(&self, key: &Key, now: Instant) {
        let mut all = self.overwritten();
        let known = all.entry(key.clone()).or_insert(Overwritten { due: None, times: 0, last: now });
        if known.due.is_none() {
            known.due = Some(now + known.wait());
        }
    }

    /// The objects whose status somebody else wrote, and which it is time to write again.
    pub(super) fn to_write_again(&self, now: Instant) -> Vec<(Key, Uuid)> {
        let entries = self.entries();
        let mut due = Vec::new();
        self.overwritten().retain(|key, known| {
            let Some(entry) = entries.get(key) else { return false };
            if known.due.is_some_and(|due| due <= now) {
                known.due = None;
                if entry.is_overwritten() {
                    (known.times, known.last) = (known.times.saturating_add(1), now);
                    due.push((key.clone(), entry.uid));
                }
            }
            // Who was quiet for long enough begins anew.
            known.due.is_some() || (known.times > 0 && now.duration_since(known.last) < 2 * LONGEST)
        });
        due
    }

    /// Notes that the object shows this status already, whoever wrote it.
    pub(super) fn confirmed(&self, key: &Key, uid: Uuid, wish: u64) {
        if let Some(entry) = self.entries().get_mut(key).filter(|entry| entry.uid == uid && entry.shows(wish))
        {
            entry.wrote = Some((wish, entry.status));
        }
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
        self.overwritten().clear();
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
    fn what_somebody_else_wrote_is_written_again_ever_more_slowly() {
        let objects = Objects::default();
        let key = Key { kind: KindName::Server, namespace: "default".into(), name: "a".into() };
        let entry = |version: u32, status| Entry {
            uid: Uuid::nil(),
            generation: 1,
            version: version.to_string().into(),
            content: 0,
            status,
            accepted: None,
            wrote: None,
        };
        let mut now = Instant::now();
        objects.saw(key.clone(), entry(1, 5), true);
        assert_eq!(objects.to_write_again(now + LONGEST), [], "nothing was written yet");
        // The watch tells of a write of our own before its answer comes.
        objects.wrote(&key, Uuid::nil(), "2", 7, 7);
        objects.saw(key.clone(), entry(3, 8), false);
        objects.wrote(&key, Uuid::nil(), "3", 8, 8);
        assert_eq!(objects.to_write_again(now + LONGEST), []);
        // Somebody else goes on and on to write it.
        let mut waits = Vec::new();
        for round in 2..15 {
            objects.note_overwritten(&key, now);
            objects.saw(key.clone(), entry(2 * round, 9), false);
            let mut waited = 0;
            while objects.to_write_again(now).is_empty() {
                now += Duration::from_secs(1);
                waited += 1;
            }
            waits.push(waited);
            objects.wrote(&key, Uuid::nil(), &(2 * round + 1).to_string(), 8, 8);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600]);
        // Quiet for long enough, it is forgotten.
        assert_eq!(objects.to_write_again(now + 3 * LONGEST), []);
        assert!(objects.overwritten().is_empty());
    }

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
