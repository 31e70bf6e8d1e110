//! The statuses of rotations and of their policies.

use horizon_crds::{
    ConditionType, KeyRotationPhase, KeyRotationSpec, KeyRotationStatus, RotationFailure, RotationPolicySpec,
    RotationPolicyStatus, RotationType, Text,
};
use jiff::Timestamp;

use super::{
    Notes,
    facts::{RotationFacts, RotationPolicyFacts},
};

/// The most failures a status lists.
const MAX_FAILURES: usize = 32;

/// Fills in the status; returns when it may read differently by itself.
pub(super) fn policy(
    status: &mut RotationPolicyStatus,
    spec: &RotationPolicySpec,
    facts: &RotationPolicyFacts,
    note: &mut Notes<'_>,
) {
    status.last_run_at = facts.last_run.map(Into::into);
    status.next_run_at = facts.next_run.filter(|_| !spec.paused).map(Into::into);
    status.keys = facts.keys;
    status.rotating = facts.rotating;
    status.rotations = facts.rotations;
    status.failures = facts.failures;
    if spec.paused {
        note.set(ConditionType::Ready, false, "Paused", "the policy begins no rotations for now");
    } else if facts.keys == 0 {
        note.set(ConditionType::Ready, true, "NoKeys", "no key follows the policy");
    } else {
        note.set(ConditionType::Ready, true, "InForce", "keys are rotated as the policy says");
    }
}

/// Fills in the status; returns when it may read differently by itself.
pub(super) fn run(
    status: &mut KeyRotationStatus,
    spec: &KeyRotationSpec,
    facts: &RotationFacts,
    note: &mut Notes<'_>,
) -> Option<Timestamp> {
    status.started_at = facts.started_at.map(Into::into);
    status.completed_at = facts.completed_at.map(Into::into);
    status.overlap_ends_at = facts.overlap_ends_at.map(Into::into);
    status.total = facts.total;
    status.completed = facts.done;
    status.receivers = facts.receivers;
    status.confirmed = facts.confirmed;
    let failures = facts.failures.iter().take(MAX_FAILURES);
    status.failures = failures
        .map(|(name, message)| RotationFailure { name: Text::lossy(name), message: Text::lossy(message) })
        .collect();
    let failed = facts.completed_at.is_some() && (facts.done < facts.total || facts.total == 0);
    let phase = match (facts.started_at, facts.completed_at) {
        (_, Some(_)) if failed => KeyRotationPhase::Failed,
        (_, Some(_)) => KeyRotationPhase::Completed,
        (Some(_), None) => KeyRotationPhase::Running,
        (None, None) => KeyRotationPhase::Pending,
    };
    status.phase = Some(phase);
    let at_once = spec.kind != RotationType::Scheduled;
    let (reason, message) = match phase {
        KeyRotationPhase::Pending => ("Pending", "the rotation has not begun".to_owned()),
        KeyRotationPhase::Running => {
            let message = format!(
                "{} of {} keys are rotated, {} of {} receivers have confirmed",
                facts.done, facts.total, facts.confirmed, facts.receivers
            );
            ("Running", message)
        }
        KeyRotationPhase::Completed if at_once => {
            ("Completed", "the old keys are dead: the new ones have to be entered by hand".to_owned())
        }
        KeyRotationPhase::Completed => ("Completed", "every old key has ended".to_owned()),
        KeyRotationPhase::Failed if facts.total == 0 => {
            ("NothingSelected", "no key is what the rotation names".to_owned())
        }
        KeyRotationPhase::Failed => {
            ("Failed", format!("{} of {} keys were not rotated", facts.total - facts.done, facts.total))
        }
    };
    note.set(ConditionType::Ready, phase == KeyRotationPhase::Completed, reason, &message);
    facts.overlap_ends_at.filter(|_| phase == KeyRotationPhase::Running)
}
