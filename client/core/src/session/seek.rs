//! The search for another server when the one in use stays away.

use std::time::Instant;

use horizon_model::{Failover, Ticket};

use super::{
    Answer, Effect, FAILOVER_AFTER, FAILOVER_EVERY, Live, Machine, Moved, REQUEST_TIMEOUT, State, Wish,
    WishedFailover,
};
use crate::failure::{Failure, FailureKind};

/// The search for another server while the path to the one in use is lost.
#[derive(Debug)]
pub(super) enum Seek {
    At(Instant),
    Finding { attempt: u64, deadline: Instant },
    Asked { attempt: u64, server: String, deadline: Instant },
}

impl Machine {
    /// A server was found in the place of one that stays away, or none.
    pub fn handle_found(&mut self, now: Instant, attempt: u64, server: Option<String>) {
        if !matches!(self.seek, Some(Seek::Finding { attempt: asked, .. }) if asked == attempt) {
            return;
        }
        let reconnecting = matches!(self.state, State::Reconnecting { .. });
        self.seek = match server {
            Some(server) if reconnecting => {
                self.attempts += 1;
                let attempt = self.attempts;
                self.effects.push_back(Effect::Request { attempt, server: server.clone(), take_over: None });
                Some(Seek::Asked { attempt, server, deadline: now + REQUEST_TIMEOUT })
            }
            _ => reconnecting.then_some(Seek::At(now + FAILOVER_EVERY)),
        };
    }

    /// The controller answered the request for another server.
    pub(super) fn moved_on(&mut self, now: Instant, server: String, answer: Answer) {
        match answer {
            Answer::Granted(ticket) => {
                let Some(live) = self.live_mut() else {
                    self.effects.push_back(Effect::End(ticket.session));
                    return;
                };
                let why = live.trouble.take().unwrap_or_else(|| "it did not answer".to_owned());
                let from = std::mem::replace(&mut live.wish.server, server);
                live.moved = Some(Moved { from, reason: why });
                live.session = ticket.session;
                live.failover = ticket.failover;
                live.path = None;
                let seeks = live.seeks();
                self.effects.push_back(Effect::Renew(ticket));
                // That one may stay away too.
                self.seek = seeks.then_some(Seek::At(now + FAILOVER_AFTER));
                self.settle(now);
            }
            Answer::Conflict(conflict) => self.stop(Some(Failure::conflict(conflict)), None, None),
            Answer::Failed(_) => {
                if matches!(self.state, State::Reconnecting { .. }) {
                    self.seek = Some(Seek::At(now + FAILOVER_EVERY));
                }
            }
        }
    }

    /// Time passed for the search for another server.
    pub(super) fn seek_on(&mut self, now: Instant) {
        match &self.seek {
            Some(Seek::At(at)) if *at <= now => {
                let Some(instead_of) = self.server().map(str::to_owned) else { return };
                self.attempts += 1;
                let attempt = self.attempts;
                self.effects.push_back(Effect::Find { attempt, instead_of });
                self.seek = Some(Seek::Finding { attempt, deadline: now + REQUEST_TIMEOUT });
            }
            Some(Seek::Finding { deadline, .. } | Seek::Asked { deadline, .. }) if *deadline <= now => {
                let reconnecting = matches!(self.state, State::Reconnecting { .. });
                self.seek = reconnecting.then_some(Seek::At(now + FAILOVER_EVERY));
            }
            _ => {}
        }
    }
}

impl Live {
    /// Whether another server is looked for when this one stays away: the organisation's word comes before the user's.
    pub(super) fn seeks(&self) -> bool {
        match self.failover {
            Failover::Never => false,
            Failover::Required => true,
            Failover::Allowed => self.wish.failover != WishedFailover::No,
        }
    }
}

/// Why a session is not what was asked for: it may not move, and who asked wants one that does.
pub(super) fn forbidden(wish: &Wish, ticket: &Ticket) -> Option<Failure> {
    let refused = wish.failover == WishedFailover::Asked && ticket.failover == Failover::Never;
    refused.then(|| {
        Failure::new(
            FailureKind::Refused,
            format!("a policy of your organisation forbids failover from {} to another server", wish.server),
            "connect without --failover: the session then waits for its server",
        )
    })
}
