//! The live layer: what changes by the second and is lost without harm. Who is online, hints that something changed, and
//! counters that limit rates. Hints carry no content and may be lost: whoever gets one looks at the store.

mod hint;
mod limit;
mod memory;
mod metrics;
pub mod shared;
#[cfg(test)]
pub(crate) mod testing;

pub use hint::Hint;
pub use limit::Limit;
pub use memory::InProcess;
pub use metrics::LiveMetrics;
pub use shared::Cache;

use std::{net::IpAddr, time::Duration};

use horizon_model::{DeviceId, Incarnation, ServerId};
use jiff::Timestamp;
use tokio::sync::broadcast;
use uuid::Uuid;

use crate::store::ChannelLease;

/// How many hints wait for a slow listener before the oldest are dropped; it then looks at everything.
pub const HINT_QUEUE: usize = 4096;

/// Whether a server's appliance is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Whether its channel is up.
    pub online: bool,
    /// Since when it is or is not.
    pub since: Timestamp,
    /// When something last came from it.
    pub last_seen: Timestamp,
    /// The start of the appliance's process.
    pub incarnation: Incarnation,
    /// The lease of its channel: a newer one always holds against an older one.
    pub lease: ChannelLease,
}

impl From<Presence> for horizon_controller_core::status::Presence {
    fn from(presence: Presence) -> Self {
        Self { connected: presence.online, since: presence.since }
    }
}

/// What is counted against a limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Counted {
    /// Connections from an address that may be forged.
    FirstPacket(IpAddr),
    /// Connections from an address that was proved.
    Handshake(IpAddr),
    /// Registrations from an address.
    Registration(IpAddr),
    /// Enrolments of devices from an address.
    Enrolment(IpAddr),
    /// Requests to the REST API from an address.
    Request(IpAddr),
    /// Attempts to sign in from an address.
    SignIn(IpAddr),
    /// Requests to the REST API of an account or a device.
    RequestOf(Uuid),
    /// Requests to one endpoint of the REST API, from anybody.
    RequestTo(&'static str),
}

impl Counted {
    /// The address, if one is counted.
    fn address(&self) -> Option<IpAddr> {
        match self {
            Self::FirstPacket(a) | Self::Handshake(a) | Self::Registration(a) | Self::Enrolment(a) => {
                Some(*a)
            }
            Self::Request(a) | Self::SignIn(a) => Some(*a),
            Self::RequestOf(_) | Self::RequestTo(_) => None,
        }
    }

    /// The same, with the address reduced to what one party holds: an IPv4 address, or the /64 of an IPv6 one.
    #[must_use]
    fn per_party(self) -> Self {
        match self {
            Self::FirstPacket(a) => Self::FirstPacket(party(a)),
            Self::Handshake(a) => Self::Handshake(party(a)),
            Self::Registration(a) => Self::Registration(party(a)),
            Self::Enrolment(a) => Self::Enrolment(party(a)),
            Self::Request(a) => Self::Request(party(a)),
            Self::SignIn(a) => Self::SignIn(party(a)),
            other @ (Self::RequestOf(_) | Self::RequestTo(_)) => other,
        }
    }
}

/// An address reduced to what one party holds.
pub(crate) fn party(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(four) => IpAddr::V4(four),
        IpAddr::V6(six) => {
            const LOWER_HALF: u128 = u64::MAX as u128;
            IpAddr::V6((u128::from(six) & !LOWER_HALF).into())
        }
    }
}

/// When failures to prove a secret lock an address out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lockout {
    /// How many failures.
    pub threshold: u32,
    /// Within which time.
    pub window: Duration,
    /// For how long the address is locked out then.
    pub duration: Duration,
}

/// How replicas hear of each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusHealth {
    /// By what: `redis` or `database`.
    pub by: &'static str,
    /// Whether hints arrive. What is lost is found by sweeps, later.
    pub up: bool,
    /// The same in words, for `status`.
    pub text: String,
}

/// The live layer. Nothing here waits: an implementation that shares its state with other controllers does so behind.
pub trait Live: Send + Sync + 'static {
    /// A server's channel is up. Ignored when a newer lease is known.
    fn server_online(&self, server: ServerId, incarnation: Incarnation, lease: ChannelLease, now: Timestamp);
    /// Something came from a server.
    fn server_seen(&self, server: ServerId, now: Timestamp);
    /// The channel that held a lease is down. One with a newer lease stays online.
    fn server_offline(&self, server: ServerId, lease: ChannelLease, now: Timestamp);
    /// Whether a server is there; `None` when it was not since the controller started.
    fn presence(&self, server: ServerId) -> Option<Presence>;
    /// How many servers are online.
    fn online_servers(&self) -> usize;
    /// A device's channel is up or down.
    fn device_online(&self, device: DeviceId, online: bool);
    /// Whether a device has a channel.
    fn is_device_online(&self, device: DeviceId) -> bool;
    /// Tells every listener, also those of other replicas.
    fn publish(&self, hint: Hint);
    /// Tells the listeners of this process alone.
    fn publish_here(&self, hint: Hint) {
        self.publish(hint);
    }
    /// A cache of what is shown to people. Without replicas it keeps nothing.
    fn cache(&self) -> Cache {
        Cache::default()
    }
    /// How replicas hear of each other; `None` where there is nobody else to hear of.
    fn bus_health(&self) -> Option<BusHealth> {
        None
    }
    /// Listens from now on.
    fn subscribe(&self) -> broadcast::Receiver<Hint>;
    /// Counts one, and says whether it is within the limit.
    fn allow(&self, what: Counted, limit: Limit, now: Timestamp) -> bool;
    /// Counts a failure of an address to prove a secret. Returns whether it is locked out by it.
    fn note_failure(&self, from: IpAddr, lockout: Lockout, now: Timestamp) -> bool;
    /// Until when an address is locked out.
    fn locked_out_until(&self, from: IpAddr, now: Timestamp) -> Option<Timestamp>;
    /// How many addresses are locked out.
    fn locked_out(&self, now: Timestamp) -> usize;
    /// A token, or a session with all its tokens, is dead before its time: at every replica, for so long. The database
    /// knows too, and has the last word.
    fn kill_token(&self, token: Uuid, left: Duration, now: Timestamp);
    /// Whether a token is known to be dead. One that is not may be: the database knows.
    fn is_token_dead(&self, token: Uuid, now: Timestamp) -> bool;
}
