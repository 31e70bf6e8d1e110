//! `Approval`: an administrator's yes to a changed identity.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Reference, Spec, shared::cel};
use crate::{Condition, IdentityDigest, Issues, KindName, Name, Text, Timestamp};

/// An administrator's decision about the identity a server's appliance reports. It speaks of exactly one digest, so that
/// nothing else is approved by accident.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "horizon.dev",
    version = "v1alpha1",
    kind = "Approval",
    namespaced,
    status = "ApprovalStatus",
    derive = "PartialEq",
    shortname = "appr",
    category = "horizon",
    doc = "An administrator's decision about the identity a server's appliance reports.",
    printcolumn(name = "Server", type_ = "string", json_path = ".spec.serverRef"),
    printcolumn(name = "Decision", type_ = "string", json_path = ".spec.decision"),
    printcolumn(name = "Effective", type_ = "string", json_path = ".status.effectiveAt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline, extend("x-kubernetes-validations" = cel([(
    "self == oldSelf",
    "an approval is a record and does not change: write a new one",
)])))]
pub struct ApprovalSpec {
    /// The server whose identity is approved.
    pub server_ref: Name,
    /// The digest that is approved, copied from `status.identity.pendingDigest` of the server.
    pub identity_digest: IdentityDigest,
    /// What is decided.
    #[serde(default)]
    pub decision: Decision,
    /// Why, for the audit trail.
    #[serde(default)]
    pub reason: Text<256>,
}

/// What an administrator decides about an identity.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum Decision {
    /// The identity is the server's from now on. To refuse one, revoke the server.
    #[default]
    Approve,
}

impl Spec for ApprovalSpec {
    const KIND: KindName = KindName::Approval;

    fn check(&self, _: &mut Issues) {}

    fn check_update(&self, old: &Self, issues: &mut Issues) {
        if self != old {
            issues.add("identityDigest", "an approval is a record and does not change", "write a new one");
        }
    }

    fn references(&self) -> Vec<Reference> {
        vec![Reference::one("serverRef", KindName::Server, &self.server_ref)]
    }
}

/// What became of an approval.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct ApprovalStatus {
    /// What holds and what does not.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the spec this status is about.
    #[schemars(range(min = 0))]
    pub observed_generation: i64,
    /// When it took effect. Absent while the server does not report this identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective_at: Option<Timestamp>,
}
