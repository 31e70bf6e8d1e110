//! The conversation with an appliance: it registers, attaches, proves itself, beats, and gets its state.

use std::{collections::HashSet, convert::Infallible, sync::Arc, time::Duration};

use horizon_model::{Digest, Factor, Incarnation, Secret, ServerId, SessionId};
use horizon_wire::{
    convert,
    envelope::{self, Context as Signed},
    heartbeat,
    proto::{self, from_controller::Message as Say, to_controller::Message as Heard},
    state::{self, Numbered},
    Message as _,
};
use jiff::Timestamp;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Context, accept,
    beat::{self, Rejected},
    clones::{self, Arrival, Verdict},
    compose,
    opening::Remote,
    probe::Probe,
    refusals,
    registry::{Command, ServerSeat},
    wire::{End, Wire},
};
use crate::{
    live::{Counted, Hint, Limit},
    store::{
        AppliedState, Beat, ChallengeId, IdentityOutcome, NewEvent, RegisterRequest, ServerRecord, Severity, Source,
        StoreError, random,
    },
};

/// How long an appliance may take from the Welcome to its first word.
const FIRST_WORD: Duration = Duration::from_secs(30);
/// The longest host name and version that are taken.
const MAX_SHORT_TEXT: usize = 64;

/// A failure inside, as the end of a conversation.
pub(super) fn internal(request: u64) -> impl Fn(StoreError) -> End {
    move |error| End::refuse(request, refusals::internal(&error))
}

fn invalid(request: u64) -> impl Fn(convert::Invalid) -> End {
    move |error| End::refuse(request, refusals::malformed(&error.to_string()))
}

/// Talks to an appliance until one of the two ends it.
pub(super) async fn converse(context: &Arc<Context>, remote: Remote, wire: &mut Wire) -> End {
    let first = async {
        loop {
            match wire.next().await? {
                (request, Heard::Register(register)) => context.register(remote, wire, request, register).await?,
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
    match appliance.run(wire).await {
        Ok(never) => match never {},
        Err(end) => end,
    }
}

impl Context {
    async fn register(
        self: &Arc<Self>,
        remote: Remote,
        wire: &mut Wire,
        request: u64,
        register: proto::Register,
    ) -> Result<(), End> {
        let (now, address) = (self.now(), remote.address.ip());
        let policy = accept::policy(&self.desired.index());
        let limit = Limit::per_minute(policy.rate_limits.registrations_per_minute);
        if !self.live.allow(Counted::Registration(address), limit, now) {
            return Err(End::refuse(request, refusals::too_many_tries("registrations")));
        }
        let short = |text: String, field| {
            convert::text(text, field).map(|t| t.chars().take(MAX_SHORT_TEXT).collect::<String>()).map_err(invalid(request))
        };
        let asked = RegisterRequest {
            key_name: short(register.key_name, "key_name")?,
            secret: Secret::from_slice(&register.secret)
                .ok_or_else(|| End::refuse(request, refusals::malformed("the secret has another length")))?,
            public_key: remote.key,
            hostname: short(register.hostname, "hostname")?,
            version: short(register.version, "version")?,
            capabilities: convert::decode_capabilities(&register.capabilities).map_err(invalid(request))?,
            factors: convert::decode_factors(register.factors).map_err(invalid(request))?,
            address,
        };
        let registered = match self.store.register_server(&asked, now).await {
            Ok(registered) => registered,
            Err(error) => {
                if matches!(error, crate::store::RegisterError::Unknown) {
                    self.note_failure(remote, "a registration").await;
                }
                return Err(End::refuse(request, refusals::registration(&error)));
            }
        };
        if registered.fresh {
            tracing::info!(server = %registered.server, name = %registered.name, "an appliance registered");
            self.live.publish(Hint::StatusDirty(registered.server.0));
            if let Ok(Some(key)) = self.store.registration_key_of(registered.server).await {
                self.live.publish(Hint::StatusDirty(key));
            }
        }
        let answer = proto::Registered {
            server_id: registered.server.as_bytes().to_vec(),
            server_name: registered.name.to_string(),
            verification_secret: registered.secret.expose().to_vec(),
        };
        wire.send(request, Say::Registered(answer)).await?;
        Ok(())
    }
}

/// A challenge that waits for its answer.
struct Asked {
    id: ChallengeId,
    nonce: [u8; 32],
    deadline: Instant,
    /// Who else wants to know.
    reply: Option<oneshot::Sender<bool>>,
}

/// The task of an appliance that attached.
pub(super) struct Appliance<'a> {
    pub(super) context: &'a Arc<Context>,
    pub(super) remote: Remote,
    pub(super) server: ServerId,
    pub(super) record: ServerRecord,
    incarnation: Incarnation,
    pub(super) seat: ServerSeat,
    secret: Secret,
    previous: Option<Secret>,
    counter: u64,
    last_beat: Instant,
    missed_noted: bool,
    factors: Vec<Factor>,
    asked: Option<Asked>,
    verified: bool,
    /// Whether the appliance was sent a new secret when it attached.
    reissued: bool,
    next_challenge: Instant,
    /// What the appliance held when it attached.
    held: (u64, u64, Option<Digest>),
    /// What was last sent to it, or found to be what it held.
    pub(super) sent: Option<Numbered>,
    pub(super) sent_sessions: HashSet<SessionId>,
    pub(super) sent_at: Instant,
    pub(super) probe: Option<Probe>,
    pub(super) violations: super::reports::ViolationCounts,
    online: Option<Online>,
}

/// Says that an appliance is gone, whatever ends its task.
struct Online {
    context: Arc<Context>,
    server: ServerId,
    incarnation: Incarnation,
}

impl Drop for Online {
    fn drop(&mut self) {
        self.context.live.server_offline(self.server, self.incarnation, self.context.now());
        self.context.live.publish(Hint::StatusDirty(self.server.0));
    }
}

impl<'a> Appliance<'a> {
    /// Decides whether an appliance may speak for its server, and challenges it.
    async fn attach(
        context: &'a Arc<Context>,
        remote: Remote,
        wire: &mut Wire,
        request: u64,
        attach: &proto::Attach,
    ) -> Result<Self, End> {
        let field = |name: &'static str| End::refuse(request, refusals::malformed(&convert::Invalid(name).to_string()));
        let server = ServerId::from_slice(&attach.server_id).ok_or_else(|| field("server_id"))?;
        let incarnation = Incarnation::from_slice(&attach.incarnation).ok_or_else(|| field("incarnation"))?;
        let digest = if attach.digest.is_empty() {
            None
        } else {
            Some(Digest::from_slice(&attach.digest).ok_or_else(|| field("digest"))?)
        };
        let version = convert::text(attach.version.clone(), "version").map_err(invalid(request))?;
        let capabilities = convert::decode_capabilities(&attach.capabilities).map_err(invalid(request))?;
        let addresses = convert::parse_all(&attach.addresses, "addresses").map_err(invalid(request))?;

        let record = context.store.server(server).await.map_err(internal(request))?;
        let Some(record) = record.filter(|r| r.public_key == Some(remote.key)) else {
            context.note_failure(remote, "an attachment").await;
            return Err(End::refuse(request, refusals::unknown_appliance()));
        };
        if record.decommissioned_at.is_some() || record.revoked_at.is_some() {
            let reason = record.decommission_reason.clone().unwrap_or_else(|| "it was revoked".into());
            return Err(End::refuse(request, refusals::ended_server(&record.name, &reason)));
        }
        let seat = context.seat(server, &record, incarnation, request).await?;
        let now = context.now();
        let address = remote.address.ip();
        let short: String = version.chars().take(MAX_SHORT_TEXT).collect();
        context.store.note_attached(server, address, &short, incarnation, now).await.map_err(internal(request))?;
        context.store.note_capabilities(server, &capabilities, now).await.map_err(internal(request))?;
        let held = AppliedState { epoch: attach.epoch, generation: attach.generation, digest, problems: record.problems.clone(), addresses };
        context.store.note_applied(server, &held).await.map_err(internal(request))?;
        let reissued = context.store.reissue_secret(server).await.map_err(internal(request))?;
        if let Some(secret) = &reissued {
            let fresh = proto::Registered {
                server_id: server.as_bytes().to_vec(),
                server_name: record.name.to_string(),
                verification_secret: secret.expose().to_vec(),
            };
            wire.send(0, Say::Registered(fresh)).await?;
        }
        let secrets = context.store.server_secrets(server).await.map_err(internal(request))?;
        let (secret, previous) = secrets.ok_or_else(|| End::refuse(request, refusals::unknown_appliance()))?;
        let factors = context.store.current_factors(server).await.map_err(internal(request))?;
        let attached = proto::Attached {
            heartbeat_seconds: context.heartbeat_seconds(&record),
            server_name: record.name.to_string(),
            public_address: address.to_string(),
        };
        wire.send(request, Say::Attached(attached)).await?;
        let mut appliance = Self {
            context,
            remote,
            server,
            record,
            incarnation,
            seat,
            secret,
            previous,
            counter: 0,
            last_beat: Instant::now(),
            missed_noted: false,
            factors,
            asked: None,
            verified: false,
            reissued: reissued.is_some(),
            next_challenge: Instant::now(),
            held: (attach.epoch, attach.generation, digest),
            sent: None,
            sent_sessions: HashSet::new(),
            sent_at: Instant::now(),
            probe: None,
            violations: Default::default(),
            online: None,
        };
        appliance.challenge(wire, None).await?;
        Ok(appliance)
    }

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
            self.event("heartbeats_missed", Severity::Medium, "its appliance is connected and sends no heartbeats").await;
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

    async fn challenge(&mut self, wire: &mut Wire, reply: Option<oneshot::Sender<bool>>) -> Result<(), End> {
        let id = self.context.store.put_challenge(self.server, self.context.now()).await.map_err(internal(0))?;
        let nonce: [u8; 32] = random();
        // An open challenge is replaced by the new one: who waits for its answer takes this one's.
        let waiting = self.asked.take().and_then(|asked| asked.reply);
        let deadline = Instant::now() + self.context.settings.challenge_patience;
        self.asked = Some(Asked { id, nonce, deadline, reply: reply.or(waiting) });
        self.context.metrics.challenges.inc();
        let message = proto::Challenge { id: id.0.as_bytes().to_vec(), nonce: nonce.to_vec() };
        wire.send(0, Say::Challenge(message)).await?;
        Ok(())
    }

    async fn answered(&mut self, wire: &mut Wire, request: u64, answer: &proto::ChallengeResponse) -> Result<(), End> {
        let Some(asked) = self.asked.take_if(|asked| asked.id.0.as_bytes()[..] == answer.id[..]) else {
            // The answer to a challenge that was replaced meanwhile.
            return wire.done(request).await;
        };
        let id = *asked.id.0.as_bytes();
        let right = [Some(&self.secret), self.previous.as_ref()].into_iter().flatten().any(|secret| {
            heartbeat::check_answer(secret, &id, &asked.nonce, self.server, self.incarnation, &answer.tag)
        });
        let now = self.context.now();
        self.context.store.answer_challenge(self.server, asked.id, right, now).await.map_err(internal(request))?;
        self.context.live.publish(Hint::StatusDirty(self.server.0));
        if let Some(reply) = asked.reply {
            // Who asked may have gone.
            let _ = reply.send(right);
        }
        if !right {
            self.context.metrics.security_event("challenge_failed");
            return Err(End::refuse(request, refusals::unverified(&self.record.name, "the answer to a challenge was wrong")));
        }
        self.next_challenge = Instant::now() + self.context.challenge_interval(&self.record);
        wire.done(request).await?;
        if !self.verified {
            self.verified = true;
            self.context.live.server_online(self.server, self.incarnation, now);
            self.online =
                Some(Online { context: self.context.clone(), server: self.server, incarnation: self.incarnation });
            self.context.live.publish(Hint::StatusDirty(self.server.0));
            self.push(wire, false).await?;
        }
        Ok(())
    }

    async fn beat(&mut self, wire: &mut Wire, request: u64, beat: &proto::Heartbeat) -> Result<(), End> {
        let expected = beat::Expected {
            server: self.server,
            incarnation: self.incarnation,
            counter: self.counter,
            current: &self.secret,
            previous: self.previous.as_ref(),
        };
        let beat::Accepted { body, secret } = match beat::accept(expected, beat) {
            Ok(accepted) => accepted,
            // It was sent before the new secret came.
            Err(Rejected::WrongTag) if self.reissued && !self.verified => {
                let refusal = refusals::unverified(&self.record.name, "it was sent under the secret before");
                wire.send(request, Say::Refused(refusal.into())).await?;
                return Ok(());
            }
            Err(rejected) => return Err(self.rejected(request, rejected).await),
        };
        let now = self.context.now();
        let sent = Timestamp::from_millisecond(body.sent)
            .map_err(|_| End::refuse(request, refusals::malformed("the time of a heartbeat")))?;
        if !body.factors.is_empty() {
            let factors = convert::decode_factors(body.factors).map_err(invalid(request))?;
            self.observe(factors, now).await.map_err(internal(request))?;
        }
        let nonce: [u8; 32] = random();
        let next = heartbeat::ratchet(&secret, &nonce);
        let durable = Beat {
            server: self.server,
            counter: body.counter,
            sent,
            received: now,
            generation: body.generation,
            active_sessions: body.active_sessions,
            metrics: body.metrics.unwrap_or_default(),
            secret: next.clone(),
            previous: secret.clone(),
        };
        self.context.beats.submit(durable).await.map_err(internal(request))?;
        self.counter = body.counter;
        (self.secret, self.previous) = (next, Some(secret));
        (self.last_beat, self.missed_noted) = (Instant::now(), false);
        self.context.metrics.heartbeats.inc();
        let ack = proto::HeartbeatAck { counter: body.counter, ratchet_nonce: nonce.to_vec() };
        wire.send(request, Say::HeartbeatAck(ack)).await?;
        Ok(())
    }

    async fn rejected(&self, request: u64, rejected: Rejected) -> End {
        let what = match rejected {
            Rejected::WrongTag => {
                let why = "its appliance sent a heartbeat that its secret does not vouch for";
                let now = self.context.now();
                if let Err(e) = self.context.store.distrust_server(self.server, "heartbeat_failed", why, now).await {
                    return internal(request)(e);
                }
                self.context.metrics.security_event("heartbeat_failed");
                self.context.live.publish(Hint::StatusDirty(self.server.0));
                "a heartbeat was not authenticated"
            }
            Rejected::Replayed | Rejected::OtherSender => {
                self.event("heartbeat_replayed", Severity::High, "a heartbeat came again, or was another's").await;
                "a heartbeat was replayed"
            }
            Rejected::Malformed => return End::refuse(request, refusals::malformed("the body of a heartbeat")),
        };
        End::refuse(request, refusals::unverified(&self.record.name, what))
    }

    async fn observe(&mut self, mut factors: Vec<Factor>, now: Timestamp) -> Result<(), StoreError> {
        factors.sort();
        self.factors.sort();
        if factors == self.factors {
            return Ok(());
        }
        let outcome = self.context.store.observe_factors(self.server, &factors, now).await?;
        self.factors = factors;
        match outcome {
            IdentityOutcome::Same => {}
            IdentityOutcome::Absorbed(changes) => {
                tracing::info!(server = %self.server, changes = changes.len(), "an appliance's machine changed a little");
            }
            IdentityOutcome::Pending { changes, .. } => {
                tracing::warn!(server = %self.server, changes = changes.len(), "an appliance reports another machine");
            }
        }
        self.context.live.publish(Hint::StatusDirty(self.server.0));
        Ok(())
    }

    /// Sends the appliance what changed since what it has; everything, if `whole` is asked for or it is not known what it
    /// has. Nothing when it has what it should.
    async fn push(&mut self, wire: &mut Wire, whole: bool) -> Result<(), End> {
        let composed = compose::compose(self.context, self.server).await.map_err(internal(0))?;
        let digest = composed.entries.digest();
        let known = self.sent.as_ref().filter(|_| !whole);
        if known.is_some_and(|sent| sent.entries == composed.entries) {
            return Ok(());
        }
        let number = self.context.store.number_state(self.server, digest).await.map_err(internal(0))?;
        let number = number.ok_or_else(|| End::refuse(0, refusals::unknown_appliance()))?;
        let target = Numbered { epoch: number.epoch, generation: number.generation, entries: composed.entries };
        let already = !whole
            && known.is_none()
            && self.held == (number.epoch, number.generation, Some(digest));
        if !already {
            let nothing = Numbered::default();
            let base = known.unwrap_or(&nothing);
            let form = if base.generation == 0 { "snapshot" } else { "delta" };
            let delta = state::compose(self.server, base, &target).encode_to_vec();
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

impl Context {
    /// The seat of a server, once it is clear that the newcomer is not a clone.
    async fn seat(
        self: &Arc<Self>,
        server: ServerId,
        record: &ServerRecord,
        incarnation: Incarnation,
        request: u64,
    ) -> Result<ServerSeat, End> {
        loop {
            let connected = self.registry.server(server);
            let there = connected.as_ref().map(|(run, _)| *run);
            if clones::arrival(there, incarnation) == Arrival::AskTheOther
                && let Some((_, commands)) = connected
            {
                let (reply, answer) = oneshot::channel();
                let proved = async {
                    // An error on the way means that the other is just going.
                    commands.send(Command::ProveAlive(reply)).await.is_ok() && answer.await.unwrap_or(false)
                };
                let proved = timeout(self.settings.clone_patience, proved).await.unwrap_or(false);
                if clones::verdict(proved) == Verdict::RefuseNewcomer {
                    let event = NewEvent {
                        kind: "clone",
                        severity: Severity::Critical,
                        source: Source::Server(server),
                        address: None,
                        description: format!(
                            "server {}/{}: a second running copy of its appliance connected and was refused",
                            record.namespace, record.name
                        ),
                        data: serde_json::json!({ "incarnation": incarnation }),
                    };
                    self.record(&event).await;
                    return Err(End::refuse(request, refusals::clone_of(&record.name)));
                }
            }
            if let Some(seat) = self.registry.take_seat(server, incarnation, there) {
                return Ok(seat);
            }
        }
    }

    fn heartbeat_seconds(&self, record: &ServerRecord) -> u32 {
        let interval = self.desired.index().security_policy(&record.namespace).heartbeat_interval.get();
        u32::try_from(interval.as_secs()).unwrap_or(u32::MAX).clamp(1, 3600)
    }

    /// A random time between half and one and a half of the interval between challenges.
    fn challenge_interval(&self, record: &ServerRecord) -> Duration {
        let interval = self.desired.index().security_policy(&record.namespace).challenge_interval.get();
        let part = f64::from(u32::from_be_bytes(random())) / f64::from(u32::MAX);
        interval.mul_f64(0.5 + part)
    }
}
