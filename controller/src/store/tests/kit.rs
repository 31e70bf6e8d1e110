//! A store on each engine, and resources from TOML.

use std::sync::{Arc, LazyLock};

use horizon_controller_core::{Index, Origin, Stored};
use horizon_crds::{IdentityPolicy, Resource, ResourceId};
use horizon_model::{
    Capability, DeviceInfo, Factor, FactorKind, Incarnation, KeyId, PublicKey, Secret, ServerId, TaggedSecret,
};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    metrics::Metrics,
    store::{
        Actor, Answered, AppliedState, Assigned, AttachedServer, Attachment, ChallengeId, ChallengeType,
        Change, ChannelLease, Committed, EnvelopeKey, Guard, LeaderEpoch, Observation, RegisterRequest,
        RegisteredServer, ReplicaId, Store, dialect::query, row::Columns as _,
    },
};

use super::place::Place;

/// The replica that tests are unless they say otherwise.
pub(crate) const REPLICA: ReplicaId = ReplicaId(Uuid::from_u128(1));

pub(crate) struct Kit {
    pub(crate) place: Place,
    pub(crate) store: Store,
}

/// Runs each test on both engines. One that is not listed is unused, which the compiler says.
macro_rules! conformance {
    ($($name:ident),+ $(,)?) => {
        conformance!(sqlite, $crate::store::tests::place::On::Sqlite; $($name),+);
        conformance!(postgres, $crate::store::tests::place::On::Postgres; $($name),+);
    };
    ($engine:ident, $on:expr; $($name:ident),+) => {
        mod $engine {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    $crate::store::tests::place::ENGINE.scope($on, super::$name()).await;
                }
            )+
        }
    };
}
pub(crate) use conformance;

/// What most tests declare: a user who may use one server.
pub(crate) const BASICS: &str = r#"
[[resource]]
apiVersion = "horizon.dev/v1alpha1"
kind = "Server"
metadata.name = "berlin"
[resource.spec]

[[resource]]
apiVersion = "horizon.dev/v1alpha1"
kind = "RegistrationKey"
metadata.name = "berlin-1"
spec.serverRef = "berlin"

[[resource]]
apiVersion = "horizon.dev/v1alpha1"
kind = "User"
metadata.name = "ana"
[resource.spec]

[[resource]]
apiVersion = "horizon.dev/v1alpha1"
kind = "PersonalKey"
metadata.name = "ana-1"
spec.userRef = "ana"

[[resource]]
apiVersion = "horizon.dev/v1alpha1"
kind = "AccessPolicy"
metadata.name = "all"
[resource.spec]
servers = ["*"]
subjects.users = ["ana"]
[[resource.spec.destinations]]
cidr = "0.0.0.0/0"
"#;

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

pub(crate) fn envelope() -> EnvelopeKey {
    EnvelopeKey(Secret::new([42; 32]))
}

/// The resources of a TOML text, which has no problems.
pub(crate) fn resources(toml: &str) -> Vec<Resource> {
    let parsed = horizon_crds::parse("test.toml", toml.as_bytes());
    assert!(parsed.problems.is_empty(), "{:?}", parsed.problems);
    parsed.resources.into_iter().map(|(resource, _)| resource).collect()
}

pub(crate) fn puts(toml: &str) -> Vec<Change> {
    resources(toml)
        .into_iter()
        .map(|resource| Change::Put {
            resource: Arc::new(resource),
            origin: Origin::File("test.toml".into()),
            actor: None,
        })
        .collect()
}

pub(crate) fn removal(kind: &str, name: &str) -> Change {
    Change::Remove { id: id(kind, name), actor: None }
}

pub(crate) fn id(kind: &str, name: &str) -> ResourceId {
    ResourceId {
        kind: kind.parse().unwrap(),
        namespace: "default".parse().unwrap(),
        name: name.parse().unwrap(),
    }
}

impl Kit {
    pub(crate) async fn new() -> Self {
        let place = Place::new();
        let store = Store::open(place.database(), &envelope(), Metrics::default()).await.unwrap();
        Self { place, store }
    }

    /// Another handle on the same database, as another replica has.
    pub(crate) async fn replica(&self) -> Store {
        Store::open(self.place.database(), &envelope(), Metrics::default()).await.unwrap()
    }

    pub(crate) async fn with_basics() -> Self {
        let kit = Self::new().await;
        kit.put(BASICS).await;
        kit
    }

    pub(crate) async fn commit(&self, changes: &[Change], now: Timestamp) -> Committed {
        self.store.commit_resources(changes, &Actor::File("test".into()), now, Guard::NONE).await.unwrap()
    }

    pub(crate) async fn put(&self, toml: &str) -> Vec<Assigned> {
        self.commit(&puts(toml), at(0)).await.assigned
    }

    pub(crate) async fn remove(&self, kind: &str, name: &str) -> Committed {
        self.commit(&[removal(kind, name)], at(0)).await
    }

    pub(crate) async fn stored(&self) -> Vec<Stored> {
        self.store.load_resources().await.unwrap().0
    }

    pub(crate) async fn index(&self) -> Index {
        Index::new(self.stored().await)
    }

    pub(crate) async fn uid(&self, kind: &str, name: &str) -> Uuid {
        let id = id(kind, name);
        self.stored().await.into_iter().find(|s| s.id() == id).unwrap_or_else(|| panic!("no {id}")).uid
    }

    pub(crate) async fn server(&self) -> ServerId {
        ServerId(self.uid("Server", "berlin").await)
    }

    /// The secret of the registration key of the basics.
    pub(crate) async fn token(&self) -> Secret {
        let key = self.uid("RegistrationKey", "berlin-1").await;
        self.store.issue_registration_secret(key, at(0)).await.unwrap()
    }

    pub(crate) async fn register(&self, key: PublicKey) -> RegisteredServer {
        let secret = self.token().await;
        self.store.register_server(&request(secret, key), at(1)).await.unwrap()
    }

    /// Takes the channel of a server, from whoever has it.
    pub(crate) async fn lease(&self, server: ServerId) -> ChannelLease {
        self.attach(server).await.lease
    }

    /// Has the appliance of a server attach, in the place of whoever has its channel.
    pub(crate) async fn attach(&self, server: ServerId) -> AttachedServer {
        let holder = self.store.channel_of(server).await.unwrap().map(|holder| holder.lease);
        let run = Incarnation(Uuid::from_u128(7));
        let attached = attach(&self.store, server, REPLICA, run, holder, at(0)).await;
        attached.expect("nobody else takes it")
    }

    /// Has the appliance answer a challenge.
    pub(crate) async fn answer(
        &self,
        attached: &AttachedServer,
        server: ServerId,
        right: bool,
        time: i64,
    ) -> bool {
        let challenge = ChallengeId(Uuid::now_v7());
        let answered = Answered {
            challenge,
            kind: ChallengeType::Hmac,
            asked: at(time - 1),
            right,
            detail: String::new(),
            tolerated: 2,
            newest_secret: attached.reissued,
            arrival: None,
        };
        self.store.note_challenge(server, attached.lease, &answered, at(time)).await.unwrap()
    }

    /// The personal key of the basics, with its secret.
    pub(crate) async fn personal_key(&self) -> (KeyId, TaggedSecret) {
        let key = KeyId(self.uid("PersonalKey", "ana-1").await);
        let issued = self.store.issue_personal_secret(key, at(0)).await.unwrap();
        (key, issued.secret)
    }
}

/// Has the appliance of a server attach to a replica: in the place of whose hold is `expected`, or of nobody.
pub(crate) async fn attach(
    store: &Store,
    server: ServerId,
    replica: ReplicaId,
    incarnation: Incarnation,
    expected: Option<ChannelLease>,
    now: Timestamp,
) -> Option<AttachedServer> {
    let attachment = attachment(store, server, replica, incarnation, expected).await?;
    store.attach(&attachment, now).await.unwrap()
}

/// What the appliance of a server attaches with. One that does not exist has no appliance either.
pub(crate) async fn attachment(
    store: &Store,
    server: ServerId,
    replica: ReplicaId,
    incarnation: Incarnation,
    expected: Option<ChannelLease>,
) -> Option<Attachment> {
    let record = store.server(server).await.unwrap()?;
    Some(Attachment {
        server,
        replica,
        incarnation,
        expected,
        key: record.public_key.unwrap(),
        address: "203.0.113.4".parse().unwrap(),
        version: "0.2.0".into(),
        capabilities: record.capabilities,
        held: AppliedState {
            epoch: 1,
            generation: record.applied_generation,
            digest: record.applied_digest,
            problems: record.problems,
            addresses: record.addresses,
        },
    })
}

/// The epoch in force, and the name of who leads.
pub(crate) async fn who_leads(store: &Store) -> (LeaderEpoch, Option<String>) {
    let row = query("SELECT epoch, replica_name FROM leadership WHERE singleton = 1")
        .fetch_one(store.readers())
        .await
        .unwrap();
    (LeaderEpoch(row.int("epoch").unwrap()), row.maybe_text("replica_name").unwrap())
}

/// What an appliance reports of itself, weighed as by default.
pub(crate) fn reported(factors: &[Factor]) -> Observation<'_> {
    static POLICY: LazyLock<IdentityPolicy> = LazyLock::new(IdentityPolicy::default);
    Observation { reported: factors, place: &[], attested: None, policy: &POLICY }
}

pub(crate) fn factors(values: &[(&str, &str)]) -> Vec<Factor> {
    let factor = |(name, value): &(&str, &str)| Factor {
        kind: FactorKind::HardwareFingerprint,
        name: (*name).to_owned(),
        value: (*value).to_owned(),
    };
    values.iter().map(factor).collect()
}

pub(crate) fn request(secret: Secret, public_key: PublicKey) -> RegisterRequest {
    RegisterRequest {
        key_name: "berlin-1".into(),
        secret,
        public_key,
        hostname: "box".into(),
        version: "0.1.0".into(),
        capabilities: vec![Capability::Vpn, Capability::LanEmulation],
        factors: factors(&[("dmi/board_serial", "a"), ("processor/model", "b"), ("disk/0/serial", "c")]),
        address: "192.0.2.7".parse().unwrap(),
    }
}

pub(crate) fn device_info(name: &str) -> DeviceInfo {
    DeviceInfo {
        name: name.into(),
        platform: "linux".into(),
        os_version: "13".into(),
        app_version: "0.1.0".into(),
        hardware_fingerprint: "sha256:00".into(),
    }
}
