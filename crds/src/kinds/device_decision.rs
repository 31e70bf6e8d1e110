//! `DeviceDecision`: what an administrator decides about one device, where a revocation would be too final.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Spec, shared::cel};
use crate::{Condition, Issues, KindName, Name, Text, Timestamp};

/// What an administrator decides about one device. The newest decision holds; deleting one undoes nothing. What is to be final
/// is a `Revocation`.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "horizon.dev",
    version = "v1alpha1",
    kind = "DeviceDecision",
    namespaced,
    status = "DeviceDecisionStatus",
    derive = "PartialEq",
    shortname = "devdec",
    category = "horizon",
    doc = "What an administrator decides about one device.",
    printcolumn(name = "Device", type_ = "string", json_path = ".spec.device"),
    printcolumn(name = "Decision", type_ = "string", json_path = ".spec.decision"),
    printcolumn(name = "Effective", type_ = "string", json_path = ".status.effectiveAt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline, extend("x-kubernetes-validations" = cel([
    ("self == oldSelf", "a decision is a record and does not change: write a new one"),
    (
        "(self.decision == 'rename') == has(self.newName)",
        "newName goes with the decision rename, and only with it",
    ),
])))]
pub struct DeviceDecisionSpec {
    /// The device's id, as `status.devices` of its user shows it.
    pub device: Name,
    /// What is decided.
    pub decision: DeviceVerdict,
    /// Why, for the audit trail and, where the device is refused, for its user.
    #[schemars(length(min = 1))]
    pub reason: Text<256>,
    /// How the device is called from now on; only with `rename`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_name: Option<Text<120>>,
}

/// What can be decided about a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum DeviceVerdict {
    /// Its session ends and it is refused until it is allowed again.
    Block,
    /// It may connect: it is neither blocked nor doubted any more, and the machine it runs on now is its machine.
    Allow,
    /// It is doubted. What that means for new sessions is `devices.suspicious` of the `SecurityPolicy`.
    Suspect,
    /// It is a device of its user no more and must be enrolled again.
    Forget,
    /// It gets another name.
    Rename,
}

impl DeviceVerdict {
    /// The word that documents and the database use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Allow => "allow",
            Self::Suspect => "suspect",
            Self::Forget => "forget",
            Self::Rename => "rename",
        }
    }
}

impl Spec for DeviceDecisionSpec {
    const KIND: KindName = KindName::DeviceDecision;

    fn check(&self, issues: &mut Issues) {
        if (self.decision == DeviceVerdict::Rename) != self.new_name.is_some() {
            let message = "newName goes with the decision rename, and only with it";
            issues.add("newName", message, "give newName together with decision = \"rename\"");
        }
    }

    fn check_update(&self, old: &Self, issues: &mut Issues) {
        if self != old {
            issues.add("decision", "a decision is a record and does not change", "write a new one");
        }
    }
}

/// What became of a decision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct DeviceDecisionStatus {
    /// What holds and what does not.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the spec this status is about.
    #[schemars(range(min = 0))]
    pub observed_generation: i64,
    /// When it took effect. Absent when there is no such device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective_at: Option<Timestamp>,
}
