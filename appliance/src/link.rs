//! The conversation with a controller: connecting again and again, attaching, heartbeats and challenges. It knows nothing
//! of the host; what the controller asks for goes to the agent.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use horizon_appliance_core::{Backoff, Beats, Secrets};
use horizon_channel::{Channel, ConnectError, ConnectOptions, RequestError, Requests, connect};
use horizon_model::{Capability, Digest, Factor, Incarnation, Secret, SessionId};
use horizon_wire::{
    Message as _, audit, challenge, convert,
    key::SigningKey,
    keyset::{self, Anchor, KeySet},
    proto::{self, ChallengeKind, KeyUse, from_controller::Message as Said, to_controller::Message as Say},
    refusal::Refusal,
    version,
};
use thiserror::Error;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    agent::Announced,
    outbox::Outbox,
    prove::{Prover, Question},
    store::{Enrolment, Store, StoreError},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a controller may take to answer once it was asked whether it is there.
const SILENT: Duration = Duration::from_secs(3);
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// After the host's addresses changed, how long they may settle before the next attempt.
const SETTLE: Duration = Duration::from_millis(200);
/// The most addresses of other controllers that are tried before those that were set up.
const MAX_ELSEWHERE: usize = 8;
const MAX_HEARTBEAT_SECONDS: u32 = 3600;
/// What the appliance can provide.
pub(crate) const CAPABILITIES: [Capability; 4] =
    [Capability::Vpn, Capability::LanEmulation, Capability::GeoLocation, Capability::TrafficRouting];

/// What the agent holds, for attaching and for heartbeats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// The state in force.
    pub(crate) epoch: u64,
    /// Its number.
    pub(crate) generation: u64,
    /// Its digest; `None` before the first.
    pub(crate) digest: Option<Digest>,
    /// Where clients reach the tunnel.
    pub(crate) addresses: Vec<std::net::SocketAddr>,
    /// Seconds between heartbeats.
    pub(crate) heartbeat_seconds: u32,
    /// Sessions that are connected.
    pub(crate) active_sessions: u32,
    /// Bytes toward all peers.
    pub(crate) bytes_sent: u64,
    /// Bytes from all peers.
    pub(crate) bytes_received: u64,
    /// What tells this machine from another.
    pub(crate) factors: Vec<Factor>,
}

/// What the agent hears.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A controller took the appliance in.
    Attached {
        /// Where it is.
        remote: std::net::SocketAddr,
        /// The organisation's keys.
        keyset: KeySet,
        /// The server's name.
        server_name: String,
        /// The appliance's address as the controller sees it.
        public_address: String,
    },
    /// No controller did.
    Failed {
        /// Why.
        reason: String,
        /// When the next attempt is.
        retry_in: Duration,
    },
    /// The organisation's keys are others from now on.
    KeySet(KeySet),
    /// A signed state.
    State(proto::Envelope),
    /// A probe is coming.
    DialBack(Announced),
    /// What goes through a session is to be reported at once.
    Check(SessionId),
    /// A heartbeat was acknowledged.
    Acknowledged,
    /// A heartbeat or a challenge's answer was refused.
    Refused(Refusal),
}

/// What the conversation needs.
pub(crate) struct Link {
    /// Keys and secrets.
    pub(crate) store: Store,
    /// Whom to talk to.
    pub(crate) enrolment: Enrolment,
    /// What makes evidence, with the key to prove.
    pub(crate) prover: Prover,
    /// This start of the process.
    pub(crate) incarnation: Incarnation,
    /// The mark of the socket.
    pub(crate) fwmark: Option<u32>,
    /// What the agent holds.
    pub(crate) held: watch::Receiver<Held>,
    /// What the agent has to say.
    pub(crate) outbox: Arc<Outbox>,
    /// To the agent.
    pub(crate) heard: mpsc::Sender<Heard>,
    /// The host's addresses changed.
    pub(crate) moved: Arc<Notify>,
}

#[derive(Debug, Error)]
enum LinkError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the verification secret is missing; enrol again with a new token")]
    NoSecret,
    #[error("the controller answered with another message than was asked for")]
    Unexpected,
    #[error("the connection ended: {0}")]
    Ended(String),
    #[error("the controller asks to use another one")]
    GoElsewhere(Vec<String>),
    #[error("connecting anew to learn the organisation's newest keys")]
    NewKeys,
    #[error("another controller answers")]
    Switched(Box<Channel>),
    #[error("the host's addresses changed")]
    Moved,
    #[error("the agent has stopped")]
    Stopped,
}

impl LinkError {
    /// How long the controller asked to be left alone.
    fn retry_after(&self) -> Option<Duration> {
        let refusal = match self {
            Self::Connect(ConnectError::Refused(refusal)) => refusal,
            Self::Request(RequestError::Refused(refusal)) => refusal,
            _ => return None,
        };
        let seconds = u64::from(refusal.retry_after_seconds);
        // "Do not retry unasked" is answered with the longest delay: an approval must not need a visit to the machine.
        Some(if seconds == 0 { LONGEST_RETRY } else { Duration::from_secs(seconds).min(LONGEST_RETRY) })
    }
}

/// The greeting of an appliance.
pub(crate) fn hello() -> proto::Hello {
    proto::Hello {
        software: version::SOFTWARE.to_owned(),
        role: proto::Role::Appliance.into(),
        features: horizon_model::Feature::ALL
            .iter()
            .map(|f| f.as_str())
            .chain([challenge::FEATURE, keyset::FEATURE])
            .map(str::to_owned)
            .collect(),
        ..proto::Hello::default()
    }
}

impl Link {
    /// Talks to a controller for as long as the agent listens.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        let mut elsewhere = Vec::new();
        let mut ready = None;
        loop {
            let error = match self.converse(&mut backoff, &elsewhere, ready.take()).await {
                Err(LinkError::Stopped) | Ok(()) => return,
                Err(LinkError::Switched(channel)) => {
                    tracing::info!(controller = %channel.remote, "the controller is silent, another answers");
                    ready = Some(*channel);
                    continue;
                }
                Err(LinkError::Moved) => {
                    sleep(SETTLE).await;
                    continue;
                }
                // Nothing is wrong: another replica is asked, and those that were set up again from the next time on.
                Err(LinkError::GoElsewhere(addresses)) => {
                    let pause = backoff.next(chance());
                    tracing::info!(?addresses, "the controller asks to use another one");
                    elsewhere = addresses;
                    elsewhere.truncate(MAX_ELSEWHERE);
                    sleep(pause).await;
                    continue;
                }
                Err(error) => error,
            };
            let asked = error.retry_after();
            let mut delay = backoff.next(chance());
            delay = asked.map_or(delay, |a| a.max(delay));
            let reason = error.to_string();
            elsewhere.clear();
            tracing::info!(%reason, retry_in = ?delay, "no controller");
            if self.heard.send(Heard::Failed { reason, retry_in: delay }).await.is_err() {
                return;
            }
            tokio::select! {
                () = sleep(delay) => {}
                () = self.moved.notified() => {
                    // A new address deserves a new attempt, once it has settled.
                    sleep(SETTLE).await;
                    backoff.reset();
                }
                () = self.heard.closed() => return,
            }
        }
    }

    /// How to reach a controller: those of `first`, then those that were set up.
    fn dial(&self, first: &[String]) -> Result<Dial, StoreError> {
        let anchor = match self.store.keyset()? {
            Some(keyset) => Anchor::KeySet(keyset),
            None => Anchor::Root(self.enrolment.root),
        };
        let addresses = first.iter().chain(&self.enrolment.controllers).cloned().collect();
        Ok(Dial { addresses, identity: self.prover.identity.clone(), anchor, fwmark: self.fwmark })
    }

    async fn converse(
        &mut self,
        backoff: &mut Backoff,
        elsewhere: &[String],
        ready: Option<Channel>,
    ) -> Result<(), LinkError> {
        let dial = self.dial(elsewhere)?;
        let heard = self.heard.clone();
        let channel = match ready {
            Some(channel) => channel,
            None => tokio::select! {
                channel = Box::pin(dial.connect()) => channel?,
                // What was sent on the old way is not worth waiting for.
                () = self.moved.notified() => return Err(LinkError::Moved),
                () = heard.closed() => return Err(LinkError::Stopped),
            },
        };
        let anchor = dial.anchor;
        if let Some(raw) = channel.keyset_raw.as_ref().filter(|_| channel.keyset.version > anchor.version()) {
            self.store.set_keyset(raw)?;
        }
        let secrets = self.store.secrets()?.ok_or(LinkError::NoSecret)?;
        let requests = channel.requests.clone();
        let result = self.attached(channel, Beats::new(secrets), backoff).await;
        match &result {
            Err(LinkError::Stopped) => requests.farewell("the appliance stops").await,
            _ => requests.close("done"),
        }
        result
    }

    async fn attached(
        &mut self,
        mut channel: Channel,
        mut beats: Beats,
        backoff: &mut Backoff,
    ) -> Result<(), LinkError> {
        let requests = channel.requests.clone();
        let attached = match requests.request(self.attach()).await? {
            Said::Attached(attached) => attached,
            _ => return Err(LinkError::Unexpected),
        };
        tracing::info!(controller = %channel.remote, server = attached.server_name, "attached");
        self.tell(Heard::Attached {
            remote: channel.remote,
            keyset: channel.keyset.clone(),
            server_name: attached.server_name.clone(),
            public_address: attached.public_address.clone(),
        })
        .await?;
        let quiet = Duration::from_secs(attached.ping_seconds.into());
        let mut another = Box::pin(another(requests.clone(), quiet, self.dial(&[])?));
        let mut next_beat = Instant::now();
        let mut waiting: Option<Waiting> = None;
        let mut proving: Option<Proving> = None;
        // A wish to connect anew is fulfilled by now.
        let waited = self.outbox.take().or_else(|| self.outbox.take());
        for message in waited.unwrap_or_default() {
            requests.notify(message).await?;
        }
        loop {
            tokio::select! {
                // What the controller says comes first: a new secret is in force before the next heartbeat.
                biased;
                said = channel.inbox.recv() => {
                    let Some(said) = said else {
                        let reason = requests.close_reason();
                        return Err(LinkError::Ended(reason.unwrap_or_else(|| "by the controller".into())));
                    };
                    if let Some(question) = self.said(said, &requests, &mut beats).await? {
                        proving = Some(self.prove(question, &requests)?);
                    }
                }
                () = self.outbox.filled() => {
                    for message in self.outbox.take().ok_or(LinkError::NewKeys)? {
                        requests.notify(message).await?;
                    }
                }
                () = sleep_until(next_beat), if waiting.is_none() => {
                    next_beat = Instant::now() + self.interval(&attached);
                    waiting = Some(self.beat(&requests, &mut beats));
                }
                (question, payload) = evidence(&mut proving) => {
                    proving = None;
                    // Under the secret that is in force now: it may have moved on meanwhile.
                    let tag = beats.vouch(question.asked(), &payload);
                    let response = proto::ChallengeResponse { id: question.id.to_vec(), tag, payload };
                    requests.notify(Say::ChallengeResponse(response)).await?;
                }
                answer = answer(&mut waiting) => {
                    waiting = None;
                    self.answered(answer, &requests, &mut beats, backoff).await?;
                }
                changed = self.held.changed() => {
                    if changed.is_err() {
                        return Err(LinkError::Stopped);
                    }
                    // A shorter interval takes effect at once.
                    next_beat = next_beat.min(Instant::now() + self.interval(&attached));
                }
                channel = &mut another => return Err(LinkError::Switched(Box::new(channel))),
                () = self.heard.closed() => return Err(LinkError::Stopped),
            }
        }
    }

    /// Does what the controller says; a challenge that takes more than the verification secret is handed back.
    async fn said(
        &self,
        said: Said,
        requests: &Requests,
        beats: &mut Beats,
    ) -> Result<Option<Question>, LinkError> {
        match said {
            Said::Challenge(challenge) => {
                let (Ok(id), Ok(nonce)) = (challenge.id[..].try_into(), challenge.nonce[..].try_into())
                else {
                    return Err(LinkError::Unexpected);
                };
                let (server, incarnation) = (self.enrolment.server_id, self.incarnation);
                let kind = challenge.kind();
                if kind != ChallengeKind::Unspecified {
                    return Ok(Some(Question { id, nonce, kind, server, incarnation }));
                }
                let tag = beats.answer(&id, &nonce, server, incarnation);
                let response = proto::ChallengeResponse { id: challenge.id, tag, payload: Vec::new() };
                requests.notify(Say::ChallengeResponse(response)).await?;
            }
            Said::Keysets(_) => {
                // The channel has verified them. They are kept before anything is believed that hangs on them.
                let (keyset, raw) = requests.keyset();
                if let Some(raw) = &raw {
                    self.store.set_keyset(raw)?;
                }
                let version = keyset.version;
                self.tell(Heard::KeySet(keyset)).await?;
                requests.keyset_held(version).await?;
            }
            Said::State(envelope) => self.tell(Heard::State(envelope)).await?,
            Said::DialBack(announced) => {
                let nonce = announced.nonce[..].try_into().map(Announced::Nonce);
                let digest = announced.digest[..].try_into().map(Announced::Digest);
                let announced = nonce.or(digest).map_err(|_| LinkError::Unexpected)?;
                self.tell(Heard::DialBack(announced)).await?;
            }
            Said::CheckSession(asked) => {
                let session = SessionId::from_slice(&asked.session).ok_or(LinkError::Unexpected)?;
                self.tell(Heard::Check(session)).await?;
            }
            Said::GoElsewhere(go) => return Err(LinkError::GoElsewhere(go.addresses)),
            Said::Refused(refused) => self.tell(Heard::Refused(refused.into())).await?,
            // After an approval the controller hands out a new secret, over the channel that its KeySet vouches for.
            Said::Registered(new) if new.server_id == self.enrolment.server_id.as_bytes() => {
                let current = Secret::from_slice(&new.verification_secret).ok_or(LinkError::Unexpected)?;
                let secrets = Secrets { current, previous: None };
                self.store.set_secrets(&secrets)?;
                beats.stored(secrets);
                tracing::info!("the controller issued a new verification secret");
            }
            // What a later version says.
            other => {
                tracing::debug!(?other, "a message that says nothing to an appliance");
            }
        }
        Ok(None)
    }

    /// Finds out what a challenge asks for, beside everything else.
    fn prove(&self, question: Question, requests: &Requests) -> Result<Proving, LinkError> {
        let binding = requests.binding().ok_or(LinkError::Unexpected)?;
        let prover = self.prover.clone();
        Ok(Box::pin(async move { (question, prover.evidence(question, binding).await) }))
    }

    fn attach(&self) -> Say {
        let held = self.held.borrow();
        Say::Attach(proto::Attach {
            server_id: self.enrolment.server_id.as_bytes().to_vec(),
            incarnation: self.incarnation.as_bytes().to_vec(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: convert::encode_capabilities(&CAPABILITIES),
            epoch: held.epoch,
            generation: held.generation,
            digest: held.digest.map(|d| d.0.to_vec()).unwrap_or_default(),
            addresses: convert::texts(&held.addresses),
            witnesses: self.store.witnesses().unwrap_or_default(),
        })
    }

    fn interval(&self, attached: &proto::Attached) -> Duration {
        let held = self.held.borrow();
        // Before the first state, what the controller said when it took the appliance in.
        let seconds = if held.generation == 0 { attached.heartbeat_seconds } else { held.heartbeat_seconds };
        Duration::from_secs(seconds.clamp(1, MAX_HEARTBEAT_SECONDS).into())
    }

    fn beat(&self, requests: &Requests, beats: &mut Beats) -> Waiting {
        let held = self.held.borrow();
        let counter = beats.next_counter();
        let metrics = proto::Metrics {
            bytes_sent: held.bytes_sent,
            bytes_received: held.bytes_received,
            ..crate::metrics::collect()
        };
        let body = proto::HeartbeatBody {
            server_id: self.enrolment.server_id.as_bytes().to_vec(),
            incarnation: self.incarnation.as_bytes().to_vec(),
            counter,
            sent: unix_millis(),
            generation: held.generation,
            active_sessions: held.active_sessions,
            factors: convert::encode_factors(&held.factors),
            metrics: Some(metrics),
        };
        let payload = body.encode_to_vec();
        let tag = beats.sign(&payload);
        let requests = requests.clone();
        Box::pin(async move { requests.request(Say::Heartbeat(proto::Heartbeat { payload, tag })).await })
    }

    async fn answered(
        &self,
        answer: Result<Said, RequestError>,
        requests: &Requests,
        beats: &mut Beats,
        backoff: &mut Backoff,
    ) -> Result<(), LinkError> {
        let ack = match answer {
            Ok(Said::HeartbeatAck(ack)) => ack,
            Ok(_) => return Err(LinkError::Unexpected),
            Err(RequestError::Refused(refusal)) => {
                tracing::warn!(%refusal, "the controller refused a heartbeat");
                return self.tell(Heard::Refused(refusal)).await;
            }
            // The next heartbeat is signed as this one was; the controller accepts that.
            Err(RequestError::Timeout) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if let Some(checkpoint) = ack.checkpoint {
            let (keyset, _) = requests.keyset();
            let now = unix_millis().max(keyset.issued);
            match audit::open_checkpoint(&checkpoint, |key| keyset.allows(KeyUse::State, key, now)) {
                Ok(_) => self.store.add_witness(checkpoint)?,
                Err(error) => tracing::warn!(%error, "a checkpoint of the audit trail was not kept"),
            }
        }
        let nonce = ack.ratchet_nonce[..].try_into().map_err(|_| LinkError::Unexpected)?;
        match beats.acknowledged(ack.counter, &nonce) {
            Ok(secrets) => {
                self.store.set_secrets(&secrets)?;
                beats.stored(secrets);
                backoff.reset();
                self.tell(Heard::Acknowledged).await
            }
            Err(error) => {
                tracing::warn!(%error, "ignored");
                Ok(())
            }
        }
    }

    async fn tell(&self, heard: Heard) -> Result<(), LinkError> {
        self.heard.send(heard).await.map_err(|_| LinkError::Stopped)
    }
}

/// How to reach a controller.
struct Dial {
    addresses: Vec<String>,
    identity: SigningKey,
    anchor: Anchor,
    fwmark: Option<u32>,
}

impl Dial {
    async fn connect(&self) -> Result<Channel, ConnectError> {
        connect(ConnectOptions {
            addresses: &self.addresses,
            identity: &self.identity,
            anchor: &self.anchor,
            hello: hello(),
            fwmark: self.fwmark,
            timeout: CONNECT_TIMEOUT,
        })
        .await
    }
}

/// Another controller, should the one that is connected fall silent. The old connection is kept until then: if it comes
/// back to life first, nothing has happened. Never without a time after which silence is noticed.
async fn another(old: Requests, quiet: Duration, dial: Dial) -> Channel {
    if quiet.is_zero() {
        return std::future::pending().await;
    }
    loop {
        old.silence(quiet, SILENT).await;
        tracing::debug!("the controller is silent");
        let found = async {
            let mut backoff = Backoff::new(FIRST_RETRY * 2, LONGEST_RETRY);
            loop {
                // Many may notice the same silence at the same time.
                sleep(backoff.next(chance())).await;
                match dial.connect().await {
                    Ok(channel) => return channel,
                    Err(error) => tracing::debug!(%error, "and no other answers"),
                }
            }
        };
        tokio::select! {
            () = old.sign_of_life() => {}
            channel = found => return channel,
        }
    }
}

type Waiting = Pin<Box<dyn Future<Output = Result<Said, RequestError>> + Send>>;

type Proving = Pin<Box<dyn Future<Output = (Question, Vec<u8>)> + Send>>;

/// The evidence that is being made; never, when none is.
async fn evidence(proving: &mut Option<Proving>) -> (Question, Vec<u8>) {
    match proving {
        Some(evidence) => evidence.await,
        None => std::future::pending().await,
    }
}

/// The answer to the heartbeat that waits for one; never, when none does.
async fn answer(waiting: &mut Option<Waiting>) -> Result<Said, RequestError> {
    match waiting {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    }
}

fn chance() -> u32 {
    let mut bytes = [0; 4];
    // Without randomness the delay is at its shortest, which is a delay too.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u32::from_ne_bytes(bytes)
}

/// Now, in milliseconds since the Unix epoch.
pub(crate) fn unix_millis() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}
