//! The session as a state machine without input or output.
//!
//! The shell calls a `handle_*` method for everything that happens and then drains [`Machine::poll_effect`] and
//! [`Machine::poll_event`]; [`Machine::poll_timeout`] says when [`Machine::handle_timeout`] is due. Every effect but
//! [`Effect::End`] is answered by a `handle_*` call. Whatever happens, `handle_disconnect` leads back to
//! [`Phase::Disconnected`] as soon as the effects under way are answered.

mod seek;
mod types;
mod view;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use horizon_model::{Failover, SessionId, Ticket};

use crate::failure::{Failure, FailureKind};

use seek::{Seek, forbidden};
pub use types::{Answer, Effect, Event, Moved, Path, Phase, Wish, WishedFailover};

/// How long the controller may take to grant a session.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(25);
/// How long the first connection to the server may take before the attempt is given up.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a personal key may take to be accepted.
pub const ENROL_TIMEOUT: Duration = Duration::from_secs(40);
/// How long a lost path is left to the tunnel before the controller is asked for a fresh ticket.
pub const REFRESH_AFTER: Duration = Duration::from_secs(5);
/// Pause between two such questions.
pub const REFRESH_EVERY: Duration = Duration::from_secs(30);
/// How long a path may be lost before another server is looked for, where that is wanted. Sooner, when the controller says
/// that the server is away.
pub const FAILOVER_AFTER: Duration = Duration::from_secs(15);
/// Pause between two searches for another server.
pub const FAILOVER_EVERY: Duration = Duration::from_secs(15);

/// A session that was granted.
#[derive(Clone, Debug)]
struct Live {
    wish: Wish,
    session: SessionId,
    granted: Instant,
    host_ready: bool,
    path: Option<Path>,
    trouble: Option<String>,
    confirm_by: Option<Instant>,
    moved: Option<Moved>,
    failover: Failover,
}

#[derive(Debug)]
enum State {
    Idle(Option<Failure>),
    Enrolling { deadline: Instant },
    Requesting { wish: Wish, attempt: u64, deadline: Instant },
    Connecting { live: Live, deadline: Instant },
    Connected { live: Live },
    Reconnecting { live: Live, since: Instant, refresh: Refresh },
    Stopping { failure: Option<Failure>, next: Option<Next> },
}

/// What follows when the host has been put back.
#[derive(Debug)]
enum Next {
    Request(Wish),
    Start(Wish, Box<Ticket>),
}

/// A wish for another server while a session is in use.
#[derive(Debug)]
struct Switch {
    wish: Wish,
    attempt: u64,
    deadline: Instant,
}

#[derive(Clone, Copy, Debug)]
enum Refresh {
    At(Instant),
    Asked(u64, Instant),
}

impl Refresh {
    fn is_asked(&self, attempt: u64) -> bool {
        matches!(self, Self::Asked(current, _) if *current == attempt)
    }
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    state: State,
    /// Only while a session is in use.
    switch: Option<Switch>,
    /// Only while a path is lost, or an answer is under way.
    seek: Option<Seek>,
    attempts: u64,
    effects: VecDeque<Effect>,
    events: VecDeque<Event>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            state: State::Idle(None),
            switch: None,
            seek: None,
            attempts: 0,
            effects: VecDeque::new(),
            events: VecDeque::new(),
        }
    }
}

impl Machine {
    fn live(&self) -> Option<&Live> {
        match &self.state {
            State::Connecting { live, .. } | State::Connected { live } | State::Reconnecting { live, .. } => {
                Some(live)
            }
            _ => None,
        }
    }

    fn live_mut(&mut self) -> Option<&mut Live> {
        match &mut self.state {
            State::Connecting { live, .. } | State::Connected { live } | State::Reconnecting { live, .. } => {
                Some(live)
            }
            _ => None,
        }
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The next thing to tell.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let own = match &self.state {
            State::Enrolling { deadline }
            | State::Requesting { deadline, .. }
            | State::Connecting { deadline, .. } => Some(*deadline),
            State::Reconnecting { refresh: Refresh::At(at) | Refresh::Asked(_, at), .. } => Some(*at),
            State::Idle(_) | State::Connected { .. } | State::Stopping { .. } => None,
        };
        let seek = self.seek.as_ref().map(|seek| match seek {
            Seek::At(at) => *at,
            Seek::Finding { deadline, .. } | Seek::Asked { deadline, .. } => *deadline,
        });
        let switch = self.switch.as_ref().map(|s| s.deadline);
        own.into_iter().chain(self.confirm_by()).chain(switch).chain(seek).min()
    }

    /// A personal key is about to be exchanged. An error when a session is in the way.
    pub fn handle_enrol(&mut self, now: Instant) -> Result<(), Failure> {
        if !matches!(self.state, State::Idle(_)) {
            return Err(Failure::new(
                FailureKind::Usage,
                "a personal key cannot be added while a session is open",
                "end the session first: horizon disconnect",
            ));
        }
        self.enter(State::Enrolling { deadline: now + ENROL_TIMEOUT });
        Ok(())
    }

    /// The exchange is over, well or not.
    pub fn handle_enrolled(&mut self) {
        if matches!(self.state, State::Enrolling { .. }) {
            self.enter(State::Idle(None));
        }
    }

    /// The user wants a session. An error when the wish cannot be taken up now. A session that is in use is given up only
    /// once the other one is granted.
    pub fn handle_connect(&mut self, now: Instant, wish: Wish) -> Result<(), Failure> {
        match &mut self.state {
            State::Idle(_) => self.request(now, wish),
            State::Connecting { live, .. } | State::Connected { live } | State::Reconnecting { live, .. } => {
                if self.switch.is_some() {
                    return Err(under_way());
                }
                if live.wish.server != wish.server {
                    let attempt = self.ask(&wish);
                    self.switch = Some(Switch { wish, attempt, deadline: now + REQUEST_TIMEOUT });
                }
            }
            State::Stopping { failure, next } => {
                *failure = None;
                // What was granted and not yet begun is given back.
                if let Some(Next::Start(_, ticket)) = next.replace(Next::Request(wish)) {
                    self.effects.push_back(Effect::End(ticket.session));
                }
            }
            State::Enrolling { .. } | State::Requesting { .. } => return Err(under_way()),
        }
        Ok(())
    }

    /// A session that was granted before this process began is taken up again. When the server does not answer, the host
    /// is put back as after any other attempt: nobody who starts a machine is to find it cut off.
    pub fn handle_resume(&mut self, now: Instant, ticket: Ticket) {
        if matches!(self.state, State::Idle(_)) {
            let wish = Wish {
                server: ticket.server_name.clone(),
                take_over: None,
                confirm_within: None,
                failover: WishedFailover::No,
            };
            self.begin(now, wish, Box::new(ticket));
        }
    }

    /// The controller answered a request.
    pub fn handle_answer(&mut self, now: Instant, attempt: u64, answer: Answer) {
        if let Some(switch) = self.switch.take_if(|s| s.attempt == attempt) {
            match answer {
                // The controller has ended the session before.
                Answer::Granted(ticket) => match forbidden(&switch.wish, &ticket) {
                    Some(failure) => self.stop(Some(failure), None, Some(ticket.session)),
                    None => self.stop(None, Some(Next::Start(switch.wish, ticket)), None),
                },
                Answer::Conflict(conflict) => {
                    self.events.push_back(Event::Declined(Failure::conflict(conflict)))
                }
                Answer::Failed(failure) => self.events.push_back(Event::Declined(failure)),
            }
            return;
        }
        if let Some(Seek::Asked { server, .. }) =
            self.seek.take_if(|seek| matches!(seek, Seek::Asked { attempt: asked, .. } if *asked == attempt))
        {
            return self.moved_on(now, server, answer);
        }
        match &mut self.state {
            State::Requesting { wish, attempt: current, .. } if *current == attempt => match answer {
                Answer::Granted(ticket) => match forbidden(wish, &ticket) {
                    Some(failure) => {
                        self.effects.push_back(Effect::End(ticket.session));
                        self.enter(State::Idle(Some(failure)));
                    }
                    None => {
                        let wish = wish.clone();
                        self.begin(now, wish, ticket);
                    }
                },
                Answer::Conflict(conflict) => self.enter(State::Idle(Some(Failure::conflict(conflict)))),
                Answer::Failed(failure) => self.enter(State::Idle(Some(failure))),
            },
            State::Reconnecting { live, refresh, .. } if refresh.is_asked(attempt) => {
                *refresh = Refresh::At(now + REFRESH_EVERY);
                match answer {
                    Answer::Granted(ticket) => {
                        live.session = ticket.session;
                        live.failover = ticket.failover;
                        // What the organisation says now may be another word than before.
                        self.seek = match (self.seek.take(), live.seeks()) {
                            (None, true) => Some(Seek::At(now + FAILOVER_AFTER)),
                            (Some(Seek::At(_)), false) => None,
                            (seek, _) => seek,
                        };
                        self.effects.push_back(Effect::Renew(ticket));
                    }
                    Answer::Conflict(conflict) => self.stop(Some(Failure::conflict(conflict)), None, None),
                    Answer::Failed(failure) if failure.kind == FailureKind::Refused => {
                        self.stop(Some(failure), None, None);
                    }
                    // Whoever cannot answer now may answer later; another server may be there now.
                    Answer::Failed(_) => {
                        if let Some(Seek::At(at)) = &mut self.seek {
                            *at = now;
                        }
                    }
                }
            }
            // The path came back, the user gave up or another attempt began: what was granted is given back, unless it
            // is the session in use.
            _ => {
                if let Answer::Granted(ticket) = answer {
                    match self.live_mut() {
                        Some(live) if live.session == ticket.session => {}
                        _ => self.effects.push_back(Effect::End(ticket.session)),
                    }
                }
            }
        }
    }

    /// The host is changed, or could not be.
    pub fn handle_host(&mut self, now: Instant, result: Result<(), Failure>) {
        let Some(live) = self.live_mut() else { return };
        match result {
            Ok(()) => {
                live.host_ready = true;
                self.settle(now);
            }
            Err(failure) => {
                let session = live.session;
                self.stop(Some(failure), None, Some(session));
            }
        }
    }

    /// The tunnel's connection came (with its path) or went.
    pub fn handle_path(&mut self, now: Instant, path: Option<Path>) {
        if let Some(live) = self.live_mut() {
            live.path = path;
            self.settle(now);
        }
    }

    /// The tunnel says why its last attempt failed; kept for the user.
    pub fn handle_trouble(&mut self, why: &str) {
        if let Some(live) = self.live_mut() {
            live.trouble = Some(why.to_owned());
        }
    }

    /// The user keeps the connection. An error when there is none.
    pub fn handle_confirm(&mut self) -> Result<(), Failure> {
        let live = self.live_mut().ok_or_else(|| {
            Failure::failed("there is no connection to confirm", "connect first: horizon connect SERVER")
        })?;
        live.confirm_by = None;
        Ok(())
    }

    /// The user wants no session.
    pub fn handle_disconnect(&mut self) {
        match &mut self.state {
            State::Idle(None) | State::Enrolling { .. } => {}
            State::Idle(Some(_)) | State::Requesting { .. } => self.enter(State::Idle(None)),
            State::Stopping { failure, next } => {
                *failure = None;
                if let Some(Next::Start(_, ticket)) = next.take() {
                    self.effects.push_back(Effect::End(ticket.session));
                }
            }
            State::Connecting { live, .. } | State::Connected { live } | State::Reconnecting { live, .. } => {
                let session = live.session;
                self.stop(None, None, Some(session));
            }
        }
    }

    /// The controller says that a session is over.
    pub fn handle_session_ended(&mut self, session: SessionId, reason: &str) {
        // While switching it is the controller that replaces the session, and its answer follows.
        let replaced = self.switch.is_some() || matches!(self.seek, Some(Seek::Asked { .. }));
        if self.session() == Some(session) && !replaced {
            let server = self.server().unwrap_or_default();
            let failure = Failure::new(
                FailureKind::Refused,
                format!("the session with {server} was ended: {reason}"),
                "",
            );
            self.stop(Some(failure), None, None);
        }
    }

    /// The host is as it was.
    pub fn handle_stopped(&mut self, now: Instant) {
        if let State::Stopping { failure, next } = &mut self.state {
            let (failure, next) = (failure.take(), next.take());
            match next {
                Some(Next::Request(wish)) => self.request(now, wish),
                Some(Next::Start(wish, ticket)) => self.begin(now, wish, ticket),
                None => self.enter(State::Idle(failure)),
            }
        }
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(live) = self.live()
            && live.confirm_by.is_some_and(|by| by <= now)
        {
            let session = live.session;
            let failure = Failure::failed(
                "the connection was not confirmed in time and has been reverted",
                "after the next `horizon connect` over SSH, keep it with: horizon confirm",
            );
            return self.stop(Some(failure), None, Some(session));
        }
        if let Some(switch) = self.switch.take_if(|s| s.deadline <= now) {
            self.events.push_back(Event::Declined(unanswered(&switch.wish.server)));
        }
        self.seek_on(now);
        match &mut self.state {
            State::Enrolling { deadline } if *deadline <= now => self.enter(State::Idle(None)),
            State::Requesting { wish, deadline, .. } if *deadline <= now => {
                let failure = unanswered(&wish.server);
                self.enter(State::Idle(Some(failure)));
            }
            State::Connecting { live, deadline } if *deadline <= now => {
                let session = live.session;
                let trouble = live.trouble.as_ref().map(|t| format!(" ({t})")).unwrap_or_default();
                let failure = Failure::failed(
                    format!(
                        "the session with {} was granted, but the server did not answer within {} s{trouble}",
                        live.wish.server,
                        CONNECT_TIMEOUT.as_secs()
                    ),
                    "check that UDP to the server's tunnel port (7443 unless changed) passes every firewall on the way",
                );
                self.stop(Some(failure), None, Some(session));
            }
            State::Reconnecting { live, refresh, .. } => match *refresh {
                Refresh::At(at) if at <= now => {
                    self.attempts += 1;
                    *refresh = Refresh::Asked(self.attempts, now + REQUEST_TIMEOUT);
                    self.effects.push_back(Effect::Request {
                        attempt: self.attempts,
                        server: live.wish.server.clone(),
                        take_over: None,
                    });
                }
                Refresh::Asked(_, deadline) if deadline <= now => {
                    *refresh = Refresh::At(now + REFRESH_EVERY);
                }
                _ => {}
            },
            _ => {}
        }
    }

    fn request(&mut self, now: Instant, wish: Wish) {
        let attempt = self.ask(&wish);
        self.enter(State::Requesting { wish, attempt, deadline: now + REQUEST_TIMEOUT });
    }

    fn ask(&mut self, wish: &Wish) -> u64 {
        self.attempts += 1;
        self.effects.push_back(Effect::Request {
            attempt: self.attempts,
            server: wish.server.clone(),
            take_over: wish.take_over,
        });
        self.attempts
    }

    fn begin(&mut self, now: Instant, wish: Wish, ticket: Box<Ticket>) {
        let live = Live::new(now, wish, &ticket);
        self.effects.push_back(Effect::Start(ticket));
        self.enter(State::Connecting { live, deadline: now + CONNECT_TIMEOUT });
    }

    /// Goes where the host's readiness and the path lead.
    fn settle(&mut self, now: Instant) {
        match &self.state {
            State::Connecting { live, .. } | State::Reconnecting { live, .. }
                if live.host_ready && live.path.is_some() =>
            {
                let live = live.clone();
                // What was asked for is still answered, and the session in use ended by it.
                self.seek.take_if(|seek| !matches!(seek, Seek::Asked { .. }));
                self.enter(State::Connected { live });
            }
            State::Connected { live } if live.path.is_none() => {
                let live = live.clone();
                let refresh = Refresh::At(now + REFRESH_AFTER);
                if live.seeks() && self.seek.is_none() {
                    self.seek = Some(Seek::At(now + FAILOVER_AFTER));
                }
                self.enter(State::Reconnecting { live, since: now, refresh });
            }
            _ => {}
        }
    }

    fn stop(&mut self, failure: Option<Failure>, next: Option<Next>, end: Option<SessionId>) {
        // An answer that still comes is given back.
        self.switch = None;
        self.seek = None;
        self.effects.extend(end.map(Effect::End));
        self.effects.push_back(Effect::Stop);
        self.enter(State::Stopping { failure, next });
    }

    fn enter(&mut self, state: State) {
        let before = self.phase();
        self.state = state;
        if self.phase() != before {
            self.events.push_back(Event::Phase(self.phase()));
        }
    }
}

fn under_way() -> Failure {
    Failure::failed("another request is under way", "wait for it, or end it with: horizon disconnect")
}

fn unanswered(server: &str) -> Failure {
    Failure::new(
        FailureKind::Unreachable,
        format!("the controller did not answer the request for {server} in time"),
        "try again; if it stays so, look at the controller's log",
    )
}

impl Live {
    fn new(now: Instant, wish: Wish, ticket: &Ticket) -> Self {
        let confirm_by = wish.confirm_within.map(|within| now + within);
        Self {
            wish,
            session: ticket.session,
            granted: now,
            host_ready: false,
            path: None,
            trouble: None,
            confirm_by,
            moved: None,
            failover: ticket.failover,
        }
    }
}

#[cfg(test)]
mod tests;
