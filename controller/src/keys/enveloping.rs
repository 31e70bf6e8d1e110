//! Rotation of the envelope: every replica takes the keys that the database names; the leader makes new ones, and has every value
//! sealed under them. Each step is one transaction and is decided anew from the rows, so that a crash at any of them converges.

use std::sync::{Arc, Mutex, PoisonError};

use horizon_controller_core::rotation::schedule;
use horizon_crds::{KeyRotationSpec, RotationPolicySpec, RotationType};
use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::{
    Envelope, EnvelopeError, fresh,
    rotate::{Done, RotateError, Rotator},
};
use crate::{
    detect::Observed,
    store::{
        ENVELOPE_CLASS, EnvelopeKey, EnvelopePhase, EnvelopeRotation, LeaderEpoch, NewEnvelopeRotation,
        ResealCursor, Run, ServiceNote, ServiceState,
    },
};

/// How many values are sealed anew in one transaction.
const BATCH: u32 = 200;
/// How many such transactions there are in one look, a second.
const BATCHES: usize = 25;
/// After how many looks it is said again which keys are here, and looked again whether hardware is there.
const AGAIN: u32 = 5;
/// How long after the update of a program that sealed in the first format everything is sealed in the one of today. Until then
/// the program before can be gone back to.
const FIRST_FORMAT: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Whether the envelope key can be used. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct EnvelopeHealth(Arc<Mutex<Option<Option<String>>>>);

impl EnvelopeHealth {
    fn set(&self, trouble: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble);
    }

    /// What is wrong with it; `None` when nothing is, or nothing can be.
    pub fn trouble(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().flatten()
    }

    /// How it does, where it is in hardware that may go away.
    pub fn observed(&self) -> Observed {
        let health = self.clone();
        Arc::new(move || {
            let (state, detail) = match health.trouble() {
                None => (ServiceState::Operational, String::new()),
                Some(why) => (
                    ServiceState::Degraded,
                    format!(
                        "{why}. What runs goes on with the data keys it has; no controller starts, and nothing is rotated"
                    ),
                ),
            };
            ServiceNote { name: "envelope_key".into(), state, detail }
        })
    }
}

/// What was done already.
#[derive(Default)]
pub(super) struct Enveloping {
    looks: u32,
    /// What was last said of the keys that are here.
    holding: Option<(String, Vec<(i64, bool)>)>,
    /// How far sealing anew is.
    cursor: ResealCursor,
    /// Values of this pass that do not open.
    stuck: u32,
    /// Whether the hardware is there is being looked at.
    checking: Option<JoinHandle<Result<(), EnvelopeError>>>,
}

/// Whether a rotation means the envelope.
pub(super) fn meant(spec: &KeyRotationSpec) -> bool {
    spec.all || spec.names.iter().any(|name| name.as_str() == ENVELOPE_CLASS)
}

impl Rotator {
    /// Takes the envelope key and the data keys that the database names, and says which are here.
    pub(super) async fn follow_envelope(&self, done: &mut Enveloping) -> Result<(), RotateError> {
        if let Some(next) = self.store.next_envelope_key().await? {
            let envelope = Envelope::from(&next);
            // Kept before it is said that it is here: after that the one before opens nothing any more.
            if let Some(home) = &self.home {
                home.keep_envelope(&next).await?;
            }
            tracing::info!(envelope = envelope.id(), "took the new envelope key");
            self.store.use_envelope(envelope).await?;
        }
        if self.store.refresh_data_keys().await?
            && let Some(bus) = &self.bus
        {
            bus.replace(&self.store.shared_keys());
        }
        let holding = self.store.envelope_holding();
        done.looks = done.looks.wrapping_add(1);
        if done.holding.as_ref() != Some(&holding) || done.looks.is_multiple_of(AGAIN) {
            self.store.put_envelope_holder(self.replica).await?;
            done.holding = Some(holding);
        }
        self.look_at_hardware(done).await;
        Ok(())
    }

    /// Looks whether hardware is there, without waiting for it.
    async fn look_at_hardware(&self, done: &mut Enveloping) {
        let envelope = self.store.envelope();
        if envelope.key().is_some() {
            return;
        }
        match done.checking.take_if(|checking| checking.is_finished()) {
            Some(checked) => {
                let trouble = match checked.await {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(error.to_string()),
                    Err(error) => Some(error.to_string()),
                };
                if trouble != self.envelope.trouble() {
                    match &trouble {
                        Some(why) => {
                            tracing::error!(%why, "the envelope key is away; what is unwrapped goes on")
                        }
                        None => tracing::info!("the envelope key is there"),
                    }
                }
                self.envelope.set(trouble);
            }
            None if done.checking.is_none() && done.looks % AGAIN == 1 => {
                done.checking = Some(tokio::spawn(async move { envelope.check().await }));
            }
            None => {}
        }
    }

    /// Begins what is asked for, and takes the steps that are due.
    pub(super) async fn rotate_envelope(
        &self,
        done: &mut Done,
        runs: &[Run],
        epoch: LeaderEpoch,
    ) -> Result<(), RotateError> {
        for run in runs.iter().filter(|run| meant(&run.spec)) {
            if self.store.envelope_rotation(Some(run.uid)).await?.is_none() {
                let new = NewEnvelopeRotation {
                    kind: run.spec.kind,
                    reason: run.spec.reason.as_str(),
                    by: &run.decided_by,
                    run: Some(run.uid),
                    policy: None,
                    new_envelope: true,
                };
                self.store.begin_envelope_rotation(&new, Some(epoch), Timestamp::now()).await?;
            }
        }
        self.leave_first_format(epoch).await?;
        for _ in 0..BATCHES {
            self.store.settle_envelope(Some(epoch), Timestamp::now()).await?;
            let Some(rotation) = self.store.envelope_rotation(None).await? else { break };
            if !self.turn(&mut done.envelope, &rotation, epoch).await? {
                break;
            }
            self.follow_envelope(&mut done.envelope).await?;
        }
        Ok(())
    }

    /// Takes the next step. Says whether there may be another at once.
    async fn turn(
        &self,
        done: &mut Enveloping,
        rotation: &EnvelopeRotation,
        epoch: LeaderEpoch,
    ) -> Result<bool, RotateError> {
        let now = Timestamp::now();
        match rotation.phase {
            EnvelopePhase::Requested => {
                let replaced = rotation.new_envelope && self.store.envelope().key().is_some();
                let next = replaced.then(|| EnvelopeKey(fresh()));
                Ok(self.store.publish_data_keys(rotation, next.as_ref(), Some(epoch), now).await?)
            }
            EnvelopePhase::Published => {
                (done.cursor, done.stuck) = (ResealCursor::default(), 0);
                Ok(self.store.use_data_keys(rotation, Some(epoch), now).await?)
            }
            EnvelopePhase::InUse => {
                if !self.store.all_seal_anew().await? {
                    return Ok(false);
                }
                let part = self.store.reseal(&done.cursor, BATCH, Some(epoch)).await?;
                done.stuck += part.stuck;
                if let Some(next) = part.next {
                    done.cursor = next;
                    return Ok(true);
                }
                done.cursor = ResealCursor::default();
                let retired = self.store.retire_data_keys(rotation, Some(epoch), now).await?;
                if retired {
                    tracing::info!(
                        values = rotation.resealed,
                        "every value is sealed under the new data key"
                    );
                } else if done.stuck > 0 {
                    tracing::error!(
                        values = done.stuck,
                        "the data key before stays: sealed values do not open under it"
                    );
                }
                done.stuck = 0;
                Ok(retired)
            }
            EnvelopePhase::Done => Ok(false),
        }
    }

    /// Has everything sealed in the format of today, once nobody will go back to the program before.
    async fn leave_first_format(&self, epoch: LeaderEpoch) -> Result<(), RotateError> {
        let now = Timestamp::now();
        let since = self.store.first_format_since().await?;
        if since.and_then(|since| since.checked_add(FIRST_FORMAT).ok()).is_some_and(|due| due <= now) {
            let new = NewEnvelopeRotation {
                kind: RotationType::Scheduled,
                reason: "values are sealed as an older version did it",
                by: "system",
                run: None,
                policy: None,
                new_envelope: false,
            };
            self.store.begin_envelope_rotation(&new, Some(epoch), now).await?;
        }
        Ok(())
    }

    /// Begins what the policy for the controller's keys asks for. Returns when the next is due.
    pub(super) async fn envelope_by_policy(
        &self,
        (policy, uid, name): (&RotationPolicySpec, Uuid, &str),
        since: Timestamp,
        epoch: LeaderEpoch,
    ) -> Result<Option<Timestamp>, RotateError> {
        let now = Timestamp::now();
        let next = schedule::next_run(policy, since, schedule::seed(ENVELOPE_CLASS));
        if next > now || policy.paused || self.store.envelope_rotation(None).await?.is_some() {
            return Ok(Some(next));
        }
        let reason = format!("the policy {name} says so");
        let new = NewEnvelopeRotation {
            kind: RotationType::Scheduled,
            reason: &reason,
            by: "system",
            run: None,
            policy: Some(uid),
            new_envelope: true,
        };
        self.store.begin_envelope_rotation(&new, Some(epoch), now).await?;
        Ok(None)
    }
}
