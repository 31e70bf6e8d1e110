//! Carries rotations out. Every replica follows the KeySets of the database; the leader adds the next one when a policy, a
//! `KeyRotation` or a rotation under way asks for it.

use std::{sync::Arc, time::Duration};

use horizon_controller_core::rotation::{policy_for, schedule};
use horizon_crds::{KeyRotationSpec, RotationTarget, RotationType};
use horizon_wire::{
    Message as _,
    key::SigningKey,
    keyset::KeySet,
    rotation::{self, Due, KeyClass, Step},
};
use jiff::{SignedDuration, Timestamp};
use thiserror::Error;
use tokio::{
    sync::broadcast::error::RecvError,
    time::{MissedTickBehavior, interval},
};

use super::{
    EnvelopeHealth, Home, KeyRing, Keys, KeysError,
    enveloping::{Enveloping, meant},
    fresh, numbered,
};
use crate::{
    channel::Desired,
    live::{Hint, Live, shared::BusKey},
    metrics::Metrics,
    replica::Leadership,
    stop::Stop,
    store::{
        ENVELOPE_CLASS, EnvelopePhase, FreshKey, KeySetHolders, KeySetRotation, LeaderEpoch, NewKeySet,
        NewKeySetRotation, PolicyFigures, ReplicaId, Run, RunProgress, Store, StoreError,
    },
};

/// How often it is looked whether something is due, and whether there is a newer KeySet.
const LOOK: Duration = Duration::from_secs(1);
/// For how long an old key stays when nobody says.
pub(super) const OVERLAP: SignedDuration = SignedDuration::from_hours(7 * 24);
/// The most steps of one look.
const STEPS: usize = 16;
/// The largest chain of KeySets, in bytes: with the keys it must fit into a Secret, which holds 1 MiB. That is some 1,500
/// KeySets. Beyond it nothing rotates any more.
const MAX_CHAIN: usize = 900 << 10;

/// Why a step was not taken, or the newest KeySet not followed.
#[derive(Debug, Error)]
pub enum RotateError {
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The keys do not belong together.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The KeySet is not as the step needs it.
    #[error(transparent)]
    Step(#[from] rotation::StepError),
    /// There are too many KeySets.
    #[error("the chain of KeySets has {0} bytes, and no room for another one")]
    Full(usize),
}

/// Brings keys up to the newest KeySet of the database, and notes there those that it does not have, as after a backup of it was
/// restored. `None` when they are the newest.
///
/// # Errors
/// When the two do not belong together.
pub async fn follow(store: &Store, keys: &Keys, now: Timestamp) -> Result<Option<Keys>, RotateError> {
    let newest = store.note_keysets(&keys.encoded_chain(), now).await?;
    if newest <= keys.keyset.version {
        return Ok(None);
    }
    let rows = store.keysets_after(keys.keyset.version).await?;
    Ok(Some(keys.advanced(&rows, now)?))
}

/// Follows and, while it leads, rotates.
pub struct Rotator {
    /// The database.
    pub store: Store,
    /// The keys in use.
    pub ring: KeyRing,
    /// Where they lie; nowhere in tests.
    pub home: Option<Home>,
    /// How replicas hear of each other.
    pub live: Arc<dyn Live>,
    /// Whether this replica leads.
    pub leadership: Leadership,
    /// The resources in force.
    pub desired: Arc<dyn Desired>,
    /// This start of this replica.
    pub replica: ReplicaId,
    /// The figures.
    pub metrics: Metrics,
    /// What replicas tell each other under; nothing where there is one.
    pub bus: Option<BusKey>,
    /// Whether the envelope key can be used.
    pub envelope: EnvelopeHealth,
}

/// What was done already.
#[derive(Default)]
pub(super) struct Done {
    /// The version that lies at home.
    kept: u64,
    /// What was last said of who holds what.
    holders: Option<Vec<KeySetHolders>>,
    /// What was last said of each run.
    runs: std::collections::HashMap<uuid::Uuid, RunProgress>,
    /// The envelope.
    pub(super) envelope: Enveloping,
}

impl Rotator {
    /// Works until it is to stop.
    pub async fn run(self, mut stop: Stop) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut hints = self.live.subscribe();
        let mut standing = self.leadership.subscribe();
        let mut done = Done { kept: self.ring.now().keyset.version, ..Done::default() };
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = standing.changed() => {}
                () = heard(&mut hints) => {}
                () = stop.requested() => return,
            }
            if let Err(error) = self.look(&mut done).await {
                match error {
                    RotateError::Store(StoreError::Fenced) => {
                        tracing::info!("another replica leads and rotates the keys since");
                    }
                    error => tracing::error!(%error, "the organisation's keys: not done, it is tried again"),
                }
            }
        }
    }

    async fn look(&self, done: &mut Done) -> Result<(), RotateError> {
        self.follow_envelope(&mut done.envelope).await?;
        self.catch_up(done).await?;
        if let Some(epoch) = self.leadership.leads() {
            self.lead(done, epoch).await?;
        }
        self.tell_holders(done).await
    }

    /// Takes newer KeySets from the database, uses them, and keeps them.
    async fn catch_up(&self, done: &mut Done) -> Result<(), RotateError> {
        let now = Timestamp::now();
        let keys = self.ring.now();
        let rows = self.store.keysets_after(keys.keyset.version).await?;
        if !rows.is_empty() {
            let newer = keys.advanced(&rows, now)?;
            tracing::info!(keyset = newer.keyset.version, "a newer KeySet is in force");
            self.ring.replace(Arc::new(newer));
        }
        let keys = self.ring.now();
        self.metrics.keyset_version.set(i64::try_from(keys.keyset.version).unwrap_or(i64::MAX));
        if let Some(home) = self.home.as_ref().filter(|_| done.kept < keys.keyset.version) {
            // Until they are, the database has them.
            home.keep(&keys, now).await?;
            done.kept = keys.keyset.version;
        }
        Ok(())
    }

    /// Notes who holds which KeySet here.
    async fn tell_holders(&self, done: &mut Done) -> Result<(), RotateError> {
        let version = self.ring.now().keyset.version;
        let mut holders = self.ring.holders();
        for role in [super::Role::Appliance, super::Role::Device] {
            let count = |newest: bool| {
                let of =
                    holders.iter().filter(|h| h.role == role.as_str() && (h.version >= version) == newest);
                i64::try_from(of.map(|h| h.peers).sum::<u64>()).unwrap_or(i64::MAX)
            };
            for (held, newest) in [("newest", true), ("older", false)] {
                let label = crate::metrics::HolderLabel { role: role.as_str(), held };
                self.metrics.keyset_peers.get_or_create(&label).set(count(newest));
            }
        }
        holders.push(KeySetHolders { role: "replica".into(), version, peers: 1 });
        if done.holders.as_ref() != Some(&holders) {
            self.store.put_keyset_holders(self.replica, &holders).await?;
            done.holders = Some(holders);
        }
        Ok(())
    }

    async fn lead(&self, done: &mut Done, epoch: LeaderEpoch) -> Result<(), RotateError> {
        self.begin_runs(epoch).await?;
        self.follow_policy(epoch).await?;
        for _ in 0..STEPS {
            let open = self.store.keyset_rotations(None).await?;
            if open.is_empty() {
                break;
            }
            self.store.forget_keyset_holders(self.replica).await?;
            self.tell_holders(done).await?;
            let mut moved = false;
            for rotation in &open {
                moved |= self.advance(rotation, epoch).await?;
                self.catch_up(done).await?;
            }
            if !moved {
                break;
            }
        }
        let runs = self.store.waiting_runs(RotationTarget::ControllerKeys).await?;
        self.rotate_envelope(done, &runs, epoch).await?;
        self.report_runs(done, epoch).await?;
        self.rotate_secrets(done, epoch).await
    }

    /// Takes the step that is due. Returns whether there may be another.
    async fn advance(&self, rotation: &KeySetRotation, epoch: LeaderEpoch) -> Result<bool, RotateError> {
        let Some(reached) = rotation.reached else { return Ok(false) };
        let keys = self.ring.now();
        let now = Timestamp::now();
        let holders = self.store.keyset_holders(Some(self.replica)).await?;
        let behind = holders.iter().any(|holders| holders.version < keys.keyset.version);
        let overlap = i64::try_from(rotation.overlap.as_millis()).unwrap_or(i64::MAX);
        let emergency = rotation.emergency();
        match rotation::due(
            &keys.keyset,
            rotation.class,
            emergency,
            reached,
            behind,
            overlap,
            now.as_millisecond(),
        ) {
            Due::Wait(_) => Ok(false),
            Due::Done => {
                self.store.end_keyset_rotation(rotation.id, Some(epoch), now).await?;
                Ok(false)
            }
            Due::Take(step) => {
                let made = self.take(&keys, rotation, step, epoch, now).await?;
                self.live.publish(Hint::KeysetsChanged);
                Ok(made)
            }
        }
    }

    async fn take(
        &self,
        keys: &Keys,
        rotation: &KeySetRotation,
        step: Step,
        epoch: LeaderEpoch,
        now: Timestamp,
    ) -> Result<bool, RotateError> {
        let class = rotation.class;
        let fresh = step.brings_key().then(|| SigningKey::from_seed(fresh()));
        let public = fresh.as_ref().map(SigningKey::public);
        let next: KeySet = rotation::take(&keys.keyset, class, step, public, now.as_millisecond())?;
        let root = fresh.as_ref().filter(|_| class == KeyClass::Root).unwrap_or(&keys.root);
        let signed = next.sign(root, Some(&keys.root)).encode_to_vec();
        let length = keys.chain.iter().map(|signed| signed.encoded_len()).sum::<usize>() + signed.len();
        if length > MAX_CHAIN {
            return Err(RotateError::Full(length));
        }
        let new = NewKeySet {
            version: next.version,
            signed,
            key: fresh.as_ref().map(|key| FreshKey {
                name: numbered(class.as_str(), next.version),
                public: key.public(),
                secret: key.seed(),
            }),
            needed: rotation::needed(&next),
            rotation,
            step,
        };
        let made = self.store.append_keyset(&new, Some(epoch), now).await?;
        if made {
            tracing::info!(
                class = class.as_str(),
                ?step,
                keyset = next.version,
                "rotated a key of the organisation"
            );
        }
        Ok(made)
    }

    /// Begins what `KeyRotation`s ask for.
    async fn begin_runs(&self, epoch: LeaderEpoch) -> Result<(), RotateError> {
        let now = Timestamp::now();
        for run in self.store.waiting_runs(RotationTarget::ControllerKeys).await? {
            let begun = self.store.keyset_rotations(Some(run.uid)).await?;
            for class in classes(&run.spec) {
                if begun.iter().any(|rotation| rotation.class == class) {
                    continue;
                }
                let new = NewKeySetRotation {
                    class,
                    kind: run.spec.kind,
                    reason: run.spec.reason.as_str(),
                    by: &run.decided_by,
                    run: Some(run.uid),
                    policy: None,
                    overlap: run
                        .spec
                        .overlap
                        .map_or_else(|| self.overlap(), |span| span.get().try_into().unwrap_or(OVERLAP)),
                };
                self.store.begin_keyset_rotation(&new, Some(epoch), now).await?;
            }
        }
        Ok(())
    }

    /// Says how far the `KeyRotation`s are.
    async fn report_runs(&self, done: &mut Done, epoch: LeaderEpoch) -> Result<(), RotateError> {
        for run in self.store.waiting_runs(RotationTarget::ControllerKeys).await? {
            let progress = self.progress(&run).await?;
            self.report(done, &run, progress, epoch).await?;
        }
        Ok(())
    }

    /// Says how far a `KeyRotation` is, when that is news.
    pub(super) async fn report(
        &self,
        done: &mut Done,
        run: &Run,
        progress: RunProgress,
        epoch: LeaderEpoch,
    ) -> Result<(), RotateError> {
        if done.runs.get(&run.uid) == Some(&progress) && run.started_at.is_some() {
            return Ok(());
        }
        self.store.note_run(run.uid, &progress, Some(epoch), Timestamp::now()).await?;
        self.live.publish(Hint::StatusDirty(run.uid));
        match progress.completed {
            true => drop(done.runs.remove(&run.uid)),
            false => drop(done.runs.insert(run.uid, progress)),
        }
        Ok(())
    }

    async fn progress(&self, run: &Run) -> Result<RunProgress, RotateError> {
        let wanted = classes(&run.spec);
        let rotations = self.store.keyset_rotations(Some(run.uid)).await?;
        let version = self.ring.now().keyset.version;
        let holders = self.store.keyset_holders(Some(self.replica)).await?;
        let count = |newest_only: bool| {
            let of = holders.iter().filter(|h| h.role != "replica" && (!newest_only || h.version >= version));
            u32::try_from(of.map(|h| h.peers).sum::<u64>()).unwrap_or(u32::MAX)
        };
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let over = rotations.iter().filter(|rotation| rotation.reached.is_none()).count();
        let envelope = match meant(&run.spec) {
            true => Some(self.store.envelope_rotation(Some(run.uid)).await?),
            false => None,
        };
        let enveloped =
            envelope.as_ref().is_none_or(|it| it.as_ref().is_some_and(|it| it.phase == EnvelopePhase::Done));
        let (asked, ended) = (usize::from(envelope.is_some()), usize::from(envelope.is_some() && enveloped));
        let unknown: Vec<_> = run
            .spec
            .names
            .iter()
            .filter(|name| name.parse::<KeyClass>().is_err() && name.as_str() != ENVELOPE_CLASS)
            .map(|name| {
                (
                    name.to_string(),
                    "the controller has no such keys: write tls, state, ticket, root or envelope".to_owned(),
                )
            })
            .collect();
        Ok(RunProgress {
            completed: over == wanted.len() && enveloped,
            total: narrow(wanted.len() + asked + unknown.len()),
            done: narrow(over + ended),
            receivers: count(false),
            confirmed: count(true),
            overlap_ends_at: None,
            failures: unknown,
        })
    }

    /// For how long old keys stay, as the policy says.
    fn overlap(&self) -> SignedDuration {
        let index = self.desired.index();
        let policy = policy_for(&index, RotationTarget::ControllerKeys, None);
        policy.and_then(|(_, spec)| spec.overlap.get().try_into().ok()).unwrap_or(OVERLAP)
    }

    /// Begins what the policy for the controller's keys asks for.
    async fn follow_policy(&self, epoch: LeaderEpoch) -> Result<(), RotateError> {
        let index = self.desired.index();
        let Some((stored, policy)) = policy_for(&index, RotationTarget::ControllerKeys, None) else {
            return Ok(());
        };
        let now = Timestamp::now();
        let last = self.store.last_rotations(RotationTarget::ControllerKeys).await?;
        let open = self.store.keyset_rotations(None).await?;
        let first = self.first_issued();
        let mut next_run: Option<Timestamp> = None;
        for class in KeyClass::ALL {
            let since = last.get(class.as_str()).copied().unwrap_or(first);
            let next = schedule::next_run(policy, since, schedule::seed(class.as_str()));
            if next > now || policy.paused || open.iter().any(|rotation| rotation.class == class) {
                next_run = Some(next_run.map_or(next, |earliest| earliest.min(next)));
                continue;
            }
            let reason = format!("the policy {} says so", stored.resource.name());
            let new = NewKeySetRotation {
                class,
                kind: RotationType::Scheduled,
                reason: &reason,
                by: "system",
                run: None,
                policy: Some(stored.uid),
                overlap: policy.overlap.get().try_into().unwrap_or(OVERLAP),
            };
            self.store.begin_keyset_rotation(&new, Some(epoch), now).await?;
        }
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let since = last.get(ENVELOPE_CLASS).copied().unwrap_or(first);
        let named = (policy, stored.uid, stored.resource.name().as_str());
        let envelope = self.envelope_by_policy(named, since, epoch).await?;
        next_run = envelope.into_iter().chain(next_run).min();
        let figures = PolicyFigures {
            keys: narrow(KeyClass::ALL.len() + 1),
            rotating: narrow(open.len() + usize::from(envelope.is_none())),
            next_run: next_run.filter(|_| !policy.paused),
        };
        if self.store.note_policy(stored.uid, figures, Some(epoch)).await? {
            self.live.publish(Hint::StatusDirty(stored.uid));
        }
        Ok(())
    }

    /// When the organisation's first keys were made.
    fn first_issued(&self) -> Timestamp {
        let keys = self.ring.now();
        let first = keys.chain.first().and_then(|signed| horizon_wire::keyset::read(signed).ok());
        first.and_then(|set| Timestamp::from_millisecond(set.issued).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// The classes that a rotation means.
fn classes(spec: &KeyRotationSpec) -> Vec<KeyClass> {
    let named = |class: &KeyClass| spec.all || spec.names.iter().any(|name| name.as_str() == class.as_str());
    // The root comes last: it signs what came before it.
    KeyClass::ALL.into_iter().filter(named).collect()
}

/// Waits for a hint that something about KeySets changed.
async fn heard(hints: &mut tokio::sync::broadcast::Receiver<Hint>) {
    loop {
        match hints.recv().await {
            Ok(Hint::KeysetsChanged | Hint::Everything) | Err(RecvError::Lagged(_)) => return,
            Ok(_) => {}
            // The live layer is gone: the task is about to be told to stop.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}
