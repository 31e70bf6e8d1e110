//! What a tunnel has counted.

use std::{net::SocketAddr, time::Duration};

use crate::{Counters, DropCounters, SessionId};

/// A look at a tunnel at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Its sessions.
    pub sessions: Vec<SessionSnapshot>,
    /// What belongs to no session.
    pub global: GlobalCounters,
    /// Whether a TUN device is attached.
    pub tun_attached: bool,
}

/// One session.
#[derive(Clone, Debug)]
pub struct SessionSnapshot {
    /// Its name.
    pub id: SessionId,
    /// What it carried and dropped, over all its connections.
    pub counters: Counters,
    /// Packets that wait for its connection.
    pub queued_packets: usize,
    /// Its connection, if it has one.
    pub path: Option<PathSnapshot>,
}

/// The connection of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathSnapshot {
    /// Address of the peer.
    pub remote: SocketAddr,
    /// Round-trip time.
    pub rtt: Duration,
    /// Largest IP packet that fits one datagram, in bytes.
    pub mtu: usize,
    /// QUIC packets sent.
    pub sent_packets: u64,
    /// QUIC packets found lost.
    pub lost_packets: u64,
    /// Congestion window, in bytes.
    pub congestion_window: u64,
}

/// Counters of the whole tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GlobalCounters {
    /// UDP payloads dropped before any cryptography: they belong to no session and no connection.
    pub foreign_payloads: u64,
    /// First packets of known sessions whose sender was asked to prove its address, because many handshakes were under
    /// way.
    pub address_proofs: u64,
    /// First packets of known sessions that were ignored because too many handshakes were under way.
    pub refused_handshakes: u64,
    /// Reads from the TUN device, a super-packet counting once.
    pub tun_reads: u64,
    /// Writes to the TUN device, a super-packet counting once.
    pub tun_writes: u64,
    /// Packets from the TUN device dropped before they belonged to a session, and writes it refused.
    pub drops: DropCounters,
    /// Bytes waiting in all queues.
    pub queued_bytes: usize,
}
