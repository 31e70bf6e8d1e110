//! `Server`: an appliance and what it may do.

use std::net::IpAddr;

use horizon_model::Capability;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Reference, ReferenceTarget, Spec, shared::cel};
use crate::{
    BitRate, Cidr, Condition, Endpoint, IdentityDigest, Issues, KindName, Name, Text, TimeOfDay, TimeSpan,
    Timestamp,
    value::{AddressSchema, CapabilitySchema, Weekday},
};

/// An appliance: what it may provide, how its tunnel and egress are set up, and in which state of its life it is. It is
/// declared before the appliance exists; a registration key then lets one appliance become it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "horizon.dev",
    version = "v1alpha1",
    kind = "Server",
    namespaced,
    status = "ServerStatus",
    derive = "PartialEq",
    shortname = "srv",
    category = "horizon",
    doc = "An appliance: what it may provide, how its tunnel and egress are set up, and in which state of its life it is.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(
        name = "Online",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Online")].status"#
    ),
    printcolumn(
        name = "Available",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Available")].status"#
    ),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.publicAddress"),
    printcolumn(name = "Location", type_ = "string", json_path = ".status.location"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version", priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
pub struct ServerSpec {
    /// What the appliance may provide. It reports what it can do; only what is also listed here is used.
    #[serde(default = "default_capabilities")]
    #[schemars(
        with = "Vec<CapabilitySchema>",
        length(max = 6),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub capabilities: Vec<Capability>,
    /// How clients' traffic leaves the appliance.
    #[serde(default)]
    pub egress: Egress,
    /// How clients reach the appliance.
    #[serde(default)]
    pub tunnel: Tunnel,
    /// The virtual networks the appliance switches, by name.
    #[serde(default)]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "set"))]
    pub networks: Vec<Name>,
    /// Bounds on what clients may use.
    #[serde(default)]
    pub limits: ServerLimits,
    /// When updates may interrupt the appliance. Without it they may not come by themselves. This version delivers no
    /// updates, so it has no effect yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance_window: Option<MaintenanceWindow>,
    /// In which state of its life the server should be.
    #[serde(default)]
    pub lifecycle: Lifecycle,
    /// Where the appliance stands, in words for people. Empty: what the controller finds out.
    #[serde(default)]
    pub location: Text<128>,
}

fn default_capabilities() -> Vec<Capability> {
    vec![Capability::Vpn]
}

/// How clients' traffic leaves an appliance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(inline)]
pub struct Egress {
    /// Whether traffic leaves under the appliance's own address. Without it the appliance routes the clients' addresses, and
    /// the network behind it must know the way back.
    pub masquerade: bool,
    /// The DNS servers clients use while connected, by address. Empty: clients keep their own.
    #[schemars(with = "Vec<AddressSchema>", length(max = 4), extend("x-kubernetes-list-type" = "set"))]
    pub dns: Vec<IpAddr>,
    /// Where clients' addresses come from: at most one range of each address family, IPv4 from /8 to /30, IPv6 from /32 to /126.
    #[schemars(length(min = 1, max = 2), extend("x-kubernetes-list-type" = "atomic", "x-kubernetes-validations" = range_rules()))]
    pub address_ranges: Vec<Cidr>,
}

impl Default for Egress {
    fn default() -> Self {
        let ranges = ["100.96.0.0/16", "fd68:6f72:697a:6f6e::/64"];
        Self {
            masquerade: true,
            dns: Vec::new(),
            address_ranges: ranges.iter().filter_map(|range| range.parse().ok()).collect(),
        }
    }
}

/// How clients reach an appliance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(inline)]
pub struct Tunnel {
    /// The UDP port the appliance listens on.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Where clients should try to reach it, as host and port. Empty: the addresses the appliance and the controller find.
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "set"))]
    pub advertise: Vec<Endpoint>,
    /// The largest packet inside the tunnel, in bytes.
    #[schemars(range(min = 1280, max = 9000))]
    pub mtu: u16,
}

impl Default for Tunnel {
    fn default() -> Self {
        Self { port: 7443, advertise: Vec::new(), mtu: 1420 }
    }
}

/// Bounds on what clients may use of an appliance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(inline)]
pub struct ServerLimits {
    /// How many sessions the appliance carries at once.
    #[schemars(range(min = 1, max = 10000))]
    pub max_sessions: u16,
    /// The rate of one session in each direction. Without it a session may use all there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_rate: Option<BitRate>,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self { max_sessions: 1000, session_rate: None }
    }
}

/// A weekly span of time in which interruptions are allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
pub struct MaintenanceWindow {
    /// The days the window opens on. Empty: every day.
    #[serde(default)]
    #[schemars(length(max = 7), extend("x-kubernetes-list-type" = "set"))]
    pub days: Vec<Weekday>,
    /// When it opens, in UTC.
    pub start: TimeOfDay,
    /// How long it stays open.
    #[schemars(extend("x-horizon-min" = "10m", "x-horizon-max" = "24h"))]
    pub duration: TimeSpan,
}

/// The wanted state of a server's life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(inline, extend("x-kubernetes-validations" = cel([
    (
        "self.state != 'decommissioned' || size(self.reason) > 0",
        "a decommissioned server needs a reason: write lifecycle.reason",
    ),
    (
        "oldSelf.state != 'decommissioned' || self.state == 'decommissioned'",
        "a decommissioned server does not come back: declare a new server under another name",
    ),
])))]
pub struct Lifecycle {
    /// The wanted state. `decommissioned` is final.
    pub state: LifecycleState,
    /// Why the server is in this state. Required when it is decommissioned.
    pub reason: Text<256>,
}

/// The states of a server's life.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum LifecycleState {
    /// It serves.
    #[default]
    Active,
    /// It takes no new sessions; those that run go on.
    Maintenance,
    /// It has ended: sessions end, its keys are forgotten.
    Decommissioned,
}

impl Spec for ServerSpec {
    const KIND: KindName = KindName::Server;

    fn check(&self, issues: &mut Issues) {
        check_ranges("egress.addressRanges", &self.egress.address_ranges, issues);
        if self.lifecycle.state == LifecycleState::Decommissioned && self.lifecycle.reason.is_empty() {
            issues.add(
                "lifecycle.reason",
                "a decommissioned server needs a reason",
                "write why in lifecycle.reason",
            );
        }
    }

    fn check_update(&self, old: &Self, issues: &mut Issues) {
        let decommissioned = |spec: &Self| spec.lifecycle.state == LifecycleState::Decommissioned;
        if decommissioned(old) && !decommissioned(self) {
            let remedy = "declare a new server under another name";
            issues.add("lifecycle.state", "a decommissioned server does not come back", remedy);
        }
    }

    fn references(&self) -> Vec<Reference> {
        Reference::list("networks", ReferenceTarget::Kind(KindName::VirtualNetwork), &self.networks).collect()
    }
}

/// [`check_ranges`] for the API server.
pub(super) fn range_rules() -> Value {
    cel([
        (
            "self.filter(r, isCIDR(r) && cidr(r).ip().family() == 4).size() <= 1 && \
             self.filter(r, isCIDR(r) && cidr(r).ip().family() == 6).size() <= 1",
            "keep at most one IPv4 and one IPv6 range",
        ),
        (
            "self.all(r, !isCIDR(r) || (cidr(r).ip().family() == 4 ? cidr(r).prefixLength() >= 8 && cidr(r).prefixLength() <= 30 : \
             cidr(r).prefixLength() >= 32 && cidr(r).prefixLength() <= 126))",
            "choose a prefix length from /8 to /30 for IPv4, from /32 to /126 for IPv6",
        ),
    ])
}

/// At most one range per address family, each neither too small nor too large to hand addresses from.
pub(super) fn check_ranges(field: &str, ranges: &[Cidr], issues: &mut Issues) {
    for (i, range) in ranges.iter().enumerate() {
        let (least, most) = if range.is_ipv4() { (8, 30) } else { (32, 126) };
        if !(least..=most).contains(&range.get().prefix_len()) {
            let message = format!("the prefix length of {range} is out of range");
            issues.add(
                format!("{field}[{i}]"),
                message,
                format!("choose a prefix length from /{least} to /{most}"),
            );
        }
        if ranges[..i].iter().any(|earlier| earlier.is_ipv4() == range.is_ipv4()) {
            let family = if range.is_ipv4() { "IPv4" } else { "IPv6" };
            let remedy = "keep at most one IPv4 and one IPv6 range";
            issues.add(format!("{field}[{i}]"), format!("{range} is the second {family} range"), remedy);
        }
    }
}

/// What is known about a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct ServerStatus {
    /// Where the server is in its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<ServerPhase>,
    /// What holds and what does not.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the spec this status is about.
    #[schemars(range(min = 0))]
    pub observed_generation: i64,
    /// The server's id. A server recreated under the same name has another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_id: Option<Name>,
    /// When an appliance registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registered_at: Option<Timestamp>,
    /// What the appliance reports to be able to do.
    #[schemars(with = "Vec<CapabilitySchema>", length(max = 6), extend("x-kubernetes-list-type" = "set"))]
    pub reported_capabilities: Vec<Capability>,
    /// The address the appliance is seen under.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<AddressSchema>")]
    pub public_address: Option<IpAddr>,
    /// Where the appliance is, declared or found out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<Text<128>>,
    /// The version of the software it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Text<64>>,
    /// Its identity, and what is waiting for an approval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<IdentityStatus>,
    /// The generation of the appliance's state that it last applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub applied_generation: Option<i64>,
}

/// The phases of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum ServerPhase {
    /// No appliance has registered yet.
    Pending,
    /// It serves.
    Active,
    /// It cannot be used now: the conditions say why.
    Unavailable,
    /// It is in maintenance.
    Maintenance,
    /// It has ended.
    Decommissioned,
    /// It was revoked as compromised.
    Compromised,
}

/// A server's identity as last approved, and as last reported where that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct IdentityStatus {
    /// The digest of the approved identity factors.
    pub digest: IdentityDigest,
    /// The digest that waits for an `Approval`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_digest: Option<IdentityDigest>,
    /// How far the machine is from the approved one, in points. `SecurityPolicy` says what each difference weighs, and from how
    /// many points on an approval is needed.
    #[serde(default)]
    pub drift: u32,
    /// What differs from the approved identity, the heaviest first.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub changes: Vec<ReportedChange>,
}

/// One difference between the approved identity and the reported one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct ReportedChange {
    /// The factor, like `hardware.disk`.
    pub factor: Text<128>,
    /// What was approved; absent when the factor is new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Text<256>>,
    /// What is reported; absent when the factor is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Text<256>>,
}
