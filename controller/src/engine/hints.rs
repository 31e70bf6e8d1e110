//! Hints, taken in by a task that waits for nothing else, and kept together until the engine has time for them: while
//! thousands of appliances come back, more are said than it could look at one by one.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use horizon_model::ServerId;
use tokio::sync::{
    Notify,
    broadcast::{Receiver, error::RecvError},
};
use uuid::Uuid;

use crate::{live::Hint, store::Revision};

/// The most resources that are kept apart; beyond that everything is looked at.
const MOST: usize = 1_000_000;

/// What was heard since the engine last looked.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Everything may have changed, or hints were lost.
    pub(super) everything: bool,
    /// The newest revision that there is.
    pub(super) revision: Option<Revision>,
    /// Whose status may read differently.
    pub(super) dirty: HashSet<Uuid>,
    /// What became of servers, the last that was heard of each.
    pub(super) servers: HashMap<ServerId, Became>,
}

/// What became of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Became {
    /// It is to be told something.
    Behind,
    /// It applied a state.
    Applied,
}

impl Heard {
    fn add(&mut self, hint: &Result<Hint, RecvError>) {
        match *hint {
            Ok(Hint::ResourcesChanged(revision)) => {
                self.revision = Some(self.revision.map_or(revision, |known| known.max(revision)));
            }
            Ok(Hint::StatusDirty(uid)) => drop(self.dirty.insert(uid)),
            Ok(Hint::PresenceChanged { server }) => drop(self.dirty.insert(server.0)),
            Ok(Hint::ServerChanged(server)) => drop(self.servers.insert(server, Became::Behind)),
            Ok(Hint::StateApplied { server, .. }) => drop(self.servers.insert(server, Became::Applied)),
            Ok(Hint::Everything) | Err(RecvError::Lagged(_)) => self.everything = true,
            // The others are for channels.
            Ok(_) | Err(RecvError::Closed) => {}
        }
        if self.dirty.len() + self.servers.len() > MOST {
            *self = Self { everything: true, revision: self.revision, ..Self::default() };
        }
    }
}

/// Where they are kept.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    heard: Mutex<Heard>,
    bell: Notify,
}

impl Inbox {
    /// Waits for something. Cancel safe.
    pub(super) async fn next(&self) -> Heard {
        self.bell.notified().await;
        // Each change is one step, so what is kept is whole whatever thread panics.
        mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn put(&self, hint: &Result<Hint, RecvError>) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).add(hint);
        self.bell.notify_one();
    }
}

/// Listens until the live layer is gone.
pub(super) async fn listen(mut hints: Receiver<Hint>, inbox: Arc<Inbox>) {
    loop {
        match hints.recv().await {
            Err(RecvError::Closed) => return,
            hint => inbox.put(&hint),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn many_hints_about_one_thing_are_one_and_the_last_about_a_server_counts() {
        let inbox = Inbox::default();
        assert!(inbox.next().now_or_never().is_none());
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        for revision in [3, 7, 5] {
            inbox.put(&Ok(Hint::ResourcesChanged(Revision(revision))));
            inbox.put(&Ok(Hint::StatusDirty(one)));
        }
        inbox.put(&Ok(Hint::PresenceChanged { server: ServerId(other) }));
        inbox.put(&Ok(Hint::StateApplied { server: ServerId(one), generation: 1 }));
        inbox.put(&Ok(Hint::ServerChanged(ServerId(one))));
        let heard = inbox.next().now_or_never().unwrap();
        assert_eq!((heard.everything, heard.revision), (false, Some(Revision(7))));
        assert_eq!(heard.dirty, [one, other].into());
        assert_eq!(heard.servers, [(ServerId(one), Became::Behind)].into());
        assert!(inbox.next().now_or_never().is_none());
        inbox.put(&Err(RecvError::Lagged(1)));
        assert!(inbox.next().now_or_never().unwrap().everything);
    }
}
