//! Horizon's data plane: IP packets of a TUN device in QUIC datagrams, for many sessions in one thread.
//!
//! A [`Tunnel`] owns a thread with a poll loop over one UDP socket, one TUN device and a wake-up. It has no async
//! runtime and does nothing while nothing happens. Its owner speaks to it through a [`TunnelHandle`] and hears from it
//! through [`TunnelEvent`]s. What a packet is and where it goes is decided by `horizon-tunnel-core`; this crate does
//! the reading, the writing and QUIC.
//!
//! Both ends of a session prove their Ed25519 keys in TLS 1.3 with raw public keys (RFC 7250), and the first packet
//! names the session with a connection id under the session's secret, so that unknown packets are dropped unread.

mod config;
mod driver;
mod event;
mod handle;
mod socket;
mod stats;
mod tls;
mod transport;
mod tun;

pub use config::{ConfigError, Role, SessionConfig, TransportSettings, TunnelConfig, TunnelLimits};
pub use event::{CloseCode, DownReason, TunnelEvent, ViolationKind};
pub use handle::{StartError, Stopped, Tunnel, TunnelHandle, UpsertError};
pub use horizon_tls::{Identity, IdentityError};
pub use horizon_tunnel_core::{
    ids::{NetworkId, Secret32, SessionId},
    rules::{DestinationRule, DestinationRules, PortRange, RuleProtocol, RulesError},
    session::{
        Attachment, Counters, Delivery, DropCounters, DropReason, Inbound, NetworkConfig, RateLimit,
        SessionLimits,
    },
};
pub use stats::{GlobalCounters, PathSnapshot, SessionSnapshot, Snapshot};
pub use tun::{TunDevice, TunError};
