//! How an appliance proves who it is: challenges, heartbeats under the ratcheting secret, and the factors of its machine.

use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use horizon_model::Factor;
use horizon_wire::{
    convert, heartbeat,
    proto::{self, from_controller::Message as Say},
};
use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    appliance::{Appliance, internal, invalid, may_pass},
    beat::{self, Rejected},
    questions::Asker,
    refusals,
    wire::{End, Wire},
};
use crate::{
    live::{Hint, Limit},
    store::{Answered, Beat, ChallengeId, IdentityOutcome, Severity, StoreError, random},
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
    let mut hash = Context::new(&SHA256);
    for proto::Factor { kind, name, value } in convert::encode_factors(&factors) {
        for text in [kind, name, value] {
            hash.update(&text.len().to_be_bytes());
            hash.update(text.as_bytes());
        }
    }
    let mut out = [0; 32];
    out.copy_from_slice(hash.finish().as_ref());
    out
}

/// A challenge that waits for its answer.
pub(super) struct Asked {
    pub(super) id: ChallengeId,
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
            self.challenge(wire).await?;
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

    /// Challenges the appliance.
    pub(super) async fn challenge(&mut self, wire: &mut Wire) -> Result<(), End> {
        let (id, nonce) = (ChallengeId(Uuid::now_v7()), random());
        let (put, deadline) = (self.context.now(), Instant::now() + self.context.settings.challenge_patience);
        self.asked = Some(Asked { id, put, nonce, deadline, askers: Vec::new() });
        self.context.metrics.challenges.inc();
        let message = proto::Challenge { id: id.0.as_bytes().to_vec(), nonce: nonce.to_vec() };
        wire.send(0, Say::Challenge(message)).await?;
        Ok(())
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
        let _turn = if self.verified { None } else { context.arrivals.turn().await };
        let id = *asked.id.0.as_bytes();
        let right = [Some(&self.secret), self.previous.as_ref()].into_iter().flatten().any(|secret| {
            heartbeat::check_answer(secret, &id, &asked.nonce, self.server, self.incarnation, &answer.tag)
        });
        let now = self.context.now();
        let policy = self.context.desired.index().security_policy(&self.namespace);
        let tolerated = policy.anomaly_thresholds.failed_challenges;
        let answered = Answered { challenge: asked.id, asked: asked.put, right, tolerated };
        let noted = context.store.note_challenge(self.server, self.seat.lease, &answered, now).await;
        noted.map_err(internal(request))?;
        self.context.live.publish(Hint::StatusDirty(self.server.0));
        for asker in asked.askers {
            self.tell(asker, right);
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
        let policy = self.context.desired.index().security_policy(&self.namespace);
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
        if !body.factors.is_empty() {
            let factors = convert::decode_factors(body.factors).map_err(invalid(request))?;
            self.observe(factors, now).await.map_err(internal(request))?;
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
        let ack = proto::HeartbeatAck { counter: body.counter, ratchet_nonce: nonce.to_vec() };
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

    async fn observe(&mut self, factors: Vec<Factor>, now: Timestamp) -> Result<(), StoreError> {
        let fingerprint = fingerprint(factors.clone());
        if fingerprint == self.factors {
            return Ok(());
        }
        // A machine does not change all the time; what is passed over now is looked at with a later beat.
        match Limit::new(FACTOR_CHANGES, FACTOR_WINDOW).count(self.factor_rate, now) {
            Some(used) => self.factor_rate = Some(used),
            None => return Ok(()),
        }
        let outcome = self.context.store.observe_factors(self.server, self.seat.lease, &factors, now).await?;
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
        Ok(())
    }
}
