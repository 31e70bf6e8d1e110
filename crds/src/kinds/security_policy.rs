//! `SecurityPolicy`: the bounds everyone must keep to.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    AccountLimits, DetectionSpec, DevicePolicy, IdentityPolicy, PayloadRules, RestLimits, Spec, shared::cel,
};
use crate::{Cidr, Condition, Issues, KindName, TimeSpan};

/// Rates, lockouts, heartbeats and blocked networks. Of several in a namespace, those of the highest priority hold; of
/// those, for each setting the strictest. Blocked networks of all of them hold. Without any the defaults hold.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "horizon.dev",
    version = "v1alpha1",
    kind = "SecurityPolicy",
    namespaced,
    status = "SecurityPolicyStatus",
    derive = "PartialEq",
    plural = "securitypolicies",
    shortname = "spol",
    category = "horizon",
    doc = "Rates, lockouts, heartbeats and blocked networks.",
    printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority"),
    printcolumn(name = "Heartbeat", type_ = "string", json_path = ".spec.heartbeatInterval"),
    printcolumn(name = "Challenge", type_ = "string", json_path = ".spec.challengeInterval"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Accepted")].status"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(inline)]
pub struct SecurityPolicySpec {
    /// Which of several policies of a namespace holds: that with the highest priority. Of equals, the strictest of each
    /// setting.
    #[schemars(range(min = 0, max = 1000))]
    pub priority: u16,
    /// How often one source address may try.
    pub rate_limits: RateLimits,
    /// When a source address is locked out for a while.
    pub lockout: Lockout,
    /// What holds for accounts of administrators.
    pub accounts: AccountLimits,
    /// How often the REST API may be asked, per minute.
    pub rest_limits: RestLimits,
    /// What is taken from whoever sends something to the controller.
    pub payload: PayloadRules,
    /// How long after a correct answer an appliance is challenged again. The exact moment is random.
    #[schemars(extend("x-horizon-min" = "10s", "x-horizon-max" = "24h"))]
    pub challenge_interval: TimeSpan,
    /// How often appliances send a heartbeat.
    #[schemars(extend("x-horizon-min" = "1s", "x-horizon-max" = "5m"))]
    pub heartbeat_interval: TimeSpan,
    /// Where nobody may connect from: registrations, enrolments and connections are refused.
    #[schemars(length(max = 1024), extend("x-kubernetes-list-type" = "atomic", "x-kubernetes-validations" = cel([(
        "self.all(network, !isCIDR(network) || cidr(network).prefixLength() > 0)",
        "a network of every address would let nobody connect: block smaller networks",
    )])))]
    pub blocked_networks: Vec<Cidr>,
    /// When something unusual becomes a security event.
    pub anomaly_thresholds: AnomalyThresholds,
    /// What holds for devices.
    pub devices: DevicePolicy,
    /// What is out of the ordinary, and what is done about it.
    pub detection: DetectionSpec,
    /// When a changed machine needs an approval.
    pub identity: IdentityPolicy,
}

impl Default for SecurityPolicySpec {
    fn default() -> Self {
        Self {
            priority: 0,
            rate_limits: RateLimits::default(),
            lockout: Lockout::default(),
            accounts: AccountLimits::default(),
            rest_limits: RestLimits::default(),
            payload: PayloadRules::default(),
            challenge_interval: TimeSpan::from_secs(15 * 60),
            heartbeat_interval: TimeSpan::from_secs(30),
            blocked_networks: Vec::new(),
            anomaly_thresholds: AnomalyThresholds::default(),
            devices: DevicePolicy::default(),
            detection: DetectionSpec::default(),
            identity: IdentityPolicy::default(),
        }
    }
}

/// Tries per minute and source address (IPv4) or /64 (IPv6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(inline)]
pub struct RateLimits {
    /// Registrations of appliances.
    #[schemars(range(min = 1, max = 100_000))]
    pub registrations_per_minute: u32,
    /// Enrolments of devices.
    #[schemars(range(min = 1, max = 100_000))]
    pub enrolments_per_minute: u32,
    /// Connections to the controller.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub handshakes_per_minute: u32,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self { registrations_per_minute: 30, enrolments_per_minute: 30, handshakes_per_minute: 600 }
    }
}

/// Locks out a source address after too many failures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(inline)]
pub struct Lockout {
    /// How many failures lock out.
    #[schemars(range(min = 1, max = 10000))]
    pub threshold: u16,
    /// Within which time they count.
    #[schemars(extend("x-horizon-min" = "1s", "x-horizon-max" = "24h"))]
    pub window: TimeSpan,
    /// For how long the address is locked out.
    #[schemars(extend("x-horizon-min" = "1s", "x-horizon-max" = "30d"))]
    pub duration: TimeSpan,
}

impl Default for Lockout {
    fn default() -> Self {
        Self { threshold: 10, window: TimeSpan::from_secs(600), duration: TimeSpan::from_secs(900) }
    }
}

/// What becomes a security event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(inline)]
pub struct AnomalyThresholds {
    /// How many heartbeats an appliance may miss in a row.
    #[schemars(range(min = 1, max = 1000))]
    pub missed_heartbeats: u16,
    /// How many challenges an appliance may fail in a row.
    #[schemars(range(min = 1, max = 100))]
    pub failed_challenges: u16,
    /// How many packets of a session may be refused within a minute.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub violations_per_minute: u32,
}

impl Default for AnomalyThresholds {
    fn default() -> Self {
        Self { missed_heartbeats: 3, failed_challenges: 1, violations_per_minute: 100 }
    }
}

impl Spec for SecurityPolicySpec {
    const KIND: KindName = KindName::SecurityPolicy;

    fn check(&self, issues: &mut Issues) {
        self.detection.check(issues);
        self.accounts.check(issues);
        self.payload.check(issues);
        for (i, network) in self.blocked_networks.iter().enumerate() {
            if network.get().prefix_len() == 0 {
                let message = format!("{network} is every address: nobody could connect");
                issues.add(format!("blockedNetworks[{i}]"), message, "block smaller networks");
            }
        }
    }
}

/// What is known about a security policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct SecurityPolicyStatus {
    /// What holds and what does not.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the spec this status is about.
    #[schemars(range(min = 0))]
    pub observed_generation: i64,
    /// How many source addresses are locked out.
    pub locked_out: u32,
}
