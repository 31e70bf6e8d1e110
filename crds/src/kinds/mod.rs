//! The resource kinds: what each declares (spec) and what its status shows.

#![allow(clippy::duplicated_attributes, reason = "each printer column repeats the names of its arguments")]

mod access_policy;
mod account_limits;
mod approval;
mod detection;
mod device_decision;
mod device_policy;
mod identity_policy;
mod key_rotation;
mod payload_rules;
mod personal_key;
mod registration_key;
mod revocation;
mod rotation_policy;
mod security_policy;
mod server;
mod shared;
mod user;
mod virtual_network;

pub use access_policy::{
    AccessPolicy, AccessPolicySpec, AccessPolicyStatus, Destination, DeviceCondition, Subjects,
};
pub use account_limits::{AccountLimits, RestLimits};
pub use approval::{Approval, ApprovalSpec, ApprovalStatus, Decision};
pub use detection::{Blocking, DetectionSpec};
pub use device_decision::{DeviceDecision, DeviceDecisionSpec, DeviceDecisionStatus, DeviceVerdict};
pub use device_policy::{DevicePolicy, FingerprintChange, SuspiciousDevices};
pub use identity_policy::{IdentityPolicy, IdentityWeights};
pub use key_rotation::{
    KeyRotation, KeyRotationPhase, KeyRotationSpec, KeyRotationStatus, RotationFailure, RotationType,
};
pub use payload_rules::PayloadRules;
pub use personal_key::{PersonalKey, PersonalKeyPhase, PersonalKeySpec, PersonalKeyStatus};
pub use registration_key::{
    RegistrationKey, RegistrationKeyPhase, RegistrationKeySpec, RegistrationKeyStatus,
};
pub use revocation::{Revocation, RevocationSpec, RevocationStatus, RevocationTarget, TargetKind};
pub use rotation_policy::{RotationPolicy, RotationPolicySpec, RotationPolicyStatus, RotationTarget};
pub use security_policy::{
    AnomalyThresholds, Lockout, RateLimits, SecurityPolicy, SecurityPolicySpec, SecurityPolicyStatus,
};
pub use server::{
    Egress, IdentityStatus, Lifecycle, LifecycleState, MaintenanceWindow, ReportedChange, Server,
    ServerLimits, ServerPhase, ServerSpec, ServerStatus, Tunnel,
};
pub use shared::{DeviceSummary, KeyRevocation, SecretRef};
pub use user::{KeySummary, User, UserSpec, UserStatus};
pub use virtual_network::{Layer, VirtualNetwork, VirtualNetworkSpec, VirtualNetworkStatus};

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

use crate::{Issues, KindName, Name};

/// What every spec can do.
pub trait Spec: Clone + PartialEq + std::fmt::Debug + Serialize + DeserializeOwned + JsonSchema {
    /// The kind the spec belongs to.
    const KIND: KindName;

    /// Reports what the schema of single fields cannot express.
    fn check(&self, issues: &mut Issues);

    /// Reports what may not change from `old` to `self`.
    fn check_update(&self, old: &Self, issues: &mut Issues) {
        let _ = (old, issues);
    }

    /// The names the spec refers to, each of which must exist in its namespace.
    fn references(&self) -> Vec<Reference> {
        Vec::new()
    }
}

/// A name inside a spec that must belong to another resource of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The path of the field that holds the name, like `spec.networks[0]`.
    pub field: String,
    /// What the name must name.
    pub target: ReferenceTarget,
    /// The name.
    pub name: Name,
}

/// What a reference names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReferenceTarget {
    /// A resource of this kind.
    Kind(KindName),
    /// A group that at least one user belongs to.
    Group,
}

impl Reference {
    fn one(field: &str, kind: KindName, name: &Name) -> Self {
        Self { field: format!("spec.{field}"), target: ReferenceTarget::Kind(kind), name: name.clone() }
    }

    fn list<'a>(
        field: &'a str,
        target: ReferenceTarget,
        names: impl IntoIterator<Item = &'a Name> + 'a,
    ) -> impl Iterator<Item = Self> + 'a {
        names.into_iter().enumerate().map(move |(i, name)| Self {
            field: format!("spec.{field}[{i}]"),
            target,
            name: name.clone(),
        })
    }
}
