//! Parts that several kinds share.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{Name, Text, Timestamp};

/// Rules in the Common Expression Language for the API server, with the sentence it answers.
pub(super) fn cel<const N: usize>(rules: [(&str, &str); N]) -> Value {
    rules.iter().map(|(rule, message)| json!({ "rule": rule, "message": message })).collect()
}

/// Why a key is revoked. A revocation cannot be taken back: make a new key instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
pub struct KeyRevocation {
    /// Why the key is revoked, for the audit trail.
    #[schemars(length(min = 1))]
    pub reason: Text<256>,
    /// Whether the key is believed to be in wrong hands. It then counts as compromised and an event is raised.
    #[serde(default)]
    pub compromised: bool,
}

/// Where a Kubernetes Secret holds what may be delivered once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct SecretRef {
    /// The Secret's name, in the resource's namespace.
    pub name: Name,
}

/// An enrolled device, as statuses list it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct DeviceSummary {
    /// The device's id, by which a `Revocation` names it.
    pub id: Name,
    /// The name the device gave itself.
    pub name: Text<128>,
    /// The operating system it runs.
    pub platform: Text<64>,
    /// When it was enrolled.
    pub enrolled_at: Timestamp,
    /// Whether it was revoked.
    #[serde(default)]
    pub revoked: bool,
}
