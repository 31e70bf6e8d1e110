//! What an administrator should notice when a status changes.

use horizon_crds::{ConditionStatus, ConditionType, PersonalKeyPhase, RegistrationKeyPhase, ServerPhase};

use super::Status;

/// Something to notice about a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What, as one CamelCase word for programs.
    pub reason: String,
    /// Whether somebody should look at it.
    pub warning: bool,
    /// What, as a sentence.
    pub message: String,
}

impl Notice {
    fn new(warning: bool, reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), warning, message: message.into() }
    }
}

/// What is to be noticed about a status that follows another. Of a first status only that the resource is not accepted:
/// everything else it says may be old.
pub fn notices(before: Option<&Status>, after: &Status) -> Vec<Notice> {
    let mut notices: Vec<_> = accepted(before, after).into_iter().collect();
    if let Some(before) = before {
        conditions(before, after, &mut notices);
        phases(before, after, &mut notices);
    }
    notices
}

fn accepted(before: Option<&Status>, after: &Status) -> Option<Notice> {
    let now = after.condition(ConditionType::Accepted)?;
    let then = before.and_then(|before| before.condition(ConditionType::Accepted));
    match now.status {
        ConditionStatus::False
            if then.is_none_or(|c| (c.status, &c.message) != (now.status, &now.message)) =>
        {
            Some(Notice::new(true, now.reason.as_str(), now.message.as_str()))
        }
        ConditionStatus::True if then.is_some_and(|c| c.status == ConditionStatus::False) => {
            Some(Notice::new(false, "Accepted", "the object is in force again as it is written"))
        }
        _ => None,
    }
}

/// Conditions of servers that turned: the type, what it turned to, whether that is bad, and a word for it.
const TURNS: [(ConditionType, ConditionStatus, bool, &str); 6] = [
    (ConditionType::Registered, ConditionStatus::True, false, "Registered"),
    (ConditionType::Online, ConditionStatus::True, false, "Online"),
    (ConditionType::Online, ConditionStatus::False, true, "Offline"),
    (ConditionType::Verified, ConditionStatus::False, true, "VerificationFailed"),
    (ConditionType::IdentityStable, ConditionStatus::False, true, "IdentityChanged"),
    (ConditionType::IdentityStable, ConditionStatus::True, false, "IdentityApproved"),
];

fn conditions(before: &Status, after: &Status, notices: &mut Vec<Notice>) {
    for (kind, to, warning, reason) in TURNS {
        let Some(now) = after.condition(kind).filter(|condition| condition.status == to) else { continue };
        // What was not known before is no news when it is good, except that an appliance came.
        let turned = match before.condition(kind) {
            Some(then) => then.status != to,
            None => warning,
        };
        if turned {
            notices.push(Notice::new(warning, reason, now.message.as_str()));
        }
    }
}

fn phases(before: &Status, after: &Status, notices: &mut Vec<Notice>) {
    let notice = match (before, after) {
        (Status::Server(then), Status::Server(now)) if then.phase != now.phase => match now.phase {
            Some(ServerPhase::Compromised) => {
                Some((true, "Compromised", "the server was revoked as compromised"))
            }
            Some(ServerPhase::Decommissioned) => Some((false, "Decommissioned", "the server has ended")),
            _ => None,
        },
        (Status::RegistrationKey(then), Status::RegistrationKey(now)) if then.phase != now.phase => match now
            .phase
        {
            Some(RegistrationKeyPhase::Used) => {
                Some((false, "KeyUsed", "an appliance registered with this key"))
            }
            Some(RegistrationKeyPhase::Expired) => Some((true, "KeyExpired", "the key was not used in time")),
            Some(RegistrationKeyPhase::Revoked) => Some((false, "KeyRevoked", "the key was revoked")),
            _ => None,
        },
        (Status::PersonalKey(then), Status::PersonalKey(now)) if then.phase != now.phase => match now.phase {
            Some(PersonalKeyPhase::Active) => {
                Some((false, "KeyUsed", "a first device is enrolled with the key"))
            }
            Some(PersonalKeyPhase::Expired) => Some((true, "KeyExpired", "the key's time is over")),
            Some(PersonalKeyPhase::Deactivated) => Some((false, "KeyRevoked", "the key was deactivated")),
            Some(PersonalKeyPhase::Compromised) => {
                Some((true, "KeyCompromised", "the key was revoked as compromised"))
            }
            _ => None,
        },
        (Status::User(then), Status::User(now)) if now.device_count > then.device_count => {
            Some((false, "DeviceEnrolled", "another device of the user is enrolled"))
        }
        (Status::Approval(then), Status::Approval(now))
            if then.effective_at.is_none() && now.effective_at.is_some() =>
        {
            Some((false, "TookEffect", "the approval took effect"))
        }
        (Status::Revocation(then), Status::Revocation(now))
            if then.effective_at.is_none() && now.effective_at.is_some() =>
        {
            Some((false, "TookEffect", "the revocation took effect"))
        }
        (Status::DeviceDecision(then), Status::DeviceDecision(now))
            if then.effective_at.is_none() && now.effective_at.is_some() =>
        {
            Some((false, "TookEffect", "the decision took effect"))
        }
        _ => None,
    };
    notices.extend(notice.map(|(warning, reason, message)| Notice::new(warning, reason, message)));
}
