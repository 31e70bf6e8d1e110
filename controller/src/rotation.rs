//! Rotation of personal keys: while this replica leads, it begins the rotations that policies and `KeyRotation`s ask for, ends
//! old versions, announces what comes, and warns ahead of the end of keys. Everything is decided anew from the database each
//! time, so that whoever leads next goes on where another broke off.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use horizon_controller_core::{
    Index, Stored,
    rotation::{BeginError, schedule},
};
use horizon_crds::{KindName, PersonalKeySpec, Resource, RotationPolicySpec, RotationTarget, TimeSpan};
use horizon_model::KeyId;
use jiff::Timestamp;
use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, sleep, sleep_until},
};
use uuid::Uuid;

use crate::{
    engine::Engine,
    live::{Hint, Live},
    replica::Leadership,
    stop::Stop,
    store::{
        KeyDates, LeaderEpoch, NewEvent, PolicyFigures, RotateError, Run, RunProgress, Scheduled, Severity,
        Source, Store, StoreError,
    },
};

/// How often it is looked whether it is time for something.
const LOOK: Duration = Duration::from_secs(15);
/// How long changes are gathered before it is looked.
const GATHER: Duration = Duration::from_millis(200);
/// The most rotations that one look begins; the others begin with the next.
const MAX_BEGUN: usize = 64;
/// When a rotation is tried again that could not begin.
const POSTPONED: Duration = Duration::from_secs(3600);
/// The overlap of a key without a policy.
const OVERLAP: TimeSpan = TimeSpan::from_days(7);

/// What rotation works with.
pub struct Rotation {
    /// The resources in force.
    pub engine: Engine,
    /// The keys.
    pub store: Store,
    /// Says what changed.
    pub live: std::sync::Arc<dyn Live>,
    /// Whether this replica leads.
    pub leadership: Leadership,
}

/// Works, while this replica leads, until it is to stop.
pub async fn run(rotation: Rotation, stop: Stop) {
    rotation.leadership.while_leading(stop, || rotation.lead()).await;
}

/// A rotation that a look wants to begin.
struct Wish<'a> {
    key: KeyId,
    spec: &'a PersonalKeySpec,
    overlap: TimeSpan,
    reason: &'a str,
    by: &'a str,
    policy: Option<Uuid>,
    run: Option<Uuid>,
}

impl Rotation {
    async fn lead(&self) {
        let mut in_force = self.engine.subscribe();
        let mut hints = self.live.subscribe();
        let mut postponed = HashMap::new();
        loop {
            let index = in_force.borrow_and_update().index.clone();
            let Some(epoch) = self.leadership.leads() else {
                sleep(GATHER).await;
                continue;
            };
            match self.look(&index, epoch, &mut postponed).await {
                Ok(()) => {}
                Err(StoreError::Fenced) => {
                    tracing::warn!(%epoch, "another replica leads by now: this one steps down");
                    self.leadership.fenced(epoch);
                }
                Err(error) => tracing::error!(%error, "rotations could not be looked after; trying again"),
            }
            let next = Instant::now() + LOOK;
            loop {
                tokio::select! {
                    () = sleep_until(next) => break,
                    changed = in_force.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    hint = hints.recv() => match hint {
                        Ok(Hint::StatusDirty(uid)) if is_key(&index, uid) => break,
                        Ok(Hint::Everything) | Err(RecvError::Lagged(_)) => break,
                        Ok(_) => {}
                        Err(RecvError::Closed) => return,
                    },
                }
            }
            sleep(GATHER).await;
            // What was said meanwhile is seen by the look that follows.
            hints = hints.resubscribe();
        }
    }

    async fn look(
        &self,
        index: &Index,
        epoch: LeaderEpoch,
        postponed: &mut HashMap<Uuid, Instant>,
    ) -> Result<(), StoreError> {
        let now = Timestamp::now();
        for key in self.store.settle_rotations(Some(epoch), now).await? {
            self.live.publish(Hint::StatusDirty(key.0));
        }
        let mut begun = 0;
        for run in self.store.waiting_runs(RotationTarget::PersonalKeys).await? {
            self.carry_on(index, &run, epoch, &mut begun).await?;
        }
        self.by_policy(index, epoch, &mut begun, postponed).await?;
        for uid in self.store.warn_of_expiry(Some(epoch), now).await? {
            self.live.publish(Hint::StatusDirty(uid));
        }
        Ok(())
    }

    /// Does what is left to do of a `KeyRotation`.
    async fn carry_on(
        &self,
        index: &Index,
        run: &Run,
        epoch: LeaderEpoch,
        begun: &mut usize,
    ) -> Result<(), StoreError> {
        let keys = self.store.keys_of_run(run).await?;
        let (before, _) = self.store.begun_by_run(run.uid).await?;
        let (mut failures, mut waits) = (Vec::new(), false);
        for (key, name) in &keys {
            if before.contains(key) {
                continue;
            }
            let Some((_, spec)) = personal_key(index, key.0) else {
                waits = true;
                continue;
            };
            if *begun >= MAX_BEGUN {
                waits = true;
                break;
            }
            let policy = policy_of(index, key.0).map(|(_, policy)| policy.overlap);
            let wish = Wish {
                key: *key,
                spec,
                overlap: run.spec.overlap.or(policy).unwrap_or(OVERLAP),
                reason: run.spec.reason.as_str(),
                by: &run.decided_by,
                policy: None,
                run: Some(run.uid),
            };
            match self.begin(&wish, epoch).await {
                Ok(()) => *begun += 1,
                Err(RotateError::Store(error)) => return Err(error),
                // Its time comes when the rotation that is under way is over.
                Err(RotateError::Life(BeginError::UnderWay) | RotateError::Changed) => waits = true,
                Err(error) => failures.push((name.clone(), error.to_string())),
            }
        }
        let (rotated, mut progress) = self.store.begun_by_run(run.uid).await?;
        let narrow = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        // Keys that were removed since do not count as open.
        let total =
            keys.iter().map(|(key, _)| key).chain(&rotated).collect::<std::collections::BTreeSet<_>>().len();
        progress.total = narrow(total);
        progress.failures = failures;
        let ended = progress.done + narrow(progress.failures.len());
        progress.completed = !waits && ended >= progress.total;
        self.store.note_run(run.uid, &progress, Some(epoch), Timestamp::now()).await?;
        if changed(&before.len(), &rotated.len(), run, &progress) {
            self.live.publish(Hint::StatusDirty(run.uid));
        }
        Ok(())
    }

    /// Begins what policies ask for, and announces what comes.
    async fn by_policy(
        &self,
        index: &Index,
        epoch: LeaderEpoch,
        begun: &mut usize,
        postponed: &mut HashMap<Uuid, Instant>,
    ) -> Result<(), StoreError> {
        let dates = self.store.key_dates(Timestamp::now()).await?;
        let mut figures: BTreeMap<Uuid, PolicyFigures> = BTreeMap::new();
        for policy in index.all(KindName::RotationPolicy) {
            if matches!(&*policy.resource, Resource::RotationPolicy(p) if p.spec.target == RotationTarget::PersonalKeys)
            {
                figures.insert(policy.uid, PolicyFigures::default());
            }
        }
        for stored in index.all(KindName::PersonalKey) {
            let Some((policy, terms)) = policy_of(index, stored.uid) else { continue };
            let Some(figures) = figures.get_mut(&policy.uid) else { continue };
            let Some(dates) = dates.get(&stored.uid) else { continue };
            figures.keys += 1;
            figures.rotating += u32::from(dates.rotating);
            if terms.paused || dates.rotating {
                continue;
            }
            let next = next_run(stored, terms, dates);
            let now = Timestamp::now();
            if next > now {
                figures.next_run = Some(figures.next_run.map_or(next, |earlier| earlier.min(next)));
                self.announce(stored, terms, dates, next, epoch).await?;
                continue;
            }
            let again = postponed.get(&stored.uid).is_none_or(|at| *at <= Instant::now());
            if !again || *begun >= MAX_BEGUN {
                continue;
            }
            let Resource::PersonalKey(key) = &*stored.resource else { continue };
            let wish = Wish {
                key: KeyId(stored.uid),
                spec: &key.spec,
                overlap: terms.overlap,
                reason: "as its policy says",
                by: policy.resource.name(),
                policy: Some(policy.uid),
                run: None,
            };
            match self.begin(&wish, epoch).await {
                Ok(()) => {
                    *begun += 1;
                    figures.rotating += 1;
                    postponed.remove(&stored.uid);
                }
                Err(RotateError::Store(error)) => return Err(error),
                Err(error) => {
                    if postponed.insert(stored.uid, Instant::now() + POSTPONED).is_none() {
                        self.postponed(stored, &error).await?;
                    }
                }
            }
        }
        for (policy, figures) in figures {
            if self.store.note_policy(policy, figures, Some(epoch)).await? {
                self.live.publish(Hint::StatusDirty(policy));
            }
        }
        Ok(())
    }

    async fn begin(&self, wish: &Wish<'_>, epoch: LeaderEpoch) -> Result<(), RotateError> {
        let now = Timestamp::now();
        // A lifetime is that of a version: a key that is rotated in time does not end.
        let renewed = wish.spec.lifetime.map(|span| now.saturating_add(span.get()).unwrap_or(Timestamp::MAX));
        let scheduled = Scheduled {
            overlap: wish.overlap,
            expires: renewed,
            reason: wish.reason,
            policy: wish.policy,
            run: wish.run,
            by: wish.by,
        };
        let begun = self.store.rotate_personal_key(wish.key, &scheduled, Some(epoch), now).await?;
        tracing::info!(key = %wish.key, devices = begun.devices.len(), ends = %begun.overlap_end, "a personal key is rotated");
        self.live.publish(Hint::StatusDirty(wish.key.0));
        if let Some(policy) = wish.policy {
            self.live.publish(Hint::StatusDirty(policy));
        }
        Ok(())
    }

    async fn announce(
        &self,
        stored: &Stored,
        terms: &RotationPolicySpec,
        dates: &KeyDates,
        next: Timestamp,
        epoch: LeaderEpoch,
    ) -> Result<(), StoreError> {
        // As the database keeps it.
        let next = Timestamp::from_millisecond(next.as_millisecond()).unwrap_or(next);
        let now = Timestamp::now();
        let announce = schedule::notice_at(terms, next) <= now && dates.announced != Some(next);
        if announce || dates.next != Some(next) {
            self.store.note_next_rotation(KeyId(stored.uid), next, announce, Some(epoch), now).await?;
            self.live.publish(Hint::StatusDirty(stored.uid));
        }
        Ok(())
    }

    async fn postponed(&self, stored: &Stored, why: &RotateError) -> Result<(), StoreError> {
        tracing::warn!(key = %stored.id(), %why, "a rotation is postponed");
        let event = NewEvent {
            kind: "key_rotation_postponed",
            severity: Severity::Low,
            source: Source::Resource(stored.uid),
            address: None,
            description: format!("{} cannot be rotated now: {why}", stored.id()),
            data: serde_json::Value::Null,
        };
        self.store.record_event(&event, Timestamp::now()).await
    }
}

/// Whether a status says something else by this.
fn changed(before: &usize, rotated: &usize, run: &Run, progress: &RunProgress) -> bool {
    before != rotated || run.started_at.is_none() || progress.completed || progress.receivers > 0
}

fn is_key(index: &Index, uid: Uuid) -> bool {
    index.by_uid(uid).is_some_and(|stored| stored.resource.kind() == KindName::PersonalKey)
}

fn personal_key(index: &Index, uid: Uuid) -> Option<(&Stored, &PersonalKeySpec)> {
    let stored = index.by_uid(uid)?;
    match &*stored.resource {
        Resource::PersonalKey(key) => Some((stored, &key.spec)),
        _ => None,
    }
}

/// The policy that a key names, if it is one for personal keys.
fn policy_of(index: &Index, key: Uuid) -> Option<(&Stored, &RotationPolicySpec)> {
    let (stored, spec) = personal_key(index, key)?;
    let (policy, terms) =
        index.rotation_policy(stored.resource.namespace(), spec.rotation_policy.as_ref()?)?;
    (terms.target == RotationTarget::PersonalKeys).then_some((&**policy, terms))
}

fn next_run(stored: &Stored, terms: &RotationPolicySpec, dates: &KeyDates) -> Timestamp {
    let since = dates.last_rotation.map_or(dates.activated, |last| last.max(dates.activated));
    schedule::next_run(terms, since, schedule::seed(&stored.uid.to_string()))
}
