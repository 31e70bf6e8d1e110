//! What goes in and out of the state machine.

use std::{net::SocketAddr, time::Duration};

use horizon_model::{SessionConflict, SessionId, Ticket};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
#[cfg(doc)]
use crate::session::Machine;

/// Where the session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// No session, and the host is as it was.
    Disconnected,
    /// A personal key is being exchanged.
    Enrolling,
    /// The controller is being asked.
    Requesting,
    /// The session is granted; the host is being changed and the server dialled.
    Connecting,
    /// Packets flow.
    Connected,
    /// The session is granted but no path works at the moment. Nothing leaves outside the tunnel meanwhile.
    Reconnecting,
    /// The host is being put back.
    Disconnecting,
    /// The last attempt or session ended with a failure; the host is as it was.
    Failed,
}

/// What the user wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The server's name.
    pub server: String,
    /// The session that may be ended for this one.
    pub take_over: Option<SessionId>,
    /// Reverts the connection unless it is confirmed within this time.
    pub confirm_within: Option<Duration>,
    /// Whether another server is asked for when this one stays away.
    pub failover: WishedFailover,
}

/// Whether a user wants another server when the one in use stays away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WishedFailover {
    /// They do not say so.
    #[default]
    No,
    /// They like it where it is allowed.
    Liked,
    /// They ask for it: a session that may not is none they want.
    Asked,
}

/// A session that moved to another server by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Moved {
    /// The server it was on.
    pub from: String,
    /// Why it left.
    pub reason: String,
}

/// The controller's answer to a request for a session.
#[derive(Debug)]
pub enum Answer {
    /// Granted.
    Granted(Box<Ticket>),
    /// Another device holds the session.
    Conflict(SessionConflict),
    /// Refused, or not answered at all.
    Failed(Failure),
}

/// What the shell is asked to do.
#[derive(Debug)]
pub enum Effect {
    /// Ask the controller for a session, and answer with [`Machine::handle_answer`].
    Request {
        /// To be given back with the answer.
        attempt: u64,
        /// The server's name.
        server: String,
        /// The session that may be ended for this one.
        take_over: Option<SessionId>,
    },
    /// Find a server in the place of one that stays away: another one that is available and offers as much. Answered by
    /// [`Machine::handle_found`].
    Find {
        /// To be given back with the answer.
        attempt: u64,
        /// The server that stays away.
        instead_of: String,
    },
    /// Change the host and dial the server. Answered by [`Machine::handle_host`], and by [`Machine::handle_path`]
    /// whenever the tunnel's connection comes or goes.
    Start(Box<Ticket>),
    /// Dial the server of a fresh ticket, which may be another one; the host stays as it is but for what the ticket changes,
    /// and nothing leaves beside the tunnel meanwhile.
    Renew(Box<Ticket>),
    /// Undo what [`Effect::Start`] did, as far as it came. Answered by [`Machine::handle_stopped`].
    Stop,
    /// Tell the controller that a session is over. Not answered.
    End(SessionId),
}

/// What the shell may tell those who wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Another phase was reached.
    Phase(Phase),
    /// The wish for another server was not granted; the session in use goes on.
    Declined(Failure),
}

/// The path that carries the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The server's address.
    pub remote: SocketAddr,
}
