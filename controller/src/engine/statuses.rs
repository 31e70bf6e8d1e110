//! Statuses: which may read differently, when to look, and writing those that do.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use horizon_controller_core::{
    Desired, Index, Stored,
    status::{BEHIND_DAMPING, Computed, Facts, Presence, ServerFacts, Status, StatusInput, status},
};
use horizon_crds::{ConditionStatus, ConditionType, PersonalKeyPhase, Resource, ResourceId};
use horizon_model::{KeyId, NetworkId, ServerId};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use uuid::Uuid;

use super::{EngineParts, Shared, Shown, StatusWrite, report::ByResource};
use crate::{
    live::Hint,
    store::{LeaderEpoch, Store, StoreError},
};

/// How long changes are gathered before statuses are made.
const GATHER: Duration = Duration::from_millis(100);
/// The most statuses made in one go; then other work has its turn.
const BATCH: usize = 512;
/// When to try again after the store failed.
const RETRY: Duration = Duration::from_secs(2);

/// What is known of the servers of a batch.
type Read = HashMap<ServerId, Result<ServerFacts, StoreError>>;

/// What statuses are made of besides the resources in force.
#[derive(Clone, Copy)]
pub(super) struct Declared<'a> {
    /// What is wrong, by resource.
    pub(super) problems: &'a ByResource,
    /// What the source declares.
    pub(super) desired: &'a Desired,
}

/// What is known of statuses.
#[derive(Default)]
pub(super) struct Statuses {
    /// As they were written last, as far as they were needed.
    written: HashMap<Uuid, Status>,
    dirty: BTreeSet<ResourceId>,
    /// When to work on what is dirty.
    work_at: Option<Instant>,
    /// When statuses read differently by themselves.
    timers: BTreeSet<(Timestamp, ResourceId)>,
    timer_of: HashMap<ResourceId, Timestamp>,
    /// Since when servers are behind their state, as far as it was watched.
    behind: HashMap<ServerId, Timestamp>,
}

impl Statuses {
    /// These may read differently.
    pub(super) fn mark(&mut self, ids: impl IntoIterator<Item = ResourceId>) {
        self.dirty.extend(ids);
        if !self.dirty.is_empty() && self.work_at.is_none() {
            self.work_at = Some(Instant::now() + GATHER);
        }
    }

    /// All may read differently.
    pub(super) fn mark_all(&mut self, index: &Index) {
        self.mark(index.iter().map(|stored| stored.id()));
    }

    /// A server is to be told something: whether it is behind shows after a while.
    pub(super) fn watch_server(&mut self, server: ServerId, id: Option<ResourceId>) {
        let now = Timestamp::now();
        self.behind.entry(server).or_insert(now);
        if let Some(id) = id {
            let margin = SignedDuration::from_secs(1);
            self.set_timer(id, now.saturating_add(BEHIND_DAMPING + margin).unwrap_or(Timestamp::MAX));
        }
    }

    /// A server applied a state: one that was said to be behind may not be any more.
    pub(super) fn server_applied(&mut self, server: ServerId, id: Option<ResourceId>) {
        let up_to_date =
            self.written.get(&server.0).and_then(|status| status.condition(ConditionType::UpToDate));
        self.behind.remove(&server);
        if up_to_date.is_none_or(|condition| condition.status != ConditionStatus::True) {
            self.mark(id);
        }
    }

    /// A resource is gone.
    pub(super) fn forget(&mut self, uid: Uuid, id: &ResourceId) {
        self.written.remove(&uid);
        self.behind.remove(&ServerId(uid));
        self.dirty.remove(id);
        if let Some(at) = self.timer_of.remove(id) {
            self.timers.remove(&(at, id.clone()));
        }
    }

    /// Looks at a resource at a time, or earlier if that was set before.
    fn set_timer(&mut self, id: ResourceId, at: Timestamp) {
        if let Some(earlier) = self.timer_of.get(&id) {
            if *earlier <= at {
                return;
            }
            self.timers.remove(&(*earlier, id.clone()));
        }
        self.timer_of.insert(id.clone(), at);
        self.timers.insert((at, id));
    }

    /// When there is something to do.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(at, _)| {
            let wait = at.duration_since(Timestamp::now());
            Instant::now() + Duration::try_from(wait).unwrap_or_default()
        });
        [self.work_at, timer].into_iter().flatten().min()
    }

    /// Makes and writes what is due, a batch at most.
    pub(super) async fn work(&mut self, parts: &EngineParts, shared: &Shared, declared: Declared<'_>) {
        let Some(epoch) = parts.leadership.leads() else { return };
        let now = Timestamp::now();
        while let Some((at, _)) = self.timers.first()
            && *at <= now
            && let Some((_, id)) = self.timers.pop_first()
        {
            self.timer_of.remove(&id);
            self.mark([id]);
            self.work_at = Some(Instant::now());
        }
        if self.work_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.batch(parts, shared, declared, epoch, now).await;
        parts.metrics.set_queue_depth("statuses", self.dirty.len());
        if self.dirty.is_empty() {
            self.work_at = None;
        }
    }

    /// Makes and writes everything that is dirty, before the end.
    pub(super) async fn flush_all(&mut self, parts: &EngineParts, shared: &Shared, declared: Declared<'_>) {
        while !self.dirty.is_empty()
            && let Some(epoch) = parts.leadership.leads()
        {
            let before = self.dirty.len();
            self.batch(parts, shared, declared, epoch, Timestamp::now()).await;
            if self.dirty.len() >= before {
                return;
            }
        }
    }

    async fn batch(
        &mut self,
        parts: &EngineParts,
        shared: &Shared,
        declared: Declared<'_>,
        epoch: LeaderEpoch,
        now: Timestamp,
    ) {
        let index = shared.index();
        let batch: Vec<_> = self.dirty.iter().take(BATCH).cloned().collect();
        let mut read = match self.read(&parts.store, &index, &batch).await {
            Ok(read) => read,
            Err(error) => return self.failed(&error),
        };
        let mut written = Vec::new();
        let mut shown = Vec::new();
        for id in &batch {
            let problems = declared.problems.get(id);
            let mut show = |what| {
                if parts.statuses.is_some() {
                    shown.push(StatusWrite { id: id.clone(), object: declared.desired.object(id), what });
                }
            };
            let Some(stored) = index.by_id(id) else {
                show(Shown::Rejected { problems: problems.cloned().unwrap_or_default() });
                continue;
            };
            match self.compute(parts, &index, stored, problems, &mut read, now).await {
                Ok(computed) => {
                    if let Some(at) = computed.again_at {
                        self.set_timer(id.clone(), at);
                    }
                    let before = self.written.get(&stored.uid);
                    if let Some(status) = computed.write.as_ref().or(before) {
                        show(Shown::InForce {
                            stored: stored.clone(),
                            status: Box::new(status.clone()),
                            before: before.cloned().map(Box::new),
                            problems: problems.cloned().unwrap_or_default(),
                        });
                    }
                    written.extend(computed.write.map(|status| (stored.uid, status)));
                }
                // It alone is left out until something about it changes: others are not to wait for it.
                Err(error) if is_of_a_row(&error) => {
                    tracing::error!(resource = %id, %error, "a status cannot be made");
                }
                Err(error) => return self.failed(&error),
            }
        }
        if !written.is_empty() {
            let rows: Vec<_> = written.iter().map(|(uid, status)| (*uid, status.to_json())).collect();
            match parts.store.put_statuses(&rows, now, Some(epoch)).await {
                Ok(()) => {}
                Err(StoreError::Fenced) => {
                    tracing::warn!(%epoch, "another replica leads by now: this one steps down");
                    parts.leadership.fenced(epoch);
                    return;
                }
                Err(error) => return self.failed(&error),
            }
        }
        if let Some(sink) = &parts.statuses {
            // It asks itself before each write whether this replica leads.
            sink.show(shown);
        }
        for id in &batch {
            self.dirty.remove(id);
        }
        let ended = written.iter().filter(|(uid, status)| self.key_ended(*uid, status)).map(|(uid, _)| *uid);
        let ended: Vec<_> = ended.collect();
        self.written.extend(written);
        for key in ended {
            tell_owner(parts, &index, key).await;
        }
    }

    fn failed(&mut self, error: &StoreError) {
        tracing::error!(%error, "statuses could not be made; trying again");
        self.work_at = Some(Instant::now() + RETRY);
    }

    /// Whether a personal key stopped working by this status.
    fn key_ended(&self, uid: Uuid, next: &Status) -> bool {
        let works = |status: &Status| match status {
            Status::PersonalKey(key) => !matches!(
                key.phase,
                Some(
                    PersonalKeyPhase::Expired | PersonalKeyPhase::Deactivated | PersonalKeyPhase::Compromised
                )
            ),
            _ => true,
        };
        !works(next) && self.written.get(&uid).is_none_or(works)
    }

    async fn compute(
        &mut self,
        parts: &EngineParts,
        index: &Index,
        stored: &Stored,
        problems: Option<&Vec<horizon_crds::Problem>>,
        read: &mut Read,
        now: Timestamp,
    ) -> Result<Computed, StoreError> {
        let facts = self.facts(parts, stored, read, now).await?;
        let problems: Vec<_> = problems.into_iter().flatten().collect();
        let before = self.written.get(&stored.uid);
        Ok(status(StatusInput { index, stored, facts: &facts, problems: &problems, before, now }))
    }

    /// Reads at once what many statuses are made of: what is known of servers, and statuses that were written before this
    /// replica led. One that cannot be understood is made anew.
    async fn read(&mut self, store: &Store, index: &Index, batch: &[ResourceId]) -> Result<Read, StoreError> {
        let stored: Vec<_> = batch.iter().filter_map(|id| index.by_id(id)).collect();
        let unknown: HashMap<_, _> = stored
            .iter()
            .filter(|stored| !self.written.contains_key(&stored.uid))
            .map(|stored| (stored.uid, *stored))
            .collect();
        let uids: Vec<_> = unknown.keys().copied().collect();
        for (uid, json) in store.statuses_of(&uids).await? {
            let Some(stored) = unknown.get(&uid) else { continue };
            let status = match json {
                Ok(json) => Status::from_json(stored.resource.kind(), json).map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match status {
                Ok(status) => {
                    self.written.insert(uid, status);
                }
                Err(error) => {
                    tracing::warn!(resource = %stored.id(), error, "a status cannot be read and is made anew");
                }
            }
        }
        let servers = stored.iter().filter(|stored| matches!(*stored.resource, Resource::Server(_)));
        store.facts_of_servers(&servers.map(|stored| stored.server_id()).collect::<Vec<_>>()).await
    }

    async fn facts(
        &mut self,
        parts: &EngineParts,
        stored: &Stored,
        read: &mut Read,
        now: Timestamp,
    ) -> Result<Facts, StoreError> {
        let store = &parts.store;
        Ok(match &*stored.resource {
            Resource::Server(_) => {
                let server = stored.server_id();
                let mut facts = read.remove(&server).transpose()?.unwrap_or_default();
                let presence = parts.live.presence(server);
                facts.presence = presence.map(|p| Presence { connected: p.online, since: p.since });
                if facts.applied_generation >= facts.state_generation {
                    self.behind.remove(&server);
                } else {
                    facts.behind_since = Some(*self.behind.entry(server).or_insert(now));
                }
                Facts::Server(Box::new(facts))
            }
            Resource::RegistrationKey(_) => {
                Facts::RegistrationKey(store.registration_key_facts(stored.uid).await?)
            }
            Resource::User(_) => Facts::User(store.user_facts(stored.uid).await?),
            Resource::PersonalKey(_) => Facts::PersonalKey(store.personal_key_facts(stored.uid).await?),
            Resource::AccessPolicy(_) => Facts::None,
            Resource::VirtualNetwork(_) => {
                let number = stored.number.unwrap_or(NetworkId::ACCESS);
                Facts::VirtualNetwork { addresses_in_use: store.addresses_in_use(number).await? }
            }
            Resource::SecurityPolicy(_) => {
                let locked_out = u32::try_from(parts.live.locked_out(now)).unwrap_or(u32::MAX);
                Facts::SecurityPolicy { locked_out }
            }
            Resource::Approval(_) => Facts::Approval(store.decision_facts(stored.uid).await?),
            Resource::Revocation(_) => Facts::Revocation(store.decision_facts(stored.uid).await?),
            Resource::RotationPolicy(_) => Facts::RotationPolicy(store.policy_facts(stored.uid).await?),
            Resource::KeyRotation(_) => Facts::KeyRotation(store.run_facts(stored.uid).await?),
            Resource::DeviceDecision(_) => Facts::DeviceDecision(store.decision_facts(stored.uid).await?),
        })
    }
}

/// Whether what failed is what a row holds, or lacks: it will fail again, and other rows need not.
fn is_of_a_row(error: &StoreError) -> bool {
    use sqlx::Error::{ColumnDecode, Decode, RowNotFound};
    match error {
        StoreError::Corrupt { .. } | StoreError::Seal(_) => true,
        StoreError::Database(error) => matches!(error, ColumnDecode { .. } | Decode(_) | RowNotFound),
        _ => false,
    }
}

/// A key stopped working: the sessions of its owner are looked at again.
async fn tell_owner(parts: &EngineParts, index: &Index, key: Uuid) {
    let Some(Resource::PersonalKey(document)) = index.by_uid(key).map(|stored| &*stored.resource) else {
        return;
    };
    let Some((user, _)) = index.user(&document.metadata.namespace, &document.spec.user_ref) else { return };
    match parts.store.servers_with_sessions(&[user.uid], &[]).await {
        Ok(servers) => servers.into_iter().for_each(|server| parts.live.publish(Hint::ServerChanged(server))),
        Err(error) => {
            tracing::error!(%error, key = %KeyId(key), "the sessions of an ended key could not be found")
        }
    }
}
