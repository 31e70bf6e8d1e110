//! What statuses say. Each is a function of the resource, of what is known, and of the status before: the time of a
//! condition moves only when the condition does, and a status that says the same is not written again.

mod facts;
mod keys;
mod notices;
mod policies;
mod rotation;
mod server;
#[cfg(test)]
mod tests;

pub use facts::{
    DecisionFacts, DeviceFacts, Facts, PersonalKeyFacts, Presence, RegistrationKeyFacts, RotationFacts,
    RotationPolicyFacts, ServerFacts, UserFacts,
};
pub use keys::SECRET_PREFIX;
pub use notices::{Notice, notices};
pub use server::{BEHIND_DAMPING, ONLINE_DAMPING};

use horizon_crds::{
    AccessPolicyStatus, ApprovalStatus, Condition, ConditionStatus, ConditionType, DeviceDecisionStatus,
    KeyRotationStatus, KindName, PersonalKeyStatus, Problem, RegistrationKeyStatus, Resource,
    RevocationStatus, RotationPolicyStatus, SecurityPolicyStatus, ServerStatus, Text, UserStatus,
    VirtualNetworkStatus, set_condition,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::{
    accept,
    index::{Index, Stored},
};

/// How often the number of locked out addresses is looked at.
const LOCKOUT_REFRESH: SignedDuration = SignedDuration::from_secs(60);

/// The status of a resource of any kind.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "documented at the types")]
pub enum Status {
    Server(Box<ServerStatus>),
    RegistrationKey(RegistrationKeyStatus),
    User(UserStatus),
    PersonalKey(Box<PersonalKeyStatus>),
    AccessPolicy(AccessPolicyStatus),
    VirtualNetwork(VirtualNetworkStatus),
    SecurityPolicy(SecurityPolicyStatus),
    Approval(ApprovalStatus),
    Revocation(RevocationStatus),
    RotationPolicy(RotationPolicyStatus),
    KeyRotation(Box<KeyRotationStatus>),
    DeviceDecision(DeviceDecisionStatus),
}

macro_rules! each {
    ($status:expr, $inner:ident => $result:expr) => {
        match $status {
            Status::Server($inner) => $result,
            Status::RegistrationKey($inner) => $result,
            Status::User($inner) => $result,
            Status::PersonalKey($inner) => $result,
            Status::AccessPolicy($inner) => $result,
            Status::VirtualNetwork($inner) => $result,
            Status::SecurityPolicy($inner) => $result,
            Status::Approval($inner) => $result,
            Status::Revocation($inner) => $result,
            Status::RotationPolicy($inner) => $result,
            Status::KeyRotation($inner) => $result,
            Status::DeviceDecision($inner) => $result,
        }
    };
}

impl Status {
    /// A status of a kind that says nothing yet.
    pub fn empty(kind: KindName) -> Self {
        match kind {
            KindName::Server => Self::Server(Box::default()),
            KindName::RegistrationKey => Self::RegistrationKey(RegistrationKeyStatus::default()),
            KindName::User => Self::User(UserStatus::default()),
            KindName::PersonalKey => Self::PersonalKey(Box::default()),
            KindName::AccessPolicy => Self::AccessPolicy(AccessPolicyStatus::default()),
            KindName::VirtualNetwork => Self::VirtualNetwork(VirtualNetworkStatus::default()),
            KindName::SecurityPolicy => Self::SecurityPolicy(SecurityPolicyStatus::default()),
            KindName::Approval => Self::Approval(ApprovalStatus::default()),
            KindName::Revocation => Self::Revocation(RevocationStatus::default()),
            KindName::RotationPolicy => Self::RotationPolicy(RotationPolicyStatus::default()),
            KindName::KeyRotation => Self::KeyRotation(Box::default()),
            KindName::DeviceDecision => Self::DeviceDecision(DeviceDecisionStatus::default()),
        }
    }

    /// Reads a status as it was written.
    ///
    /// # Errors
    /// When the JSON is no status of the kind.
    pub fn from_json(kind: KindName, json: Value) -> Result<Self, serde_json::Error> {
        Ok(match kind {
            KindName::Server => Self::Server(serde_json::from_value(json)?),
            KindName::RegistrationKey => Self::RegistrationKey(serde_json::from_value(json)?),
            KindName::User => Self::User(serde_json::from_value(json)?),
            KindName::PersonalKey => Self::PersonalKey(serde_json::from_value(json)?),
            KindName::AccessPolicy => Self::AccessPolicy(serde_json::from_value(json)?),
            KindName::VirtualNetwork => Self::VirtualNetwork(serde_json::from_value(json)?),
            KindName::SecurityPolicy => Self::SecurityPolicy(serde_json::from_value(json)?),
            KindName::Approval => Self::Approval(serde_json::from_value(json)?),
            KindName::Revocation => Self::Revocation(serde_json::from_value(json)?),
            KindName::RotationPolicy => Self::RotationPolicy(serde_json::from_value(json)?),
            KindName::KeyRotation => Self::KeyRotation(serde_json::from_value(json)?),
            KindName::DeviceDecision => Self::DeviceDecision(serde_json::from_value(json)?),
        })
    }

    /// The status as JSON, as it is written and shown.
    pub fn to_json(&self) -> Value {
        // Statuses consist of strings, integers, lists and structs: nothing that JSON lacks.
        each!(self, status => serde_json::to_value(status)).unwrap_or_default()
    }

    /// The conditions, by type.
    pub fn conditions(&self) -> &[Condition] {
        each!(self, status => &status.conditions)
    }

    /// A condition of a type.
    pub fn condition(&self, kind: ConditionType) -> Option<&Condition> {
        self.conditions().iter().find(|condition| condition.kind == kind)
    }

    fn prepare(&mut self, generation: i64) {
        each!(self, status => status.observed_generation = generation);
    }

    /// The status with another generation in it: that of a Kubernetes object instead of the store's.
    #[must_use]
    pub fn observing(mut self, generation: i64) -> Self {
        let own = each!(&self, status => status.observed_generation);
        self.prepare(generation);
        for condition in self.conditions_mut() {
            if condition.observed_generation == own {
                condition.observed_generation = generation;
            }
        }
        self
    }

    fn conditions_mut(&mut self) -> &mut Vec<Condition> {
        each!(self, status => &mut status.conditions)
    }

    /// Whether the two differ in more than what changes all the time.
    fn tells_more_than(&self, before: &Self) -> bool {
        match (self, before) {
            (Self::Server(new), Self::Server(old)) => {
                let mut new = new.clone();
                new.applied_generation = old.applied_generation;
                new != *old
            }
            _ => self != before,
        }
    }
}

/// A status that was made.
#[derive(Clone, Debug, PartialEq)]
pub struct Computed {
    /// What to write; `None` when it says what was written already.
    pub write: Option<Status>,
    /// When it will read differently by itself, at the latest known.
    pub again_at: Option<Timestamp>,
}

/// What a status is made from.
#[derive(Clone, Copy, Debug)]
pub struct StatusInput<'a> {
    /// Every resource.
    pub index: &'a Index,
    /// The resource.
    pub stored: &'a Stored,
    /// What is known about it.
    pub facts: &'a Facts,
    /// What is wrong with its newest document, if it is not the one in force.
    pub problems: &'a [&'a Problem],
    /// What was written last.
    pub before: Option<&'a Status>,
    /// The time.
    pub now: Timestamp,
}

/// Makes the status of a resource.
pub fn status(input: StatusInput<'_>) -> Computed {
    let kind = input.stored.resource.kind();
    let empty = Status::empty(kind);
    let before = input.before.unwrap_or(&empty);
    let mut next = before.clone();
    next.prepare(input.stored.generation);
    let mut note = Notes { conditions: std::mem::take(next.conditions_mut()), input };
    note.accepted();
    let again_at = match (&mut next, &*input.stored.resource, input.facts) {
        (Status::Server(status), Resource::Server(server), Facts::Server(facts)) => {
            server::fill(status, &server.spec, facts, &mut note)
        }
        (Status::RegistrationKey(status), Resource::RegistrationKey(_), Facts::RegistrationKey(facts)) => {
            keys::registration(status, facts, &mut note)
        }
        (Status::PersonalKey(status), Resource::PersonalKey(_), Facts::PersonalKey(facts)) => {
            keys::personal(status, facts, &mut note)
        }
        (Status::User(status), Resource::User(user), Facts::User(facts)) => {
            keys::user(status, &user.spec, facts, &mut note)
        }
        (Status::AccessPolicy(status), Resource::AccessPolicy(policy), _) => {
            policies::access(status, &policy.spec, &mut note);
            None
        }
        (
            Status::VirtualNetwork(status),
            Resource::VirtualNetwork(_),
            Facts::VirtualNetwork { addresses_in_use },
        ) => {
            policies::network(status, *addresses_in_use, &mut note);
            None
        }
        (Status::SecurityPolicy(status), _, Facts::SecurityPolicy { locked_out }) => {
            status.locked_out = *locked_out;
            policies::security(&mut note);
            input.now.checked_add(LOCKOUT_REFRESH).ok()
        }
        (Status::Approval(status), Resource::Approval(approval), Facts::Approval(facts)) => {
            policies::approval(status, &approval.spec, facts, &mut note);
            None
        }
        (Status::Revocation(status), _, Facts::Revocation(facts)) => {
            policies::revocation(status, facts, &mut note);
            None
        }
        (Status::RotationPolicy(status), Resource::RotationPolicy(policy), Facts::RotationPolicy(facts)) => {
            rotation::policy(status, &policy.spec, facts, &mut note);
            None
        }
        (Status::KeyRotation(status), Resource::KeyRotation(run), Facts::KeyRotation(facts)) => {
            rotation::run(status, &run.spec, facts, &mut note)
        }
        (
            Status::DeviceDecision(status),
            Resource::DeviceDecision(decision),
            Facts::DeviceDecision(facts),
        ) => {
            policies::device(status, &decision.spec, facts, &mut note);
            None
        }
        _ => None,
    };
    let conditions = note.conditions;
    *next.conditions_mut() = conditions;
    let changed = input.before.is_none_or(|before| next.tells_more_than(before));
    Computed { write: changed.then_some(next), again_at }
}

/// The status of an object that is not in force, because of what is wrong with it. `since` is what its `Accepted` condition
/// says now, and since when.
pub fn refused(
    kind: KindName,
    problems: &[&Problem],
    generation: i64,
    since: Option<(ConditionStatus, Timestamp)>,
    now: Timestamp,
) -> Status {
    let mut status = Status::empty(kind);
    status.prepare(generation);
    let message = match problems {
        [] => "nothing is wrong with the object; it is not in force yet".to_owned(),
        [only] => format!("{}; the object is not in force", told(only)),
        [first, more @ ..] => {
            format!("{} (and {} more); the object is not in force", told(first), more.len())
        }
    };
    let (holds, reason) = if problems.is_empty() {
        (ConditionStatus::Unknown, "Pending")
    } else {
        (ConditionStatus::False, "Invalid")
    };
    let since = since.filter(|(before, _)| *before == holds).map_or(now, |(_, time)| time);
    status.conditions_mut().push(Condition {
        kind: ConditionType::Accepted,
        status: holds,
        reason: Text::lossy(reason),
        message: Text::lossy(&message),
        observed_generation: generation,
        last_transition_time: since.into(),
    });
    status
}

/// A problem as a status tells it: an object's reader has the object before them.
fn told(problem: &Problem) -> String {
    if problem.is_of_object() { problem.without_place() } else { problem.to_string() }
}

/// Where conditions are noted.
struct Notes<'a> {
    conditions: Vec<Condition>,
    input: StatusInput<'a>,
}

impl Notes<'_> {
    fn set(&mut self, kind: ConditionType, status: impl Into<ConditionStatus>, reason: &str, message: &str) {
        let condition = Condition {
            kind,
            status: status.into(),
            reason: Text::lossy(reason),
            message: Text::lossy(message),
            observed_generation: self.input.stored.generation,
            last_transition_time: self.input.now.into(),
        };
        set_condition(&mut self.conditions, condition);
    }

    fn status_of(&self, kind: ConditionType) -> Option<ConditionStatus> {
        self.conditions.iter().find(|condition| condition.kind == kind).map(|condition| condition.status)
    }

    fn holds(&self, kind: ConditionType) -> bool {
        self.status_of(kind) == Some(ConditionStatus::True)
    }

    fn accepted(&mut self) {
        if let Some(problem) = self.input.problems.first() {
            let more = match self.input.problems.len() {
                1 => String::new(),
                count => format!(" (and {} more)", count - 1),
            };
            let message = format!("{}{more}; the last good document stays in force", told(problem));
            return self.set(ConditionType::Accepted, false, "Invalid", &message);
        }
        let resource = &self.input.stored.resource;
        let references = resource.references().into_iter();
        let mut missing = references.filter(|r| !accept::exists(self.input.index, resource.namespace(), r));
        match missing.next() {
            Some(reference) => {
                let message =
                    format!("{} names \"{}\", which does not exist", reference.field, reference.name);
                self.set(ConditionType::Accepted, false, "ReferenceNotFound", &message);
            }
            None => self.set(ConditionType::Accepted, true, "Accepted", "the document is in force"),
        }
    }
}
