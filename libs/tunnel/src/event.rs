//! What a tunnel tells its owner.

use std::{fmt, io, net::SocketAddr};

use quinn_proto::VarInt;

use crate::SessionId;

/// Something the owner may want to act on. Delivered on the tunnel's own thread: handle it quickly, and never call
/// [`TunnelHandle::stats`](crate::TunnelHandle::stats) from there.
#[derive(Debug)]
pub enum TunnelEvent {
    /// A session was not taken.
    SessionRefused {
        /// Which session.
        id: SessionId,
        /// Why.
        reason: String,
    },
    /// A session has a connection: both ends have proved who they are.
    SessionUp {
        /// Which session.
        id: SessionId,
        /// Address of the peer.
        remote: SocketAddr,
        /// Largest IP packet that fits one datagram now, in bytes.
        mtu: usize,
        /// The connection took the place of an older one of the same session.
        replaced: bool,
    },
    /// A session lost its connection. A dialling session tries again by itself.
    SessionDown {
        /// Which session.
        id: SessionId,
        /// Why.
        reason: DownReason,
    },
    /// An attempt to dial failed. Others follow by themselves.
    AttemptFailed {
        /// Which session.
        id: SessionId,
        /// Address that was tried.
        remote: SocketAddr,
        /// Why.
        reason: DownReason,
    },
    /// The peer's address or the path's MTU changed.
    PathChanged {
        /// Which session.
        id: SessionId,
        /// Address of the peer.
        remote: SocketAddr,
        /// Largest IP packet that fits one datagram now, in bytes.
        mtu: usize,
    },
    /// The TUN device is gone, for example deleted by hand. Create it again and attach it.
    TunLost {
        /// What the system said.
        error: io::Error,
    },
    /// A peer did what it may not. Reported at a limited rate; every packet is counted.
    Violation {
        /// Which session.
        session: SessionId,
        /// What it did.
        kind: ViolationKind,
    },
    /// A controller's dial-back probe arrived. Anybody can send one: only the nonce says whether it was awaited, and
    /// ten a second are reported.
    Probe {
        /// What the probe carries.
        nonce: [u8; 16],
        /// Where it came from.
        from: SocketAddr,
    },
}

/// What a peer may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ViolationKind {
    /// It used a source address that is not its own.
    SpoofedSource,
    /// It named a network it is not attached to.
    WrongNetwork,
    /// It sent to a destination that its rules do not allow.
    ForbiddenDestination,
    /// It opened a flow toward an end that accepts answers only.
    UnsolicitedInbound,
    /// It knew the session's secret and could not prove the session's key.
    WrongKey,
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DownReason {
    /// The peer closed it.
    #[error("closed by the peer: {code}: {text}")]
    ClosedByPeer {
        /// What kind of end.
        code: CloseCode,
        /// The peer's words.
        text: String,
    },
    /// Nothing was heard from the peer for too long.
    #[error("the peer did not answer in time")]
    TimedOut,
    /// The peer does not know the connection, usually because it was restarted.
    #[error("the peer was restarted")]
    Reset,
    /// The session was removed or changed at this end.
    #[error("ended at this end")]
    Local,
    /// The peer could not prove its key, or refused ours.
    #[error("authentication failed: {0}")]
    Authentication(String),
    /// QUIC failed otherwise.
    #[error("{0}")]
    Transport(String),
}

/// Application error codes of a QUIC close, as both ends use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// The end stops and may come back.
    ShuttingDown,
    /// The session is over.
    SessionEnded,
    /// A newer connection of the same session took over.
    Replaced,
    /// Another attempt of the same round was faster.
    Unneeded,
    /// A code that this version does not know.
    Other(u64),
}

impl CloseCode {
    pub(crate) fn to_varint(self) -> VarInt {
        VarInt::from_u32(match self {
            Self::ShuttingDown => 0,
            Self::SessionEnded => 1,
            Self::Replaced => 2,
            Self::Unneeded => 3,
            Self::Other(code) => return VarInt::from_u64(code).unwrap_or(VarInt::MAX),
        })
    }

    pub(crate) fn from_varint(code: VarInt) -> Self {
        match code.into_inner() {
            0 => Self::ShuttingDown,
            1 => Self::SessionEnded,
            2 => Self::Replaced,
            3 => Self::Unneeded,
            code => Self::Other(code),
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShuttingDown => f.write_str("shutting down"),
            Self::SessionEnded => f.write_str("session ended"),
            Self::Replaced => f.write_str("replaced"),
            Self::Unneeded => f.write_str("not needed"),
            Self::Other(code) => write!(f, "code {code}"),
        }
    }
}
