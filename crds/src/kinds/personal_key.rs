//! `PersonalKey`: what enrols a person's devices.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DeviceSummary, KeyRevocation, Reference, SecretRef, Spec, shared::cel};
use crate::{Condition, Issues, KindName, Name, Text, TimeSpan, Timestamp};

/// A key a person pastes once on each device to enrol it. The controller makes the secret and delivers it once; it keeps
/// only a salted hash.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "horizon.dev",
    version = "v1alpha1",
    kind = "PersonalKey",
    namespaced,
    status = "PersonalKeyStatus",
    derive = "PartialEq",
    shortname = "pkey",
    category = "horizon",
    doc = "A key a person pastes once on each device to enrol it.",
    printcolumn(name = "User", type_ = "string", json_path = ".spec.userRef"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.expiresAt"),
    printcolumn(name = "Secret", type_ = "string", json_path = ".status.secretRef.name"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline, extend("x-kubernetes-validations" = cel([
    (
        "!has(self.expiresAt) || !has(self.lifetime)",
        "expiresAt and lifetime say the same in two ways: keep one of them",
    ),
    (
        "self.userRef == oldSelf.userRef",
        "a personal key belongs to its user for good: make a new key for the other user",
    ),
    (
        "!has(oldSelf.revocation) || has(self.revocation)",
        "a revocation cannot be taken back: make a new personal key",
    ),
])))]
pub struct PersonalKeySpec {
    /// The user the key belongs to.
    pub user_ref: Name,
    /// When the key stops working. Without it and without a lifetime it works until it is revoked or rotated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// How long the key works, counted from its creation. Not together with `expiresAt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-horizon-min" = "1m", "x-horizon-max" = "3650d"))]
    pub lifetime: Option<TimeSpan>,
    /// The rotation policy the key follows, by name. Without it the key is rotated only when somebody asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation_policy: Option<Name>,
    /// Revokes the key. Devices enrolled with it are refused from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation: Option<KeyRevocation>,
    /// A remark for administrators.
    #[serde(default)]
    pub notes: Text<256>,
}

impl Spec for PersonalKeySpec {
    const KIND: KindName = KindName::PersonalKey;

    fn check(&self, issues: &mut Issues) {
        if self.expires_at.is_some() && self.lifetime.is_some() {
            issues.add("lifetime", "expiresAt and lifetime say the same in two ways", "keep one of them");
        }
    }

    fn check_update(&self, old: &Self, issues: &mut Issues) {
        if self.user_ref != old.user_ref {
            let remedy = "make a new key for the other user";
            issues.add("userRef", "a personal key belongs to its user for good", remedy);
        }
        if old.revocation.is_some() && self.revocation.is_none() {
            issues.add("revocation", "a revocation cannot be taken back", "make a new personal key");
        }
    }

    fn references(&self) -> Vec<Reference> {
        let policy = self.rotation_policy.as_ref();
        let policy = policy.map(|name| Reference::one("rotationPolicy", KindName::RotationPolicy, name));
        [Reference::one("userRef", KindName::User, &self.user_ref)].into_iter().chain(policy).collect()
    }
}

/// What is known about a personal key. The secret is not here: it lies where `secretRef` or `secretFile` says, until it
/// was delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct PersonalKeyStatus {
    /// Where the key is in its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<PersonalKeyPhase>,
    /// What holds and what does not.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the spec this status is about.
    #[schemars(range(min = 0))]
    pub observed_generation: i64,
    /// When the key was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// When its first device was enrolled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activated_at: Option<Timestamp>,
    /// When it stops working.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When it was last rotated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_rotation_at: Option<Timestamp>,
    /// When it is next rotated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_rotation_at: Option<Timestamp>,
    /// Until when the key before the last rotation works at the latest, while it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap_ends_at: Option<Timestamp>,
    /// How many rotations it went through.
    pub rotations: u32,
    /// The devices that have not yet confirmed the newest key, while the one before it works.
    #[schemars(length(max = 100), extend("x-kubernetes-list-type" = "atomic"))]
    pub unconfirmed_devices: Vec<Name>,
    /// When it was deactivated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deactivated_at: Option<Timestamp>,
    /// Why it was deactivated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deactivation_reason: Option<Text<256>>,
    /// The devices enrolled with it.
    #[schemars(length(max = 100))]
    pub devices: Vec<DeviceSummary>,
    /// The file with the key string, readable by the controller's user alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<Text<1024>>,
    /// The Kubernetes Secret with the key string.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

/// The phases of a personal key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum PersonalKeyPhase {
    /// It was made and no device is enrolled yet.
    Pending,
    /// It is in use.
    Active,
    /// Its successor exists and both work.
    Rotating,
    /// It was replaced or revoked.
    Deactivated,
    /// It was revoked as compromised.
    Compromised,
    /// Its time is over.
    Expired,
}
