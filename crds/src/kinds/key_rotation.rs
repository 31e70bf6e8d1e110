//! `KeyRotation`: one rotation, now.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Reference, ReferenceTarget, RotationTarget, Spec, shared::cel};
use crate::{Condition, Issues, KindName, Name, Text, TimeSpan, Timestamp};

/// Replaces keys now. Those of a `scheduled` rotation work beside their successors for a while, and nobody notices; those of
/// any other are dead at once: sessions end, and people enter the new key. Deleting the record undoes nothing.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "horizon.dev",
    version = "v1alpha1",
    kind = "KeyRotation",
    namespaced,
    status = "KeyRotationStatus",
    derive = "PartialEq",
    shortname = "krot",
    category = "horizon",
    doc = "Replaces keys now.",
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.target"),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Done", type_ = "integer", json_path = ".status.completed"),
    printcolumn(name = "Of", type_ = "integer", json_path = ".status.total"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline, extend("x-kubernetes-validations" = cel([
    ("self == oldSelf", "a rotation is a record and does not change: write a new one"),
    (
        "self.type == 'scheduled' || !has(self.overlap)",
        "only a scheduled rotation has an overlap: the old key of any other is dead at once",
    ),
    (
        "(has(self.all) && self.all) || (has(self.names) && size(self.names) > 0) \
         || (has(self.users) && size(self.users) > 0) || (has(self.groups) && size(self.groups) > 0)",
        "nothing is selected: name keys, users or groups, or set \"all\"",
    ),
    (
        "self.target == 'personalKeys' || ((!has(self.users) || size(self.users) == 0) \
         && (!has(self.groups) || size(self.groups) == 0))",
        "only personal keys belong to users and groups",
    ),
])))]
pub struct KeyRotationSpec {
    /// Which class of keys is rotated.
    pub target: RotationTarget,
    /// Which of them: personal keys by their names, verification secrets by the names of their servers, keys of the
    /// controller by what they are for (`root`, `tls`, `state`, `ticket`).
    #[serde(default)]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "set"))]
    pub names: Vec<Name>,
    /// The personal keys of these users.
    #[serde(default)]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "set"))]
    pub users: Vec<Name>,
    /// The personal keys of everybody in these groups.
    #[serde(default)]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "set"))]
    pub groups: Vec<Name>,
    /// All of the class in the namespace.
    #[serde(default)]
    pub all: bool,
    /// Whether the old key goes on for a while, or why it does not.
    #[serde(rename = "type")]
    pub kind: RotationType,
    /// Why, for the audit trail and for those who have to enter a new key.
    #[schemars(length(min = 1))]
    pub reason: Text<256>,
    /// For how long the old key of a scheduled rotation works beside the new one. Without it, as its policy says, or 7 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-horizon-min" = "1s", "x-horizon-max" = "90d"))]
    pub overlap: Option<TimeSpan>,
}

/// Why keys are rotated, and with that how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum RotationType {
    /// The new key reaches everybody concerned before the old one ends.
    Scheduled,
    /// The old key is dead at once: somebody wants it so.
    Manual,
    /// The old key is dead at once: there is reason to worry.
    Emergency,
    /// The old key is dead at once: it is believed to be in wrong hands. A critical event is raised.
    Compromised,
}

impl RotationType {
    /// As documents and the database spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Manual => "manual",
            Self::Emergency => "emergency",
            Self::Compromised => "compromised",
        }
    }
}

impl Spec for KeyRotationSpec {
    const KIND: KindName = KindName::KeyRotation;

    fn check(&self, issues: &mut Issues) {
        if self.kind != RotationType::Scheduled && self.overlap.is_some() {
            let message =
                "only a scheduled rotation has an overlap: the old key of any other is dead at once";
            issues.add("overlap", message, "remove it, or make the rotation scheduled");
        }
        if !self.all && self.names.is_empty() && self.users.is_empty() && self.groups.is_empty() {
            issues.add("names", "nothing is selected", "name keys, users or groups, or set \"all\"");
        }
        if self.target != RotationTarget::PersonalKeys && !(self.users.is_empty() && self.groups.is_empty()) {
            let field = if self.users.is_empty() { "groups" } else { "users" };
            issues.add(field, "only personal keys belong to users and groups", "remove it");
        }
    }

    fn check_update(&self, old: &Self, issues: &mut Issues) {
        if self != old {
            issues.add("target", "a rotation is a record and does not change", "write a new one");
        }
    }

    fn references(&self) -> Vec<Reference> {
        let kind = match self.target {
            RotationTarget::PersonalKeys => Some(KindName::PersonalKey),
            RotationTarget::VerificationSecrets => Some(KindName::Server),
            RotationTarget::ControllerKeys | RotationTarget::RelayKeys => None,
        };
        let names = kind.into_iter().flat_map(|kind| {
            Reference::list("names", ReferenceTarget::Kind(kind), &self.names).collect::<Vec<_>>()
        });
        let users = Reference::list("users", ReferenceTarget::Kind(KindName::User), &self.users);
        let groups = Reference::list("groups", ReferenceTarget::Group, &self.groups);
        names.chain(users).chain(groups).collect()
    }
}

/// What became of a rotation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct KeyRotationStatus {
    /// How far it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<KeyRotationPhase>,
    /// What holds and what does not.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the spec this status is about.
    #[schemars(range(min = 0))]
    pub observed_generation: i64,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When the last of its old keys ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// When its old keys end at the latest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap_ends_at: Option<Timestamp>,
    /// How many keys it is about.
    pub total: u32,
    /// How many of them are rotated: the old one has ended.
    pub completed: u32,
    /// How many devices or appliances are to take a new key.
    pub receivers: u32,
    /// How many have confirmed it.
    pub confirmed: u32,
    /// What went wrong, the first of it.
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub failures: Vec<RotationFailure>,
}

/// A key that was not rotated, or a device that did not take the new one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct RotationFailure {
    /// Which: the name of a key, or of a key and a device.
    pub name: Text<256>,
    /// What went wrong, and what to do.
    pub message: Text<512>,
}

/// How far a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum KeyRotationPhase {
    /// It has not begun.
    Pending,
    /// Old and new keys both work, or keys are still to be rotated.
    Running,
    /// Every old key has ended.
    Completed,
    /// No key was rotated, or not all.
    Failed,
}
