//! Hints: that something changed, and where to look.

use std::sync::Arc;

use horizon_model::{DeviceId, ServerId, SessionId};
use uuid::Uuid;

use crate::store::{ChannelLease, Revision};

/// Something changed. Hints may be lost, doubled and overtaken by others: whoever gets one looks at the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// What is asked of a server may have changed: its resources, policies, or sessions.
    ServerChanged(ServerId),
    /// What is known about a resource changed, so its status may have.
    StatusDirty(Uuid),
    /// A session ended.
    SessionEnded {
        /// Which.
        session: SessionId,
        /// Its device, which is told.
        device: DeviceId,
        /// Why.
        reason: Arc<str>,
    },
    /// The device of a live session is to report of it at once.
    CheckSession {
        /// Which session.
        session: SessionId,
        /// Whose.
        device: DeviceId,
    },
    /// A server's appliance reported a state.
    StateApplied {
        /// Which server.
        server: ServerId,
        /// The generation it applied.
        generation: u64,
    },
    /// The resources are at this revision, or a newer one.
    ResourcesChanged(Revision),
    /// A server came or went at another replica. The live layer itself says so, once [`super::Live::presence`] knows.
    PresenceChanged {
        /// Which server.
        server: ServerId,
    },
    /// Another connection speaks for a server from now on.
    MakeWay {
        /// Which server.
        server: ServerId,
        /// The lease of the connection that does; those that hold an older one make way.
        lease: ChannelLease,
    },
    /// The connection that holds a lease is to have its appliance prove that it lives.
    ProveAlive {
        /// Which server.
        server: ServerId,
        /// The lease of the connection that is asked.
        lease: ChannelLease,
        /// Comes back in the answer.
        question: Uuid,
    },
    /// The answer to [`Self::ProveAlive`].
    Alive {
        /// Which server.
        server: ServerId,
        /// What was asked.
        question: Uuid,
        /// Whether the appliance proved it.
        proved: bool,
    },
    /// There is a newer KeySet, or a rotation of one is to begin.
    KeysetsChanged,
    /// Other addresses are blocked than before.
    BlocksChanged,
    /// Hints were lost on the way from other replicas: everything may have changed. To be treated as
    /// [`tokio::sync::broadcast::error::RecvError::Lagged`].
    Everything,
}
