//! Flows opened from this side, so that only their answers are let in.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::packet::{Packet, Upper, protocol, tcp};

/// Most flows remembered for one attachment.
pub const MAX_FLOWS: usize = 16_384;

/// How long an idle TCP connection is remembered (RFC 5382 asks for at least 2 hours 4 minutes).
pub const TCP_TIMEOUT: Duration = Duration::from_secs(7_440);
/// How long a TCP connection is remembered before it is established and after either side closed it.
pub const TCP_TRANSITORY_TIMEOUT: Duration = Duration::from_secs(240);
/// How long an idle UDP flow is remembered (RFC 4787 recommends 5 minutes).
pub const UDP_TIMEOUT: Duration = Duration::from_secs(300);
/// How long an ICMP echo, another protocol, or an accepted fragment is remembered.
pub const OTHER_TIMEOUT: Duration = Duration::from_secs(60);

/// A flow seen from this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    protocol: u8,
    local: IpAddr,
    remote: IpAddr,
    kind: FlowKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum FlowKind {
    Ports { local: u16, remote: u16 },
    Echo(u16),
    Protocol,
    Fragments(u32),
}

#[derive(Clone, Copy, Debug)]
struct Flow {
    expires: Instant,
    closing: bool,
    answered: bool,
}

impl FlowKey {
    /// The flow that a packet sent from this side opens or continues.
    pub fn outbound(packet: &Packet) -> Option<Self> {
        let kind = match packet.upper {
            Upper::Tcp { source_port, destination_port, .. }
            | Upper::Udp { source_port, destination_port } => {
                FlowKind::Ports { local: source_port, remote: destination_port }
            }
            Upper::Icmp { kind: 8 | 128, identifier, .. } => FlowKind::Echo(identifier),
            Upper::Icmp { .. } => return None,
            Upper::Opaque if packet.is_later_fragment() => return None,
            Upper::Opaque => FlowKind::Protocol,
        };
        Some(Self { protocol: packet.protocol, local: packet.source, remote: packet.destination, kind })
    }

    /// The flow that a packet received from the peer would answer.
    fn inbound(packet: &Packet) -> Option<Self> {
        let kind = match packet.upper {
            // An opening segment answers nothing.
            Upper::Tcp { flags, .. } if flags & (tcp::SYN | tcp::ACK) == tcp::SYN => return None,
            Upper::Tcp { source_port, destination_port, .. }
            | Upper::Udp { source_port, destination_port } => {
                FlowKind::Ports { local: destination_port, remote: source_port }
            }
            Upper::Icmp { kind: 0 | 129, identifier, .. } => FlowKind::Echo(identifier),
            Upper::Icmp { .. } => return None,
            Upper::Opaque => match packet.fragment {
                Some(fragment) if fragment.offset > 0 => FlowKind::Fragments(fragment.id),
                _ => FlowKind::Protocol,
            },
        };
        Some(Self { protocol: packet.protocol, local: packet.destination, remote: packet.source, kind })
    }
}

/// The flows of one attachment. Bounded: when full, the flows nearest to their end make room.
#[derive(Debug)]
pub struct FlowTable {
    flows: HashMap<FlowKey, Flow>,
    capacity: usize,
}

impl Default for FlowTable {
    fn default() -> Self {
        Self::with_capacity(MAX_FLOWS)
    }
}

impl FlowTable {
    /// A table for at most `capacity` flows.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { flows: HashMap::new(), capacity: capacity.max(1) }
    }

    /// Number of flows remembered, ended ones included until their place is needed.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether no flow is remembered.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Notes a packet sent from this side.
    pub fn outbound(&mut self, now: Instant, packet: &Packet) {
        let Some(key) = FlowKey::outbound(packet) else { return };
        let opening = matches!(packet.upper, Upper::Tcp { flags, .. } if flags & tcp::SYN != 0);
        let known = self.flows.get(&key).copied().filter(|flow| flow.expires > now && !opening);
        let mut flow = known.unwrap_or(Flow { expires: now, closing: false, answered: false });
        flow.refresh(now, packet);
        if !self.flows.contains_key(&key) && self.flows.len() >= self.capacity {
            self.make_room(now);
        }
        self.flows.insert(key, flow);
    }

    /// Whether a packet from the peer answers a flow. `bytes` is the packet itself, for the quotation in ICMP errors.
    pub fn answers(&mut self, now: Instant, packet: &Packet, bytes: &[u8]) -> bool {
        if packet.is_icmp_error() {
            return self.quotes_a_flow(now, packet, bytes);
        }
        let Some(key) = FlowKey::inbound(packet) else { return false };
        let Some(flow) = self.flows.get_mut(&key).filter(|flow| flow.expires > now) else { return false };
        flow.answered = true;
        flow.refresh(now, packet);
        if let Some(fragment) = packet.fragment.filter(|fragment| fragment.offset == 0) {
            self.remember_fragments(now, key, fragment.id);
        }
        true
    }

    fn quotes_a_flow(&self, now: Instant, packet: &Packet, bytes: &[u8]) -> bool {
        let quoted = bytes.get(packet.l4 + 8..packet.length).and_then(|q| Packet::parse_quoted(q).ok());
        quoted
            .filter(|quoted| quoted.source == packet.destination)
            .and_then(|quoted| FlowKey::outbound(&quoted))
            .and_then(|key| self.flows.get(&key))
            .is_some_and(|flow| flow.expires > now)
    }

    fn remember_fragments(&mut self, now: Instant, key: FlowKey, id: u32) {
        if self.flows.len() >= self.capacity {
            self.make_room(now);
        }
        let key = FlowKey { kind: FlowKind::Fragments(id), ..key };
        let flow = Flow { expires: now + OTHER_TIMEOUT, closing: false, answered: true };
        self.flows.insert(key, flow);
    }

    fn make_room(&mut self, now: Instant) {
        self.flows.retain(|_, flow| flow.expires > now);
        if self.flows.len() < self.capacity {
            return;
        }
        // A sixteenth at a time, so that the search is paid once for many flows.
        let mut ends: Vec<Instant> = self.flows.values().map(|flow| flow.expires).collect();
        let victims = (self.capacity / 16).max(1);
        let (_, limit, _) = ends.select_nth_unstable(victims - 1);
        let (limit, mut left) = (*limit, victims);
        self.flows.retain(|_, flow| {
            let evict = left > 0 && flow.expires <= limit;
            left -= usize::from(evict);
            !evict
        });
    }
}

impl Flow {
    fn refresh(&mut self, now: Instant, packet: &Packet) {
        let timeout = match (packet.protocol, packet.upper) {
            (protocol::TCP, Upper::Tcp { flags, .. }) => {
                self.closing |= flags & (tcp::FIN | tcp::RST) != 0;
                if self.closing || !self.answered { TCP_TRANSITORY_TIMEOUT } else { TCP_TIMEOUT }
            }
            (protocol::UDP, _) => UDP_TIMEOUT,
            _ => OTHER_TIMEOUT,
        };
        self.expires = now + timeout;
    }
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;
