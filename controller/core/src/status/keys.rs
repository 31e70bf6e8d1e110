//! The statuses of keys and of the people who hold them.

use horizon_crds::{
    ConditionType, DeviceSummary, KeySummary, PersonalKeyPhase, PersonalKeyStatus, RegistrationKeyPhase,
    RegistrationKeyStatus, SecretRef, Text, UserSpec, UserStatus,
};
use jiff::Timestamp;

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
    facts.expires_at.filter(|_| phase == RegistrationKeyPhase::Unused)
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
        PersonalKeyPhase::Pending => ("Pending", "no device is enrolled with the key yet"),
        PersonalKeyPhase::Active => ("Active", "devices are enrolled with the key"),
        PersonalKeyPhase::Rotating => ("Rotating", "the key and its successor both work"),
        PersonalKeyPhase::Deactivated => ("Deactivated", "the key was deactivated"),
        PersonalKeyPhase::Compromised => ("Compromised", "the key was revoked as compromised"),
        PersonalKeyPhase::Expired => ("Expired", "the key's time is over"),
    };
    note.set(ConditionType::Ready, works(phase), reason, message);
    facts.expires_at.filter(|_| works(phase))
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
