//! `User`: a person.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DeviceSummary, PersonalKeyPhase, Spec, shared::cel};
use crate::{Condition, EmailAddress, Issues, KindName, Name, Text};

/// A person who connects. Access is granted by policies, to the user by name or to a group.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "horizon.dev",
    version = "v1alpha1",
    kind = "User",
    namespaced,
    status = "UserStatus",
    derive = "PartialEq",
    shortname = "usr",
    category = "horizon",
    doc = "A person who connects.",
    printcolumn(name = "Display Name", type_ = "string", json_path = ".spec.displayName"),
    printcolumn(name = "E-mail", type_ = "string", json_path = ".spec.email"),
    printcolumn(name = "Groups", type_ = "string", json_path = ".spec.groups"),
    printcolumn(name = "Suspended", type_ = "boolean", json_path = ".spec.suspended"),
    printcolumn(name = "Devices", type_ = "integer", json_path = ".status.deviceCount"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline, extend("x-kubernetes-validations" = cel([(
    "self.suspended || size(self.suspensionReason) == 0",
    "suspensionReason is written but the user is not suspended: set suspended to true or remove the reason",
)])))]
pub struct UserSpec {
    /// The name shown to people. Empty: the resource's name.
    #[serde(default)]
    pub display_name: Text<128>,
    /// Where the person can be written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<EmailAddress>,
    /// The groups the person belongs to. A group exists by being listed here.
    #[serde(default)]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "set"))]
    pub groups: Vec<Name>,
    /// How many devices the person may have enrolled at once.
    #[serde(default = "default_device_limit")]
    #[schemars(range(min = 1, max = 100))]
    pub device_limit: u8,
    /// Whether the person is locked out. Sessions end at once; keys and devices are kept.
    #[serde(default)]
    pub suspended: bool,
    /// Why the person is locked out, for the audit trail.
    #[serde(default)]
    pub suspension_reason: Text<256>,
}

fn default_device_limit() -> u8 {
    5
}

impl Spec for UserSpec {
    const KIND: KindName = KindName::User;

    fn check(&self, issues: &mut Issues) {
        if !self.suspended && !self.suspension_reason.is_empty() {
            let remedy = "set suspended to true or remove the reason";
            issues.add("suspensionReason", "a reason is written but the user is not suspended", remedy);
        }
    }
}

/// What is known about a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct UserStatus {
    /// What holds and what does not.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the spec this status is about.
    #[schemars(range(min = 0))]
    pub observed_generation: i64,
    /// The person's keys.
    #[schemars(length(max = 32))]
    pub keys: Vec<KeySummary>,
    /// The person's devices.
    #[schemars(length(max = 100))]
    pub devices: Vec<DeviceSummary>,
    /// How many of the devices are enrolled and not revoked.
    pub device_count: u8,
}

/// A personal key, as the status of its user lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct KeySummary {
    /// The key's name.
    pub name: Name,
    /// Where it is in its life.
    pub phase: PersonalKeyPhase,
}
