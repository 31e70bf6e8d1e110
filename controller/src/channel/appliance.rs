//! The conversation with an appliance: it registers, attaches, proves itself, beats, and gets its state.

use std::{collections::HashSet, convert::Infallible, sync::Arc, time::Duration};

use horizon_model::{Digest, Factor, Incarnation, Secret, ServerId, SessionId};
use horizon_wire::{
    Message as _, convert,
    envelope::{self, Context as Signed},
    proto::{from_controller::Message as Say, to_controller::Message as Heard},
    state::{self, Numbered},
};
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    Context, compose,
    opening::Remote,
    probe::Probe,
    proof::Asked,
    refusals,
    registry::{Command, Presence},
    reports::ViolationCounts,
    unproven::Place,
    wire::{End, Wire},
};
use crate::{
    live::Hint,
    store::{EndReason, NewEvent, ServerRecord, Severity, Source, StoreError},
};

/// How long an appliance may take from the Welcome to its first word.
const FIRST_WORD: Duration = Duration::from_secs(30);

/// A failure inside, as the end of a conversation.
pub(super) fn internal(request: u64) -> impl Fn(StoreError) -> End {
    move |error| End::refuse(request, refusals::internal(&error))
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
        Ok(Ok(attach)) => attach,
        Ok(Err(end)) => return end,
        Err(_) => return End::Gone("the appliance said nothing".into()),
    };
    let _open = context.metrics.channel_open("appliance");
    let mut appliance = match Appliance::attach(context, remote, wire, request, &attach).await {
        Ok(appliance) => appliance,
        Err(end) => return end,
    };
    drop(unproven);
    match appliance.run(wire).await {
        Ok(never) => match never {},
        Err(end) => end,
    }
}

/// The task of an appliance that attached.
pub(super) struct Appliance<'a> {
    pub(super) context: &'a Arc<Context>,
    pub(super) remote: Remote,
    pub(super) server: ServerId,
    pub(super) record: ServerRecord,
    pub(super) incarnation: Incarnation,
    pub(super) seat: Presence,
    pub(super) secret: Secret,
    pub(super) previous: Option<Secret>,
    pub(super) counter: u64,
    pub(super) last_beat: Instant,
    pub(super) missed_noted: bool,
    pub(super) factors: Vec<Factor>,
    pub(super) asked: Option<Asked>,
    pub(super) verified: bool,
    /// Whether the appliance was sent a new secret when it attached.
    pub(super) reissued: bool,
    pub(super) next_challenge: Instant,
    /// What the appliance held when it attached.
    pub(super) held: (u64, u64, Option<Digest>),
    /// What was last sent to it, or found to be what it held.
    pub(super) sent: Option<Numbered>,
    pub(super) sent_sessions: HashSet<SessionId>,
    pub(super) sent_at: Instant,
    pub(super) probe: Option<Probe>,
    pub(super) violations: ViolationCounts,
    /// How much of the rate of heartbeats is used up.
    pub(super) beat_rate: Option<Timestamp>,
    /// How much of the rate of changed factors is used up.
    pub(super) factor_rate: Option<Timestamp>,
}

impl Appliance<'_> {
    /// Serves the appliance. It ends by an error only.
    async fn run(&mut self, wire: &mut Wire) -> Result<Infallible, End> {
        loop {
            let deadline = self.deadline();
            let changed = self.seat.changed.clone();
            tokio::select! {
                said = wire.next() => {
                    let (request, message) = said?;
                    self.context.live.server_seen(self.server, self.context.now());
                    self.hear(wire, request, message).await?;
                }
                command = self.seat.commands.recv() => match command {
                    Some(Command::ProveAlive(reply)) => self.challenge(wire, Some(reply)).await?,
                    Some(Command::MakeWay) | None => return Err(End::refuse(0, refusals::replaced())),
                },
                () = changed.notified(), if self.verified => self.push(wire, false).await?,
                () = sleep_until(deadline) => self.on_time(wire).await?,
            }
            if !self.seat.is_held() {
                return Err(End::refuse(0, refusals::replaced()));
            }
            if let Some(announcement) = self.announce_probe() {
                wire.send(0, Say::DialBack(announcement)).await?;
            }
        }
    }

    async fn hear(&mut self, wire: &mut Wire, request: u64, message: Heard) -> Result<(), End> {
        match message {
            Heard::Heartbeat(beat) => self.beat(wire, request, &beat).await,
            Heard::ChallengeResponse(answer) => self.answered(wire, request, &answer).await,
            Heard::Report(report) => {
                self.report(report, request).await?;
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
        let missed = if self.missed_noted { challenge } else { self.last_beat + self.missing_after() };
        let probe = self.probe.as_ref().map_or(challenge, Probe::deadline);
        challenge.min(missed).min(probe)
    }

    async fn on_time(&mut self, wire: &mut Wire) -> Result<(), End> {
        let now = Instant::now();
        match &self.asked {
            Some(asked) if asked.deadline <= now => {
                return Err(End::refuse(0, refusals::unanswered(&self.record.name)));
            }
            None if self.next_challenge <= now => self.challenge(wire, None).await?,
            _ => {}
        }
        if !self.missed_noted && self.last_beat + self.missing_after() <= now {
            self.missed_noted = true;
            self.event(
                "heartbeats_missed",
                Severity::Medium,
                "its appliance is connected and sends no heartbeats",
            )
            .await;
        }
        self.probe_on_time(now).await.map_err(internal(0))
    }

    /// The time without a heartbeat after which it becomes an event.
    fn missing_after(&self) -> Duration {
        let policy = self.context.desired.index().security_policy(&self.record.namespace);
        policy.heartbeat_interval.get() * u32::from(policy.anomaly_thresholds.missed_heartbeats.max(1))
            + self.context.settings.challenge_patience
    }

    pub(super) async fn event(&self, kind: &'static str, severity: Severity, what: &str) {
        let event = NewEvent {
            kind,
            severity,
            source: Source::Server(self.server),
            address: Some(self.remote.address.ip()),
            description: format!("server {}/{}: {what}", self.record.namespace, self.record.name),
            data: serde_json::Value::Null,
        };
        self.context.record(&event).await;
    }

    /// Sends the appliance what changed since what it has; everything, if `whole` is asked for or it is not known what it
    /// has. Nothing when it has what it should.
    pub(super) async fn push(&mut self, wire: &mut Wire, whole: bool) -> Result<(), End> {
        let composed = compose::compose(self.context, self.server).await.map_err(internal(0))?;
        let Some(composed) = composed else { return Ok(()) };
        for session in &composed.left_out {
            let why = EndReason::broker(
                "the rules of all sessions of the server became more than its state can hold",
            );
            self.context.end(session, &why).await.map_err(internal(0))?;
        }
        self.seat.set_state_bytes(composed.bytes);
        let digest = composed.entries.digest();
        let known = self.sent.as_ref().filter(|_| !whole);
        if known.is_some_and(|sent| sent.entries == composed.entries) {
            return Ok(());
        }
        let number = self.context.store.number_state(self.server, digest).await.map_err(internal(0))?;
        let number = number.ok_or_else(|| End::refuse(0, refusals::unknown_appliance()))?;
        let target =
            Numbered { epoch: number.epoch, generation: number.generation, entries: composed.entries };
        let already =
            !whole && known.is_none() && self.held == (number.epoch, number.generation, Some(digest));
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
            let envelope = envelope::seal(Signed::State, &self.context.keys.state, delta);
            let bytes = wire.send(0, Say::State(envelope)).await?;
            self.context.metrics.pushed(form, bytes);
            tracing::debug!(server = %self.server, generation = target.generation, form, bytes, "sent a state");
        }
        (self.sent, self.sent_sessions, self.sent_at) = (Some(target), composed.sessions, Instant::now());
        if already {
            self.has_applied(&[]).await.map_err(internal(0))?;
        } else {
            self.context.live.publish(Hint::StatusDirty(self.server.0));
        }
        Ok(())
    }
}
