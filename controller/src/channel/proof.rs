//! How an appliance proves who it is: challenges, heartbeats under the ratcheting secret, and the factors of its machine.

use std::time::Duration;

use horizon_model::Factor;
use horizon_wire::{
    convert, heartbeat,
    proto::{self, from_controller::Message as Say},
};
use jiff::Timestamp;
use tokio::{sync::oneshot, time::Instant};

use super::{
    appliance::{Appliance, internal, invalid},
    beat::{self, Rejected},
    refusals,
    wire::{End, Wire},
};
use crate::{
    live::{Hint, Limit},
    store::{Beat, ChallengeId, IdentityOutcome, Severity, StoreError, random},
};

/// How many heartbeats may come at once; for long, twice as many as asked for may.
const BEAT_BURST: u32 = 8;
/// How many times the machine of an appliance may change within [`FACTOR_WINDOW`].
const FACTOR_CHANGES: u32 = 4;
/// See [`FACTOR_CHANGES`].
const FACTOR_WINDOW: Duration = Duration::from_secs(240);

/// A challenge that waits for its answer.
pub(super) struct Asked {
    pub(super) id: ChallengeId,
    pub(super) nonce: [u8; 32],
    pub(super) deadline: Instant,
    /// Who else wants to know.
    pub(super) reply: Option<oneshot::Sender<bool>>,
}

impl Appliance<'_> {
    pub(super) async fn challenge(
        &mut self,
        wire: &mut Wire,
        reply: Option<oneshot::Sender<bool>>,
    ) -> Result<(), End> {
        let id =
            self.context.store.put_challenge(self.server, self.context.now()).await.map_err(internal(0))?;
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

    pub(super) async fn answered(
        &mut self,
        wire: &mut Wire,
        request: u64,
        answer: &proto::ChallengeResponse,
    ) -> Result<(), End> {
        let Some(asked) = self.asked.take_if(|asked| asked.id.0.as_bytes()[..] == answer.id[..]) else {
            // The answer to a challenge that was replaced meanwhile.
            return wire.done(request).await;
        };
        let id = *asked.id.0.as_bytes();
        let right = [Some(&self.secret), self.previous.as_ref()].into_iter().flatten().any(|secret| {
            heartbeat::check_answer(secret, &id, &asked.nonce, self.server, self.incarnation, &answer.tag)
        });
        let now = self.context.now();
        let policy = self.context.desired.index().security_policy(&self.record.namespace);
        let tolerated = policy.anomaly_thresholds.failed_challenges;
        let noted = self.context.store.answer_challenge(self.server, asked.id, right, tolerated, now).await;
        noted.map_err(internal(request))?;
        self.context.live.publish(Hint::StatusDirty(self.server.0));
        if let Some(reply) = asked.reply {
            // Who asked may have gone.
            let _ = reply.send(right);
        }
        if !right {
            return Err(End::refuse(
                request,
                refusals::unverified(&self.record.name, "the answer to a challenge was wrong"),
            ));
        }
        self.next_challenge = Instant::now() + self.context.challenge_interval(&self.record);
        wire.done(request).await?;
        if !self.verified {
            self.verified = true;
            self.context.live.server_online(self.server, self.incarnation, now);
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
                let refusal = refusals::unverified(&self.record.name, "it was sent under the secret before");
                wire.send(request, Say::Refused(refusal.into())).await?;
                return Ok(());
            }
            Err(rejected) => return Err(self.rejected(request, rejected).await),
        };
        let now = self.context.now();
        let interval =
            self.context.desired.index().security_policy(&self.record.namespace).heartbeat_interval.get();
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
                if let Err(e) =
                    self.context.store.distrust_server(self.server, "heartbeat_failed", why, now).await
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
        End::refuse(request, refusals::unverified(&self.record.name, what))
    }

    async fn observe(&mut self, mut factors: Vec<Factor>, now: Timestamp) -> Result<(), StoreError> {
        factors.sort();
        self.factors.sort();
        if factors == self.factors {
            return Ok(());
        }
        // A machine does not change all the time; what is passed over now is looked at with a later beat.
        match Limit::new(FACTOR_CHANGES, FACTOR_WINDOW).count(self.factor_rate, now) {
            Some(used) => self.factor_rate = Some(used),
            None => return Ok(()),
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
}
