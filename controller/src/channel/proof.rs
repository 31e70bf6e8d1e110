//! How an appliance proves who it is: challenges, heartbeats under the ratcheting secret, and the factors of its machine.

use std::{net::IpAddr, time::Duration};

use aws_lc_rs::digest::{Context, SHA256};
use horizon_controller_core::detect::heartbeat as rhythm;
use horizon_model::Factor;
use horizon_wire::{
    challenge::Asked as Question,
    convert, heartbeat,
    proto::{self, ChallengeKind, from_controller::Message as Say},
};
use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    appliance::{Appliance, internal, invalid, may_pass},
    beat::{self, Rejected},
    evidence::{self, Answerer, Proved, Wrong},
    questions::Asker,
    refusals,
    wire::{End, Wire},
};
use crate::{
    detect::{Fact, Who},
    live::{Hint, Limit},
    store::{
        Answered, Beat, ChallengeId, ChallengeType, IdentityOutcome, Observation, Severity, StoreError,
        Usage, is_own, random,
    },
};

/// How many heartbeats may come at once; for long, twice as many as asked for may.
const BEAT_BURST: u32 = 8;
/// How many times the machine of an appliance may change within [`FACTOR_WINDOW`].
const FACTOR_CHANGES: u32 = 4;
/// See [`FACTOR_CHANGES`].
const FACTOR_WINDOW: Duration = Duration::from_secs(240);

/// The most that wait for one answer.
const ASKERS: usize = 8;

/// Tells some factors from others, in whatever order they come.
pub(super) fn fingerprint(mut factors: Vec<Factor>) -> [u8; 32] {
    factors.sort();
    digest(&convert::encode_factors(&factors))
}

/// Tells some factors from others as they came.
fn digest(factors: &[proto::Factor]) -> [u8; 32] {
    let mut hash = Context::new(&SHA256);
    for proto::Factor { kind, name, value } in factors {
        for text in [kind, name, value] {
            hash.update(&text.len().to_be_bytes());
            hash.update(text.as_bytes());
        }
    }
    let mut out = [0; 32];
    out.copy_from_slice(hash.finish().as_ref());
    out
}

/// What a challenge is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// To see whether the appliance lives, soon.
    Life,
    /// To know everything about who attaches.
    Everything,
    /// To look again, at whatever.
    Anything,
}

/// What to look at. Whoever attaches proves everything there is to prove, so that hanging up on an uncomfortable question leads
/// to the most uncomfortable one. An older appliance is asked what it can answer.
fn choose(wanted: Wanted, capable: bool, misbehaves: bool, chance: u32) -> ChallengeType {
    const KINDS: [ChallengeType; 5] = [
        ChallengeType::Hmac,
        ChallengeType::Behavior,
        ChallengeType::PublicKey,
        ChallengeType::Identity,
        ChallengeType::Capability,
    ];
    match wanted {
        Wanted::Everything if capable => ChallengeType::Identity,
        Wanted::Anything if misbehaves => ChallengeType::Behavior,
        Wanted::Anything => {
            let kinds = if capable { &KINDS[..] } else { &KINDS[..2] };
            let n = usize::try_from(chance).unwrap_or(0) % kinds.len();
            kinds.get(n).copied().unwrap_or(ChallengeType::Hmac)
        }
        Wanted::Life | Wanted::Everything => ChallengeType::Hmac,
    }
}

/// A challenge that waits for its answer.
pub(super) struct Asked {
    pub(super) id: ChallengeId,
    pub(super) kind: ChallengeKind,
    pub(super) put: Timestamp,
    pub(super) nonce: [u8; 32],
    pub(super) deadline: Instant,
    /// Who else wants to know.
    pub(super) askers: Vec<Asker>,
}

impl Appliance<'_> {
    /// Has the appliance prove that it lives, for somebody who asks.
    pub(super) async fn prove_alive(&mut self, wire: &mut Wire, asker: Asker) -> Result<(), End> {
        if self.asked.is_none() {
            self.challenge(wire, Wanted::Life).await?;
        }
        if let Some(asked) = &mut self.asked
            && asked.askers.len() < ASKERS
            // A question that is repeated is answered once.
            && !asked.askers.iter().any(|other| other.is_the_same(&asker))
        {
            asked.askers.push(asker);
        }
        Ok(())
    }

    /// Challenges the appliance, or looks at it without its help.
    pub(super) async fn challenge(&mut self, wire: &mut Wire, wanted: Wanted) -> Result<(), End> {
        let capable = self.remote.binding.is_some();
        let kind = match choose(wanted, capable, self.behavior.is_off(), u32::from_be_bytes(random())) {
            ChallengeType::Hmac => ChallengeKind::Unspecified,
            ChallengeType::PublicKey => ChallengeKind::PublicKey,
            ChallengeType::Identity => ChallengeKind::Identity,
            ChallengeType::Capability => {
                self.next_challenge = Instant::now() + self.context.challenge_interval(&self.namespace);
                self.probe_capability();
                return Ok(());
            }
            ChallengeType::Behavior => {
                self.next_challenge = Instant::now() + self.context.challenge_interval(&self.namespace);
                return self.verify_behavior().await;
            }
        };
        let (id, nonce) = (ChallengeId(Uuid::now_v7()), random());
        let (put, deadline) = (self.context.now(), Instant::now() + self.context.settings.challenge_patience);
        self.asked = Some(Asked { id, kind, put, nonce, deadline, askers: Vec::new() });
        self.context.metrics.challenges.inc();
        let message =
            proto::Challenge { id: id.0.as_bytes().to_vec(), nonce: nonce.to_vec(), kind: kind.into() };
        wire.send(0, Say::Challenge(message)).await?;
        Ok(())
    }

    /// Remembers that the appliance answers every type of challenge. One that did, and no longer says so, must be approved:
    /// it may be made to seem older than it is.
    pub(super) async fn settle_challenges(&mut self, remembered: bool) -> Result<(), StoreError> {
        let (context, lease) = (self.context, self.seat.lease);
        match (self.remote.binding.is_some(), remembered) {
            (true, false) => context.store.note_challenges(self.server, lease).await,
            (false, true) => {
                let why = "its appliance no longer answers the challenges that it used to";
                context
                    .store
                    .distrust_server(self.server, lease, "challenges_withdrawn", why, context.now())
                    .await
            }
            _ => Ok(()),
        }
    }

    /// Whether a new secret waits for the appliance. When that cannot be told now, it is asked again with the next change.
    pub(super) async fn secret_is_due(&self) -> Result<bool, End> {
        match self.context.store.secret_is_due(self.server).await {
            Err(error) if may_pass(&error) => Ok(false),
            other => other.map_err(internal(0)),
        }
    }

    /// Whether an answer is right, and what it proved.
    fn check(&self, asked: &Asked, answer: &proto::ChallengeResponse) -> Result<Proved, Wrong> {
        let secrets = [Some(&self.secret), self.previous.as_ref()];
        let id = asked.id.0.as_bytes();
        let (server, incarnation) = (self.server, self.incarnation);
        let Some(binding) = self.remote.binding.as_ref().filter(|_| asked.kind != ChallengeKind::Unspecified)
        else {
            let mut secrets = secrets.into_iter().flatten();
            let right = secrets.any(|secret| {
                heartbeat::check_answer(secret, id, &asked.nonce, server, incarnation, &answer.tag)
            });
            return if right { Ok(Proved::default()) } else { Err(Wrong::Tag) };
        };
        let question = Question { id, nonce: &asked.nonce, kind: asked.kind, server, incarnation };
        evidence::check(question, &Answerer { secrets, key: self.remote.key, binding }, answer)
    }

    fn tell(&self, asker: Asker, proved: bool) {
        match asker {
            // Who asked may have gone.
            Asker::Here(reply) => drop(reply.send(proved)),
            Asker::There(question) => {
                self.context.live.publish(Hint::Alive { server: self.server, question, proved });
            }
        }
    }

    pub(super) async fn answered(
        &mut self,
        wire: &mut Wire,
        request: u64,
        answer: &proto::ChallengeResponse,
    ) -> Result<(), End> {
        let Some(asked) = self.asked.take_if(|asked| asked.id.0.as_bytes()[..] == answer.id[..]) else {
            // The answer to no challenge of this conversation.
            return wire.done(request).await;
        };
        // What follows the first answer asks much of the database.
        let context = self.context;
        let _turn = if self.verified { None } else { context.arrivals.proof().await };
        let checked = self.check(&asked, answer);
        let right = checked.is_ok();
        let (detail, proved) = match checked {
            Ok(mut proved) => (std::mem::take(&mut proved.detail), Some(proved)),
            Err(wrong) => (wrong.to_string(), None),
        };
        let now = self.context.now();
        let policy = self.context.desired.index().security_policy(&self.namespace);
        let tolerated = policy.anomaly_thresholds.failed_challenges;
        let answered = Answered {
            challenge: asked.id,
            kind: match asked.kind {
                ChallengeKind::Unspecified => ChallengeType::Hmac,
                ChallengeKind::PublicKey => ChallengeType::PublicKey,
                ChallengeKind::Identity => ChallengeType::Identity,
            },
            asked: asked.put,
            right,
            detail,
            tolerated,
            newest_secret: self.reissued && !self.verified,
            arrival: (!self.verified).then_some(self.incarnation),
        };
        let noted = context.store.note_challenge(self.server, self.seat.lease, &answered, now).await;
        noted.map_err(internal(request))?;
        self.context.live.publish(Hint::StatusDirty(self.server.0));
        for asker in asked.askers {
            self.tell(asker, right);
        }
        if let Some(Proved { factors, attested: Some(attested), .. }) = proved {
            self.attested = attested;
            if !self.observe(factors, now).await.map_err(internal(request))? {
                // The next beat is looked at, whatever it tells.
                self.told = [0; 32];
            }
        }
        if !right {
            return Err(End::refuse(
                request,
                refusals::unverified(&self.name, "the answer to a challenge was wrong"),
            ));
        }
        self.next_challenge = Instant::now() + self.context.challenge_interval(&self.namespace);
        wire.done(request).await?;
        if !self.verified {
            self.verified = true;
            self.context.live.server_online(self.server, self.incarnation, self.seat.lease, now);
            self.context.live.publish(Hint::StatusDirty(self.server.0));
            self.push(wire, false).await?;
        }
        Ok(())
    }

    /// Looks whether heartbeats come as they were asked for.
    fn note_rhythm(&mut self, sent: Timestamp, now: Timestamp, interval: std::time::Duration) {
        let interval = i64::try_from(interval.as_millis()).unwrap_or(i64::MAX);
        let beat = rhythm::Beat { at: now, sender: sent, interval };
        if let Some(found) = rhythm::observe(&mut self.rhythm, beat) {
            let who = Who { id: self.server, namespace: self.namespace.clone(), name: self.name.clone() };
            let found = (who, self.remote.address.ip(), found);
            self.context.detect.note(Fact::Found(Box::new(found)));
        }
    }

    pub(super) async fn beat(
        &mut self,
        wire: &mut Wire,
        request: u64,
        beat: &proto::Heartbeat,
    ) -> Result<(), End> {
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
                let refusal = refusals::unverified(&self.name, "it was sent under the secret before");
                wire.send(request, Say::Refused(refusal.into())).await?;
                return Ok(());
            }
            Err(rejected) => return Err(self.rejected(request, rejected).await),
        };
        let now = self.context.now();
        let policy = self.context.policies.of(&*self.context.desired, &self.namespace);
        let interval = policy.heartbeat_interval.get();
        match Limit::new(BEAT_BURST, interval * BEAT_BURST / 2).count(self.beat_rate, now) {
            Some(used) => self.beat_rate = Some(used),
            None => {
                wire.send(request, Say::Refused(refusals::too_many_messages().into())).await?;
                return Ok(());
            }
        }
        let sent = Timestamp::from_millisecond(body.sent)
            .map_err(|_| End::refuse(request, refusals::malformed("the time of a heartbeat")))?;
        self.note_rhythm(sent, now, interval);
        self.follow_address(wire).await.map_err(internal(request))?;
        let told = digest(&body.factors);
        // Most beats tell what the last one did.
        if !body.factors.is_empty() && told != self.told {
            let factors = convert::decode_factors(body.factors).map_err(invalid(request))?;
            if self.observe(factors, now).await.map_err(internal(request))? {
                self.told = told;
            }
        }
        let nonce: [u8; 32] = random();
        let next = heartbeat::ratchet(&secret, &nonce);
        let durable = Beat {
            server: self.server,
            lease: self.seat.lease,
            counter: body.counter,
            sent,
            received: now,
            generation: body.generation,
            active_sessions: body.active_sessions,
            metrics: body.metrics.unwrap_or_default(),
            key: self.remote.key,
            secret: next.clone(),
            previous: secret.clone(),
        };
        match self.context.beats.submit(durable).await {
            Ok(()) => {}
            // The appliance signs its next beat as it signed this one.
            Err(error) if may_pass(&error) => {
                wire.send(request, Say::Refused(refusals::not_durable().into())).await?;
                return Ok(());
            }
            Err(error) => return Err(internal(request)(error)),
        }
        self.counter = body.counter;
        (self.secret, self.previous) = (next, Some(secret));
        (self.missed_at, self.missed_noted) = (self.context.missed_at(&policy), false);
        self.context.metrics.heartbeats.inc();
        let checkpoint = wire.checkpoint(&self.context.checkpoint);
        let ack = proto::HeartbeatAck { counter: body.counter, ratchet_nonce: nonce.to_vec(), checkpoint };
        wire.send(request, Say::HeartbeatAck(ack)).await?;
        Ok(())
    }

    async fn rejected(&self, request: u64, rejected: Rejected) -> End {
        let what = match rejected {
            Rejected::WrongTag => {
                let why = "its appliance sent a heartbeat that its secret does not vouch for";
                let now = self.context.now();
                if let Err(e) = self
                    .context
                    .store
                    .distrust_server(self.server, self.seat.lease, "heartbeat_failed", why, now)
                    .await
                {
                    return internal(request)(e);
                }
                self.context.live.publish(Hint::StatusDirty(self.server.0));
                "a heartbeat was not authenticated"
            }
            Rejected::Replayed | Rejected::OtherSender => {
                self.event("heartbeat_replayed", Severity::High, "a heartbeat came again, or was another's")
                    .await;
                "a heartbeat was replayed"
            }
            Rejected::Malformed => {
                return End::refuse(request, refusals::malformed("the body of a heartbeat"));
            }
        };
        End::refuse(request, refusals::unverified(&self.name, what))
    }

    /// The address may change under a connection.
    async fn follow_address(&mut self, wire: &Wire) -> Result<(), StoreError> {
        let now = wire.remote();
        if now.ip() != self.remote.address.ip() {
            self.remote.address = now;
            (self.place, self.told) = (self.context.place(now.ip()), [0; 32]);
            self.context.store.note_public_address(self.server, self.seat.lease, now.ip()).await?;
            self.context.live.publish(Hint::StatusDirty(self.server.0));
        }
        Ok(())
    }

    /// Looks at what an appliance tells of its machine, with what is known besides. Returns whether that was done.
    async fn observe(&mut self, mut reported: Vec<Factor>, now: Timestamp) -> Result<bool, StoreError> {
        reported.retain(is_own);
        let all = [&reported[..], &self.place, &self.attested].concat();
        let fingerprint = fingerprint(all);
        if fingerprint == self.factors {
            return Ok(true);
        }
        // A machine does not change all the time; what is passed over now is looked at with a later beat.
        match Limit::new(FACTOR_CHANGES, FACTOR_WINDOW).count(self.factor_rate, now) {
            Some(used) => self.factor_rate = Some(used),
            None => return Ok(false),
        }
        let policy = self.context.policies.of(&*self.context.desired, &self.namespace);
        let (context, lease) = (self.context, self.seat.lease);
        let observed = Observation {
            reported: &reported,
            place: &self.place,
            attested: Some(&self.attested),
            policy: &policy.identity,
        };
        let outcome = context.store.observe_factors(self.server, lease, observed, now).await?;
        self.factors = fingerprint;
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
        Ok(true)
    }

    /// Holds what was reported of sessions against what was granted.
    async fn verify_behavior(&mut self) -> Result<(), End> {
        let wrong = self.behavior.take();
        let (context, now) = (self.context, self.context.now());
        let policy = context.policies.of(&*context.desired, &self.namespace);
        let answered = Answered {
            challenge: ChallengeId(Uuid::now_v7()),
            kind: ChallengeType::Behavior,
            asked: now,
            right: wrong.is_none(),
            detail: wrong.clone().unwrap_or_default(),
            tolerated: policy.anomaly_thresholds.failed_challenges,
            newest_secret: false,
            arrival: None,
        };
        context.metrics.challenges.inc();
        let noted = context.store.note_challenge(self.server, self.seat.lease, &answered, now).await;
        noted.map_err(internal(0))?;
        context.live.publish(Hint::StatusDirty(self.server.0));
        if let Some(what) = wrong {
            self.event("sessions_misreported", Severity::High, &format!("its appliance made {what}")).await;
        }
        Ok(())
    }

    /// What an appliance reported came to: what does not fit is looked at now.
    pub(super) fn note_behavior(&mut self, usage: &Usage) {
        if self.behavior.note(usage) && self.asked.is_none() {
            self.next_challenge = Instant::now();
        }
    }
}

impl super::Context {
    /// What is known of where an address is, as factors of an identity.
    pub(super) fn place(&self, address: IpAddr) -> Vec<Factor> {
        self.geo.lookup(address).map(|place| place.factors()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn what_is_asked_cannot_be_foreseen_but_arrivals_prove_everything() {
        let kinds = |capable| {
            (0..1000).map(|n| choose(Wanted::Anything, capable, false, n * 7919)).collect::<HashSet<_>>()
        };
        assert_eq!(kinds(true).len(), 5);
        assert_eq!(kinds(false), HashSet::from([ChallengeType::Hmac, ChallengeType::Behavior]));
        for chance in 0..10 {
            assert_eq!(choose(Wanted::Everything, true, true, chance), ChallengeType::Identity);
            assert_eq!(choose(Wanted::Everything, false, true, chance), ChallengeType::Hmac);
            assert_eq!(choose(Wanted::Life, true, true, chance), ChallengeType::Hmac);
            assert_eq!(choose(Wanted::Anything, true, true, chance), ChallengeType::Behavior);
        }
    }
}
