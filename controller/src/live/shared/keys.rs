//! Every key and channel that is used in Redis, with the lifetime of what is there. All of it may be lost at any time.
//!
//! | key | what | lifetime |
//! |---|---|---|
//! | `presence:replicas` | set: the replicas that live | 15 s, renewed every 3 s |
//! | `presence:servers:{replica}` | hash: the servers whose appliance is connected there | the same |
//! | `presence:devices:{replica}` | set: the devices that are connected there | the same |
//! | `ratelimit:ip:{address}:{what}` | number: until when the right of an address is used up (µs) | the limit's window |
//! | `ratelimit:user:{account or device}` | the same of an account or a device at the REST API | the limit's window |
//! | `ratelimit:endpoint:{method path}` | the same of one endpoint of the REST API, from anybody | the limit's window |
//! | `blacklist:token:{token or session}` | its presence makes a token worthless | as long as the token could be valid |
//! | `failures:ip:{address}` | number: failures of an address to prove a secret | the lockout's window |
//! | `lockout:ip:{address}` | its presence locks an address out | the lockout's duration |
//! | `cache:{name}:{id}` | JSON: what the database said | the cache's |
//!
//! | channel | what |
//! |---|---|
//! | `system:events` | hints |
//! | `cache:invalidate` | what is cached and no longer right |

use std::{net::IpAddr, time::Duration};

use uuid::Uuid;

use crate::{live::Counted, store::ReplicaId};

/// The channel of hints.
pub(super) const EVENTS: &str = "system:events";
/// The channel that says what is cached and no longer right.
pub(super) const INVALIDATE: &str = "cache:invalidate";
/// For how long a presence is believed that is not renewed.
pub(super) const PRESENCE_LIFETIME: Duration = Duration::from_secs(15);

/// Writes keys and channels, with what they are all called before.
#[derive(Clone, Debug)]
pub(super) struct Keys(String);

impl Keys {
    pub(super) fn new(prefix: String) -> Self {
        Self(prefix)
    }

    pub(super) fn channel(&self, name: &str) -> String {
        format!("{}{name}", self.0)
    }

    pub(super) fn replicas(&self) -> String {
        format!("{}presence:replicas", self.0)
    }

    pub(super) fn servers(&self, replica: ReplicaId) -> String {
        format!("{}presence:servers:{replica}", self.0)
    }

    pub(super) fn devices(&self, replica: ReplicaId) -> String {
        format!("{}presence:devices:{replica}", self.0)
    }

    /// `None` for what is counted in each process alone.
    pub(super) fn limit(&self, what: &Counted) -> Option<String> {
        let (address, what) = match what {
            Counted::FirstPacket(_) => return None,
            Counted::RequestOf(id) => return Some(format!("{}ratelimit:user:{id}", self.0)),
            Counted::RequestTo(endpoint) => return Some(format!("{}ratelimit:endpoint:{endpoint}", self.0)),
            Counted::Request(address) => (address, "request"),
            Counted::SignIn(address) => (address, "sign-in"),
            Counted::Handshake(address) => (address, "handshake"),
            Counted::Registration(address) => (address, "registration"),
            Counted::Enrolment(address) => (address, "enrolment"),
        };
        Some(format!("{}ratelimit:ip:{address}:{what}", self.0))
    }

    pub(super) fn failures(&self, address: IpAddr) -> String {
        format!("{}failures:ip:{address}", self.0)
    }

    pub(super) fn dead_token(&self, token: Uuid) -> String {
        format!("{}blacklist:token:{token}", self.0)
    }

    pub(super) fn lockout(&self, address: IpAddr) -> String {
        format!("{}lockout:ip:{address}", self.0)
    }

    pub(super) fn cache(&self, name: &str, id: Uuid) -> String {
        format!("{}cache:{name}:{id}", self.0)
    }
}

/// A lifetime as Redis wants it: milliseconds, at least one.
pub(super) fn milliseconds(lifetime: Duration) -> u64 {
    u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX).max(1)
}
