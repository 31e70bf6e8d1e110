//! `AccessPolicy`: who may reach what through which server.

use horizon_model::{Capability, DestinationRule, Failover, PortRange, Protocol};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Reference, ReferenceTarget, Spec, shared::cel};
use crate::{
    Cidr, Condition, Issues, KindName, Name, ServerSelector,
    value::{CapabilitySchema, FailoverSchema, PortRangeSchema, ProtocolSchema},
};

/// Who may use which servers, to reach which destinations and virtual networks. What no policy grants is refused; policies
/// only add. Narrowing one takes effect on live sessions.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "horizon.dev",
    version = "v1alpha1",
    kind = "AccessPolicy",
    namespaced,
    status = "AccessPolicyStatus",
    derive = "PartialEq",
    plural = "accesspolicies",
    shortname = "apol",
    category = "horizon",
    doc = "Who may use which servers, to reach which destinations and virtual networks.",
    printcolumn(name = "Users", type_ = "string", json_path = ".spec.subjects.users"),
    printcolumn(name = "Groups", type_ = "string", json_path = ".spec.subjects.groups"),
    printcolumn(name = "Servers", type_ = "string", json_path = ".spec.servers"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Accepted")].status"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline, extend("x-kubernetes-validations" = cel([(
    "size(self.destinations) > 0 || size(self.networks) > 0",
    "the policy grants nothing: list destinations (0.0.0.0/0 and ::/0 for everything) or networks",
)])))]
pub struct AccessPolicySpec {
    /// Whom the policy grants something.
    pub subjects: Subjects,
    /// Which of their devices it speaks of. Absent: every device.
    #[serde(default, skip_serializing_if = "DeviceCondition::is_any")]
    pub devices: DeviceCondition,
    /// The servers it speaks of, by name; `*` is every server of the namespace.
    #[schemars(length(min = 1, max = 256), extend("x-kubernetes-list-type" = "set"))]
    pub servers: Vec<ServerSelector>,
    /// What may be used on them.
    #[serde(default = "default_capabilities")]
    #[schemars(with = "Vec<CapabilitySchema>", length(min = 1, max = 6), extend("x-kubernetes-list-type" = "set"))]
    pub capabilities: Vec<Capability>,
    /// The virtual networks that may be joined, by name.
    #[serde(default)]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "set"))]
    pub networks: Vec<Name>,
    /// The destinations that may be reached through the servers.
    #[serde(default)]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "atomic"))]
    pub destinations: Vec<Destination>,
    /// Whether the destinations may open flows toward the client. Answers always pass.
    #[serde(default)]
    pub allow_inbound: bool,
    /// Whether a session may move to another server by itself when its own dies: `allowed` where its user wants it, `required`
    /// always, `never`. Of several policies that grant a session, `never` holds, else `required`.
    #[serde(default)]
    #[schemars(with = "FailoverSchema")]
    pub failover: Failover,
}

fn default_capabilities() -> Vec<Capability> {
    vec![Capability::Vpn]
}

/// Whom a policy grants something: users by name, and everyone in a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(inline, extend("x-kubernetes-validations" = cel([(
    "size(self.users) > 0 || size(self.groups) > 0",
    "the policy is for nobody: list users or groups",
)])))]
pub struct Subjects {
    /// Users, by name.
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "set"))]
    pub users: Vec<Name>,
    /// Groups, as users' `groups` name them.
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "set"))]
    pub groups: Vec<Name>,
}

/// Which devices a policy speaks of: those that meet every condition that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(inline)]
pub struct DeviceCondition {
    /// The devices, by id as `status.devices` of their users shows it. Empty: any.
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "set"))]
    pub ids: Vec<Name>,
    /// The operating systems they run, as they report them: `linux`. Empty: any.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "set"))]
    pub platforms: Vec<Name>,
    /// Whether suspicious devices are left out, although the `SecurityPolicy` lets them connect.
    pub trusted_only: bool,
}

impl DeviceCondition {
    /// Whether it leaves no device out.
    pub fn is_any(&self) -> bool {
        *self == Self::default()
    }
}

/// Addresses that may be reached, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline, extend("x-kubernetes-validations" = cel([(
    "size(self.ports) == 0 || self.protocol in ['tcp', 'udp']",
    "only tcp and udp have ports: set protocol to tcp or udp, or remove ports",
)])))]
pub struct Destination {
    /// The addresses.
    pub cidr: Cidr,
    /// The transport protocol.
    #[serde(default)]
    #[schemars(with = "ProtocolSchema")]
    pub protocol: Protocol,
    /// The ports and ranges of ports. Empty: every port.
    #[serde(default)]
    #[schemars(with = "Vec<PortRangeSchema>", length(max = 32), extend("x-kubernetes-list-type" = "set"))]
    pub ports: Vec<PortRange>,
}

impl From<&Destination> for DestinationRule {
    fn from(destination: &Destination) -> Self {
        Self {
            prefix: destination.cidr.get(),
            protocol: destination.protocol,
            ports: destination.ports.clone(),
        }
    }
}

impl Spec for AccessPolicySpec {
    const KIND: KindName = KindName::AccessPolicy;

    fn check(&self, issues: &mut Issues) {
        if self.subjects.users.is_empty() && self.subjects.groups.is_empty() {
            issues.add("subjects", "the policy is for nobody", "list users or groups");
        }
        if self.destinations.is_empty() && self.networks.is_empty() {
            let remedy = "list destinations (0.0.0.0/0 and ::/0 for everything) or networks";
            issues.add("destinations", "the policy grants nothing", remedy);
        }
        for (i, destination) in self.destinations.iter().enumerate() {
            if !destination.ports.is_empty() && !matches!(destination.protocol, Protocol::Tcp | Protocol::Udp)
            {
                let remedy = "set protocol to tcp or udp, or remove ports";
                issues.add(format!("destinations[{i}].ports"), "only tcp and udp have ports", remedy);
            }
            for (k, ports) in destination.ports.iter().enumerate() {
                if destination.ports[..k]
                    .iter()
                    .any(|p| p.first() <= ports.last() && ports.first() <= p.last())
                {
                    let message = format!("{ports} overlaps an earlier range of ports");
                    issues.add(format!("destinations[{i}].ports[{k}]"), message, "merge the two ranges");
                }
            }
        }
    }

    fn references(&self) -> Vec<Reference> {
        let servers = self.servers.iter().enumerate().filter_map(|(i, selector)| match selector {
            ServerSelector::Any => None,
            ServerSelector::Named(name) => {
                Some(Reference::one(&format!("servers[{i}]"), KindName::Server, name))
            }
        });
        Reference::list("subjects.users", ReferenceTarget::Kind(KindName::User), &self.subjects.users)
            .chain(Reference::list("subjects.groups", ReferenceTarget::Group, &self.subjects.groups))
            .chain(servers)
            .chain(Reference::list(
                "networks",
                ReferenceTarget::Kind(KindName::VirtualNetwork),
                &self.networks,
            ))
            .collect()
    }
}

/// What a policy amounts to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct AccessPolicyStatus {
    /// What holds and what does not.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the spec this status is about.
    #[schemars(range(min = 0))]
    pub observed_generation: i64,
    /// How many users it matches.
    pub matched_users: u32,
    /// How many servers it matches.
    pub matched_servers: u32,
}
