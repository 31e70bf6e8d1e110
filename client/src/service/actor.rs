//! The service's one decision-making task: it owns the state machine, feeds it everything that happens, and hands out
//! what it asks for.

mod asking;
mod keys;
mod sharing;
mod telling;

use std::{
    future::pending,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use horizon_client_core::{
    failure::Failure,
    ipc::{Message, Progress, Reply, Request},
    session::{Answer, Effect, Event, Machine, Path, Phase, Wish, WishedFailover},
    status::{KeyNotice, KeyState},
};
use horizon_model::{PublicKey, SessionId, Ticket};
use horizon_tunnel::TunnelHandle;
use horizon_wire::{
    key::SigningKey,
    keyset::Anchor,
    proto::{self, to_controller},
};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};

use super::{
    answers::open_ticket,
    data::PathState,
    link::{Link, LinkEvent},
    server::Call,
    store::{Enrolment, Store},
    worker::{Done, Job},
};

/// How often the controller is told what went through the session.
const REPORT_EVERY: Duration = Duration::from_secs(30);
/// The most front ends that wait for one session.
const MAX_WAITERS: usize = 64;

/// What the actor hears from.
pub(super) struct Inputs {
    /// Requests of front ends.
    pub(super) calls: mpsc::Receiver<Call>,
    /// What the controller says unasked.
    pub(super) link: mpsc::Receiver<LinkEvent>,
    /// What the worker did.
    pub(super) done: mpsc::Receiver<Done>,
    /// What the tunnel says.
    pub(super) path: watch::Receiver<PathState>,
}

/// What the actor speaks to.
pub(super) struct Outputs {
    /// The controller.
    pub(super) link: Link,
    /// The worker.
    pub(super) jobs: mpsc::Sender<Job>,
    /// What is kept.
    pub(super) store: Store,
    /// The device key, from which its wrapping key follows.
    pub(super) key: SigningKey,
}

enum Internal {
    Answered {
        attempt: u64,
        answer: Result<Box<Granted>, Answer>,
    },
    Enrolled {
        result: Result<Enrolment, Failure>,
        to: mpsc::Sender<Message>,
    },
    Found {
        attempt: u64,
        server: Option<String>,
    },
    /// A front end that waited for a connection went away.
    Abandoned,
}

struct Granted {
    ticket: Ticket,
    envelope: proto::Envelope,
}

struct Waiter {
    /// Whether it waits for a connection, or for its end.
    connecting: bool,
    to: mpsc::Sender<Message>,
}

struct Current {
    ticket: Arc<Ticket>,
    since: Timestamp,
    handle: Option<TunnelHandle>,
}

/// The task.
pub(super) struct Actor {
    machine: Machine,
    out: Outputs,
    key: PublicKey,
    enrolment: Option<Enrolment>,
    confirm_within: Duration,
    current: Option<Current>,
    path: PathState,
    waiters: Vec<Waiter>,
    /// The envelope of a ticket that was granted and is about to be started.
    envelope: Option<proto::Envelope>,
    /// The far end of the SSH login that the session was asked for from.
    ssh_peer: Option<IpAddr>,
    /// What the user should know about the personal key.
    key_notice: Option<KeyNotice>,
    inner: mpsc::Sender<Internal>,
    internal: mpsc::Receiver<Internal>,
}

impl Actor {
    /// An actor for the device of `key`.
    pub(super) fn new(
        out: Outputs,
        key: PublicKey,
        enrolment: Option<Enrolment>,
        confirm_within: Duration,
    ) -> Self {
        let (inner, internal) = mpsc::channel(16);
        Self {
            machine: Machine::default(),
            out,
            key,
            enrolment,
            confirm_within,
            current: None,
            path: PathState::default(),
            waiters: Vec::new(),
            envelope: None,
            ssh_peer: None,
            key_notice: None,
            inner,
            internal,
        }
    }

    /// Takes up the session that a former run kept, if it is one of this device.
    pub(super) fn resume(&mut self, envelope: &proto::Envelope) {
        let anchor = self.enrolment.as_ref().and_then(Enrolment::anchor);
        let Some(Anchor::KeySet(keyset)) = anchor else { return };
        match open_ticket(envelope, &keyset, &self.key, None) {
            Ok(ticket) => {
                tracing::info!(server = %ticket.server_name, session = %ticket.session, "taking up the session of a former run");
                self.machine.handle_resume(Instant::now(), ticket);
            }
            Err(failure) => tracing::warn!(%failure, "the kept session cannot be taken up"),
        }
    }

    /// Runs until `stop` is done, then puts the host back. The session stays granted, so that the next run takes it up.
    pub(super) async fn run(mut self, mut inputs: Inputs, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut reports = tokio::time::interval(REPORT_EVERY);
        reports.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.settle().await;
            let due = self.machine.poll_timeout();
            tokio::select! {
                Some(call) = inputs.calls.recv() => self.call(call),
                Some(event) = inputs.link.recv() => self.link(event),
                Some(done) = inputs.done.recv() => self.done(done),
                Some(internal) = self.internal.recv() => self.internal(internal),
                Ok(()) = inputs.path.changed() => {
                    let path = inputs.path.borrow_and_update().clone();
                    self.path(path).await;
                }
                _ = reports.tick() => self.report_session(),
                () = wait(due) => self.machine.handle_timeout(Instant::now()),
                () = &mut stop => break,
            }
        }
        if self.current.is_some() && self.out.jobs.send(Job::Stop).await.is_ok() {
            while let Some(done) = inputs.done.recv().await {
                if matches!(done, Done::Stopped) {
                    break;
                }
            }
        }
    }

    /// Performs the machine's effects and tells those who wait.
    async fn settle(&mut self) {
        while let Some(effect) = self.machine.poll_effect() {
            match effect {
                Effect::Request { attempt, server, take_over } => self.request(attempt, server, take_over),
                Effect::Find { attempt, instead_of } => self.find(attempt, instead_of),
                Effect::Start(ticket) => {
                    let ticket = Arc::new(*ticket);
                    self.current =
                        Some(Current { ticket: ticket.clone(), since: Timestamp::now(), handle: None });
                    let peer = self.ssh_peer.take();
                    self.job(Job::Start(ticket, peer)).await;
                    self.out.link.hold(true).await;
                }
                Effect::Renew(ticket) => {
                    let ticket = Arc::new(*ticket);
                    if let Some(current) = &mut self.current {
                        current.ticket = ticket.clone();
                    }
                    self.job(Job::Renew(ticket)).await;
                }
                Effect::Stop => {
                    self.job(Job::Stop).await;
                    if let Err(error) = self.out.store.set_ticket(None) {
                        tracing::warn!(%error, "the ended session is still kept");
                    }
                    self.out.link.hold(false).await;
                }
                Effect::End(session) => {
                    let link = self.out.link.clone();
                    tokio::spawn(async move {
                        let message = proto::EndSession { session: session.as_bytes().to_vec() };
                        link.tell(to_controller::Message::EndSession(message)).await;
                    });
                }
            }
        }
        while let Some(event) = self.machine.poll_event() {
            let phase = match event {
                Event::Phase(phase) => phase,
                Event::Declined(failure) => {
                    self.decline(&failure);
                    continue;
                }
            };
            tracing::info!(?phase, server = self.machine.server(), "session");
            self.announce(phase);
            if phase == Phase::Connected {
                self.share_settings();
                self.keep_ticket();
            }
        }
    }

    async fn job(&self, job: Job) {
        // The worker lives as long as the actor.
        let _ = self.out.jobs.send(job).await;
    }

    fn keep_ticket(&mut self) {
        if let Some(envelope) = self.envelope.take()
            && let Err(error) = self.out.store.set_ticket(Some(&envelope))
        {
            tracing::warn!(%error, "the session will not outlive a restart of the service");
        }
    }

    fn announce(&mut self, phase: Phase) {
        let (settled, failure) = match phase {
            Phase::Connected => (true, None),
            Phase::Disconnected => {
                (true, Some(Failure::failed("the connection was ended by another command", "")))
            }
            Phase::Failed => (true, self.machine.failure().cloned()),
            _ => (false, None),
        };
        let mut waiting = Vec::new();
        for waiter in std::mem::take(&mut self.waiters) {
            let over = phase != Phase::Connected;
            match (settled, waiter.connecting, over) {
                // The session that is to be replaced came back meanwhile.
                (true, true, false) if self.machine.is_switching() => waiting.push(waiter),
                (true, true, false) | (true, false, true) => self.report_status(waiter.to),
                (true, true, true) => {
                    let failure =
                        failure.clone().unwrap_or_else(|| Failure::failed("the connection ended", ""));
                    send(&waiter.to, Message::Failed(failure));
                }
                _ => {
                    // Progress that does not fit is only left out.
                    let _ = waiter.to.try_send(Message::Progress(Progress { phase }));
                    waiting.push(waiter);
                }
            }
        }
        self.waiters = waiting;
    }

    /// Tells those who wait for another server that the session in use goes on instead.
    fn decline(&mut self, failure: &Failure) {
        tracing::info!(%failure, "the session in use goes on");
        for waiter in std::mem::take(&mut self.waiters) {
            if waiter.connecting {
                send(&waiter.to, Message::Failed(failure.clone()));
            } else {
                self.waiters.push(waiter);
            }
        }
    }

    fn internal(&mut self, internal: Internal) {
        match internal {
            Internal::Answered { attempt, answer } => {
                let answer = match answer {
                    Ok(granted) => {
                        self.envelope = Some(granted.envelope);
                        Answer::Granted(Box::new(granted.ticket))
                    }
                    Err(answer) => answer,
                };
                self.machine.handle_answer(Instant::now(), attempt, answer);
            }
            Internal::Found { attempt, server } => {
                self.machine.handle_found(Instant::now(), attempt, server);
            }
            Internal::Abandoned => {
                let phase = self.machine.phase();
                let unfinished = matches!(phase, Phase::Requesting | Phase::Connecting);
                self.waiters.retain(|w| !w.to.is_closed());
                if unfinished && self.waiters.is_empty() {
                    tracing::info!("nobody waits for the connection any more");
                    self.machine.handle_disconnect();
                }
            }
            Internal::Enrolled { result, to } => {
                self.machine.handle_enrolled();
                let message = match result {
                    Ok(enrolment) => {
                        let (user, device) = (enrolment.user.clone(), enrolment.name.clone());
                        self.enrolment = Some(enrolment);
                        self.key_notice = None;
                        Message::Done(Reply::Enrolled { user, device })
                    }
                    Err(failure) => Message::Failed(failure),
                };
                send(&to, message);
            }
        }
    }

    fn link(&mut self, event: LinkEvent) {
        let (session, reason) = match event {
            LinkEvent::Ended { session, reason } => (session, reason),
            LinkEvent::Check(session) => return self.check_session(session),
            LinkEvent::Key(notice) => {
                tracing::info!(state = ?notice.state, "{}", notice.message);
                self.key_notice = Some(notice).filter(|notice| notice.state != KeyState::Fine);
                return;
            }
        };
        if self.machine.session() == Some(session) {
            tracing::info!(%session, reason, "the controller ended the session");
        }
        self.machine.handle_session_ended(session, &reason);
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Dialling(handle) => {
                if let Some(current) = &mut self.current {
                    current.handle = Some(handle);
                }
            }
            Done::Host(result) => self.machine.handle_host(Instant::now(), result),
            Done::Stopped => {
                self.current = None;
                self.machine.handle_stopped(Instant::now());
            }
        }
    }

    async fn path(&mut self, path: PathState) {
        if path.device_lost && !self.path.device_lost {
            self.job(Job::Repair).await;
        }
        if path.remote != self.path.remote {
            self.machine.handle_path(Instant::now(), path.remote.map(|remote| Path { remote }));
        }
        if let Some(trouble) = path.trouble.as_ref().filter(|t| self.path.trouble.as_ref() != Some(*t)) {
            self.machine.handle_trouble(trouble);
        }
        self.path = path;
    }

    fn call(&mut self, Call { request, answer }: Call) {
        match request {
            Request::Status => self.report_status(answer),
            Request::Servers => self.servers(answer),
            Request::AddKey { key, name } => self.add_key(&key, name.as_deref(), answer),
            Request::Connect { server, take_over, ssh_peer, confirmed, failover, failover_liked } => {
                let confirm_within = (ssh_peer.is_some() && !confirmed).then_some(self.confirm_within);
                self.ssh_peer = ssh_peer;
                let failover = match (failover, failover_liked) {
                    (true, _) => WishedFailover::Asked,
                    (false, true) => WishedFailover::Liked,
                    (false, false) => WishedFailover::No,
                };
                let wish = Wish { server, take_over, confirm_within, failover };
                let result = self.machine.handle_connect(Instant::now(), wish);
                self.await_phase(result, true, answer);
            }
            Request::Disconnect => {
                self.machine.handle_disconnect();
                self.await_phase(Ok(()), false, answer);
            }
            Request::ClaimKey { handover, code } => self.claim_key(&handover, code, answer),
            Request::Settings => self.settings(false, answer),
            Request::KeptSettings => send(&answer, self.kept_settings()),
            Request::SetSettings { settings } => self.set_settings(settings, answer),
            Request::StartSettingsOver => self.settings(true, answer),
            Request::TakeKey => send(&answer, self.waiting_key()),
            Request::KeyTaken { id } => send(&answer, self.key_taken(id)),
            Request::Confirm => match self.machine.handle_confirm() {
                Ok(()) => self.report_status(answer),
                Err(failure) => send(&answer, Message::Failed(failure)),
            },
        }
    }

    /// Answers at once if the phase that is waited for is reached already.
    fn await_phase(&mut self, result: Result<(), Failure>, connecting: bool, to: mpsc::Sender<Message>) {
        let wanted: &[Phase] =
            if connecting { &[Phase::Connected] } else { &[Phase::Disconnected, Phase::Failed] };
        match result {
            Err(failure) => send(&to, Message::Failed(failure)),
            Ok(()) if wanted.contains(&self.machine.phase()) && !self.machine.is_switching() => {
                self.report_status(to);
            }
            Ok(()) if self.waiters.len() < MAX_WAITERS => {
                if connecting {
                    let (inner, waiting) = (self.inner.clone(), to.clone());
                    tokio::spawn(async move {
                        waiting.closed().await;
                        // Nobody listens any more only when the service ends.
                        let _ = inner.send(Internal::Abandoned).await;
                    });
                }
                self.waiters.push(Waiter { connecting, to });
            }
            Ok(()) => send(&to, Message::Failed(Failure::failed("too many commands wait already", ""))),
        }
    }

    /// Answers the controller's question about a session: what went through it, or that it is not in use here.
    fn check_session(&self, session: SessionId) {
        if self.machine.session() == Some(session) && self.machine.phase() == Phase::Connected {
            return self.report_session();
        }
        let link = self.out.link.clone();
        let report = proto::SessionReport {
            session: session.as_bytes().to_vec(),
            connected: false,
            bytes_sent: 0,
            bytes_received: 0,
        };
        tokio::spawn(async move { link.mention(to_controller::Message::SessionReport(report)).await });
    }
}

/// Hands over a last message. There is room for it unless the front end went away or does not read.
fn send(to: &mpsc::Sender<Message>, message: Message) {
    if let Err(mpsc::error::TrySendError::Full(message)) = to.try_send(message) {
        let to = to.clone();
        tokio::spawn(async move {
            let _ = to.send(message).await;
        });
    }
}

async fn wait(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => pending().await,
    }
}
