//! `VirtualNetwork`: a network between clients.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Spec,
    server::{check_ranges, range_rules},
    shared::cel,
};
use crate::{Cidr, Condition, DomainName, Issues, KindName};

/// A network whose members reach one another and nobody else. An appliance carries it when its server lists it; a person
/// joins it where a policy lists it.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "horizon.dev",
    version = "v1alpha1",
    kind = "VirtualNetwork",
    namespaced,
    status = "VirtualNetworkStatus",
    derive = "PartialEq",
    shortname = "vnet",
    category = "horizon",
    doc = "A network whose members reach one another and nobody else.",
    printcolumn(name = "Ranges", type_ = "string", json_path = ".spec.addressRanges"),
    printcolumn(name = "Layer", type_ = "string", json_path = ".spec.layer"),
    printcolumn(name = "Domain", type_ = "string", json_path = ".spec.domain"),
    printcolumn(name = "Members", type_ = "integer", json_path = ".status.members"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline, extend("x-kubernetes-validations" = cel([
    (
        "self.layer != 'L3' || !(self.broadcast || self.multicast || self.mdns || self.ssdp || self.netbios)",
        "broadcast, multicast, mdns, ssdp and netbios need Ethernet frames, which a layer 3 network does not carry: \
         leave them false",
    ),
    ("self.layer == oldSelf.layer", "the layer of a network does not change: declare a new network"),
])))]
pub struct VirtualNetworkSpec {
    /// Where members' addresses come from: at most one range of each address family, IPv4 from /8 to /30, IPv6 from /32 to
    /// /126. Ranges of different networks do not overlap.
    #[schemars(length(min = 1, max = 2), extend("x-kubernetes-list-type" = "atomic", "x-kubernetes-validations" = range_rules()))]
    pub address_ranges: Vec<Cidr>,
    /// What the network carries.
    #[serde(default)]
    pub layer: Layer,
    /// The largest packet, in bytes.
    #[serde(default = "default_mtu")]
    #[schemars(range(min = 1280, max = 9000))]
    pub mtu: u16,
    /// The DNS domain of members' names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<DomainName>,
    /// Whether broadcasts reach every member. Needs layer 2.
    #[serde(default)]
    pub broadcast: bool,
    /// Whether multicasts reach every member. Needs layer 2.
    #[serde(default)]
    pub multicast: bool,
    /// Whether multicast DNS (RFC 6762) works between members. Needs layer 2.
    #[serde(default)]
    pub mdns: bool,
    /// Whether SSDP discovery works between members. Needs layer 2.
    #[serde(default)]
    pub ssdp: bool,
    /// Whether NetBIOS name service (RFC 1002) works between members. Needs layer 2.
    #[serde(default)]
    pub netbios: bool,
}

fn default_mtu() -> u16 {
    1420
}

/// The layer a network works at.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[schemars(inline)]
pub enum Layer {
    /// IP packets.
    #[default]
    L3,
}

impl Spec for VirtualNetworkSpec {
    const KIND: KindName = KindName::VirtualNetwork;

    fn check(&self, issues: &mut Issues) {
        check_ranges("addressRanges", &self.address_ranges, issues);
        let flags = [
            ("broadcast", self.broadcast),
            ("multicast", self.multicast),
            ("mdns", self.mdns),
            ("ssdp", self.ssdp),
            ("netbios", self.netbios),
        ];
        for (flag, _) in flags.into_iter().filter(|(_, on)| *on && self.layer == Layer::L3) {
            let message = format!("{flag} needs Ethernet frames, which a layer 3 network does not carry");
            issues.add(flag, message, "set it to false or remove it");
        }
    }

    fn check_update(&self, old: &Self, issues: &mut Issues) {
        if self.layer != old.layer {
            issues.add("layer", "the layer of a network does not change", "declare a new network");
        }
    }
}

/// What is known about a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct VirtualNetworkStatus {
    /// What holds and what does not.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the spec this status is about.
    #[schemars(range(min = 0))]
    pub observed_generation: i64,
    /// How many people may join it.
    pub members: u32,
    /// How many of its addresses are given out.
    pub addresses_in_use: u32,
}
