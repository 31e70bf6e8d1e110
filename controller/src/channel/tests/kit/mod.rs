//! A controller's channel on the loopback, with appliances and devices that speak the real protocol.

mod appliance;
mod device;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use horizon_channel::{Channel, ConnectError, ConnectOptions, RequestError, connect};
use horizon_controller_core::Index;
use horizon_model::{EntryId, KeyId, Secret, ServerId, SessionId, TaggedSecret};
use horizon_wire::{
    key::SigningKey,
    keyset::Anchor,
    proto::{self, Role},
    token::RegistrationToken,
};
use jiff::Timestamp;
use tokio::{task::JoinSet, time::timeout};
use uuid::Uuid;

use crate::{
    channel::{ChannelOptions, ChannelServer, ChannelSettings, Desired},
    detect::{self, Blocks, Detect, DetectOptions},
    geo::Geo,
    keys::{EnvelopeHealth, KeyRing, Keys, Rotator},
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

pub(super) use appliance::{Appliance, hardware, register_message};
pub(super) use device::{Device, ask, served, session};

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);

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
        let store =
            Store::open(place.database(), keys.envelope_key().unwrap(), Metrics::default()).await.unwrap();
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
            bus: None,
            envelope: EnvelopeHealth::default(),
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

    /// The resources in force.
    pub(super) fn index(&self) -> Arc<Index> {
        self.desired.in_force().0
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

pub(super) fn entry(id: SessionId) -> EntryId {
    EntryId::session(id)
}
