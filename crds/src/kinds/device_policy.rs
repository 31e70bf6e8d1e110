//! What holds for devices: a part of `SecurityPolicy`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What holds for the devices of the namespace's users.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(inline)]
pub struct DevicePolicy {
    /// What a suspicious device may do.
    pub suspicious: SuspiciousDevices,
    /// What follows when the key of a device is used on another machine than the one it was enrolled on.
    pub fingerprint_change: FingerprintChange,
}

/// What a suspicious device may do. Its live session goes on in either case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum SuspiciousDevices {
    /// No new session until an administrator allows it: `horizon-controller device allow`.
    #[default]
    NeedApproval,
    /// It may connect; it is only shown and named in events.
    Allowed,
}

/// What follows when a device's key is used on another machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum FingerprintChange {
    /// An event is raised and the device becomes suspicious.
    #[default]
    Suspect,
    /// An event is raised.
    Record,
}
