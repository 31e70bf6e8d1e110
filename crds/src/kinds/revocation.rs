//! `Revocation`: an administrator's final no.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Spec, shared::cel};
use crate::{Condition, Issues, KindName, Name, Text, Timestamp};

/// Ends the trust in a server, a key or a device, for good. Deleting the revocation undoes nothing.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "horizon.dev",
    version = "v1alpha1",
    kind = "Revocation",
    namespaced,
    status = "RevocationStatus",
    derive = "PartialEq",
    shortname = "revoc",
    category = "horizon",
    doc = "Ends the trust in a server, a key or a device, for good.",
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.target.kind"),
    printcolumn(name = "Name", type_ = "string", json_path = ".spec.target.name"),
    printcolumn(name = "Compromised", type_ = "boolean", json_path = ".spec.compromised"),
    printcolumn(name = "Effective", type_ = "string", json_path = ".status.effectiveAt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline, extend("x-kubernetes-validations" = cel([(
    "self == oldSelf",
    "a revocation is a record and does not change: write a new one",
)])))]
pub struct RevocationSpec {
    /// What is revoked.
    pub target: RevocationTarget,
    /// Why, for the audit trail.
    #[schemars(length(min = 1))]
    pub reason: Text<256>,
    /// Whether it is believed to be in wrong hands. It then counts as compromised and an event is raised.
    #[serde(default)]
    pub compromised: bool,
}

/// What is revoked. It need not exist: what is gone stays revoked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
pub struct RevocationTarget {
    /// Of which kind it is.
    pub kind: TargetKind,
    /// Its name; for a device its id, as `status.devices` of its user shows it.
    pub name: Name,
}

/// What can be revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum TargetKind {
    /// A server: its sessions end and its appliance is refused.
    Server,
    /// A personal key: it enrols nothing any more and its devices are refused.
    PersonalKey,
    /// One device: its session ends and it is refused.
    Device,
    /// A registration key: nobody can register with it any more.
    RegistrationKey,
}

impl Spec for RevocationSpec {
    const KIND: KindName = KindName::Revocation;

    fn check(&self, _: &mut Issues) {}

    fn check_update(&self, old: &Self, issues: &mut Issues) {
        if self != old {
            issues.add("target", "a revocation is a record and does not change", "write a new one");
        }
    }
}

/// What became of a revocation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct RevocationStatus {
    /// What holds and what does not.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the spec this status is about.
    #[schemars(range(min = 0))]
    pub observed_generation: i64,
    /// When it took effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective_at: Option<Timestamp>,
    /// The servers that were told.
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "set"))]
    pub applied_servers: Vec<Name>,
}
