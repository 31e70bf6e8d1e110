//! Conditions: the part of a status that says in the same shape for every kind what holds and what does not.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Text, Timestamp};

/// What a condition speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum ConditionType {
    /// The resource is valid and everything it refers to exists. False keeps the last accepted spec in force.
    Accepted,
    /// What the resource declares is in effect.
    Ready,
    /// An appliance has registered for the server.
    Registered,
    /// The appliance's control channel is up. Damped for 90 s, so that a short break does not flap.
    Online,
    /// The appliance answered its last challenge correctly.
    Verified,
    /// The appliance's identity factors are those last approved.
    IdentityStable,
    /// The appliance applied the newest state.
    UpToDate,
    /// New sessions can be opened.
    Available,
    /// The key ends by itself soon: within 30, 7 or 1 days, as the reason says.
    ExpiresSoon,
    /// The key was replaced at once: its user has to enter the new one on every device.
    ManualRotationRequired,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It cannot be told now.
    Unknown,
}

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// One observation about a resource, in the shape of Kubernetes' `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Condition {
    /// What is observed.
    #[serde(rename = "type")]
    pub kind: ConditionType,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, as one CamelCase word for programs.
    pub reason: Text<128>,
    /// Why, as a sentence for people.
    pub message: Text<1024>,
    /// The generation of the spec the observation is about.
    #[schemars(range(min = 0))]
    pub observed_generation: i64,
    /// When `status` last changed.
    pub last_transition_time: Timestamp,
}

/// Puts `condition` in its place among `conditions`, which stay ordered by type. The transition time of an unchanged
/// status is kept. Returns whether anything changed.
pub fn set_condition(conditions: &mut Vec<Condition>, mut condition: Condition) -> bool {
    match conditions.binary_search_by_key(&condition.kind, |c| c.kind) {
        Ok(index) => {
            let old = &mut conditions[index];
            if old.status == condition.status {
                condition.last_transition_time = old.last_transition_time;
            }
            let changed = *old != condition;
            *old = condition;
            changed
        }
        Err(index) => {
            conditions.insert(index, condition);
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(kind: ConditionType, status: bool, time: &str) -> Condition {
        Condition {
            kind,
            status: status.into(),
            reason: Text::lossy("Tested"),
            message: Text::lossy("a test says so"),
            observed_generation: 1,
            last_transition_time: time.parse().unwrap(),
        }
    }

    #[test]
    fn only_transitions_move_the_time() {
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let mut conditions = Vec::new();
        assert!(set_condition(&mut conditions, condition(ConditionType::Online, true, early)));
        assert!(set_condition(&mut conditions, condition(ConditionType::Accepted, true, early)));
        assert!(!set_condition(&mut conditions, condition(ConditionType::Online, true, late)));
        assert_eq!(conditions[1], condition(ConditionType::Online, true, early));
        assert!(set_condition(&mut conditions, condition(ConditionType::Online, false, late)));
        assert_eq!(conditions[1].last_transition_time.to_string(), late);
        assert_eq!(conditions[0].kind, ConditionType::Accepted);
    }
}
