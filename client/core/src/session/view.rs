//! What a session looks like from outside.

use std::time::Instant;

use horizon_model::{Failover, SessionId};

use super::{Machine, Moved, Path, Phase, State};
use crate::failure::Failure;

impl Machine {
    /// Where the session stands.
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::Idle(None) => Phase::Disconnected,
            State::Idle(Some(_)) => Phase::Failed,
            State::Enrolling { .. } => Phase::Enrolling,
            State::Requesting { .. } => Phase::Requesting,
            State::Connecting { .. } => Phase::Connecting,
            State::Connected { .. } => Phase::Connected,
            State::Reconnecting { .. } => Phase::Reconnecting,
            State::Stopping { .. } => Phase::Disconnecting,
        }
    }

    /// Why the last attempt or session ended, in [`Phase::Failed`] and while the host is being put back for it.
    pub fn failure(&self) -> Option<&Failure> {
        match &self.state {
            State::Idle(failure) | State::Stopping { failure, .. } => failure.as_ref(),
            _ => None,
        }
    }

    /// The server that is wished for or connected.
    pub fn server(&self) -> Option<&str> {
        match &self.state {
            State::Requesting { wish, .. } => Some(&wish.server),
            _ => self.live().map(|l| l.wish.server.as_str()),
        }
    }

    /// The granted session.
    pub fn session(&self) -> Option<SessionId> {
        self.live().map(|l| l.session)
    }

    /// When the session was granted.
    pub fn granted(&self) -> Option<Instant> {
        self.live().map(|l| l.granted)
    }

    /// When the connection is reverted unless confirmed.
    pub fn confirm_by(&self) -> Option<Instant> {
        self.live().and_then(|l| l.confirm_by)
    }

    /// From where the session moved by itself, if it did.
    pub fn moved(&self) -> Option<&Moved> {
        self.live().and_then(|l| l.moved.as_ref())
    }

    /// Whether the organisation lets the session move to another server by itself.
    pub fn failover(&self) -> Option<Failover> {
        self.live().map(|l| l.failover)
    }

    /// The path in use, while one works.
    pub fn path(&self) -> Option<Path> {
        self.live().and_then(|l| l.path)
    }

    /// How long no path has worked, while reconnecting.
    pub fn pathless_since(&self) -> Option<Instant> {
        if let State::Reconnecting { since, .. } = &self.state { Some(*since) } else { None }
    }

    /// Whether a wish for another server waits for its answer while a session is in use.
    pub fn is_switching(&self) -> bool {
        self.switch.is_some()
    }
}
