//! Rotation of the verification secrets of servers, while this replica leads: so many appliances at a time.

use std::collections::BTreeSet;

use horizon_controller_core::rotation::{policy_for, schedule};
use horizon_crds::{KindName, Name, RotationTarget, RotationType};
use jiff::{SignedDuration, Timestamp};

use super::rotate::{Done, OVERLAP, RotateError, Rotator};
use crate::{
    live::Hint,
    store::{LeaderEpoch, PolicyFigures, RunProgress, SecretRotation},
};

/// How many appliances are given a new secret in one look, a second: their channels connect anew for it.
const AT_ONCE: u32 = 100;

impl Rotator {
    /// Carries out the `KeyRotation`s of verification secrets and what policies ask for.
    pub(super) async fn rotate_secrets(
        &self,
        done: &mut Done,
        epoch: LeaderEpoch,
    ) -> Result<(), RotateError> {
        let now = Timestamp::now();
        for run in self.store.waiting_runs(RotationTarget::VerificationSecrets).await? {
            let overlap = run.spec.overlap.and_then(|span| span.get().try_into().ok()).unwrap_or(OVERLAP);
            let rotation = SecretRotation {
                id: run.uid.to_string(),
                namespace: &run.namespace,
                names: &run.spec.names,
                before: run.decided_at,
                kind: run.spec.kind,
                reason: run.spec.reason.as_str(),
                by: &run.decided_by,
                run: Some(run.uid),
                policy: None,
                overlap,
            };
            self.mark(&rotation, epoch, now).await?;
            let far = self.store.secrets_rotated(&rotation).await?;
            let ends = run.decided_at.checked_add(overlap).unwrap_or(Timestamp::MAX);
            // Those that stay away get theirs when they return.
            let completed = far.unmarked == 0 && (far.done == far.total || now >= ends);
            let progress = RunProgress {
                completed,
                total: far.total,
                done: far.done,
                receivers: far.total,
                confirmed: far.done,
                overlap_ends_at: Some(ends),
                failures: Vec::new(),
            };
            self.report(done, &run, progress, epoch).await?;
        }
        self.follow_secret_policies(epoch, now).await
    }

    async fn mark(
        &self,
        rotation: &SecretRotation<'_>,
        epoch: LeaderEpoch,
        now: Timestamp,
    ) -> Result<(), RotateError> {
        for server in self.store.reissue_secrets(rotation, AT_ONCE, Some(epoch), now).await? {
            self.live.publish(Hint::ServerChanged(server));
        }
        Ok(())
    }

    async fn follow_secret_policies(&self, epoch: LeaderEpoch, now: Timestamp) -> Result<(), RotateError> {
        let index = self.desired.index();
        let target = RotationTarget::VerificationSecrets;
        if index.all(KindName::RotationPolicy).is_empty() {
            return Ok(());
        }
        let namespaces: BTreeSet<&Name> =
            index.all(KindName::Server).iter().map(|s| s.resource.namespace()).collect();
        let mut last = None;
        for namespace in namespaces {
            let Some((stored, policy)) = policy_for(&index, target, Some(namespace)) else { continue };
            let rotated = match &last {
                Some(rotated) => rotated,
                None => last.insert(self.store.last_rotations(target).await?),
            };
            let (mut due, mut next_run, mut keys) = (Vec::new(), None::<Timestamp>, 0);
            for server in index.in_namespace(KindName::Server, namespace) {
                keys += 1;
                let id = server.uid.to_string();
                let since = rotated.get(&id).copied().unwrap_or(server.created_at);
                let next = schedule::next_run(policy, since, schedule::seed(&id));
                match next <= now && !policy.paused {
                    true => due.push(server.resource.name().clone()),
                    false => next_run = Some(next_run.map_or(next, |earliest| earliest.min(next))),
                }
            }
            let reason = format!("the policy {} says so", stored.resource.name());
            let overlap = policy.overlap.get().try_into().unwrap_or(SignedDuration::ZERO);
            if !due.is_empty() {
                let rotation = SecretRotation {
                    id: format!("{}/{}", stored.uid, now.as_millisecond()),
                    namespace,
                    names: &due,
                    before: now,
                    kind: RotationType::Scheduled,
                    reason: &reason,
                    by: "system",
                    run: None,
                    policy: Some(stored.uid),
                    overlap,
                };
                self.mark(&rotation, epoch, now).await?;
            }
            let rotating = u32::try_from(due.len()).unwrap_or(u32::MAX);
            let figures = PolicyFigures { keys, rotating, next_run: next_run.filter(|_| !policy.paused) };
            if self.store.note_policy(stored.uid, figures, Some(epoch)).await? {
                self.live.publish(Hint::StatusDirty(stored.uid));
            }
        }
        Ok(())
    }
}
