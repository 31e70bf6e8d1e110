//! `RegistrationKey`: the one-time right of an appliance to become a server.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KeyRevocation, Reference, SecretRef, Spec, shared::cel};
use crate::{Condition, Issues, KindName, Name, Text, TimeSpan, Timestamp};

/// A one-time right of an appliance to register as a server. The controller makes the secret and delivers it once; the first
/// appliance that uses it is bound to it.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "horizon.dev",
    version = "v1alpha1",
    kind = "RegistrationKey",
    namespaced,
    status = "RegistrationKeyStatus",
    derive = "PartialEq",
    shortname = "regkey",
    category = "horizon",
    doc = "A one-time right of an appliance to register as a server.",
    printcolumn(name = "Server", type_ = "string", json_path = ".spec.serverRef"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.expiresAt"),
    printcolumn(name = "Used", type_ = "string", json_path = ".status.usedAt"),
    printcolumn(name = "Secret", type_ = "string", json_path = ".status.secretRef.name"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline, extend("x-kubernetes-validations" = cel([
    (
        "self.serverRef == oldSelf.serverRef && self.lifetime == oldSelf.lifetime",
        "a registration key does not change: make a new one",
    ),
    (
        "!has(oldSelf.revocation) || has(self.revocation)",
        "a revocation cannot be taken back: make a new registration key",
    ),
])))]
pub struct RegistrationKeySpec {
    /// The server the appliance becomes.
    pub server_ref: Name,
    /// How long the key can be used, counted from its creation.
    #[serde(default = "default_lifetime")]
    #[schemars(extend("x-horizon-min" = "1m", "x-horizon-max" = "30d"))]
    pub lifetime: TimeSpan,
    /// Revokes the key. An appliance that already used it is not affected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation: Option<KeyRevocation>,
}

fn default_lifetime() -> TimeSpan {
    TimeSpan::from_days(1)
}

impl Spec for RegistrationKeySpec {
    const KIND: KindName = KindName::RegistrationKey;

    fn check(&self, _: &mut Issues) {}

    fn check_update(&self, old: &Self, issues: &mut Issues) {
        if self.server_ref != old.server_ref {
            issues.add("serverRef", "a registration key does not change", "make a new one");
        }
        if self.lifetime != old.lifetime {
            issues.add("lifetime", "a registration key does not change", "make a new one");
        }
        if old.revocation.is_some() && self.revocation.is_none() {
            issues.add("revocation", "a revocation cannot be taken back", "make a new registration key");
        }
    }

    fn references(&self) -> Vec<Reference> {
        vec![Reference::one("serverRef", KindName::Server, &self.server_ref)]
    }
}

/// What is known about a registration key. The secret is not here: it lies where `secretRef` or `secretFile` says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct RegistrationKeyStatus {
    /// Where the key is in its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<RegistrationKeyPhase>,
    /// What holds and what does not.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the spec this status is about.
    #[schemars(range(min = 0))]
    pub observed_generation: i64,
    /// When the key stops working.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The file with the registration token, readable by the controller's user alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<Text<1024>>,
    /// The Kubernetes Secret with the registration token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// The public key of the appliance that used it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_by: Option<Text<128>>,
    /// When it was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_at: Option<Timestamp>,
}

/// The phases of a registration key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum RegistrationKeyPhase {
    /// It waits for its appliance.
    Unused,
    /// An appliance registered with it.
    Used,
    /// Its lifetime ended before it was used.
    Expired,
    /// It was revoked.
    Revoked,
}
