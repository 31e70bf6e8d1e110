//! One simulated appliance: what it is, what it holds, and its side of the conversation. No sockets and no clocks.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use horizon_appliance_core::{Beats, Disk, Facts, NetworkCard, Secrets, describe};
use horizon_model::{Capability, Digest, Factor, Incarnation, PublicKey, RootId, Secret, ServerId};
use horizon_wire::{
    Message as _,
    challenge::{self, Asked},
    convert, envelope,
    key::{SigningKey, sha256},
    keyset::{self, Anchor, KeySet},
    proto::{self, ChallengeKind, KeyUse, from_controller::Message as Said, to_controller::Message as Say},
    refusal::Refusal,
    state::{self, Numbered},
    version,
};
use uuid::Uuid;

/// What an appliance of the fleet says it can do.
const CAPABILITIES: [Capability; 1] = [Capability::Vpn];
/// The interval of heartbeats before a controller has named one.
const FIRST_INTERVAL: u32 = 30;

/// Who an appliance is to the controller.
#[derive(Clone, Debug)]
pub enum Enrolment {
    /// It is to register first.
    Token {
        /// The name of its `RegistrationKey`.
        key_name: String,
        /// The one-time secret.
        secret: Secret,
    },
    /// It is registered.
    Registered {
        /// The server it is.
        server: ServerId,
        /// The verification secret in force.
        secret: Secret,
    },
}

/// A heartbeat that was acknowledged: what the database must hold from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Acknowledged {
    /// Its number since the appliance attached.
    pub counter: u64,
    /// When it was sent, in milliseconds since the Unix epoch.
    pub sent: i64,
}

/// A heartbeat under way.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    counter: u64,
    sent: i64,
}

/// An appliance between and during its connections.
#[derive(Debug)]
pub(super) struct Appliance {
    seed: [u8; 32],
    enrolment: Enrolment,
    incarnation: Incarnation,
    secrets: Option<Secrets>,
    held: Numbered,
    /// How many sessions are in it.
    sessions: usize,
    /// The KeySet it trusts; most of a fleet share one.
    keyset: Option<Arc<KeySet>>,
    /// The newest heartbeat that was acknowledged since it last asked to be attached, which counts from 1 again.
    pub(super) acknowledged: Option<Acknowledged>,
    /// Every heartbeat that was acknowledged, for fleets that remember.
    pub(super) ledger: Vec<Acknowledged>,
    /// Seconds between heartbeats.
    pub(super) interval: u32,
}

/// What all appliances of a fleet have in common.
#[derive(Debug)]
pub(super) struct Organisation {
    pub(super) root: RootId,
    /// The newest KeySet that one of them has walked to, so that all who come to the same hold one copy.
    pub(super) keyset: Option<Arc<KeySet>>,
    /// Whether every acknowledged heartbeat is remembered, or only the newest.
    pub(super) remember: bool,
}

/// What a conversation has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Greeted,
    Registering,
    Attaching,
    Attached,
}

/// One connection's conversation.
#[derive(Debug, Default)]
pub(super) struct Talk {
    stage: Stage,
    requests: u64,
    /// What binds statements to the connection.
    pub(super) binding: [u8; 32],
    /// The request by which a challenge was answered.
    answered: Option<u64>,
    /// The heartbeats of this attachment, once there is a secret.
    beats: Option<Beats>,
    waiting: Option<Waiting>,
}

/// What became of a message.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// What to say now.
    pub(super) say: Vec<proto::ToController>,
    /// What the fleet counts.
    pub(super) event: Option<Event>,
}

/// What the fleet counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Registered,
    Attached,
    Verified,
    Acknowledged,
    /// With how many sessions in the state before and in this one.
    StateApplied {
        bytes: usize,
        before: usize,
        sessions: usize,
    },
}

/// Why a conversation is over.
#[derive(Debug)]
pub(super) enum Over {
    Refused(Refusal),
    GoElsewhere,
    /// The controller broke the protocol: an error of the software under test.
    Broken(anyhow::Error),
}

impl From<anyhow::Error> for Over {
    fn from(error: anyhow::Error) -> Self {
        Self::Broken(error)
    }
}

impl Talk {
    /// Whether a heartbeat waits for its acknowledgement.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    fn request(&mut self, message: Say) -> proto::ToController {
        self.requests += 1;
        proto::ToController { request: self.requests, message: Some(message) }
    }
}

impl Appliance {
    /// An appliance with the key of `seed`.
    pub(super) fn new(seed: [u8; 32], enrolment: Enrolment) -> Self {
        let secrets = match &enrolment {
            Enrolment::Token { .. } => None,
            Enrolment::Registered { secret, .. } => Some(Secrets { current: secret.clone(), previous: None }),
        };
        Self {
            seed,
            enrolment,
            incarnation: Incarnation(Uuid::new_v4()),
            secrets,
            held: Numbered::default(),
            sessions: 0,
            keyset: None,
            acknowledged: None,
            ledger: Vec::new(),
            interval: FIRST_INTERVAL,
        }
    }

    /// Its key.
    pub(super) fn key(&self) -> SigningKey {
        key_of(&self.seed)
    }

    /// The server it is, once it is registered.
    pub(super) fn server(&self) -> Option<ServerId> {
        match &self.enrolment {
            Enrolment::Token { .. } => None,
            Enrolment::Registered { server, .. } => Some(*server),
        }
    }

    /// Its first words on a new connection.
    pub(super) fn hello(&self, talk: &mut Talk, organisation: &Organisation) -> proto::ToController {
        talk.beats = self.secrets.clone().map(Beats::new);
        let hello = proto::Hello {
            min_version: version::MIN,
            max_version: version::MAX,
            software: version::SOFTWARE.to_owned(),
            role: proto::Role::Appliance.into(),
            keyset_version: self.anchor(organisation).version(),
            features: horizon_model::Feature::ALL
                .iter()
                .map(|f| f.as_str())
                .chain([challenge::FEATURE, keyset::FEATURE])
                .map(str::to_owned)
                .collect(),
        };
        proto::ToController { request: 0, message: Some(Say::Hello(hello)) }
    }

    fn anchor(&self, organisation: &Organisation) -> Anchor {
        match &self.keyset {
            Some(keyset) => Anchor::KeySet(KeySet::clone(keyset)),
            None => Anchor::Root(organisation.root),
        }
    }

    /// Takes a message of the controller, whose TLS key is `peer`. `now` is in milliseconds since the Unix epoch.
    pub(super) fn hear(
        &mut self,
        talk: &mut Talk,
        organisation: &mut Organisation,
        message: proto::FromController,
        peer: PublicKey,
        now: i64,
    ) -> Result<Heard, Over> {
        let proto::FromController { request, message: Some(message) } = message else {
            return Ok(Heard::default());
        };
        let mut heard = Heard::default();
        match message {
            Said::Refused(refused) => return Err(Over::Refused(refused.into())),
            Said::GoElsewhere(_) => return Err(Over::GoElsewhere),
            Said::Welcome(welcome) if talk.stage == Stage::Greeted => {
                self.trust(organisation, &welcome, peer, now)?;
                heard.say.push(self.open(talk));
            }
            Said::Registered(registered) => {
                let id =
                    ServerId::from_slice(&registered.server_id).context("a server id of another length")?;
                let secret = Secret::from_slice(&registered.verification_secret)
                    .context("a verification secret of another length")?;
                let secrets = Secrets { current: secret.clone(), previous: None };
                match &mut talk.beats {
                    Some(beats) => beats.stored(secrets.clone()),
                    none => *none = Some(Beats::new(secrets.clone())),
                }
                self.secrets = Some(secrets);
                self.enrolment = Enrolment::Registered { server: id, secret };
                if talk.stage == Stage::Registering {
                    heard.event = Some(Event::Registered);
                    heard.say.push(self.open(talk));
                }
            }
            Said::Attached(attached) if talk.stage == Stage::Attaching => {
                talk.stage = Stage::Attached;
                if self.held.generation == 0 {
                    self.interval = attached.heartbeat_seconds.max(1);
                }
                heard.event = Some(Event::Attached);
            }
            Said::Challenge(challenge) => {
                let answer = self.answer(talk, &challenge)?;
                let answer = talk.request(Say::ChallengeResponse(answer));
                talk.answered = Some(answer.request);
                heard.say.push(answer);
            }
            Said::Done(_) if talk.answered.take_if(|answered| *answered == request).is_some() => {
                heard.event = Some(Event::Verified);
            }
            Said::HeartbeatAck(ack) => {
                self.acknowledge(talk, &ack, organisation.remember)?;
                heard.event = Some(Event::Acknowledged);
            }
            Said::State(envelope) => {
                let (bytes, before) = (envelope.payload.len(), self.sessions);
                let report = self.apply(&envelope, now)?;
                heard.say.push(proto::ToController { request: 0, message: Some(Say::Report(report)) });
                heard.event = Some(Event::StateApplied { bytes, before, sessions: self.sessions });
            }
            Said::Keysets(shown) => {
                let newest = keyset::walk(&self.anchor(organisation), &shown.keysets)
                    .context("a KeySet that does not follow")?;
                let held = proto::KeySetHeld { version: newest.version };
                self.keep(organisation, newest);
                heard.say.push(proto::ToController { request: 0, message: Some(Say::KeysetHeld(held)) });
            }
            Said::Done(_) | Said::DialBack(_) => {}
            other => return Err(Over::Broken(anyhow!("an unexpected message: {other:?}"))),
        }
        Ok(heard)
    }

    /// Walks the KeySets to the newest and makes sure that it lists the controller's TLS key.
    fn trust(
        &mut self,
        organisation: &mut Organisation,
        welcome: &proto::Welcome,
        peer: PublicKey,
        now: i64,
    ) -> Result<()> {
        let newest = keyset::walk(&self.anchor(organisation), &welcome.keysets)?;
        if !newest.allows(KeyUse::Tls, &peer, now.max(newest.issued)) {
            bail!("the controller's TLS key {peer} is not in its KeySet");
        }
        self.keep(organisation, newest);
        Ok(())
    }

    /// Trusts a KeySet from now on.
    fn keep(&mut self, organisation: &mut Organisation, newest: KeySet) {
        if let Some(shared) = organisation.keyset.as_ref().filter(|shared| ***shared == newest) {
            self.keyset = Some(shared.clone());
            return;
        }
        let newest = Arc::new(newest);
        if organisation.keyset.as_ref().is_none_or(|shared| shared.version < newest.version) {
            organisation.keyset = Some(newest.clone());
        }
        self.keyset = Some(newest);
    }

    /// What follows the Welcome: the registration, or the attachment.
    fn open(&mut self, talk: &mut Talk) -> proto::ToController {
        let capabilities = convert::encode_capabilities(&CAPABILITIES);
        match &self.enrolment {
            Enrolment::Token { key_name, secret } => {
                talk.stage = Stage::Registering;
                talk.request(Say::Register(proto::Register {
                    key_name: key_name.clone(),
                    secret: secret.expose().to_vec(),
                    incarnation: self.incarnation.as_bytes().to_vec(),
                    hostname: format!("fleet-{key_name}"),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    capabilities,
                    factors: convert::encode_factors(&factors(&self.seed)),
                }))
            }
            Enrolment::Registered { server, .. } => {
                talk.stage = Stage::Attaching;
                self.acknowledged = None;
                let digest = (self.held.generation > 0).then(|| self.held.entries.digest());
                talk.request(Say::Attach(proto::Attach {
                    server_id: server.as_bytes().to_vec(),
                    incarnation: self.incarnation.as_bytes().to_vec(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    capabilities,
                    epoch: self.held.epoch,
                    generation: self.held.generation,
                    digest: digest.map(|Digest(bytes)| bytes.to_vec()).unwrap_or_default(),
                    addresses: Vec::new(),
                    witnesses: Vec::new(),
                }))
            }
        }
    }

    fn answer(&self, talk: &Talk, challenge: &proto::Challenge) -> Result<proto::ChallengeResponse> {
        let id: [u8; 16] = challenge.id[..].try_into().context("a challenge's id of another length")?;
        let nonce: [u8; 32] =
            challenge.nonce[..].try_into().context("a challenge's nonce of another length")?;
        let (beats, server) =
            talk.beats.as_ref().zip(self.server()).context("a challenge before the registration")?;
        let kind = challenge.kind();
        if kind == ChallengeKind::Unspecified {
            let tag = beats.answer(&id, &nonce, server, self.incarnation);
            return Ok(proto::ChallengeResponse { id: challenge.id.clone(), tag, payload: Vec::new() });
        }
        let asked = Asked { id: &id, nonce: &nonce, kind, server, incarnation: self.incarnation };
        let mut evidence = proto::ChallengeEvidence {
            signature: self.key().sign(&asked.statement(&talk.binding)),
            ..Default::default()
        };
        if kind == ChallengeKind::Identity {
            evidence.factors = convert::encode_factors(&factors(&self.seed));
            evidence.problem = "this machine has no TPM".to_owned();
        }
        let payload = evidence.encode_to_vec();
        let tag = beats.vouch(asked, &payload);
        Ok(proto::ChallengeResponse { id: challenge.id.clone(), tag, payload })
    }

    /// The next heartbeat.
    pub(super) fn beat(&mut self, talk: &mut Talk, now: i64) -> Option<proto::ToController> {
        let server = self.server()?;
        let beats = talk.beats.as_mut()?;
        let counter = beats.next_counter();
        talk.waiting = Some(Waiting { counter, sent: now });
        let body = proto::HeartbeatBody {
            server_id: server.as_bytes().to_vec(),
            incarnation: self.incarnation.as_bytes().to_vec(),
            counter,
            sent: now,
            generation: self.held.generation,
            active_sessions: 0,
            factors: convert::encode_factors(&factors(&self.seed)),
            metrics: Some(proto::Metrics {
                uptime_seconds: counter * u64::from(self.interval),
                memory_bytes: 9_700_000,
                bytes_sent: counter * 1_000_000,
                bytes_received: counter * 2_000_000,
                load_percent: 3,
            }),
        };
        let payload = body.encode_to_vec();
        let tag = beats.sign(&payload);
        Some(talk.request(Say::Heartbeat(proto::Heartbeat { payload, tag })))
    }

    fn acknowledge(&mut self, talk: &mut Talk, ack: &proto::HeartbeatAck, remember: bool) -> Result<()> {
        let nonce: [u8; 32] = ack.ratchet_nonce[..].try_into().context("a nonce of another length")?;
        let waiting = talk.waiting.take().context("an acknowledgement that nothing waits for")?;
        let beats = talk.beats.as_mut().context("an acknowledgement before the registration")?;
        let secrets = beats.acknowledged(ack.counter, &nonce)?;
        beats.stored(secrets.clone());
        self.secrets = Some(secrets);
        let acknowledged = Acknowledged { counter: waiting.counter, sent: waiting.sent };
        self.acknowledged = Some(acknowledged);
        if remember {
            self.ledger.push(acknowledged);
        }
        Ok(())
    }

    /// Verifies a state and takes it in; the report says so.
    fn apply(&mut self, envelope: &proto::Envelope, now: i64) -> Result<proto::Report> {
        let keyset = self.keyset.as_ref().context("a state before the KeySet")?;
        let server = self.server().context("a state before the registration")?;
        let trusted = |key: &PublicKey| keyset.allows(KeyUse::State, key, now.max(keyset.issued));
        let payload = envelope::open(envelope::Context::State, envelope, trusted)?;
        self.held = state::apply(&self.held, server, payload)?;
        let (wanted, problems) = self.held.entries.decode();
        if let Some(problem) = problems.first() {
            bail!("a state that cannot be read: {}: {}", problem.entry, problem.message);
        }
        self.sessions = wanted.sessions().count();
        for body in wanted.entries.values() {
            if let horizon_model::EntryBody::Settings(settings) = body {
                self.interval = settings.heartbeat_seconds.max(1);
            }
        }
        let Digest(digest) = self.held.entries.digest();
        Ok(proto::Report { generation: self.held.generation, digest: digest.to_vec(), ..Default::default() })
    }
}

/// The key of a seed.
pub(super) fn key_of(seed: &[u8; 32]) -> SigningKey {
    SigningKey::from_seed(Secret::new(*seed))
}

/// What tells the machine of a seed from others: what a small rented machine tells.
pub(super) fn factors(seed: &[u8; 32]) -> Vec<Factor> {
    let own = sha256(seed).to_string();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    describe(&Facts {
        dmi: vec![
            pair("sys_vendor", "QEMU"),
            pair("product_name", "Standard PC"),
            pair("product_uuid", &own),
        ],
        processor: Some("AMD EPYC Processor".to_owned()),
        processors: 2,
        disks: vec![Disk { model: None, serial: Some(own.clone()), bytes: 80 << 30 }],
        cards: vec![NetworkCard { link: "eth0".to_owned(), address: seed[..6].to_vec() }],
        gateways: vec![[192, 0, 2, 1].into()],
        resolvers: vec![[192, 0, 2, 53].into()],
        machine_id: Some(own),
        release: vec![pair("ID", "debian"), pair("VERSION_ID", "13")],
        image: Vec::new(),
        kernel: Some("6.12.0-amd64".to_owned()),
        architecture: "x86_64".to_owned(),
        program: Some("5b1d7e0f".repeat(8)),
    })
}
