//! The conversation with an appliance: it registers, attaches, proves itself, beats, and gets its state.

use std::{collections::HashSet, convert::Infallible, pin::pin, sync::Arc, time::Duration};

use horizon_controller_core::detect::heartbeat::Baseline as Rhythm;
use horizon_crds::Name;
use horizon_model::{ApplianceReport, Digest, Factor, Incarnation, Secret, ServerId, SessionId};
use horizon_wire::{
    Message as _, convert,
    envelope::{self, Context as Signed},
    proto::{self, KeyUse, from_controller::Message as Say, to_controller::Message as Heard},
    state::{self, Numbered},
};
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    Context,
    behavior::Behavior,
    compose,
    leave::Holding,
    look::Looks,
    opening::Remote,
    probe::Probe,
    proof::{Asked, Wanted},
    refusals,
    registry::Mail,
    reports::ViolationCounts,
    unproven::Place,
    wire::{End, Wire},
};
use crate::{
    keys::Role,
    live::Hint,
    store::{EndReason, NewEvent, Revision, Severity, Source, StateNumber, StateNumbering, StoreError},
};

/// How long an appliance may take from the Welcome to its first word.
const FIRST_WORD: Duration = Duration::from_secs(30);

/// How exactly it is known when something last came from an appliance.
const SEEN: Duration = Duration::from_secs(1);
/// How soon what the database could not do is tried again, or what waits for newer resources.
pub(super) const AGAIN: Duration = Duration::from_millis(250);

/// A failure inside, as the end of a conversation.
pub(super) fn internal(request: u64) -> impl Fn(StoreError) -> End {
    move |error| match error {
        // Whoever speaks for the appliance now has all it needs: there is nothing to say here.
        StoreError::LostChannel => End::Gone("another replica speaks for the appliance now".into()),
        error => End::refuse(request, refusals::internal(&error)),
    }
}

/// Whether a failure may pass: the conversation goes on, and it is tried again.
pub(super) fn may_pass(error: &StoreError) -> bool {
    matches!(error, StoreError::Database(_))
}

pub(super) fn invalid(request: u64) -> impl Fn(convert::Invalid) -> End {
    move |error| End::refuse(request, refusals::malformed(&error.to_string()))
}

/// Talks to an appliance until one of the two ends it.
pub(super) async fn converse(
    context: &Arc<Context>,
    remote: Remote,
    wire: &mut Wire,
    unproven: Place,
) -> End {
    // What happens once is boxed: the room for it is given back before the long conversation.
    let mut appliance = match Box::pin(arrive(context, remote, wire)).await {
        Ok(appliance) => appliance,
        Err(end) => return end,
    };
    drop(unproven);
    wire.takes_reports();
    let _open = context.metrics.channel_open("appliance");
    match appliance.run(wire).await {
        Ok(never) => match never {},
        Err(end) => end,
    }
}

/// From the Welcome until the appliance is attached.
async fn arrive<'a>(
    context: &'a Arc<Context>,
    remote: Remote,
    wire: &mut Wire,
) -> Result<Box<Appliance<'a>>, End> {
    let first = async {
        loop {
            match wire.next().await? {
                (request, Heard::Register(register)) => {
                    context.register(remote, wire, request, register).await?
                }
                (request, Heard::Attach(attach)) => return Ok((request, attach)),
                (request, _) => return Err(End::refuse(request, refusals::wrong_order("this message"))),
            }
        }
    };
    let (request, attach) = match timeout(FIRST_WORD, first).await {
        Ok(attach) => attach?,
        Err(_) => return Err(End::Gone("the appliance said nothing".into())),
    };
    let turn = context.turn(request, remote.since).await?;
    Appliance::attach(context, remote, wire, request, &attach, turn).await.map(Box::new)
}

/// The task of an appliance that attached.
pub(super) struct Appliance<'a> {
    pub(super) context: &'a Arc<Context>,
    pub(super) remote: Remote,
    pub(super) server: ServerId,
    pub(super) namespace: Name,
    pub(super) name: Name,
    pub(super) incarnation: Incarnation,
    pub(super) seat: Holding,
    pub(super) secret: Secret,
    pub(super) previous: Option<Secret>,
    pub(super) counter: u64,
    /// When the heartbeats that do not come become an event.
    pub(super) missed_at: Instant,
    pub(super) seen_at: Instant,
    pub(super) missed_noted: bool,
    /// What its TPM proved last.
    pub(super) attested: Vec<Factor>,
    /// Where its public address is.
    pub(super) place: Vec<Factor>,
    /// What did not fit in its reports.
    pub(super) behavior: Behavior,
    /// When its sessions are looked at.
    pub(super) looks: Looks,
    /// Tells the factors of its machine from others: the last that were looked at.
    pub(super) factors: [u8; 32],
    /// Tells what its heartbeats say of its machine from what they said before.
    pub(super) told: [u8; 32],
    pub(super) asked: Option<Asked>,
    pub(super) verified: bool,
    /// Whether the appliance was sent a new secret when it attached.
    pub(super) reissued: bool,
    /// Whether a new one waited for it when its state was last made.
    pub(super) secret_due: bool,
    pub(super) next_challenge: Instant,
    /// What the appliance held when it attached.
    pub(super) held: (u64, u64, Option<Digest>),
    /// The newest state that was made for it before.
    pub(super) newest: Option<(StateNumber, Digest)>,
    /// What was last sent to it, or found to be what it held.
    pub(super) sent: Option<Numbered>,
    pub(super) sent_sessions: HashSet<SessionId>,
    /// Whether it has said that it applied that state.
    pub(super) confirmed: bool,
    pub(super) sent_at: Instant,
    pub(super) probe: Option<Probe>,
    pub(super) violations: ViolationCounts,
    /// A report that could not be taken in.
    pub(super) unsaved: Option<ApplianceReport>,
    /// When to try again what could not be done.
    pub(super) again: Option<Instant>,
    /// When its heartbeats come.
    pub(super) rhythm: Rhythm,
    /// How much of the rate of heartbeats is used up.
    pub(super) beat_rate: Option<Timestamp>,
    /// How much of the rate of changed factors is used up.
    pub(super) factor_rate: Option<Timestamp>,
}

/// What there is to be sent.
enum Push {
    Nothing,
    Send(Numbered, HashSet<SessionId>),
    /// Another replica numbered a state that was made of newer resources than are in force here yet.
    NotYet(Revision),
    NoServer,
}

impl Appliance<'_> {
    /// Serves the appliance. It ends by an error only.
    async fn run(&mut self, wire: &mut Wire) -> Result<Infallible, End> {
        wire.counts_as(Role::Appliance);
        // One may have come into force since the Welcome.
        wire.show_keysets().await?;
        let mut alarm = pin!(sleep_until(self.deadline()));
        loop {
            let deadline = self.deadline();
            // A later one is seen when the alarm goes off: setting it costs more than a beat otherwise does.
            if deadline < alarm.deadline() {
                alarm.as_mut().reset(deadline);
            }
            tokio::select! {
                // What was said in time is heard before it is found to be late.
                biased;
                mail = self.seat.mail() => Box::pin(self.open(wire, mail)).await?,
                said = wire.next() => {
                    let (request, message) = said?;
                    self.seen();
                    Box::pin(self.hear(wire, request, message)).await?;
                }
                () = alarm.as_mut() => {
                    if self.deadline() <= Instant::now() {
                        Box::pin(self.on_time(wire)).await?;
                    }
                    alarm.as_mut().reset(self.deadline());
                }
            }
            if !self.seat.is_held() {
                return Err(End::refuse(0, refusals::replaced()));
            }
            if let Some(announcement) = self.announce_probe() {
                wire.send(0, Say::DialBack(announcement)).await?;
            }
        }
    }

    /// Something came from the appliance.
    fn seen(&mut self) {
        if self.seen_at.elapsed() >= SEEN {
            self.seen_at = Instant::now();
            self.context.live.server_seen(self.server, self.context.now());
        }
    }

    async fn open(&mut self, wire: &mut Wire, mail: Mail) -> Result<(), End> {
        if mail.make_way {
            return Err(End::refuse(0, refusals::replaced()));
        }
        for asker in mail.askers {
            self.prove_alive(wire, asker).await?;
        }
        if mail.keys {
            wire.show_keysets().await?;
        }
        if let Some(addresses) = mail.elsewhere {
            wire.send(0, Say::GoElsewhere(proto::GoElsewhere { addresses: addresses.to_vec() })).await?;
        }
        if !mail.changed {
            return Ok(());
        }
        let due = if self.verified {
            self.secret_due = false;
            self.push(wire, false).await?;
            self.secret_due
        } else {
            // One that has not proved who it is yet gets everything once it has.
            !self.reissued && self.secret_is_due().await?
        };
        // As after an approval: the appliance gets its new secret as it attaches.
        if due { Err(End::refuse(0, refusals::new_secret(&self.name))) } else { Ok(()) }
    }

    async fn hear(&mut self, wire: &mut Wire, request: u64, message: Heard) -> Result<(), End> {
        match message {
            Heard::Heartbeat(beat) => self.beat(wire, request, &beat).await,
            Heard::ChallengeResponse(answer) => self.answered(wire, request, &answer).await,
            Heard::Report(report) => {
                self.report(report, request).await?;
                wire.done(request).await
            }
            Heard::KeysetHeld(held) => {
                wire.keyset_held(held.version);
                wire.done(request).await
            }
            Heard::Resync(resync) => {
                let why: String = resync.reason.chars().filter(|c| !c.is_control()).take(200).collect();
                tracing::info!(server = %self.server, why, "an appliance asks for its whole state");
                if self.verified {
                    self.push(wire, true).await?;
                }
                wire.done(request).await
            }
            Heard::DialBackSeen(seen) => {
                self.dial_back_seen(&seen).await.map_err(internal(request))?;
                wire.done(request).await
            }
            _ => Err(End::refuse(request, refusals::wrong_order("this message"))),
        }
    }

    fn deadline(&self) -> Instant {
        let challenge = self.asked.as_ref().map_or(self.next_challenge, |asked| asked.deadline);
        let missed = if self.missed_noted { challenge } else { self.missed_at };
        let probe = self.probe.as_ref().map_or(challenge, Probe::deadline);
        challenge.min(missed).min(probe).min(self.looks.deadline()).min(self.again.unwrap_or(challenge))
    }

    async fn on_time(&mut self, wire: &mut Wire) -> Result<(), End> {
        let now = Instant::now();
        match &self.asked {
            Some(asked) if asked.deadline <= now => {
                return Err(End::refuse(0, refusals::unanswered(&self.name)));
            }
            None if self.next_challenge <= now => self.challenge(wire, Wanted::Anything).await?,
            _ => {}
        }
        if !self.missed_noted && self.missed_at <= now {
            self.missed_noted = true;
            self.event(
                "heartbeats_missed",
                Severity::Medium,
                "its appliance is connected and sends no heartbeats",
            )
            .await;
        }
        if self.again.take_if(|again| *again <= now).is_some() {
            if let Some(report) = self.unsaved.take() {
                self.take_in(report).await.map_err(internal(0))?;
            }
            if self.verified {
                self.push(wire, false).await?;
            }
        }
        Box::pin(self.look_on_time(wire, now)).await?;
        self.probe_on_time(now).await.map_err(internal(0))
    }

    pub(super) async fn event(&self, kind: &'static str, severity: Severity, what: &str) {
        let event = NewEvent {
            kind,
            severity,
            source: Source::Server(self.server),
            address: Some(self.remote.address.ip()),
            description: format!("server {}/{}: {what}", self.namespace, self.name),
            data: serde_json::Value::Null,
        };
        self.context.record(&event).await;
    }

    /// Sends the appliance what changed since what it has; everything, if `whole` is asked for or it is not known what it
    /// has. Nothing when it has what it should. What cannot be done now is tried again.
    pub(super) async fn push(&mut self, wire: &mut Wire, whole: bool) -> Result<(), End> {
        match self.prepare(whole).await {
            Ok(Push::Nothing) => Ok(()),
            Ok(Push::Send(target, sessions)) => self.send_state(wire, whole, target, sessions).await,
            Ok(Push::NotYet(newer)) => {
                tracing::debug!(server = %self.server, %newer, "waiting for newer resources to come into force");
                self.again = Some(Instant::now() + AGAIN);
                Ok(())
            }
            Ok(Push::NoServer) => Err(End::refuse(0, refusals::unknown_appliance())),
            Err(error) if may_pass(&error) => {
                tracing::warn!(server = %self.server, %error, "a state could not be made; it is tried again");
                self.again = Some(Instant::now() + AGAIN);
                Ok(())
            }
            Err(error) => Err(internal(0)(error)),
        }
    }

    /// Composes and numbers the state that the appliance should have.
    async fn prepare(&mut self, whole: bool) -> Result<Push, StoreError> {
        let Some(composed) = compose::compose(self.context, self.server).await? else {
            return Ok(Push::Nothing);
        };
        for (session, why) in &composed.over {
            self.context.end(session, &EndReason::broker(why.as_str())).await?;
        }
        self.seat.set_state_bytes(composed.bytes);
        self.secret_due = composed.secret_due;
        let known = self.sent.as_ref().filter(|_| !whole);
        if known.is_some_and(|sent| sent.entries == composed.entries) {
            self.release_unsent().await?;
            return Ok(Push::Nothing);
        }
        let digest = composed.entries.digest();
        let (lease, revision) = (self.seat.lease, composed.revision);
        let numbering = match self
            .newest
            .take()
            .filter(|(number, newest)| *newest == digest && !self.is_ahead_of(*number))
        {
            // As after a connection that broke: it has its number.
            Some((number, _)) => StateNumbering::Numbered(number),
            None => self.context.store.number_state(self.server, lease, digest, revision).await?,
        };
        Ok(match numbering {
            StateNumbering::Numbered(StateNumber { epoch, generation }) => {
                let target = Numbered { epoch, generation, entries: composed.entries };
                Push::Send(target, composed.sessions)
            }
            StateNumbering::Stale(newer) => Push::NotYet(newer),
            StateNumbering::NoServer => Push::NoServer,
        })
    }

    /// Whether the appliance held a newer state of the same epoch when it attached.
    fn is_ahead_of(&self, number: StateNumber) -> bool {
        let (epoch, generation, _) = self.held;
        epoch == number.epoch && generation > number.generation
    }

    async fn send_state(
        &mut self,
        wire: &mut Wire,
        whole: bool,
        target: Numbered,
        sessions: HashSet<SessionId>,
    ) -> Result<(), End> {
        let known = self.sent.as_ref().filter(|_| !whole);
        let held = (target.epoch, target.generation, Some(target.entries.digest()));
        let already = !whole && known.is_none() && self.held == held;
        if !already {
            let nothing = Numbered::default();
            let mut base = known.unwrap_or(&nothing);
            let mut delta = state::compose(self.server, base, &target).encode_to_vec();
            if base.generation > 0 && delta.len() > state::MAX_STATE_BYTES {
                // So much goes and comes that the whole state is less.
                base = &nothing;
                delta = state::compose(self.server, base, &target).encode_to_vec();
            }
            let form = if base.generation == 0 { "snapshot" } else { "delta" };
            let keys = self.context.keys.now();
            wire.vouch(KeyUse::State, &keys.state.public()).await?;
            let envelope = envelope::seal(Signed::State, &keys.state, delta);
            let bytes = wire.send(0, Say::State(envelope)).await?;
            self.context.metrics.pushed(form, bytes);
            tracing::debug!(server = %self.server, generation = target.generation, form, bytes, "sent a state");
        }
        (self.sent, self.sent_sessions, self.sent_at) = (Some(target), sessions, Instant::now());
        self.confirmed = false;
        if already {
            self.has_applied(&[]).await.map_err(internal(0))?;
        } else {
            self.context.live.publish(Hint::StatusDirty(self.server.0));
        }
        Ok(())
    }
}
