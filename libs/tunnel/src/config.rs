//! What the owner of a tunnel configures.

use std::{
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

use horizon_tls::Identity;
use horizon_tunnel_core::session::{Attachment, MAX_ATTACHMENTS, SessionLimits};

use crate::{Secret32, SessionId};

/// Most addresses a session can dial.
pub(crate) const MAX_DIAL_ADDRESSES: usize = 16;

/// Configuration of a tunnel, fixed for its life.
#[derive(Clone, Debug)]
pub struct TunnelConfig {
    /// This end's key pair.
    pub identity: Identity,
    /// Where to listen. Port 0 lets the system choose; the unspecified IPv6 address serves IPv4 too where possible.
    pub listen: SocketAddr,
    /// Mark on outgoing packets, so that routing rules can keep them out of the tunnel itself. Needs `CAP_NET_ADMIN`.
    pub fwmark: Option<u32>,
    /// QUIC's settings.
    pub transport: TransportSettings,
    /// Memory.
    pub limits: TunnelLimits,
}

impl TunnelConfig {
    /// A configuration with defaults: any address, a port chosen by the system.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            listen: (Ipv6Addr::UNSPECIFIED, 0).into(),
            fwmark: None,
            transport: TransportSettings::default(),
            limits: TunnelLimits::default(),
        }
    }
}

/// QUIC's settings.
#[derive(Clone, Copy, Debug)]
pub struct TransportSettings {
    /// A packet is sent when nothing was for this long, so that NATs keep the path.
    pub keep_alive: Duration,
    /// A connection is given up when nothing was received for this long. The shorter one of both ends holds.
    pub idle_timeout: Duration,
    /// Largest UDP payload that path MTU discovery tries: 1472 fills an Ethernet frame on IPv4. Range 1200..=65527.
    pub max_udp_payload: u16,
}

impl Default for TransportSettings {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            max_udp_payload: 1472,
        }
    }
}

/// Bounds on memory.
#[derive(Clone, Copy, Debug)]
pub struct TunnelLimits {
    /// Sessions at a time.
    pub sessions: usize,
    /// Bytes that may wait for one session.
    pub session_queue: usize,
    /// Bytes that may wait for all sessions together.
    pub total_queue: usize,
}

impl Default for TunnelLimits {
    fn default() -> Self {
        Self { sessions: 4096, session_queue: 1 << 20, total_queue: 64 << 20 }
    }
}

/// One session. Configuring a session again changes it in place: its connection lasts unless secret, peer key or the
/// kind of role differ.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// The session's name.
    pub id: SessionId,
    /// Keys the first connection id; known to both ends.
    pub secret: Secret32,
    /// The Ed25519 public key that the peer must prove.
    pub peer_key: [u8; 32],
    /// Which end dials.
    pub role: Role,
    /// The networks it carries.
    pub attachments: Vec<Attachment>,
    /// Rate limits.
    pub limits: SessionLimits,
}

/// Which end of a session dials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The peer dials.
    Accept,
    /// This end dials, all addresses staggered, again and again.
    Dial {
        /// Where the peer can be reached.
        addresses: Vec<SocketAddr>,
    },
}

/// Why a session or a setting was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// More networks than a session can carry.
    #[error("session has {0} networks, more than the {MAX_ATTACHMENTS} allowed")]
    TooManyAttachments(usize),
    /// One network twice.
    #[error("session names network {0} twice")]
    DuplicateNetwork(crate::NetworkId),
    /// More addresses than are tried.
    #[error("session has {0} addresses to dial, more than the {MAX_DIAL_ADDRESSES} allowed")]
    TooManyAddresses(usize),
}

impl SessionConfig {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.attachments.len() > MAX_ATTACHMENTS {
            return Err(ConfigError::TooManyAttachments(self.attachments.len()));
        }
        for (index, attachment) in self.attachments.iter().enumerate() {
            if self.attachments[..index].iter().any(|other| other.network == attachment.network) {
                return Err(ConfigError::DuplicateNetwork(attachment.network));
            }
        }
        match &self.role {
            Role::Dial { addresses } if addresses.len() > MAX_DIAL_ADDRESSES => {
                Err(ConfigError::TooManyAddresses(addresses.len()))
            }
            _ => Ok(()),
        }
    }
}
