//! What may be reached: capabilities and destination rules.

use std::{fmt, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A service an appliance may be allowed to provide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Capability {
    /// Egress for a client's traffic under the appliance's address.
    Vpn,
    /// Virtual networks between clients.
    LanEmulation,
    /// A stated geographic place of egress.
    GeoLocation,
    /// Routing between networks.
    TrafficRouting,
    /// Help in crossing address translators.
    NatTraversal,
    /// Carrying packets for pairs that cannot reach each other.
    Relay,
}

impl Capability {
    /// Every capability, in the order of the schema.
    pub const ALL: [Self; 6] = [
        Self::Vpn,
        Self::LanEmulation,
        Self::GeoLocation,
        Self::TrafficRouting,
        Self::NatTraversal,
        Self::Relay,
    ];

    /// The name the database uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vpn => "vpn",
            Self::LanEmulation => "lan_emulation",
            Self::GeoLocation => "geo_location",
            Self::TrafficRouting => "traffic_routing",
            Self::NatTraversal => "nat_traversal",
            Self::Relay => "relay",
        }
    }
}

/// Whether a session may move to another server by itself when its own dies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Failover {
    /// Where its user wants it.
    #[default]
    Allowed,
    /// Always.
    Required,
    /// Never: it waits for its server.
    Never,
}

/// The transport a rule speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Protocol {
    /// Every protocol, ports or not.
    #[default]
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
}

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// Ports that are no range: `0`, `80-70`, `http`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("'{0}' is not a port (1 to 65535) or a range of ports like 8000-8100")]
pub struct InvalidPorts(String);

impl PortRange {
    /// A range; an error when it is empty or holds port 0.
    pub fn new(first: u16, last: u16) -> Result<Self, InvalidPorts> {
        if first == 0 || last < first {
            return Err(InvalidPorts(format!("{first}-{last}")));
        }
        Ok(Self { first, last })
    }

    /// The lowest port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether `port` is inside.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl FromStr for PortRange {
    type Err = InvalidPorts;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) => Self::new(first, last).map_err(|_| InvalidPorts(text.to_owned())),
            _ => Err(InvalidPorts(text.to_owned())),
        }
    }
}

impl TryFrom<String> for PortRange {
    type Error = InvalidPorts;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

/// One destination a session may reach. What no rule names is refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DestinationRule {
    /// The addresses.
    pub prefix: IpNet,
    /// The transport.
    pub protocol: Protocol,
    /// The ports, for TCP and UDP; empty means all.
    pub ports: Vec<PortRange>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_and_shown() {
        for text in ["80", "8000-8100", "1-65535"] {
            assert_eq!(text.parse::<PortRange>().map(|r| r.to_string()), Ok(text.to_owned()));
        }
        for text in ["0", "80-70", "http", "", "-", "1-65536", "80-"] {
            assert_eq!(text.parse::<PortRange>(), Err(InvalidPorts(text.to_owned())), "{text}");
        }
    }
}
