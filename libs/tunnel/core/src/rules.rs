//! Which destinations a session's packets may reach: a list of what is allowed, and nothing else is.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::packet::{Packet, protocol};

/// Most rules one attachment can have.
pub const MAX_RULES: usize = 1024;
/// Most port ranges one rule can have.
pub const MAX_PORT_RANGES: usize = 64;

/// The allowed destinations of an attachment. An empty list allows nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DestinationRules(Vec<DestinationRule>);

/// One allowed destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationRule {
    /// Where the packet may go.
    pub prefix: IpNet,
    /// With which protocol.
    pub protocol: RuleProtocol,
    /// To which ports of TCP or UDP; empty means all. With ports named, only TCP and UDP can match.
    pub ports: Vec<PortRange>,
}

/// The protocol a rule allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleProtocol {
    /// Every protocol.
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP on IPv4, ICMPv6 on IPv6.
    Icmp,
}

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

/// Why a list of rules was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// Too many rules.
    #[error("{0} destination rules are more than the {MAX_RULES} a session can have")]
    TooManyRules(usize),
    /// Too many port ranges in one rule.
    #[error("{0} port ranges are more than the {MAX_PORT_RANGES} a rule can have")]
    TooManyPorts(usize),
}

impl DestinationRules {
    /// Takes a list of rules.
    pub fn new(rules: Vec<DestinationRule>) -> Result<Self, RulesError> {
        if rules.len() > MAX_RULES {
            return Err(RulesError::TooManyRules(rules.len()));
        }
        match rules.iter().map(|rule| rule.ports.len()).find(|count| *count > MAX_PORT_RANGES) {
            Some(count) => Err(RulesError::TooManyPorts(count)),
            None => Ok(Self(rules)),
        }
    }

    /// Allows every destination.
    pub fn allow_all() -> Self {
        let any = |prefix| DestinationRule { prefix, protocol: RuleProtocol::Any, ports: Vec::new() };
        let v4 = ipnet::Ipv4Net::default();
        let v6 = ipnet::Ipv6Net::default();
        Self(vec![any(v4.into()), any(v6.into())])
    }

    /// The rules.
    pub fn rules(&self) -> &[DestinationRule] {
        &self.0
    }

    /// Whether a packet may go where it wants. A fragment without ports is judged by prefix and protocol alone: the
    /// first fragment carries the ports, and without it the others are worth nothing.
    pub fn allow(&self, packet: &Packet) -> bool {
        self.0.iter().any(|rule| rule.allows(packet))
    }
}

impl DestinationRule {
    fn allows(&self, packet: &Packet) -> bool {
        let protocol_matches = match self.protocol {
            RuleProtocol::Any => true,
            RuleProtocol::Tcp => packet.protocol == protocol::TCP,
            RuleProtocol::Udp => packet.protocol == protocol::UDP,
            RuleProtocol::Icmp => packet.protocol == icmp_of(packet.destination),
        };
        protocol_matches && self.prefix.contains(&packet.destination) && self.allows_port(packet)
    }

    fn allows_port(&self, packet: &Packet) -> bool {
        if self.ports.is_empty() {
            return true;
        }
        match packet.ports() {
            Some((_, port)) => self.ports.iter().any(|range| range.first <= port && port <= range.last),
            None => packet.is_later_fragment() && matches!(packet.protocol, protocol::TCP | protocol::UDP),
        }
    }
}

fn icmp_of(address: IpAddr) -> u8 {
    if address.is_ipv6() { protocol::ICMPV6 } else { protocol::ICMP }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
