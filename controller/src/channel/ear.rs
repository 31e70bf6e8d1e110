//! The ear: hears hints, those of this replica and those of others, and passes each on to the task it concerns. It never waits
//! for anything else, so that it falls behind only when the machine does.

use std::{
    collections::BTreeSet,
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use horizon_model::ServerId;
use tokio::{
    sync::{
        Notify,
        broadcast::{
            Receiver,
            error::{RecvError, TryRecvError},
        },
    },
    time::Instant,
};

use super::{Context, questions::Asker, registry::EndNote};
use crate::{live::Hint, store::Revision};

/// How long after the resources changed all hints about it have been given.
const SETTLED: Duration = Duration::from_secs(2);

/// What hints ask of the keeper.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Whose sessions are looked at.
    pub(super) servers: BTreeSet<ServerId>,
    /// Hints were lost: every server is looked at that has sessions.
    pub(super) everything: bool,
    /// Hints about resources may have been lost: every appliance is looked at.
    pub(super) appliances: bool,
}

/// Work that waits for the keeper.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    work: Mutex<Work>,
    bell: Notify,
}

impl Inbox {
    fn put(&self, what: impl FnOnce(&mut Work)) {
        // Each change is one step, so the work is whole whatever thread panics.
        what(&mut self.work.lock().unwrap_or_else(PoisonError::into_inner));
        self.bell.notify_one();
    }

    /// Waits for work. Cancel safe.
    pub(super) async fn next(&self) -> Work {
        self.bell.notified().await;
        mem::take(&mut *self.work.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Work {
    /// Adds what could not be carried out.
    pub(super) fn add(&mut self, other: Self) {
        self.servers.extend(other.servers);
        self.everything |= other.everything;
        self.appliances |= other.appliances;
    }
}

/// The newest resources about which every hint was heard.
struct Heard {
    in_force: Revision,
    since: Instant,
    all: Option<Revision>,
}

/// Listens until the live layer is gone.
pub(super) async fn run(context: Arc<Context>, mut hints: Receiver<Hint>) {
    let mut heard = Heard { in_force: context.desired.in_force().1, since: Instant::now(), all: None };
    loop {
        let hint = match hints.try_recv() {
            Ok(hint) => Ok(hint),
            Err(TryRecvError::Empty) => {
                heard.caught_up(context.desired.in_force().1, Instant::now());
                hints.recv().await
            }
            Err(TryRecvError::Lagged(missed)) => Err(RecvError::Lagged(missed)),
            Err(TryRecvError::Closed) => Err(RecvError::Closed),
        };
        match hint {
            Ok(Hint::Everything) => context.lost(&heard),
            Ok(hint) => context.pass_on(hint),
            Err(RecvError::Lagged(missed)) => {
                tracing::info!(missed, "hints were lost; what they were about is looked for");
                context.lost(&heard);
            }
            Err(RecvError::Closed) => return,
        }
    }
}

impl Heard {
    /// No hint waits. Those about resources that just came into force may still come.
    fn caught_up(&mut self, in_force: Revision, now: Instant) {
        if in_force != self.in_force {
            (self.in_force, self.since) = (in_force, now);
        } else if now.duration_since(self.since) >= SETTLED {
            self.all = Some(in_force);
        }
    }
}

impl Context {
    fn pass_on(&self, hint: Hint) {
        match hint {
            Hint::ServerChanged(server) => {
                self.registry.wake(server);
                self.inbox.put(|work| {
                    work.servers.insert(server);
                });
            }
            Hint::SessionEnded { session, device, reason } => {
                self.registry.tell_device(device, &EndNote { session, reason });
            }
            Hint::CheckSession { session, device } => self.registry.check_session(device, session),
            Hint::MakeWay { server, lease } => self.registry.evict_older(server, lease),
            Hint::ProveAlive { server, lease, question } => {
                self.registry.ask(server, lease, Asker::There(question));
            }
            Hint::Alive { question, proved, .. } => self.questions.answered(question, proved),
            Hint::StatusDirty(uid) => self.ring(Some(uid)),
            Hint::StateApplied { .. }
            | Hint::ResourcesChanged(_)
            | Hint::KeysetsChanged
            | Hint::PresenceChanged { .. }
            | Hint::BlocksChanged
            | Hint::Everything => {}
        }
    }

    /// Hints were lost. What sessions and approvals changed is found in the store; what resources changed is not, so every
    /// appliance is looked at if any did.
    fn lost(&self, heard: &Heard) {
        let appliances = heard.all != Some(self.desired.in_force().1);
        self.ring(None);
        self.inbox.put(|work| {
            work.everything = true;
            work.appliances |= appliances;
        });
        self.sweep_now.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_heard_of_once_their_hints_had_time_to_come() {
        let start = Instant::now();
        let mut heard = Heard { in_force: Revision(1), since: start, all: None };
        heard.caught_up(Revision(1), start + SETTLED / 2);
        assert_eq!(heard.all, None);
        heard.caught_up(Revision(1), start + SETTLED);
        assert_eq!(heard.all, Some(Revision(1)));
        heard.caught_up(Revision(2), start + SETTLED);
        heard.caught_up(Revision(2), start + SETTLED * 3 / 2);
        assert_eq!(heard.all, Some(Revision(1)));
        heard.caught_up(Revision(2), start + SETTLED * 2);
        assert_eq!(heard.all, Some(Revision(2)));
    }
}
