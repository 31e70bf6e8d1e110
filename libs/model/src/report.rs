//! Observed state: what an appliance says it reached.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{Digest, EntryId, SessionId};

/// Why an entry is not in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProblemCode {
    /// The entry needs a feature this version does not have.
    UnknownFeature,
    /// The entry cannot be read or contradicts itself.
    Invalid,
    /// The system refused an action.
    System,
}

/// An entry that is not in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryProblem {
    /// Which entry.
    pub entry: EntryId,
    /// Why, as a category.
    pub code: ProblemCode,
    /// Why, in a sentence.
    pub message: String,
}

/// What a session carried since it was admitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionUsage {
    /// Which session.
    pub session: SessionId,
    /// Whether a connection carries it now.
    pub connected: bool,
    /// Where the peer is seen, while connected.
    pub remote: Option<SocketAddr>,
    /// Bytes toward the peer.
    pub bytes_sent: u64,
    /// Bytes from the peer.
    pub bytes_received: u64,
    /// Round-trip time in microseconds, 0 when unknown.
    pub rtt_micros: u64,
}

/// What a peer did that it may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ViolationKind {
    /// A packet under an address that is not the session's.
    SpoofedSource,
    /// A packet for a network the session does not hold.
    WrongNetwork,
    /// A packet to a destination no rule allows.
    ForbiddenDestination,
    /// A packet that answers nothing.
    UnsolicitedInbound,
    /// Bytes that are no packet.
    Malformed,
}

impl ViolationKind {
    /// The name events carry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SpoofedSource => "spoofed_source",
            Self::WrongNetwork => "wrong_network",
            Self::ForbiddenDestination => "forbidden_destination",
            Self::UnsolicitedInbound => "unsolicited_inbound",
            Self::Malformed => "malformed_packet",
        }
    }
}

/// Violations of one kind by one session since the last report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Violation {
    /// Whose.
    pub session: SessionId,
    /// What.
    pub kind: ViolationKind,
    /// How often.
    pub count: u64,
}

/// What an appliance says it reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplianceReport {
    /// The generation of the state that was applied; 0 before the first.
    pub generation: u64,
    /// The digest of that state.
    pub digest: Option<Digest>,
    /// Entries that are not in force.
    pub problems: Vec<EntryProblem>,
    /// The sessions.
    pub sessions: Vec<SessionUsage>,
    /// Violations since the last report.
    pub violations: Vec<Violation>,
    /// Where clients can reach the tunnel, best first.
    pub addresses: Vec<SocketAddr>,
}
