//! The world a controller lives in: where its resources are declared, which database it has, and whether others share it.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

use jiff::Timestamp;

use super::{RunError, declared};
use crate::{
    config::{Config, SourceKind, read_url},
    deliver::{SecretFiles, SecretSink},
    engine::StatusSink,
    keys::{self, Envelope, EnvelopeHealth, Home, KeyRing},
    kubernetes::{
        self, Cluster, Events, KubernetesLease, Objects, Secrets, Source, StatusBudget, Statuses, Writing,
    },
    live::{
        InProcess, Live,
        shared::{BusKey, RedisUrl, Shared, SharedOptions},
    },
    metrics::Metrics,
    replica::{Alone, DatabaseLease, Elector, Leadership, Roll},
    source::{Declare, SourceOptions},
    store::{Database, PostgresOptions, ReplicaId, ReplicaInfo, Store},
};

/// What a world is opened with.
#[derive(Clone, Copy)]
pub(super) struct Surroundings<'a> {
    /// The settings.
    pub(super) config: &'a Config,
    /// Where appliances and clients reach this replica.
    pub(super) advertise: &'a [String],
    /// The figures.
    pub(super) metrics: &'a Metrics,
}

/// What differs between the worlds.
pub(super) struct World {
    /// This start of the process.
    pub(super) replica: ReplicaId,
    /// Whether other replicas work on the same database.
    pub(super) shared: bool,
    /// Whether this replica leads.
    pub(super) leadership: Leadership,
    /// The roll of replicas; `None` where there can be no others.
    pub(super) roll: Option<Roll>,
    /// The live layer.
    pub(super) live: Arc<dyn Live>,
    /// What declares resources.
    pub(super) source: Arc<dyn Declare>,
    /// Where statuses go besides the database.
    pub(super) statuses: Option<Arc<dyn StatusSink>>,
    /// Where the strings of keys go.
    pub(super) secrets: Arc<dyn SecretSink>,
    bus: Option<Arc<Shared>>,
    /// Under what it speaks.
    pub(super) bus_key: Option<BusKey>,
    /// Whether the envelope key can be used.
    pub(super) envelope: EnvelopeHealth,
    /// Where the keys lie.
    pub(super) home: Home,
    /// What writes to the API server, where resources are declared there.
    pub(super) telling: Option<Telling>,
    _lock: File,
}

/// What writes to the API server besides the statuses.
pub(super) struct Telling {
    /// Events.
    pub(super) events: Events,
    /// The objects that are known.
    pub(super) objects: Objects,
    _statuses: Writing,
}

/// Where resources are declared, and what goes there.
struct Place {
    source: Arc<dyn Declare>,
    statuses: Option<Arc<dyn StatusSink>>,
    secrets: Arc<dyn SecretSink>,
    elector: Box<dyn Elector>,
    telling: Option<Telling>,
}

impl Place {
    fn in_files(config: &Config, store: &Store, replica: ReplicaId, shared: bool) -> Self {
        let source = SourceOptions { debounce: config.debounce, ..SourceOptions::new(&config.resources) };
        let elector: Box<dyn Elector> = match shared {
            true => {
                Box::new(DatabaseLease::new(store.clone(), replica, &config.replica, config.lease_duration))
            }
            false => Box::new(Alone),
        };
        Self {
            source: Arc::new(source),
            statuses: None,
            secrets: Arc::new(SecretFiles(config.data.join("secrets"))),
            elector,
            telling: None,
        }
    }

    fn in_kubernetes(cluster: Cluster, config: &Config, replica: ReplicaId, leadership: Leadership) -> Self {
        let objects = Objects::default();
        let events = Events::start(&cluster, &config.replica);
        // The same name may come back as another process, which must not take the lease for its own.
        let identity = format!("{}_{replica}", config.replica);
        let elector = KubernetesLease::new(&cluster, identity, config.lease_duration);
        let leads = move || leadership.leads().is_some();
        let budget = StatusBudget::default();
        let (statuses, writing) =
            Statuses::start(cluster.clone(), objects.clone(), events.clone(), budget, leads);
        let secrets = Secrets::new(cluster.clone(), objects.clone());
        let source = Source::new(cluster, config.kubernetes_namespaces.clone(), objects.clone());
        Self {
            source: Arc::new(source),
            statuses: Some(Arc::new(statuses)),
            secrets: Arc::new(secrets),
            elector: Box::new(elector),
            telling: Some(Telling { events, objects, _statuses: writing }),
        }
    }
}

impl World {
    /// Opens everything that lies outside of this process.
    pub(super) async fn open(
        surroundings: Surroundings<'_>,
        lock: File,
        now: Timestamp,
    ) -> Result<(Self, Store, KeyRing, Box<dyn Elector>), RunError> {
        let Surroundings { config, advertise, metrics } = surroundings;
        let database = database(config)?;
        let redis = config.redis_url_file.as_deref().map(RedisUrl::read).transpose()?;
        let cluster = match config.source == SourceKind::Kubernetes || config.keys_secret.is_some() {
            true => {
                Some(kubernetes::connect(config.kubeconfig.as_deref(), metrics.kubernetes.clone()).await?)
            }
            false => None,
        };
        let home = keys_home(config, cluster.as_ref());
        let keys = home.open(now).await?;
        let shared = matches!(database, Database::Postgres(_));
        let store = Store::open(database, Envelope::of(config, &keys)?, metrics.clone()).await?;
        // A replica that was away while keys rotated takes the newer ones from the database.
        let keys = match keys::follow(&store, &keys, now).await? {
            Some(newer) => {
                home.keep(&newer, now).await?;
                newer
            }
            None => keys,
        };
        let newest = store.note_keyset(keys.keyset.version, now).await?;
        if newest > keys.keyset.version {
            return Err(RunError::OldKeys { found: keys.keyset.version, newest });
        }
        let replica = ReplicaId::random();
        let info = ReplicaInfo {
            name: config.replica.clone(),
            addresses: super::listen::own(advertise),
            draining: false,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let own = (replica, shared.then_some(&info));
        declared::declare(config.source, &store, own, declared::PATIENCE).await?;
        let roll = match shared {
            true => Some(Roll::enter(store.clone(), replica, info, metrics.clone()).await?),
            false => None,
        };
        let bus_key = shared.then(|| BusKey::new(&store.shared_keys()));
        let bus = bus_key.as_ref().map(|key| {
            Shared::start(SharedOptions {
                replica,
                key: key.clone(),
                database: Some(Arc::new(store.clone())),
                redis,
                prefix: String::new(),
                metrics: metrics.clone(),
            })
        });
        let live: Arc<dyn Live> = match &bus {
            Some(bus) => bus.clone(),
            None => Arc::new(InProcess::default()),
        };
        let leadership = Leadership::default();
        let place = match cluster.filter(|_| config.source == SourceKind::Kubernetes) {
            Some(cluster) => Place::in_kubernetes(cluster, config, replica, leadership.clone()),
            None => Place::in_files(config, &store, replica, shared),
        };
        let Place { source, statuses, secrets, elector, telling } = place;
        let world = Self {
            replica,
            shared,
            leadership,
            roll,
            live,
            bus,
            bus_key,
            envelope: EnvelopeHealth::default(),
            home,
            source,
            statuses,
            secrets,
            telling,
            _lock: lock,
        };
        Ok((world, store, KeyRing::from(Arc::new(keys)), elector))
    }

    /// Says goodbye to the other replicas.
    pub(super) async fn close(&self) {
        if let Some(bus) = &self.bus {
            bus.stop().await;
        }
        if let Some(roll) = &self.roll {
            roll.leave().await;
        }
    }
}

/// Where the keys lie.
pub(super) fn keys_home(config: &Config, cluster: Option<&Cluster>) -> Home {
    match (&config.keys_secret, cluster) {
        (Some(name), Some(cluster)) => Home::Secret(Box::new(cluster.clone()), name.clone()),
        _ => Home::Directory(config.data.join("keys")),
    }
}

/// The same for a command that needs nothing else of the cluster.
pub(super) async fn home(config: &Config) -> Result<Home, RunError> {
    let cluster = match config.keys_secret {
        Some(_) => {
            let metrics = Metrics::default();
            Some(kubernetes::connect(config.kubeconfig.as_deref(), metrics.kubernetes.clone()).await?)
        }
        None => None,
    };
    Ok(keys_home(config, cluster.as_ref()))
}

/// The database of the settings.
pub(super) fn database(config: &Config) -> Result<Database, RunError> {
    match &config.database_url_file {
        None => Ok(Database::Sqlite(config.data.join("horizon.db"))),
        Some(file) => postgres("database_url_file", file),
    }
}

/// The database as `migrate` reaches it.
pub(super) fn migration_database(config: &Config) -> Result<Database, RunError> {
    match (&config.migration_url_file, &config.database_url_file) {
        (Some(file), _) => postgres("migration_url_file", file),
        (None, Some(file)) => postgres("database_url_file", file),
        (None, None) => Err(RunError::NothingToMigrate),
    }
}

fn postgres(setting: &'static str, file: &Path) -> Result<Database, RunError> {
    let url = read_url(file)?;
    let options: PostgresOptions = url.parse().map_err(|error| RunError::DatabaseUrl { setting, error })?;
    Ok(Database::Postgres(options))
}

/// Makes sure that no other controller works with the same data.
pub(super) fn lock(data: &Path) -> Result<File, RunError> {
    if !data.is_dir() {
        return Err(RunError::NoData(data.to_owned()));
    }
    let system = |error| RunError::System { what: "cannot lock the data directory", error };
    let mut options = OpenOptions::new();
    let file = options
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(data.join("lock"))
        .map_err(system)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|error| {
        match error {
            rustix::io::Errno::WOULDBLOCK => RunError::Locked(data.to_owned()),
            other => system(other.into()),
        }
    })?;
    Ok(file)
}
