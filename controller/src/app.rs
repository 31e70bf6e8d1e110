//! The wiring of a running controller: what is opened in which order, and how it all ends.

mod declared;
mod error;
mod listen;
mod ready;
mod vigil;
mod world;

pub use error::RunError;
pub use ready::DatabaseWatch;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use horizon_controller_core::{Index, PruneLimit};
use jiff::Timestamp;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::{JoinHandle, JoinSet},
};

use crate::{
    api::{self, Api, Strings},
    channel::{ChannelOptions, ChannelServer, Desired},
    config::Config,
    deliver::{self, Delivery},
    engine::{Engine, EngineOptions, EngineParts, InForce},
    geo::Geo,
    keys::{Home, Rotator},
    kubernetes, log,
    metrics::{self, Health, Metrics},
    replica::{Campaign, Roll},
    rest::{self, RestParts},
    rotation::{self, Rotation},
    sealing::Sealing,
    stop::{self, Stopper},
    store::{Database, MigrationReport, Revision, Store},
};
use vigil::{Vigil, Watched};
use world::{Telling, World};

/// How long everything may take to end once nobody is connected.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// Runs a controller until SIGTERM or SIGINT.
///
/// # Errors
/// Why it did not start, or ended by itself.
pub async fn run(config: Config) -> Result<(), RunError> {
    log::start(config.log_format, &config.log_level)?;
    let handle =
        |kind| signal(kind).map_err(|error| RunError::System { what: "cannot listen for signals", error });
    let (mut terminate, mut interrupt) = (handle(SignalKind::terminate())?, handle(SignalKind::interrupt())?);
    let mut app = App::start(config).await?;
    let ended = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        part = app.ended() => Some(part),
    };
    tracing::info!("stopping");
    tokio::select! {
        () = app.stop() => {}
        _ = terminate.recv() => tracing::warn!("asked a second time: ending at once"),
        _ = interrupt.recv() => tracing::warn!("asked a second time: ending at once"),
    }
    ended.map_or(Ok(()), |part| Err(RunError::Ended(part)))
}

/// Brings the schema of the database up to date, as the user of `migration_url_file`.
///
/// # Errors
/// Why it could not. The database is as before then.
pub async fn migrate(config: &Config) -> Result<MigrationReport, RunError> {
    Ok(Store::migrate(world::migration_database(config)?).await?)
}

/// The database of the settings.
///
/// # Errors
/// When what says where it is cannot be read.
pub fn database(config: &Config) -> Result<Database, RunError> {
    world::database(config)
}

/// The database of the settings, for whoever makes tables in it.
///
/// # Errors
/// When what says where it is cannot be read.
pub fn restore_database(config: &Config) -> Result<Database, RunError> {
    match config.database_url_file {
        None => world::database(config),
        Some(_) => world::migration_database(config),
    }
}

/// Where the keys of the settings lie.
///
/// # Errors
/// When nothing leads to Kubernetes, where they are.
pub async fn keys_home(config: &Config) -> Result<Home, RunError> {
    world::home(config).await
}

/// Keeps other controllers from the data directory until the file is dropped.
///
/// # Errors
/// When another has it.
pub fn lock_data(config: &Config) -> Result<std::fs::File, RunError> {
    world::lock(&config.data)
}

/// A running controller.
pub struct App {
    /// Where appliances and clients connect.
    pub control: SocketAddr,
    /// Where metrics and health are served.
    pub metrics: SocketAddr,
    /// Where the REST API is served, if it is.
    pub rest: Option<SocketAddr>,
    /// The socket of the API.
    pub socket: PathBuf,
    parts: JoinSet<&'static str>,
    stopper: Stopper,
    /// Ends the leadership, before everything else ends.
    withdraw: Stopper,
    /// Whether this replica is about to end, so that nobody is sent to it any more.
    draining: Arc<AtomicBool>,
    channel: Option<ChannelServer>,
    world: World,
    store: Store,
}

impl App {
    /// Starts every part. When this returns, all of them listen.
    ///
    /// # Errors
    /// The first that does not start; nothing of the others goes on then.
    pub async fn start(config: Config) -> Result<Self, RunError> {
        let started_at = Timestamp::now();
        let metrics = Metrics::default();
        let registry = metrics.registry();
        let health = Health::default();
        // Known before anybody can ask.
        let (resources_ready, control_ready) = (health.part("resources"), health.part("control channel"));
        let ((stopper, stop), (withdraw, withdrawal)) = (stop::stop(), stop::stop());
        let mut parts = Parts(JoinSet::new());

        // What the system may refuse comes before what does work.
        let lock = world::lock(&config.data)?;
        let metrics_listener = TcpListener::bind(config.metrics_listen).await;
        let refused =
            |error| RunError::Listen { setting: "metrics_listen", address: config.metrics_listen, error };
        let metrics_listener = metrics_listener.map_err(refused)?;
        let metrics_address = metrics_listener.local_addr().map_err(refused)?;
        let api_listener = api::bind(&config.socket).await?;
        let rest_listener = listen::rest(&config.rest).await?;

        let paths = [&config.geoip_database, &config.geoip_asn_database];
        let geo = Geo::open(paths.into_iter().flatten().cloned().collect())?;
        let vigil = Vigil::new(&config)?;
        let advertise = listen::advertise(&config);
        let surroundings = world::Surroundings { config: &config, advertise: &advertise, metrics: &metrics };
        let (world, store, keys, elector) = World::open(surroundings, lock, started_at).await?;
        let strings = Strings { advertise, keys: keys.clone() };
        let leadership = world.leadership.clone();
        let database = DatabaseWatch::new(store.clone(), world.shared);
        let draining = Arc::new(AtomicBool::new(false));
        parts.add(
            "metrics",
            metrics::serve(
                metrics_listener,
                registry,
                health.clone(),
                database.probe(draining.clone()),
                stop.clone(),
            ),
        );
        if let Some(roll) = &world.roll {
            parts.add("roll of replicas", roll.clone().run(stop.clone()));
        }
        let me = (world.replica, config.replica.clone());
        let campaign = Campaign::new(elector, store.clone(), me, leadership.clone(), metrics.clone());
        let stopped = stop.clone();
        parts.add("election", async move {
            campaign.run(withdrawal).await;
            // It ends before the others do, and is not missed.
            stopped.clone().requested().await;
        });

        let limit = PruneLimit { percent: config.prune_limit_percent, ..PruneLimit::default() };
        let options = EngineOptions { source: world.source.clone(), limit, shared: world.shared };
        let engine_parts = EngineParts {
            store: store.clone(),
            live: world.live.clone(),
            leadership: leadership.clone(),
            statuses: world.statuses.clone(),
            metrics: metrics.clone(),
            ready: resources_ready,
            stop: stop.clone(),
        };
        let (engine, task) = Engine::start(options, engine_parts).await?;
        parts.add("engine", joined("engine", task));
        let delivery = Delivery {
            sink: world.secrets.clone(),
            strings: strings.clone(),
            engine: engine.clone(),
            store: store.clone(),
            live: world.live.clone(),
            leadership: leadership.clone(),
        };
        parts.add("delivery", deliver::run(delivery, stop.clone()));
        let rotation = Rotation {
            engine: engine.clone(),
            store: store.clone(),
            live: world.live.clone(),
            leadership: leadership.clone(),
        };
        parts.add("rotation", rotation::run(rotation, stop.clone()));

        if let Some(Telling { events, objects, .. }) = &world.telling {
            let leads = leadership.clone();
            let relay = kubernetes::relay_security_events(
                store.clone(),
                engine.clone(),
                events.clone(),
                objects.clone(),
                move || leads.leads().is_some(),
                stop.clone(),
            );
            parts.add("events of Kubernetes", relay);
        }

        parts.add("database of places", geo.clone().follow(stop.clone()));
        let watched = Watched {
            store: &store,
            desired: Arc::new(engine.clone()),
            world: &world,
            geo: &geo,
            leadership: &leadership,
            metrics: &metrics,
        };
        let (detect, blocks) = vigil.start(&watched, &mut parts, &stop);
        let sealing = Sealing { store: store.clone(), keys: keys.clone(), leadership: leadership.clone() };
        parts.add("sealing of the audit trail", sealing.run(stop.clone()));
        let rotator = Rotator {
            store: store.clone(),
            ring: keys.clone(),
            home: Some(world.home.clone()),
            live: world.live.clone(),
            leadership: leadership.clone(),
            desired: Arc::new(engine.clone()),
            replica: world.replica,
            metrics: metrics.clone(),
            bus: world.bus_key.clone(),
            envelope: world.envelope.clone(),
        };
        parts.add("rotation of keys", rotator.run(stop.clone()));
        let channel = listen::listen(&config, |listen| ChannelOptions {
            listen,
            keys: keys.clone(),
            store: store.clone(),
            live: world.live.clone(),
            desired: Arc::new(engine.clone()),
            geo: geo.clone(),
            detect: detect.clone(),
            blocks: blocks.clone(),
            metrics: metrics.clone(),
            settings: listen::channel_settings(&config),
            replica: world.replica,
            leadership: leadership.clone(),
        })?;
        let refused = |error| RunError::Listen { setting: "listen", address: config.listen, error };
        let control = channel.local_addr().map_err(refused)?;
        control_ready.ready();

        let socket = config.socket.clone();
        let rest = rest_listener.as_ref().and_then(|(listener, _)| listener.local_addr().ok());
        let api = Arc::new(Api {
            config,
            strings,
            engine,
            store: store.clone(),
            metrics,
            health,
            started_at,
            live: world.live.clone(),
            roll: world.roll.clone(),
            database: database.clone(),
            source: world.source.describe(),
        });
        if let Some((listener, certified)) = rest_listener {
            if let Some(address) = rest {
                tracing::info!(%address, "the REST API is served");
            }
            let parts_of_rest = RestParts { listener, certified, api: api.clone(), geo, blocks, detect };
            parts.add("REST API", rest::serve(parts_of_rest, stop.clone()));
        }
        parts.add("api", api::serve(api_listener, api, stop));
        tracing::info!(%control, metrics = %metrics_address, socket = %socket.display(), "the controller runs");
        Ok(Self {
            control,
            metrics: metrics_address,
            rest,
            socket,
            parts: parts.0,
            stopper,
            withdraw,
            draining,
            channel: Some(channel),
            world,
            store,
        })
    }

    /// The first part that ends by itself.
    async fn ended(&mut self) -> &'static str {
        let channel = async {
            match &mut self.channel {
                Some(channel) => channel.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            part = channel => part,
            part = self.parts.join_next() => match part {
                Some(Ok(part)) => part,
                Some(Err(error)) => {
                    tracing::error!(%error, "a part of the controller broke down");
                    "part"
                }
                None => "last part",
            },
        }
    }

    /// Ends every part: another replica leads and takes the peers, what was begun is finished, files are closed.
    pub async fn stop(&mut self) {
        self.draining.store(true, Ordering::Release);
        if let Some(roll) = &self.world.roll {
            roll.drain().await;
        }
        // Another replica leads while this one still sends its peers away.
        self.withdraw.stop();
        let elsewhere = self.world.roll.as_ref().map(Roll::elsewhere).unwrap_or_default();
        if let Some(channel) = self.channel.as_ref().filter(|_| !elsewhere.is_empty()) {
            tracing::info!(?elsewhere, "peers are sent to the other replicas");
            channel.go_elsewhere(elsewhere).await;
        }
        self.stopper.stop();
        let ended = async {
            if let Some(channel) = self.channel.take() {
                channel.stop().await;
            }
            while self.parts.join_next().await.is_some() {}
            self.world.close().await;
        };
        if tokio::time::timeout(STOP_PATIENCE, ended).await.is_err() {
            tracing::warn!("some parts did not end in time and are cut off");
            self.parts.abort_all();
        }
        self.store.close().await;
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::debug!(%error, "the API's socket could not be removed");
        }
        tracing::info!("stopped");
    }
}

/// The parts that run side by side.
struct Parts(JoinSet<&'static str>);

impl Parts {
    fn add(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(async move {
            part.await;
            name
        });
    }
}

impl Desired for Engine {
    fn in_force(&self) -> (Arc<Index>, Revision) {
        let InForce { index, revision } = Self::in_force(self);
        (index, revision)
    }
}

/// Waits for a task, whose panic is logged.
async fn joined(part: &'static str, task: JoinHandle<()>) {
    if let Err(error) = task.await {
        tracing::error!(part, %error, "a part of the controller broke down");
    }
}
