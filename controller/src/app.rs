//! The wiring of a running controller: what is opened in which order, and how it all ends.

use std::{
    fs::{File, OpenOptions},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use horizon_controller_core::{Index, PruneLimit};
use jiff::Timestamp;
use thiserror::Error;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::{JoinHandle, JoinSet},
};

use crate::{
    api::{self, Api, SocketError, Strings},
    channel::{ChannelOptions, ChannelServer, ChannelSettings, Desired},
    config::Config,
    deliver::{self, Delivery},
    engine::{Engine, EngineOptions, EngineParts, StartError},
    init::host_addresses,
    keys::{Keys, KeysError},
    live::{InProcess, Live},
    log,
    metrics::{self, Health, Metrics, Probe},
    source::SourceOptions,
    stop::{self, Stopper},
    store::{Store, StoreError},
};

/// How long everything may take to end.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// Why a controller did not start, or ended by itself.
#[derive(Debug, Error)]
pub enum RunError {
    /// A setting is wrong.
    #[error(transparent)]
    Log(#[from] log::InvalidLevel),
    /// There is no data directory.
    #[error(
        "there is no directory {0}: run `horizon-controller init DIR`, then `run --config DIR/config.toml`"
    )]
    NoData(PathBuf),
    /// Another controller has it.
    #[error("another controller uses {0}: stop it first")]
    Locked(PathBuf),
    /// The keys cannot be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The keys are not those that were used last.
    #[error(
        "the keys are KeySet {found}, but KeySet {newest} was in use before: data/keys is older than the database, \
         restore the newer one"
    )]
    OldKeys {
        /// What was found.
        found: u64,
        /// What was in use.
        newest: u64,
    },
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The resources cannot be loaded.
    #[error(transparent)]
    Engine(#[from] StartError),
    /// The socket of the API cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// An address cannot be listened at.
    #[error("cannot listen at {address} ({setting}): {error}")]
    Listen {
        /// Which setting names it.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The system refused something else.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// A part ended although nobody asked it to.
    #[error("the controller's {0} ended by itself; see the log")]
    Ended(&'static str),
}

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

/// A running controller.
pub struct App {
    /// Where appliances and clients connect.
    pub control: SocketAddr,
    /// Where metrics and health are served.
    pub metrics: SocketAddr,
    /// The socket of the API.
    pub socket: PathBuf,
    parts: JoinSet<&'static str>,
    stopper: Stopper,
    channel: Option<ChannelServer>,
    store: Store,
    _lock: File,
}

impl App {
    /// Starts every part. When this returns, all of them listen.
    ///
    /// # Errors
    /// The first that does not start; nothing of the others goes on then.
    pub async fn start(config: Config) -> Result<Self, RunError> {
        let started_at = Timestamp::now();
        let lock = lock(&config.data)?;
        let keys = Arc::new(Keys::open(&config.data.join("keys"), started_at)?);
        let metrics = Metrics::default();
        let registry = metrics.registry();
        let health = Health::default();
        // Known before anybody can ask.
        let (resources_ready, control_ready) = (health.part("resources"), health.part("control channel"));
        let strings = Strings { advertise: advertise(&config), root: keys.root_id() };

        // What the system may refuse comes before what does work.
        let metrics_listener = TcpListener::bind(config.metrics_listen).await;
        let refused =
            |error| RunError::Listen { setting: "metrics_listen", address: config.metrics_listen, error };
        let metrics_listener = metrics_listener.map_err(refused)?;
        let metrics_address = metrics_listener.local_addr().map_err(refused)?;
        let api_listener = api::bind(&config.socket).await?;
        let store = Store::open(&config.data.join("horizon.db"), &keys.envelope, metrics.clone()).await?;
        let newest = store.note_keyset(keys.keyset.version, started_at).await?;
        if newest > keys.keyset.version {
            return Err(RunError::OldKeys { found: keys.keyset.version, newest });
        }
        let live: Arc<dyn Live> = Arc::new(InProcess::default());

        let (stopper, stop) = stop::stop();
        let mut parts = JoinSet::new();
        let mut add = |name: &'static str, part: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            parts.spawn(async move {
                part.await;
                name
            });
        };
        let database = store.clone();
        let probe: Probe = Arc::new(move || {
            let database = database.clone();
            Box::pin(async move { database.ping().await.map_err(|error| error.to_string()) })
        });
        add(
            "metrics",
            Box::pin(metrics::serve(metrics_listener, registry, health.clone(), probe, stop.clone())),
        );

        let source = SourceOptions { debounce: config.debounce, ..SourceOptions::new(&config.resources) };
        let limit = PruneLimit { percent: config.prune_limit_percent, ..PruneLimit::default() };
        let engine_parts = EngineParts {
            store: store.clone(),
            live: live.clone(),
            metrics: metrics.clone(),
            ready: resources_ready,
            stop: stop.clone(),
        };
        let (engine, task) = Engine::start(EngineOptions { source, limit }, engine_parts).await?;
        add("engine", Box::pin(joined("engine", task)));

        let delivery = Delivery {
            directory: config.data.join("secrets"),
            strings: strings.clone(),
            engine: engine.clone(),
            store: store.clone(),
            live: live.clone(),
        };
        add("delivery", Box::pin(deliver::run(delivery, stop.clone())));
        let channel = listen(&config, |listen| ChannelOptions {
            listen,
            keys: keys.clone(),
            store: store.clone(),
            live: live.clone(),
            desired: Arc::new(engine.clone()),
            metrics: metrics.clone(),
            settings: channel_settings(&config),
        })?;
        let refused = |error| RunError::Listen { setting: "listen", address: config.listen, error };
        let control = channel.local_addr().map_err(refused)?;
        control_ready.ready();

        let socket = config.socket.clone();
        let api =
            Arc::new(Api { config, strings, engine, store: store.clone(), metrics, health, started_at });
        add("api", Box::pin(api::serve(api_listener, api, stop)));
        tracing::info!(%control, metrics = %metrics_address, socket = %socket.display(), "the controller runs");
        Ok(Self {
            control,
            metrics: metrics_address,
            socket,
            parts,
            stopper,
            channel: Some(channel),
            store,
            _lock: lock,
        })
    }

    /// The first part that ends by itself.
    async fn ended(&mut self) -> &'static str {
        match self.parts.join_next().await {
            Some(Ok(part)) => part,
            Some(Err(error)) => {
                tracing::error!(%error, "a part of the controller broke down");
                "part"
            }
            None => "last part",
        }
    }

    /// Ends every part: peers are told, what was begun is finished, files are closed.
    pub async fn stop(&mut self) {
        self.stopper.stop();
        let ended = async {
            if let Some(channel) = self.channel.take() {
                channel.stop().await;
            }
            while self.parts.join_next().await.is_some() {}
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

impl Desired for Engine {
    fn index(&self) -> Arc<Index> {
        Self::index(self)
    }
}

/// Listens for appliances and clients: at the address of the settings, or, where that is every address of both families
/// and the machine has no IPv6, at every address of IPv4.
fn listen(
    config: &Config,
    options: impl Fn(SocketAddr) -> ChannelOptions,
) -> Result<ChannelServer, RunError> {
    let listen = config.listen;
    let every_ipv4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, listen.port()));
    let no_ipv6 = |error: &io::Error| {
        let errno = rustix::io::Errno::from_io_error(error);
        matches!(errno, Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL))
    };
    let started = match ChannelServer::start(options(listen)) {
        Err(error) if listen.ip() == Ipv6Addr::UNSPECIFIED && no_ipv6(&error) => {
            tracing::info!("this machine has no IPv6: listening at IPv4 addresses only");
            ChannelServer::start(options(every_ipv4))
        }
        started => started,
    };
    started.map_err(|error| RunError::Listen { setting: "listen", address: listen, error })
}

fn channel_settings(config: &Config) -> ChannelSettings {
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    ChannelSettings {
        connections: count(config.limits.connections),
        handshakes_at_once: count(config.limits.handshakes),
        messages_per_second: config.limits.messages_per_second,
        challenge_patience: config.timeouts.challenge,
        session_patience: config.timeouts.session_grant,
        session_idle: config.timeouts.session_idle,
        takeover_grace: config.timeouts.takeover_grace,
        ..ChannelSettings::default()
    }
}

/// Waits for a task, whose panic is logged.
async fn joined(part: &'static str, task: JoinHandle<()>) {
    if let Err(error) = task.await {
        tracing::error!(part, %error, "a part of the controller broke down");
    }
}

/// Makes sure that no other controller works with the same data.
fn lock(data: &Path) -> Result<File, RunError> {
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

/// What tokens name: what the settings say, else the addresses of this machine.
fn advertise(config: &Config) -> Vec<String> {
    if !config.advertise.is_empty() {
        return config.advertise.clone();
    }
    let port = config.listen.port();
    let mut addresses: Vec<String> = if config.listen.ip().is_unspecified() {
        host_addresses().into_iter().map(|ip| SocketAddr::from((ip, port)).to_string()).collect()
    } else {
        vec![config.listen.to_string()]
    };
    if addresses.is_empty() {
        addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string());
    }
    tracing::info!(
        ?addresses,
        "nothing is advertised in the settings: tokens name the addresses of this machine"
    );
    addresses
}
