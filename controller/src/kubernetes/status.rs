//! Statuses on the objects: written to the status subresource by server-side apply, only when they differ from what the
//! object shows, only over the version that is known, and never faster than the budget.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use horizon_controller_core::{
    ObjectVersion,
    status::{Notice, Status, notices, refused},
};
use horizon_crds::API_VERSION;
use jiff::Timestamp;
use kube::{
    Api,
    api::{Patch, PatchParams},
    core::DynamicObject,
};
use serde_json::{Value, json};
use tokio::{
    sync::Semaphore,
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout},
};

use super::{
    Cluster, Events, FIELD_MANAGER, Objects,
    bucket::Bucket,
    failure::{Failure, words},
    objects::{Entry, Key, hash, hash_json},
    queue::{Queue, Waiting},
    resource_of,
};
use crate::engine::{Shown, StatusSink, StatusWrite};

/// How many writes are on their way at once.
const AT_ONCE: usize = 8;
/// How long a write may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the watch is waited for to tell of the version that a write was refused for.
const NEWS_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest wait before another attempt.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// For how long a leader may be unsure that it leads before what waits is left to another. One that comes back after longer
/// is told everything anew.
const DOUBT: Duration = Duration::from_secs(10);
/// How many more refusals may be remembered than there are objects: those of objects that are gone are forgotten then.
const STALE_REFUSALS: usize = 1024;
/// What is left of a status that does not fit.
const ESSENTIALS: [&str; 3] = ["phase", "observedGeneration", "conditions"];

/// How fast statuses are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusBudget {
    /// How many per second in the long run.
    pub per_second: u32,
    /// How many at once after a quiet time.
    pub burst: u32,
}

impl Default for StatusBudget {
    fn default() -> Self {
        Self { per_second: 20, burst: 100 }
    }
}

/// Writes statuses to objects. A clone is the same.
#[derive(Clone)]
pub struct Statuses(Arc<Inner>);

struct Inner {
    cluster: Cluster,
    objects: Objects,
    events: Events,
    queue: Queue,
    /// Whether this replica leads: asked before each write.
    leads: Box<dyn Fn() -> bool + Send + Sync>,
    refusals: Refusals,
}

impl std::fmt::Debug for Statuses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Statuses").field("waiting", &self.0.queue.len()).finish_non_exhaustive()
    }
}

/// Ends the writing when it is dropped.
#[derive(Debug)]
pub struct Writing(AbortHandle);

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Statuses {
    /// Starts to write the statuses of these objects, as long as `leads` says that this replica may.
    pub fn start(
        cluster: Cluster,
        objects: Objects,
        events: Events,
        budget: StatusBudget,
        leads: impl Fn() -> bool + Send + Sync + 'static,
    ) -> (Self, Writing) {
        let inner = Inner {
            cluster,
            objects,
            events,
            queue: Queue::default(),
            leads: Box::new(leads),
            refusals: Refusals::default(),
        };
        let statuses = Self(Arc::new(inner));
        let task = tokio::spawn(work(statuses.0.clone(), budget));
        (statuses, Writing(task.abort_handle()))
    }

    fn take(&self, write: StatusWrite) {
        let key = Key::from(&write.id);
        let Some(object) = write.object else { return };
        match write.what {
            Shown::InForce { status, before, problems, .. } => {
                for notice in notices(before.as_deref(), &status) {
                    self.0.events.publish(&key, object.uid, notice);
                }
                if problems.is_empty() {
                    self.0.refusals.forget(&key);
                } else {
                    self.0.refusals.note(&key, None, &self.0.objects);
                }
                let urgent = before.is_some_and(|before| before != status);
                self.put(key, object, &status.observing(object.generation), urgent);
            }
            Shown::Rejected { problems } => {
                let Some(entry) = self.0.objects.get(&key) else { return };
                let problems: Vec<_> = problems.iter().collect();
                let status =
                    refused(key.kind, &problems, object.generation, entry.accepted, Timestamp::now());
                self.tell_refusal(&key, object, &status);
                self.put(key, object, &status, true);
            }
        }
    }

    fn tell_refusal(&self, key: &Key, object: ObjectVersion, status: &Status) {
        let said = notices(None, status);
        let digest = hash(&said.iter().map(|notice| &notice.message).collect::<Vec<_>>());
        if self.0.refusals.note(key, Some(digest), &self.0.objects) {
            said.into_iter().for_each(|notice| self.0.events.publish(key, object.uid, notice));
        }
    }

    fn put(&self, key: Key, object: ObjectVersion, status: &Status, urgent: bool) {
        let status = status.to_json();
        let wish = hash_json(&status);
        let shown =
            || self.0.objects.get(&key).is_some_and(|entry| entry.uid == object.uid && entry.shows(wish));
        if self.0.queue.withdraw(&key, shown) {
            self.0.objects.confirmed(&key, object.uid, wish);
            return;
        }
        let waiting = Waiting { object, status, wish, attempts: 0 };
        let count = self.0.queue.put(key, waiting, urgent);
        self.0.cluster.metrics.status_queue.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

/// The objects that are not in force as they are written, and what was told about them, so that it is told once.
#[derive(Default)]
struct Refusals(Mutex<HashMap<Key, u64>>);

impl Refusals {
    fn known(&self) -> MutexGuard<'_, HashMap<Key, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what is told now, or only that there is something wrong. Returns whether it is news. People choose how many
    /// names there ever were, so those of objects that are gone are forgotten when they are too many.
    fn note(&self, key: &Key, told: Option<u64>, objects: &Objects) -> bool {
        let mut known = self.known();
        if known.len() >= objects.len() + STALE_REFUSALS && !known.contains_key(key) {
            known.retain(|key, _| objects.get(key).is_some());
        }
        match told {
            Some(digest) => known.insert(key.clone(), digest) != Some(digest),
            None => {
                known.entry(key.clone()).or_default();
                false
            }
        }
    }

    fn forget(&self, key: &Key) {
        self.known().remove(key);
    }

    fn has(&self, key: &Key) -> bool {
        self.known().contains_key(key)
    }
}

impl StatusSink for Statuses {
    fn show(&self, batch: Vec<StatusWrite>) {
        batch.into_iter().for_each(|write| self.take(write));
    }

    fn notice(&self, notice: Notice) {
        self.0.events.publish_own(notice);
    }
}

async fn work(inner: Arc<Inner>, budget: StatusBudget) {
    let mut bucket = Bucket::new(budget.per_second, budget.burst);
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let mut writes = JoinSet::new();
    loop {
        let (key, waiting) = inner.queue.next().await;
        bucket.take().await;
        if !(inner.leads)() {
            inner.queue.put_back(key, waiting, Instant::now());
            if !inner.leads_soon().await {
                // Who leads writes them.
                inner.queue.clear();
            }
            continue;
        }
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let inner = inner.clone();
        writes.spawn(async move {
            inner.write(key, waiting).await;
            drop(slot);
        });
        while writes.try_join_next().is_some() {}
    }
}

impl Inner {
    /// Whether this replica leads, or does again after a moment in which it could not be sure.
    async fn leads_soon(&self) -> bool {
        let end = Instant::now() + DOUBT;
        while !(self.leads)() {
            if Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(DOUBT / 100).await;
        }
        true
    }
}

/// What became of a write.
enum Outcome {
    Done(&'static str),
    /// To be tried again after a while.
    Again(Duration),
}

impl Inner {
    async fn write(&self, key: Key, mut waiting: Waiting) {
        let outcome = self.attempt(&key, &mut waiting).await;
        match outcome {
            Outcome::Done(outcome) => {
                self.cluster.metrics.wrote(outcome);
                self.queue.finish(&key);
            }
            Outcome::Again(wait) => {
                self.cluster.metrics.wrote("retried");
                waiting.attempts = waiting.attempts.saturating_add(1);
                self.queue.put_back(key, waiting, Instant::now() + wait);
            }
        }
        self.cluster.metrics.status_queue.set(i64::try_from(self.queue.len()).unwrap_or(i64::MAX));
    }

    async fn attempt(&self, key: &Key, waiting: &mut Waiting) -> Outcome {
        let Some(entry) = self.objects.get(key).filter(|entry| entry.uid == waiting.object.uid) else {
            return Outcome::Done("gone");
        };
        if entry.generation > waiting.object.generation {
            // The engine has yet to look at what the object says now, and will speak of that.
            return Outcome::Done("superseded");
        }
        if entry.shows(waiting.wish) {
            return Outcome::Done("unchanged");
        }
        let news = self.objects.changed();
        // The last moment at which it can be known that nobody else leads.
        if !(self.leads)() {
            return Outcome::Again(Duration::ZERO);
        }
        let error = match timeout(WRITE_TIMEOUT, self.send(key, &entry, &waiting.status)).await {
            Ok(Ok(object)) => {
                self.wrote(key, waiting, &object);
                return Outcome::Done("written");
            }
            Ok(Err(error)) => error,
            Err(_) => return Outcome::Again(wait(waiting.attempts)),
        };
        match Failure::of(&error) {
            Failure::Conflict => {
                self.cluster.metrics.wrote("conflict");
                // Whether the watch tells or not, the next attempt is over the version that is known then.
                let _ = timeout(NEWS_TIMEOUT, news).await;
                Outcome::Again(Duration::ZERO)
            }
            Failure::Missing => {
                self.refusals.forget(key);
                Outcome::Done("gone")
            }
            Failure::Unfit if !self.is_malformed(key) && essentials(&mut waiting.status) => {
                self.cluster.metrics.wrote("cut");
                tracing::warn!(kind = %key.kind, namespace = %key.namespace, name = %key.name, error = %words(&error),
                    "a status does not fit and is cut to its conditions");
                Outcome::Again(Duration::ZERO)
            }
            Failure::Unfit if self.is_malformed(key) => {
                tracing::warn!(kind = %key.kind, namespace = %key.namespace, name = %key.name, error = %words(&error),
                    "the API server takes no status of an object that is so malformed: an event says what is wrong");
                Outcome::Done("refused")
            }
            Failure::Unfit => {
                tracing::error!(kind = %key.kind, namespace = %key.namespace, name = %key.name, error = %words(&error),
                    "a status cannot be written: apply the definitions of this version");
                Outcome::Done("failed")
            }
            Failure::Refused | Failure::Expired | Failure::Passing => {
                if waiting.attempts == 0 {
                    tracing::warn!(kind = %key.kind, namespace = %key.namespace, name = %key.name,
                        error = %words(&error), "a status could not be written; trying again");
                }
                Outcome::Again(wait(waiting.attempts))
            }
        }
    }

    /// Sends a status, over the version of the object that is known.
    async fn send(&self, key: &Key, entry: &Entry, status: &Value) -> Result<DynamicObject, kube::Error> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.cluster.client.clone(), &key.namespace, &resource_of(key.kind));
        let metadata = json!({
            "name": key.name, "namespace": key.namespace, "uid": entry.uid, "resourceVersion": entry.version,
        });
        let patch = json!({
            "apiVersion": API_VERSION, "kind": key.kind.as_str(), "metadata": metadata, "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        match api.patch_status(&key.name, &params, &Patch::Apply(&patch)).await {
            // Server-side apply cannot merge into an object whose spec has values of other types than the schema's, as one
            // stored under an older schema may have.
            Err(kube::Error::Api(error)) if error.message.contains("failed to create typed") => {
                let params =
                    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
                api.patch_status(&key.name, &params, &Patch::Merge(&patch)).await
            }
            outcome => outcome,
        }
    }

    /// Whether the object was found to be malformed.
    fn is_malformed(&self, key: &Key) -> bool {
        self.refusals.has(key)
    }

    fn wrote(&self, key: &Key, waiting: &Waiting, object: &DynamicObject) {
        let became = hash_json(object.data.get("status").unwrap_or(&Value::Null));
        let version = object.metadata.resource_version.as_deref().unwrap_or_default();
        self.objects.wrote(key, waiting.object.uid, version, waiting.wish, became);
    }
}

fn wait(attempts: u32) -> Duration {
    (Duration::from_millis(250) * 2_u32.saturating_pow(attempts.min(10))).min(LONGEST_WAIT)
}

/// Leaves of a status what matters most, and says so. Returns whether there was more.
fn essentials(status: &mut Value) -> bool {
    let Some(fields) = status.as_object_mut() else { return false };
    let before = fields.len();
    fields.retain(|name, _| ESSENTIALS.contains(&name.as_str()));
    if fields.len() == before {
        return false;
    }
    let conditions = fields.get_mut("conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten().filter(|condition| condition["type"] == "Accepted") {
        let note =
            "; the rest of this status does not fit and is left out: see `horizon-controller describe`";
        let said = condition["message"].as_str().unwrap_or_default();
        let cut = said.floor_char_boundary(1024 - note.len());
        condition["message"] = format!("{}{note}", &said[..cut]).into();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_cut_once_and_says_so() {
        let mut status = json!({
            "phase": "active", "observedGeneration": 2, "devices": ["…"],
            "conditions": [{ "type": "Accepted", "status": "True", "message": "the document is in force" }],
        });
        assert!(essentials(&mut status));
        assert!(status.get("devices").is_none());
        let message = status["conditions"][0]["message"].as_str().unwrap();
        assert!(message.starts_with("the document is in force; the rest"), "{message}");
        assert!(!essentials(&mut status));
    }

    #[test]
    fn refusals_of_objects_that_are_gone_are_forgotten() {
        let (refusals, objects) = (Refusals::default(), Objects::default());
        let key = |name: &str| Key {
            kind: horizon_crds::KindName::User,
            namespace: "horizon".into(),
            name: name.into(),
        };
        let entry = Entry {
            uid: uuid::Uuid::nil(),
            generation: 1,
            version: "1".into(),
            content: 0,
            status: 0,
            accepted: None,
            wrote: None,
        };
        objects.saw(key("stays"), entry, true);
        assert!(refusals.note(&key("stays"), Some(1), &objects));
        assert!(!refusals.note(&key("stays"), Some(1), &objects), "it is told once");
        for number in 0..10 * STALE_REFUSALS {
            assert!(refusals.note(&key(&number.to_string()), Some(1), &objects));
            assert!(refusals.known().len() <= objects.len() + STALE_REFUSALS);
        }
        assert!(!refusals.note(&key("stays"), Some(1), &objects), "one that is there is remembered");
        assert!(refusals.note(&key("stays"), Some(2), &objects), "something else is told again");
        refusals.forget(&key("stays"));
        assert!(!refusals.has(&key("stays")));
    }

    #[test]
    fn waits_are_bounded() {
        assert_eq!(wait(0), Duration::from_millis(250));
        assert_eq!(wait(u32::MAX), LONGEST_WAIT);
    }
}
