//! The statuses of keys and of the people who hold them.

use horizon_crds::{
    ConditionType, DeviceSummary, KeySummary, PersonalKeyPhase, PersonalKeyStatus, RegistrationKeyPhase,
    RegistrationKeyStatus, Resource, RotationTarget, SecretRef, Text, UserSpec, UserStatus,
};
use jiff::{SignedDuration, Timestamp};

use crate::rotation::{next_warning, schedule, warning};

use super::{
    Notes,
    facts::{DeviceFacts, PersonalKeyFacts, RegistrationKeyFacts, UserFacts},
};

/// The most keys and devices a status lists.
const MAX_KEYS: usize = 32;
const MAX_DEVICES: usize = 100;

/// Fills in the status; returns when it may read differently by itself.
pub(super) fn registration(
    status: &mut RegistrationKeyStatus,
    facts: &RegistrationKeyFacts,
    note: &mut Notes<'_>,
) -> Option<Timestamp> {
    status.expires_at = facts.expires_at.map(Into::into);
    status.used_at = facts.used_at.map(Into::into);
    status.used_by = facts.used_by.map(|key| Text::lossy(&key.to_string()));
    (status.secret_file, status.secret_ref) = place(facts.secret_file.as_deref());
    let expired = facts.expires_at.is_some_and(|end| end <= note.input.now);
    let (phase, reason, message) = if facts.used_at.is_some() {
        (RegistrationKeyPhase::Used, "Used", "an appliance registered with this key")
    } else if facts.revoked_at.is_some() {
        (RegistrationKeyPhase::Revoked, "Revoked", "the key was revoked")
    } else if expired {
        (RegistrationKeyPhase::Expired, "Expired", "the key was not used in time")
    } else {
        (RegistrationKeyPhase::Unused, "Unused", "the key waits for its appliance")
    };
    status.phase = Some(phase);
    note.set(ConditionType::Ready, phase == RegistrationKeyPhase::Unused, reason, message);
    let end = facts.expires_at?;
    let begins = soon(note.input.stored.created_at, end);
    let (expires_soon, reason, message) = match phase {
        RegistrationKeyPhase::Unused if begins <= note.input.now => {
            (true, "Expiring", format!("the key ends at {end}: use it, or make a new one"))
        }
        RegistrationKeyPhase::Unused => (false, "Later", format!("the key ends at {end}")),
        RegistrationKeyPhase::Expired => {
            (false, "Expired", format!("the key ended at {end}: make a new one"))
        }
        RegistrationKeyPhase::Used | RegistrationKeyPhase::Revoked => (false, reason, message.to_owned()),
    };
    note.set(ConditionType::ExpiresSoon, expires_soon, reason, &message);
    let unused = phase == RegistrationKeyPhase::Unused;
    unused.then_some(if expires_soon { end } else { begins })
}

/// From when on a registration key ends soon: for the last quarter of its life, and for a week at most.
fn soon(made: Timestamp, end: Timestamp) -> Timestamp {
    let week = SignedDuration::from_hours(7 * 24);
    let ahead = (end.duration_since(made) / 4).clamp(SignedDuration::ZERO, week);
    end.checked_sub(ahead).unwrap_or(Timestamp::MIN)
}

/// How the place of a delivered string begins when it is a Secret of Kubernetes: `secret:NAME/UID`.
pub const SECRET_PREFIX: &str = "secret:";

/// Where a string was delivered: a file, or a Secret in the resource's namespace.
fn place(place: Option<&str>) -> (Option<Text<1024>>, Option<SecretRef>) {
    let Some(place) = place else { return (None, None) };
    match place.strip_prefix(SECRET_PREFIX) {
        Some(secret) => {
            let name = secret.split_once('/').map_or(secret, |(name, _uid)| name);
            (None, name.parse().ok().map(|name| SecretRef { name }))
        }
        None => (Some(Text::lossy(place)), None),
    }
}

fn phase(facts: &PersonalKeyFacts, now: Timestamp) -> PersonalKeyPhase {
    if facts.compromised {
        PersonalKeyPhase::Compromised
    } else if facts.deactivated_at.is_some() {
        PersonalKeyPhase::Deactivated
    } else if facts.expires_at.is_some_and(|end| end <= now) {
        PersonalKeyPhase::Expired
    } else if facts.overlap_end.is_some_and(|end| now < end) {
        PersonalKeyPhase::Rotating
    } else if facts.manual_rotation_required {
        PersonalKeyPhase::Pending
    } else if facts.activated_at.is_some() {
        PersonalKeyPhase::Active
    } else {
        PersonalKeyPhase::Pending
    }
}

fn works(phase: PersonalKeyPhase) -> bool {
    matches!(phase, PersonalKeyPhase::Pending | PersonalKeyPhase::Active | PersonalKeyPhase::Rotating)
}

/// Fills in the status; returns when it may read differently by itself.
pub(super) fn personal(
    status: &mut PersonalKeyStatus,
    facts: &PersonalKeyFacts,
    note: &mut Notes<'_>,
) -> Option<Timestamp> {
    status.created_at = Some(note.input.stored.created_at.into());
    status.activated_at = facts.activated_at.map(Into::into);
    status.expires_at = facts.expires_at.map(Into::into);
    status.deactivated_at = facts.deactivated_at.map(Into::into);
    status.deactivation_reason = facts.deactivation_reason.as_deref().map(Text::lossy);
    status.devices = devices(&facts.devices);
    (status.secret_file, status.secret_ref) = place(facts.secret_file.as_deref());
    let phase = phase(facts, note.input.now);
    status.phase = Some(phase);
    let (reason, message) = match phase {
        PersonalKeyPhase::Pending if facts.manual_rotation_required => {
            ("ManualRotationRequired", "the key was replaced at once: its user has to enter the new one")
        }
        PersonalKeyPhase::Pending => ("Pending", "no device is enrolled with the key yet"),
        PersonalKeyPhase::Active => ("Active", "devices are enrolled with the key"),
        PersonalKeyPhase::Rotating => ("Rotating", "the key and its successor both work"),
        PersonalKeyPhase::Deactivated => ("Deactivated", "the key was deactivated"),
        PersonalKeyPhase::Compromised => ("Compromised", "the key was revoked as compromised"),
        PersonalKeyPhase::Expired => ("Expired", "the key's time is over"),
    };
    note.set(ConditionType::Ready, works(phase), reason, message);
    let again = rotation(status, facts, works(phase), note);
    facts.expires_at.filter(|_| works(phase)).into_iter().chain(again).min()
}

/// Fills in what the status says of rotations and of the key's end; returns when that may read differently by itself.
fn rotation(
    status: &mut PersonalKeyStatus,
    facts: &PersonalKeyFacts,
    works: bool,
    note: &mut Notes<'_>,
) -> Option<Timestamp> {
    let now = note.input.now;
    status.rotations = facts.rotations;
    status.last_rotation_at = facts.last_rotation.map(Into::into);
    status.overlap_ends_at = facts.overlap_end.filter(|end| now < *end).map(Into::into);
    let unconfirmed = facts.unconfirmed.iter().filter(|_| status.overlap_ends_at.is_some());
    status.unconfirmed_devices =
        unconfirmed.filter_map(|device| device.to_string().parse().ok()).take(MAX_DEVICES).collect();
    status.next_rotation_at = next_rotation(facts, note).filter(|_| works).map(Into::into);
    if facts.rotations > 0 {
        let (reason, message) = if facts.manual_rotation_required {
            ("Replaced", "the key was replaced at once: its user has to enter the new one on every device")
        } else {
            ("Entered", "the newest key is in use")
        };
        note.set(ConditionType::ManualRotationRequired, facts.manual_rotation_required, reason, message);
    }
    let mut again: Vec<_> = facts.overlap_end.filter(|end| now < *end).into_iter().collect();
    if let Some(end) = facts.expires_at.filter(|_| works) {
        match warning(end, now) {
            Some(ahead) => {
                let reason = format!("In{}Days", ahead.days());
                let message = format!("the key ends at {end}: extend it, or make a new one and hand it over");
                note.set(ConditionType::ExpiresSoon, true, &reason, &message);
            }
            None => {
                let message = format!("the key ends at {end}");
                note.set(ConditionType::ExpiresSoon, false, "Later", &message);
            }
        }
        again.push(next_warning(end, now));
    }
    again.into_iter().filter(|at| *at > now).min()
}

/// When the key is next rotated by its policy.
fn next_rotation(facts: &PersonalKeyFacts, note: &Notes<'_>) -> Option<Timestamp> {
    let stored = note.input.stored;
    let Resource::PersonalKey(key) = &*stored.resource else { return None };
    let (_, policy) =
        note.input.index.rotation_policy(&key.metadata.namespace, key.spec.rotation_policy.as_ref()?)?;
    let since = facts.last_rotation.max(facts.activated_at)?;
    let usable = policy.target == RotationTarget::PersonalKeys && !policy.paused;
    (usable && !facts.manual_rotation_required)
        .then(|| schedule::next_run(policy, since, schedule::seed(&stored.uid.to_string())))
}

/// Fills in the status; returns when it may read differently by itself.
pub(super) fn user(
    status: &mut UserStatus,
    spec: &UserSpec,
    facts: &UserFacts,
    note: &mut Notes<'_>,
) -> Option<Timestamp> {
    let now = note.input.now;
    let keys = facts.keys.iter().take(MAX_KEYS);
    status.keys = keys.map(|(name, key)| KeySummary { name: name.clone(), phase: phase(key, now) }).collect();
    status.devices = devices(&facts.devices);
    let enrolled = facts.devices.iter().filter(|device| !device.revoked).count();
    status.device_count = u8::try_from(enrolled).unwrap_or(u8::MAX);
    if spec.suspended {
        let message = match spec.suspension_reason.as_str() {
            "" => "the user is suspended".to_owned(),
            reason => format!("the user is suspended: {reason}"),
        };
        note.set(ConditionType::Ready, false, "Suspended", &message);
    } else {
        note.set(ConditionType::Ready, true, "Active", "the user may use what policies allow");
    }
    let ends =
        facts.keys.iter().filter(|(_, key)| works(phase(key, now))).filter_map(|(_, key)| key.expires_at);
    ends.min()
}

fn devices(facts: &[DeviceFacts]) -> Vec<DeviceSummary> {
    let summaries = facts.iter().filter_map(|device| {
        Some(DeviceSummary {
            id: device.id.to_string().parse().ok()?,
            name: Text::lossy(&device.name),
            platform: Text::lossy(&device.platform),
            enrolled_at: device.enrolled_at.into(),
            revoked: device.revoked,
        })
    });
    summaries.take(MAX_DEVICES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_registration_key_ends_soon_in_its_last_quarter() {
        let at = |hours| {
            Timestamp::UNIX_EPOCH.saturating_add(SignedDuration::from_hours(hours)).unwrap_or_default()
        };
        assert_eq!(soon(at(0), at(24)), at(18));
        assert_eq!(soon(at(0), at(30 * 24)), at(23 * 24));
        assert_eq!(soon(at(9), at(3)), at(3), "a clock that was set");
    }
}
