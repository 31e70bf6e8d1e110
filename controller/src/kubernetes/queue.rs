//! Statuses that wait to be written: one for each object at most, the newest; and one on its way for each, so that an older
//! one never overtakes a newer one.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use horizon_controller_core::ObjectVersion;
use serde_json::Value;
use tokio::{sync::Notify, time::Instant};

use super::objects::Key;

/// A status to be written.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    /// The version of the object that it is about.
    pub(super) object: ObjectVersion,
    pub(super) status: Value,
    /// A hash of the status as it was wished for.
    pub(super) wish: u64,
    /// How often it was tried.
    pub(super) attempts: u32,
}

/// The queue. Statuses of objects that had none before wait behind the others: a change is read sooner than a thousand
/// objects that are new.
#[derive(Debug, Default)]
pub(super) struct Queue {
    lines: Mutex<Lines>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Lines {
    waiting: HashMap<Key, Waiting>,
    /// The objects whose status is on its way.
    busy: HashSet<Key>,
    urgent: VecDeque<Key>,
    others: VecDeque<Key>,
    later: Vec<(Instant, Key)>,
}

impl Queue {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        // The lines may name what does not wait any more; nothing else can be wrong after a panic.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a status in line; one that waits for the same object is replaced and keeps its place. Returns how many wait.
    pub(super) fn put(&self, key: Key, waiting: Waiting, urgent: bool) -> usize {
        let mut lines = self.lines();
        if lines.waiting.insert(key.clone(), waiting).is_none() {
            let line = if urgent { &mut lines.urgent } else { &mut lines.others };
            line.push_back(key);
        }
        let count = lines.waiting.len();
        drop(lines);
        self.filled.notify_one();
        count
    }

    /// Puts a status that [`next`](Self::next) gave back in line for later, unless a newer one came meanwhile.
    pub(super) fn put_back(&self, key: Key, waiting: Waiting, at: Instant) {
        let mut lines = self.lines();
        if lines.waiting.contains_key(&key) {
            lines.finish(&key);
        } else {
            lines.busy.remove(&key);
            lines.waiting.insert(key.clone(), waiting);
            lines.later.push((at, key));
        }
        drop(lines);
        self.filled.notify_one();
    }

    /// Notes that the status that [`next`](Self::next) gave for an object needs no further attempt.
    pub(super) fn finish(&self, key: &Key) {
        self.lines().finish(key);
        self.filled.notify_one();
    }

    /// Takes the status of an object out of line if the object shows what it should. What it shows is only asked while
    /// nothing is on its way, which could change it. Returns whether there is nothing to write.
    pub(super) fn withdraw(&self, key: &Key, shown: impl FnOnce() -> bool) -> bool {
        let mut lines = self.lines();
        let needless = !lines.busy.contains(key) && shown();
        if needless {
            lines.waiting.remove(key);
        }
        needless
    }

    pub(super) fn clear(&self) {
        let mut lines = self.lines();
        let busy = std::mem::take(&mut lines.busy);
        *lines = Lines { busy, ..Lines::default() };
    }

    pub(super) fn len(&self) -> usize {
        self.lines().waiting.len()
    }

    /// The next status, once there is one. Until it is finished or put back, none of the same object follows.
    pub(super) async fn next(&self) -> (Key, Waiting) {
        loop {
            let filled = self.filled.notified();
            let due = match self.lines().next(Instant::now()) {
                Ok(found) => return found,
                Err(due) => due,
            };
            match due {
                Some(due) => tokio::select! {
                    () = filled => {}
                    () = tokio::time::sleep_until(due) => {}
                },
                None => filled.await,
            }
        }
    }
}

impl Lines {
    /// The next status, or when there may be one.
    fn next(&mut self, now: Instant) -> Result<(Key, Waiting), Option<Instant>> {
        let due: Vec<_> = self.later.extract_if(.., |(at, _)| *at <= now).collect();
        self.urgent.extend(due.into_iter().map(|(_, key)| key));
        while let Some(key) = self.urgent.pop_front().or_else(|| self.others.pop_front()) {
            if self.busy.contains(&key) {
                continue;
            }
            if let Some(waiting) = self.waiting.remove(&key) {
                self.busy.insert(key.clone());
                return Ok((key, waiting));
            }
        }
        Err(self.later.iter().map(|(at, _)| *at).min())
    }

    fn finish(&mut self, key: &Key) {
        self.busy.remove(key);
        if self.waiting.contains_key(key) {
            self.urgent.push_back(key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use horizon_crds::KindName;
    use uuid::Uuid;

    use super::*;

    fn key(name: &str) -> Key {
        Key { kind: KindName::Server, namespace: "default".into(), name: name.into() }
    }

    fn waiting(wish: u64) -> Waiting {
        let object = ObjectVersion { uid: Uuid::nil(), generation: 1 };
        Waiting { object, status: Value::Null, wish, attempts: 0 }
    }

    #[test]
    fn the_newest_status_of_each_object_waits_and_changes_go_first() {
        let queue = Queue::default();
        let now = Instant::now();
        let next = |at| queue.lines().next(at).map(|(key, waiting)| (key, waiting.wish));
        queue.put(key("new"), waiting(1), false);
        queue.put(key("a"), waiting(1), true);
        assert_eq!(queue.put(key("a"), waiting(2), true), 2);
        assert_eq!(next(now), Ok((key("a"), 2)));
        let later = now + Duration::from_secs(5);
        queue.put_back(key("a"), waiting(2), later);
        assert_eq!(next(now), Ok((key("new"), 1)));
        assert_eq!(next(now), Err(Some(later)));
        assert_eq!(next(later), Ok((key("a"), 2)));
        queue.put(key("b"), waiting(1), true);
        assert!(!queue.withdraw(&key("b"), || false));
        assert!(queue.withdraw(&key("b"), || true));
        assert_eq!((next(now), queue.len()), (Err(None), 0));
    }

    #[test]
    fn one_status_of_an_object_is_on_its_way_at_most() {
        let queue = Queue::default();
        let now = Instant::now();
        let next = || queue.lines().next(now).map(|(_, waiting)| waiting.wish);
        queue.put(key("a"), waiting(1), true);
        assert_eq!(next(), Ok(1));
        queue.put(key("a"), waiting(2), true);
        assert_eq!(next(), Err(None), "the first is on its way");
        // What the object shows now will not be what it shows once the first has arrived.
        assert!(!queue.withdraw(&key("a"), || true));
        queue.finish(&key("a"));
        assert_eq!(next(), Ok(2));
        queue.put(key("a"), waiting(3), true);
        queue.put_back(key("a"), waiting(2), now);
        assert_eq!(next(), Ok(3), "the newer one replaces what comes back");
        queue.clear();
        queue.put(key("a"), waiting(4), true);
        assert_eq!(next(), Err(None), "what is on its way still is");
        queue.finish(&key("a"));
        assert_eq!(next(), Ok(4));
    }

    #[test]
    fn what_is_newer_is_not_replaced_by_what_comes_back() {
        let queue = Queue::default();
        let now = Instant::now();
        queue.put(key("a"), waiting(1), true);
        let (taken, old) = queue.lines().next(now).unwrap();
        queue.put(key("a"), waiting(2), true);
        queue.put_back(taken, old, now);
        assert_eq!(queue.lines().next(now).map(|(_, waiting)| waiting.wish), Ok(2));
        assert_eq!(queue.len(), 0);
    }

    #[tokio::test]
    async fn who_waits_is_told() {
        let queue = Queue::default();
        let (taken, _) = tokio::join!(queue.next(), async { queue.put(key("a"), waiting(1), true) });
        assert_eq!(taken.0, key("a"));
    }
}
