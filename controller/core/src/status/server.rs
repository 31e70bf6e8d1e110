//! The status of a server.

use horizon_crds::{
    ConditionStatus, ConditionType, IdentityDigest, IdentityStatus, LifecycleState, ReportedChange,
    ServerPhase, ServerSpec, ServerStatus, Text,
};
use jiff::{SignedDuration, Timestamp};

use super::{Notes, facts::ServerFacts};

/// How long a lost control channel still counts as online, so that a short break does not flap.
pub const ONLINE_DAMPING: SignedDuration = SignedDuration::from_secs(90);
/// How long an appliance may be behind its state before that is worth a word.
pub const BEHIND_DAMPING: SignedDuration = SignedDuration::from_secs(10);
/// The most identity changes a status lists.
const MAX_CHANGES: usize = 32;

/// Fills in the status; returns when it may read differently by itself.
pub(super) fn fill(
    status: &mut ServerStatus,
    spec: &ServerSpec,
    facts: &ServerFacts,
    note: &mut Notes<'_>,
) -> Option<Timestamp> {
    status.server_id = note.input.stored.uid.to_string().parse().ok();
    status.registered_at = facts.registered_at.map(Into::into);
    status.reported_capabilities.clone_from(&facts.capabilities);
    status.public_address = facts.public_address;
    status.version = facts.version.as_deref().map(Text::lossy);
    let found = || facts.location.as_deref().map(Text::lossy);
    status.location = if spec.location.is_empty() { found() } else { Some(spec.location.clone()) };
    status.identity = facts.identity_digest.map(|digest| identity(digest, facts));
    status.applied_generation = match facts.applied_generation {
        0 => None,
        generation => i64::try_from(generation).ok(),
    };

    registered(facts, note);
    let offline_at = online(facts, note);
    verified(facts, note);
    let behind_at = up_to_date(facts, note);
    available(spec, facts, note);
    status.phase = Some(phase(spec, facts, note));
    [offline_at, behind_at].into_iter().flatten().min()
}

fn identity(digest: [u8; 32], facts: &ServerFacts) -> IdentityStatus {
    let changes = facts.identity_changes.iter().take(MAX_CHANGES);
    IdentityStatus {
        digest: IdentityDigest::from(digest),
        pending_digest: facts
            .pending_digest
            .filter(|_| facts.requires_verification)
            .map(IdentityDigest::from),
        drift: u32::try_from(facts.identity_drift).unwrap_or(u32::MAX),
        changes: changes
            .map(|change| ReportedChange {
                factor: Text::lossy(&format!("{}.{}", change.kind.as_str(), change.name)),
                from: change.from.as_deref().map(Text::lossy),
                to: change.to.as_deref().map(Text::lossy),
            })
            .collect(),
    }
}

fn registered(facts: &ServerFacts, note: &mut Notes<'_>) {
    match facts.registered_at {
        Some(_) => {
            note.set(ConditionType::Registered, true, "Registered", "an appliance registered for this server")
        }
        None => {
            let message = "no appliance has registered yet: make a registration token and enrol one";
            note.set(ConditionType::Registered, false, "NotRegistered", message);
        }
    }
}

/// A channel that was lost less than [`ONLINE_DAMPING`] ago still counts, if it counted before.
fn online(facts: &ServerFacts, note: &mut Notes<'_>) -> Option<Timestamp> {
    let (status, reason, message, again) = match facts.presence {
        Some(presence) if presence.connected => (true, "Connected", "the control channel is up", None),
        Some(presence) => {
            let until = presence.since.saturating_add(ONLINE_DAMPING).unwrap_or(Timestamp::MAX);
            if note.input.now < until && note.holds(ConditionType::Online) {
                (true, "Connected", "the control channel is up", Some(until))
            } else {
                (false, "Disconnected", "the control channel is down", None)
            }
        }
        None => (false, "NotSeen", "the appliance has not connected since the controller started", None),
    };
    note.set(ConditionType::Online, status, reason, message);
    again
}

fn verified(facts: &ServerFacts, note: &mut Notes<'_>) {
    match facts.verified {
        Some(true) => {
            note.set(ConditionType::Verified, true, "Answered", "the last challenge was answered correctly")
        }
        Some(false) => {
            let message = facts
                .verification_reason
                .as_deref()
                .unwrap_or("the last challenge was not answered correctly");
            note.set(ConditionType::Verified, false, "WrongAnswer", message);
        }
        None => {
            note.set(ConditionType::Verified, ConditionStatus::Unknown, "NotChallenged", "not challenged yet")
        }
    }
    if facts.requires_verification {
        let message = facts.verification_reason.as_deref().unwrap_or("the identity changed");
        note.set(ConditionType::IdentityStable, false, "ApprovalNeeded", message);
    } else if facts.registered_at.is_some() && facts.identity_changes.is_empty() {
        note.set(ConditionType::IdentityStable, true, "Unchanged", "the identity is the one last approved");
    } else if facts.registered_at.is_some() {
        let message = "the identity differs a little from the one last approved";
        note.set(ConditionType::IdentityStable, true, "SmallChange", message);
    } else {
        note.set(
            ConditionType::IdentityStable,
            ConditionStatus::Unknown,
            "NotRegistered",
            "no identity is known yet",
        );
    }
}

fn up_to_date(facts: &ServerFacts, note: &mut Notes<'_>) -> Option<Timestamp> {
    let kind = ConditionType::UpToDate;
    if facts.registered_at.is_none() {
        note.set(kind, ConditionStatus::Unknown, "NotRegistered", "no appliance has registered yet");
        return None;
    }
    if facts.applied_generation < facts.state_generation {
        let until =
            facts.behind_since.map(|since| since.saturating_add(BEHIND_DAMPING).unwrap_or(Timestamp::MAX));
        match until {
            Some(until) if note.input.now >= until => {
                let message = "the appliance has not applied the newest state";
                note.set(kind, false, "Behind", message);
                return None;
            }
            _ if note.status_of(kind).is_none() => {
                note.set(
                    kind,
                    ConditionStatus::Unknown,
                    "Applying",
                    "the appliance was just told the newest state",
                );
                return until;
            }
            _ => return until,
        }
    }
    match facts.problems.first() {
        Some(problem) => {
            let message = format!("{} is not in force: {}", problem.entry, problem.message);
            note.set(kind, false, "EntryProblem", &message);
        }
        None => note.set(kind, true, "Applied", "the appliance applied the newest state"),
    }
    None
}

fn available(spec: &ServerSpec, facts: &ServerFacts, note: &mut Notes<'_>) {
    let blocker = if facts.revoked_at.is_some() {
        Some(("Revoked", "the server was revoked".to_owned()))
    } else if spec.lifecycle.state == LifecycleState::Decommissioned {
        Some(("Decommissioned", with_reason("the server is decommissioned", spec)))
    } else if facts.registered_at.is_none() {
        Some(("NotRegistered", "no appliance has registered yet".to_owned()))
    } else if spec.lifecycle.state == LifecycleState::Maintenance {
        Some(("Maintenance", with_reason("the server is in maintenance", spec)))
    } else if !note.holds(ConditionType::IdentityStable) {
        Some(("ApprovalNeeded", "the identity waits for an approval".to_owned()))
    } else if note.status_of(ConditionType::Verified) == Some(ConditionStatus::False) {
        Some(("NotVerified", "the last challenge was not answered correctly".to_owned()))
    } else if !note.holds(ConditionType::Online) {
        Some(("Offline", "the appliance is not connected".to_owned()))
    } else {
        None
    };
    match blocker {
        Some((reason, message)) => note.set(ConditionType::Available, false, reason, &message),
        None => {
            let message = match &facts.unreachable {
                Some(why) => format!("new sessions can be opened, but perhaps not reached: {why}"),
                None => "new sessions can be opened".to_owned(),
            };
            let reason = if facts.unreachable.is_some() { "PerhapsUnreachable" } else { "Available" };
            note.set(ConditionType::Available, true, reason, &message);
        }
    }
}

fn with_reason(what: &str, spec: &ServerSpec) -> String {
    if spec.lifecycle.reason.is_empty() {
        what.to_owned()
    } else {
        format!("{what}: {}", spec.lifecycle.reason)
    }
}

fn phase(spec: &ServerSpec, facts: &ServerFacts, note: &Notes<'_>) -> ServerPhase {
    if facts.compromised {
        ServerPhase::Compromised
    } else if spec.lifecycle.state == LifecycleState::Decommissioned || facts.revoked_at.is_some() {
        ServerPhase::Decommissioned
    } else if facts.registered_at.is_none() {
        ServerPhase::Pending
    } else if spec.lifecycle.state == LifecycleState::Maintenance {
        ServerPhase::Maintenance
    } else if note.holds(ConditionType::Available) {
        ServerPhase::Active
    } else {
        ServerPhase::Unavailable
    }
}
