//! A controller's channel on the loopback, with appliances and devices that speak the real protocol.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use horizon_channel::{Channel, ConnectError, ConnectOptions, RequestError, Requests, connect};
use horizon_controller_core::Index;
use horizon_model::{
    ApplianceReport, EntryId, Incarnation, KeyId, PublicKey, Secret, ServerId, SessionId, TaggedSecret,
    Ticket,
};
use horizon_wire::{
    Message as _, convert,
    envelope::{self, Context as Signed},
    heartbeat,
    key::SigningKey,
    keyset::Anchor,
    proto::{self, KeyUse, Role, from_controller::Message as Said, to_controller::Message as Say},
    state::{self, Numbered},
    token::RegistrationToken,
};
use jiff::Timestamp;
use tokio::{task::JoinSet, time::timeout};
use uuid::Uuid;

use crate::{
    channel::{ChannelOptions, ChannelServer, ChannelSettings, Desired},
    detect::{self, Blocks, Detect, DetectOptions},
    geo::Geo,
    keys::{KeyRing, Keys, Rotator},
    live::{Hint, InProcess, Live},
    metrics::Metrics,
    replica::Leadership,
    stop::{self, Stopper},
    store::{
        Actor, Change, EventFilter, Guard, LeaderEpoch, REPLICA_SILENT, ReplicaId, ReplicaInfo, Revision,
        Store, random,
        tests::{
            kit::{id, puts},
            place::Place,
        },
    },
};

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn soon<F: Future>(what: F) -> F::Output {
    timeout(PATIENCE, what).await.expect("it took too long")
}

/// The resources in force, as an engine would hold them.
#[derive(Default)]
struct Held(Mutex<(Arc<Index>, Revision)>);

impl Held {
    fn lock(&self) -> MutexGuard<'_, (Arc<Index>, Revision)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desired for Held {
    fn in_force(&self) -> (Arc<Index>, Revision) {
        self.lock().clone()
    }
}

pub(super) struct Controller {
    _place: Arc<Place>,
    pub(super) replica: ReplicaId,
    pub(super) keys: Arc<Keys>,
    pub(super) ring: KeyRing,
    pub(super) store: Store,
    pub(super) live: Arc<dyn Live>,
    desired: Arc<Held>,
    server: ChannelServer,
    pub(super) blocks: Blocks,
    _watched: Stopper,
    beats: JoinSet<()>,
}

impl Controller {
    pub(super) async fn start(toml: &str) -> Self {
        Self::with(toml, ChannelSettings::default()).await
    }

    pub(super) async fn with(toml: &str, settings: ChannelSettings) -> Self {
        let mut replicas = Self::replicas(toml, settings, vec![Arc::new(InProcess::default())]).await;
        replicas.pop().unwrap()
    }

    /// One that knows where addresses are.
    pub(super) async fn located(toml: &str, geo: Geo) -> Self {
        let (settings, lives) =
            (ChannelSettings::default(), vec![Arc::new(InProcess::default()) as Arc<dyn Live>]);
        Self::replicas_with(toml, settings, lives, geo).await.pop().unwrap()
    }

    /// Replicas over one store, one for each live layer. The first leads.
    pub(super) async fn replicas(
        toml: &str,
        settings: ChannelSettings,
        lives: Vec<Arc<dyn Live>>,
    ) -> Vec<Self> {
        Self::replicas_with(toml, settings, lives, Geo::default()).await
    }

    async fn replicas_with(
        toml: &str,
        settings: ChannelSettings,
        lives: Vec<Arc<dyn Live>>,
        geo: Geo,
    ) -> Vec<Self> {
        let dir = tempfile::tempdir().unwrap();
        let keys = Arc::new(Keys::create(&dir.path().join("keys"), Timestamp::now()).unwrap());
        let place = Arc::new(Place::new());
        let store = Store::open(place.database(), &keys.envelope, Metrics::default()).await.unwrap();
        let mut replicas: Vec<Self> = Vec::new();
        for live in lives {
            let leadership = match &replicas[..] {
                [] => Leadership::always(LeaderEpoch(1)),
                _ => Leadership::default(),
            };
            let (desired, replica) = (Arc::new(Held::default()), ReplicaId::random());
            let ring = KeyRing::from(keys.clone());
            let ((detect, facts), blocks) = (Detect::new(), Blocks::default());
            let watching = DetectOptions {
                store: store.clone(),
                live: live.clone(),
                desired: desired.clone(),
                geo: geo.clone(),
                blocks: blocks.clone(),
            };
            let (watched, stop) = stop::stop();
            let server = ChannelServer::start(ChannelOptions {
                listen: "127.0.0.1:0".parse().unwrap(),
                keys: ring.clone(),
                store: store.clone(),
                live: live.clone(),
                desired: desired.clone(),
                replica,
                leadership,
                geo: geo.clone(),
                detect,
                blocks: blocks.clone(),
                metrics: Metrics::default(),
                settings: settings.clone(),
            })
            .unwrap();
            let (keys, store) = (keys.clone(), store.clone());
            let mut beats = JoinSet::new();
            beats.spawn(detect::run(watching, facts, stop));
            replicas.push(Self {
                blocks,
                _watched: watched,
                _place: place.clone(),
                replica,
                keys,
                ring,
                store,
                live,
                desired,
                server,
                beats,
            });
        }
        for replica in &mut replicas {
            replica.live_on().await;
        }
        replicas[0].put(toml).await;
        for replica in &replicas[1..] {
            replica.follow().await;
        }
        replicas
    }

    /// Says to the others that this replica lives, from now on.
    async fn live_on(&mut self) {
        let info = ReplicaInfo {
            name: "test".into(),
            addresses: vec![self.address()],
            draining: false,
            version: "0".into(),
        };
        let (store, replica) = (self.store.clone(), self.replica);
        store.replica_beat(replica, &info).await.unwrap();
        self.beats.spawn(async move {
            loop {
                tokio::time::sleep(REPLICA_SILENT / 5).await;
                // The store is closed at the end of a test.
                let _ = store.replica_beat(replica, &info).await;
            }
        });
    }

    /// What rotates the keys here, when it leads, and follows otherwise.
    pub(super) fn rotator(&self, leadership: Leadership) -> Rotator {
        Rotator {
            store: self.store.clone(),
            ring: self.ring.clone(),
            home: None,
            live: self.live.clone(),
            leadership,
            desired: self.desired.clone(),
            replica: self.replica,
            metrics: Metrics::default(),
        }
    }

    /// To the others it looks as if this replica had died.
    pub(super) async fn seem_dead(&mut self) {
        self.beats.shutdown().await;
        self.store.remove_replica(self.replica).await.unwrap();
    }

    /// Brings what was committed into force at this replica.
    pub(super) async fn follow(&self) {
        self.refresh(Vec::new()).await;
    }

    async fn refresh(&self, servers: Vec<ServerId>) {
        let (resources, revision) = self.store.load_resources().await.unwrap();
        let index = Arc::new(Index::new(resources));
        let all = index.all(horizon_crds::KindName::Server).iter().map(|s| s.server_id()).collect::<Vec<_>>();
        *self.desired.lock() = (index, revision);
        for server in all.into_iter().chain(servers) {
            self.live.publish_here(Hint::ServerChanged(server));
        }
    }

    pub(super) async fn put(&self, toml: &str) {
        self.commit(&puts(toml)).await;
    }

    pub(super) async fn remove(&self, kind: &str, name: &str) {
        self.commit(&[Change::Remove { id: id(kind, name), actor: None }]).await;
    }

    async fn commit(&self, changes: &[Change]) {
        let (actor, now) = (Actor::System("test"), Timestamp::now());
        let done = self.store.commit_resources(changes, &actor, now, Guard::NONE).await.unwrap();
        self.refresh(done.servers).await;
    }

    /// Sends all peers to another replica, and stops.
    pub(super) async fn leave(self, to: &Self) {
        self.server.go_elsewhere(vec![to.address()]).await;
        self.stop().await;
    }

    pub(super) fn address(&self) -> String {
        self.server.local_addr().unwrap().to_string()
    }

    pub(super) async fn stop(self) {
        soon(self.server.stop()).await;
    }

    pub(super) async fn uid(&self, kind: &str, name: &str) -> Uuid {
        let id = id(kind, name);
        self.store.load_resources().await.unwrap().0.into_iter().find(|s| s.id() == id).unwrap().uid
    }

    pub(super) async fn token(&self, key: &str) -> RegistrationToken {
        let uid = self.uid("RegistrationKey", key).await;
        let secret = self.store.issue_registration_secret(uid, Timestamp::now()).await.unwrap();
        RegistrationToken {
            controllers: vec![self.address()],
            root: self.keys.root_id(),
            key_name: key.into(),
            secret,
        }
    }

    pub(super) async fn personal(&self, key: &str) -> (KeyId, TaggedSecret) {
        let key = KeyId(self.uid("PersonalKey", key).await);
        (key, self.store.issue_personal_secret(key, Timestamp::now()).await.unwrap().secret)
    }

    pub(super) async fn dial(&self, identity: &SigningKey, role: Role) -> Result<Channel, ConnectError> {
        self.dial_with(identity, role, &[]).await
    }

    /// Dials as a peer that has features.
    pub(super) async fn dial_with(
        &self,
        identity: &SigningKey,
        role: Role,
        features: &[&str],
    ) -> Result<Channel, ConnectError> {
        self.dial_from(identity, role, features, Anchor::Root(self.keys.root_id())).await
    }

    /// Dials as a peer that trusts what it holds.
    pub(super) async fn dial_from(
        &self,
        identity: &SigningKey,
        role: Role,
        features: &[&str],
        anchor: Anchor,
    ) -> Result<Channel, ConnectError> {
        let addresses = [self.address()];
        let features = features.iter().map(|feature| (*feature).to_owned()).collect();
        let hello =
            proto::Hello { role: role.into(), software: "test/1".into(), features, ..Default::default() };
        let options = ConnectOptions {
            addresses: &addresses,
            identity,
            anchor: &anchor,
            hello,
            fwmark: None,
            timeout: PATIENCE,
        };
        soon(connect(options)).await
    }

    /// The kinds of the security events so far.
    pub(super) async fn events(&self) -> Vec<String> {
        let events = self.store.list_security_events(&EventFilter::default()).await.unwrap();
        events.into_iter().map(|event| event.kind).collect()
    }
}

pub(super) fn fresh_key() -> SigningKey {
    SigningKey::from_seed(Secret::new(random()))
}

/// The refusal that a request led to.
pub(super) fn refusal<T: std::fmt::Debug>(result: Result<T, RequestError>) -> horizon_wire::refusal::Refusal {
    match result {
        Err(RequestError::Refused(refusal)) => refusal,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// An appliance that does what it is told and keeps what it must.
pub(super) struct Appliance {
    pub(super) key: SigningKey,
    pub(super) incarnation: Incarnation,
    pub(super) server: ServerId,
    pub(super) secret: Secret,
    pub(super) held: Numbered,
    pub(super) counter: u64,
    pub(super) channel: Channel,
    pub(super) state_key: PublicKey,
}

pub(super) fn register_message(token: &RegistrationToken) -> Say {
    Say::Register(proto::Register {
        key_name: token.key_name.clone(),
        secret: token.secret.expose().to_vec(),
        incarnation: vec![1; 16],
        hostname: "box".into(),
        version: "0.1.0".into(),
        capabilities: vec!["vpn".into(), "lan_emulation".into()],
        factors: hardware(&[("dmi/board_serial", "a"), ("processor/model", "b"), ("disk/0/serial", "c")]),
    })
}

pub(super) fn hardware(values: &[(&str, &str)]) -> Vec<proto::Factor> {
    let factor = |(name, value): &(&str, &str)| proto::Factor {
        kind: "hardware_fingerprint".into(),
        name: (*name).into(),
        value: (*value).into(),
    };
    values.iter().map(factor).collect()
}

impl Appliance {
    /// Registers with a token of the key `berlin-1`, and attaches.
    pub(super) async fn enrol(controller: &Controller) -> Self {
        let token = controller.token("berlin-1").await;
        Self::enrol_with(controller, &token).await
    }

    pub(super) async fn enrol_with(controller: &Controller, token: &RegistrationToken) -> Self {
        let key = fresh_key();
        let channel = controller.dial(&key, Role::Appliance).await.unwrap();
        let Said::Registered(registered) =
            soon(channel.requests.request(register_message(token))).await.unwrap()
        else {
            panic!("not registered");
        };
        let mut appliance = Self {
            key,
            incarnation: Incarnation(Uuid::new_v4()),
            server: ServerId::from_slice(&registered.server_id).unwrap(),
            secret: Secret::from_slice(&registered.verification_secret).unwrap(),
            held: Numbered::default(),
            counter: 0,
            state_key: PublicKey([0; 32]),
            channel,
        };
        appliance.attach().await.unwrap();
        appliance
    }

    pub(super) async fn attach(&mut self) -> Result<proto::Attached, RequestError> {
        self.state_key = self.channel.keyset.current(KeyUse::State).unwrap();
        self.counter = 0;
        let attach = proto::Attach {
            server_id: self.server.as_bytes().to_vec(),
            incarnation: self.incarnation.as_bytes().to_vec(),
            version: "0.1.0".into(),
            capabilities: vec!["vpn".into(), "lan_emulation".into()],
            epoch: self.held.epoch,
            generation: self.held.generation,
            digest: if self.held.generation == 0 {
                Vec::new()
            } else {
                self.held.entries.digest().0.to_vec()
            },
            addresses: vec!["192.0.2.7:7443".into()],
            witnesses: Vec::new(),
        };
        match soon(self.channel.requests.request(Say::Attach(attach))).await? {
            Said::Attached(attached) => Ok(attached),
            other => panic!("expected Attached, got {other:?}"),
        }
    }

    /// Connects again and attaches, as after a lost connection.
    pub(super) async fn reconnect(
        &mut self,
        controller: &Controller,
    ) -> Result<proto::Attached, RequestError> {
        self.channel = controller.dial(&self.key, Role::Appliance).await.unwrap();
        self.attach().await
    }

    /// Dials another replica, where it can attach next. Returns the old channel, which still stands.
    pub(super) async fn hand_over(&mut self, to: &Controller) -> Channel {
        let new = to.dial(&self.key, Role::Appliance).await.unwrap();
        std::mem::replace(&mut self.channel, new)
    }

    /// The same appliance over another channel, as a copy of its disk would be.
    pub(super) fn copy(&self, channel: Channel) -> Self {
        Self {
            key: self.key.clone(),
            incarnation: self.incarnation,
            server: self.server,
            secret: self.secret.clone(),
            held: self.held.clone(),
            counter: self.counter,
            state_key: self.state_key,
            channel,
        }
    }

    /// Serves until it was challenged and answered.
    pub(super) async fn take_challenge(&mut self) {
        loop {
            match self.next().await.expect("the controller ended the conversation") {
                Said::Challenge(challenge) => return self.answer(&challenge).await,
                Said::DialBack(_) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// The next message that the controller says unasked; `None` when it ended the conversation.
    pub(super) async fn next(&mut self) -> Option<Said> {
        soon(self.channel.inbox.recv()).await
    }

    pub(super) async fn answer(&self, challenge: &proto::Challenge) {
        let id: [u8; 16] = challenge.id[..].try_into().unwrap();
        let nonce: [u8; 32] = challenge.nonce[..].try_into().unwrap();
        let tag = heartbeat::answer(&self.secret, &id, &nonce, self.server, self.incarnation);
        let response = proto::ChallengeResponse { id: challenge.id.clone(), tag, payload: Vec::new() };
        self.channel.requests.notify(Say::ChallengeResponse(response)).await.unwrap();
    }

    /// Serves until a state came and was applied and reported. Returns how many bytes its delta had.
    pub(super) async fn take_state(&mut self) -> usize {
        loop {
            match self.next().await.expect("the controller ended the conversation") {
                Said::Challenge(challenge) => self.answer(&challenge).await,
                Said::State(envelope) => {
                    self.apply(&envelope);
                    self.report(ApplianceReport::default()).await;
                    return envelope.payload.len();
                }
                Said::DialBack(_) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// Serves until a session is in the state.
    pub(super) async fn take_session(&mut self) -> SessionId {
        loop {
            self.take_state().await;
            if let Some(id) = self.sessions().first() {
                return *id;
            }
        }
    }

    /// Serves until no session is in the state.
    pub(super) async fn lose_session(&mut self) {
        while !self.sessions().is_empty() {
            self.take_state().await;
        }
    }

    pub(super) fn apply(&mut self, envelope: &proto::Envelope) {
        let payload = envelope::open(Signed::State, envelope, |key| *key == self.state_key).unwrap();
        self.held = state::apply(&self.held, self.server, payload).unwrap();
    }

    /// Reports what is held, with whatever else is given.
    pub(super) async fn report(&self, extra: ApplianceReport) {
        let report = ApplianceReport {
            generation: self.held.generation,
            digest: Some(self.held.entries.digest()),
            addresses: vec!["192.0.2.7:7443".parse().unwrap()],
            ..extra
        };
        let message = Say::Report(convert::encode_report(&report));
        self.channel.requests.notify(message).await.unwrap();
    }

    pub(super) fn sessions(&self) -> Vec<SessionId> {
        let (state, problems) = self.held.entries.decode();
        assert!(problems.is_empty(), "{problems:?}");
        state.sessions().map(|session| session.id).collect()
    }

    pub(super) fn beat_message(&mut self, factors: Vec<proto::Factor>) -> proto::Heartbeat {
        self.counter += 1;
        let body = proto::HeartbeatBody {
            server_id: self.server.as_bytes().to_vec(),
            incarnation: self.incarnation.as_bytes().to_vec(),
            counter: self.counter,
            sent: Timestamp::now().as_millisecond(),
            generation: self.held.generation,
            factors,
            ..Default::default()
        };
        let payload = body.encode_to_vec();
        proto::Heartbeat { tag: heartbeat::sign(&self.secret, &payload), payload }
    }

    /// Beats, and moves the secret on.
    pub(super) async fn beat(&mut self, factors: Vec<proto::Factor>) {
        let beat = self.beat_message(factors);
        let Said::HeartbeatAck(ack) =
            soon(self.channel.requests.request(Say::Heartbeat(beat))).await.unwrap()
        else {
            panic!("no acknowledgement");
        };
        assert_eq!(ack.counter, self.counter);
        self.secret = heartbeat::ratchet(&self.secret, &ack.ratchet_nonce[..].try_into().unwrap());
    }
}

/// A device of a user.
pub(super) struct Device {
    pub(super) key: SigningKey,
    pub(super) channel: Channel,
}

impl Device {
    pub(super) async fn connect(controller: &Controller) -> Self {
        let key = fresh_key();
        let channel = controller.dial(&key, Role::Device).await.unwrap();
        Self { key, channel }
    }

    pub(super) async fn enrolled(controller: &Controller, key: &(KeyId, TaggedSecret), name: &str) -> Self {
        let device = Self::connect(controller).await;
        device.enrol(key, name).await.unwrap();
        device
    }

    pub(super) async fn enrol(
        &self,
        (key, secret): &(KeyId, TaggedSecret),
        name: &str,
    ) -> Result<Said, RequestError> {
        let message = proto::EnrolDevice {
            key_id: key.as_bytes().to_vec(),
            secret: secret.expose().to_vec(),
            name: name.into(),
            platform: "linux".into(),
            os_version: "13".into(),
            app_version: "0.1.0".into(),
            hardware_fingerprint: "sha256:00".into(),
        };
        soon(self.channel.requests.request(Say::EnrolDevice(message))).await
    }

    pub(super) fn requests(&self) -> Requests {
        self.channel.requests.clone()
    }

    /// Asks for a session on a server, while the appliance serves.
    pub(super) async fn request(
        &self,
        server: &str,
        take_over: Option<SessionId>,
    ) -> Result<Said, RequestError> {
        ask(self.requests(), server.to_owned(), take_over).await
    }

    pub(super) fn ticket(&self, said: &Said) -> Ticket {
        let Said::Ticket(envelope) = said else { panic!("expected a ticket, got {said:?}") };
        let trusted = |key: &PublicKey| {
            self.channel.keyset.allows(KeyUse::Ticket, key, Timestamp::now().as_millisecond())
        };
        convert::decode_ticket(envelope::open(Signed::Ticket, envelope, trusted).unwrap()).unwrap()
    }

    /// The next end of a session that the device is told of.
    pub(super) async fn session_ended(&mut self) -> proto::SessionEnded {
        match soon(self.channel.inbox.recv()).await.expect("the controller ended the conversation") {
            Said::SessionEnded(ended) => ended,
            other => panic!("unexpected {other:?}"),
        }
    }
}

pub(super) async fn ask(
    requests: Requests,
    server: String,
    take_over: Option<SessionId>,
) -> Result<Said, RequestError> {
    let take_over = take_over.map(|id| id.as_bytes().to_vec()).unwrap_or_default();
    soon(requests.request(Say::RequestSession(proto::RequestSession { server, take_over }))).await
}

/// A session of a device on a server, whose appliance takes it in.
pub(super) async fn session(device: &Device, appliance: &mut Appliance, server: &str) -> Ticket {
    let asked = tokio::spawn(ask(device.requests(), server.to_owned(), None));
    let id = appliance.take_session().await;
    let ticket = device.ticket(&soon(asked).await.unwrap().unwrap());
    assert_eq!(ticket.session, id);
    ticket
}

pub(super) fn entry(id: SessionId) -> EntryId {
    EntryId::session(id)
}
