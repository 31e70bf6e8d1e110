//! What the owner of a tunnel says about sessions and networks, and what is counted.

use ipnet::IpNet;

use crate::{ids::NetworkId, rules::DestinationRules};

/// Most attachments one session can have.
pub const MAX_ATTACHMENTS: usize = 64;

/// One network carried by a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The network's number, as written in datagram headers.
    pub network: NetworkId,
    /// Addresses the peer may use as a source in this network. They are also routed toward the peer.
    pub peer_addresses: Vec<IpNet>,
    /// Destinations that packets from the peer may reach in this network. An empty list allows nothing.
    pub from_peer: DestinationRules,
    /// Whether packets from the peer are accepted unasked.
    pub inbound: Inbound,
}

/// What is delivered of the packets that come from the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// Everything the destination rules allow.
    Any,
    /// Only answers to flows that were opened from this side, and ICMP errors that quote such a flow.
    AnswersOnly,
}

/// Where packets of a network go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// To and from the TUN device of this tunnel.
    Tun,
    /// Straight from session to session inside the loop, scoped to the network's number; never to the TUN device.
    Switch,
}

/// A network known to a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The network's number.
    pub id: NetworkId,
    /// Where its packets go.
    pub delivery: Delivery,
}

/// A limit on what one direction of a session may carry. Packets above it are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Sustained rate, bytes of IP packets per second.
    pub bytes_per_second: u64,
    /// Bytes that may pass at once after a pause; at least 128 KiB are granted.
    pub burst: u64,
}

/// Limits of a session; `None` means unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionLimits {
    /// Packets from the peer.
    pub from_peer: Option<RateLimit>,
    /// Packets toward the peer.
    pub to_peer: Option<RateLimit>,
}

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// Not a well-formed IP packet or datagram header.
    Malformed,
    /// The datagram names a network that this tunnel does not know or the session is not attached to.
    WrongNetwork,
    /// The source is not one of the peer's addresses.
    SpoofedSource,
    /// The destination rules do not allow it.
    Forbidden,
    /// It answers no flow opened from this side.
    Unsolicited,
    /// No session or device leads to the destination, or its addresses never leave a link (multicast, link-local).
    NoRoute,
    /// A rate limit was reached.
    RateLimited,
    /// The session's queue was full.
    QueueFull,
    /// The tunnel's memory for queues was full.
    MemoryFull,
    /// It was larger than the path allows; an ICMP message was sent when one was possible.
    TooBig,
    /// A tunnel fragment that did not fit with the others, or came when no more could be kept.
    Reassembly,
    /// The session has no connection.
    NotConnected,
    /// There is no TUN device, or it refused the packet.
    Tun,
}

impl DropReason {
    /// How many reasons there are.
    pub const COUNT: usize = 13;

    /// All reasons, in the order of [`DropCounters::by_reason`].
    pub const ALL: [Self; Self::COUNT] = [
        Self::Malformed,
        Self::WrongNetwork,
        Self::SpoofedSource,
        Self::Forbidden,
        Self::Unsolicited,
        Self::NoRoute,
        Self::RateLimited,
        Self::QueueFull,
        Self::MemoryFull,
        Self::TooBig,
        Self::Reassembly,
        Self::NotConnected,
        Self::Tun,
    ];

    /// A short name for metrics labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::WrongNetwork => "wrong_network",
            Self::SpoofedSource => "spoofed_source",
            Self::Forbidden => "forbidden",
            Self::Unsolicited => "unsolicited",
            Self::NoRoute => "no_route",
            Self::RateLimited => "rate_limited",
            Self::QueueFull => "queue_full",
            Self::MemoryFull => "memory_full",
            Self::TooBig => "too_big",
            Self::Reassembly => "reassembly",
            Self::NotConnected => "not_connected",
            Self::Tun => "tun",
        }
    }
}

/// Packets dropped, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropCounters([u64; DropReason::COUNT]);

impl DropCounters {
    /// Counts one packet.
    pub fn count(&mut self, reason: DropReason) {
        self.0[reason as usize] += 1;
    }

    /// Packets dropped for `reason`.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Every reason with its count.
    pub fn by_reason(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.into_iter().map(|reason| (reason, self.get(reason)))
    }
}

/// What one session carried: IP packets and their bytes, without the tunnel's own overhead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets accepted from the peer.
    pub packets_from_peer: u64,
    /// Their bytes.
    pub bytes_from_peer: u64,
    /// Packets handed to QUIC toward the peer.
    pub packets_to_peer: u64,
    /// Their bytes.
    pub bytes_to_peer: u64,
    /// Packets dropped.
    pub drops: DropCounters,
}
