//! `RotationPolicy`: when keys are replaced without anybody noticing.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Spec;
use crate::{Condition, Issues, KindName, TimeOfDay, TimeSpan, Timestamp, Weekday};

/// How often keys of a class are replaced, and for how long the old and the new one both work. A `PersonalKey` names its
/// policy; the keys of the other classes follow the first policy for their class by name in their namespace. The
/// controller's own keys belong to nobody's namespace: of all policies for them the first by namespace and name holds.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "horizon.dev",
    version = "v1alpha1",
    kind = "RotationPolicy",
    namespaced,
    status = "RotationPolicyStatus",
    derive = "PartialEq",
    plural = "rotationpolicies",
    shortname = "rpol",
    category = "horizon",
    doc = "How often keys of a class are replaced, and for how long the old and the new one both work.",
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.target"),
    printcolumn(name = "Every", type_ = "string", json_path = ".spec.every"),
    printcolumn(name = "Overlap", type_ = "string", json_path = ".spec.overlap"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextRunAt"),
    printcolumn(name = "Keys", type_ = "integer", json_path = ".status.keys"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
pub struct RotationPolicySpec {
    /// Which keys the policy is for.
    pub target: RotationTarget,
    /// How long after a key began or was last rotated it is rotated again.
    #[schemars(extend("x-horizon-min" = "1h", "x-horizon-max" = "3650d"))]
    pub every: TimeSpan,
    /// The time of day in UTC at which rotations begin. Without it any time will do. Only with an `every` of 24 hours or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<TimeOfDay>,
    /// The days of the week on which rotations may begin. Empty means every day. Only with an `every` of 7 days or more.
    #[serde(default)]
    #[schemars(length(max = 7), extend("x-kubernetes-list-type" = "atomic"))]
    pub weekdays: Vec<Weekday>,
    /// For how long the old key works beside the new one. It ends sooner when every device has confirmed the new one.
    #[serde(default = "default_overlap")]
    #[schemars(extend("x-horizon-min" = "1m", "x-horizon-max" = "90d"))]
    pub overlap: TimeSpan,
    /// The most by which the rotation of a key is put off, so that not all are rotated at once. How much is fixed for each
    /// key.
    #[serde(default = "default_jitter")]
    #[schemars(extend("x-horizon-min" = "0s", "x-horizon-max" = "7d"))]
    pub jitter: TimeSpan,
    /// How long ahead a rotation is announced: as an event, and to the devices of the key.
    #[serde(default = "default_notice")]
    #[schemars(extend("x-horizon-min" = "0s", "x-horizon-max" = "90d"))]
    pub notice: TimeSpan,
    /// Whether the policy begins no rotations for now. Those under way are finished.
    #[serde(default)]
    pub paused: bool,
}

fn default_overlap() -> TimeSpan {
    TimeSpan::from_days(7)
}

fn default_jitter() -> TimeSpan {
    TimeSpan::from_secs(3600)
}

fn default_notice() -> TimeSpan {
    TimeSpan::from_days(7)
}

/// A class of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum RotationTarget {
    /// What enrols people's devices.
    PersonalKeys,
    /// What appliances prove themselves with.
    VerificationSecrets,
    /// What the controller signs with: the root and the keys of its KeySet.
    ControllerKeys,
    /// What relays are known by. This version has no relays.
    RelayKeys,
}

impl RotationTarget {
    /// As documents spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PersonalKeys => "personalKeys",
            Self::VerificationSecrets => "verificationSecrets",
            Self::ControllerKeys => "controllerKeys",
            Self::RelayKeys => "relayKeys",
        }
    }
}

impl Spec for RotationPolicySpec {
    const KIND: KindName = KindName::RotationPolicy;

    fn check(&self, issues: &mut Issues) {
        let day = TimeSpan::from_days(1);
        if self.at.is_some() && self.every < day {
            let message = format!("a key that is rotated every {} cannot wait for a time of day", self.every);
            issues.add("at", message, "leave out \"at\", or rotate every 24h or less often");
        }
        if !self.weekdays.is_empty() && self.every < TimeSpan::from_days(7) {
            let message =
                format!("a key that is rotated every {} cannot wait for a day of the week", self.every);
            issues.add("weekdays", message, "leave out \"weekdays\", or rotate every 7d or less often");
        }
        for (field, span) in [("overlap", self.overlap), ("jitter", self.jitter)] {
            if span >= self.every {
                let message = format!(
                    "{span} is not shorter than {}, after which the next rotation begins",
                    self.every
                );
                issues.add(field, message, "write a shorter span");
            }
        }
    }
}

/// What is known about a rotation policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct RotationPolicyStatus {
    /// What holds and what does not.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the spec this status is about.
    #[schemars(range(min = 0))]
    pub observed_generation: i64,
    /// When a rotation of the policy last began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_run_at: Option<Timestamp>,
    /// When the next one begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_run_at: Option<Timestamp>,
    /// How many keys follow the policy.
    pub keys: u32,
    /// How many of them are being rotated.
    pub rotating: u32,
    /// How many rotations the policy has begun.
    pub rotations: u32,
    /// How many rotations failed or were not confirmed by every device.
    pub failures: u32,
}
