//! The control channel: appliances and devices over QUIC.
//!
//! Each connection is one task. An appliance registers or attaches, proves itself, and gets its state when it changes; a
//! device enrols, asks for sessions, and hears when they end. Several replicas serve channels at once, over one store: a lease
//! says which connection of which replica speaks for a server, and every write about its appliance names that lease.
//!
//! Besides the connections there are: the ear, which passes hints on to the connections that are concerned; the sweep, which
//! finds in the store what hints should have said; the keeper, which ends the sessions that have lost their right; and the
//! task that gives leases back.

pub(crate) mod accept;
mod appliance;
mod arrivals;
mod attach;
mod away;
mod beat;
mod behavior;
mod clock;
mod clones;
mod compose;
mod device;
mod device_news;
mod ear;
mod evidence;
mod keeper;
mod key_news;
mod keys;
mod lease;
mod leave;
mod look;
mod opening;
mod policies;
mod probe;
mod proof;
mod questions;
mod refusals;
mod registry;
mod reports;
pub(crate) mod servers;
mod sessions;
mod settings;
mod sweep;
pub(crate) mod takeover;
#[cfg(test)]
mod tests;
mod unproven;
mod wire;
mod witness;

pub use settings::ChannelSettings;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use aws_lc_rs::hmac;
use horizon_channel::Listener;
use horizon_controller_core::Index;
use horizon_model::Secret;
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    detect::{Blocks, Detect},
    geo::Geo,
    keys::KeyRing,
    live::Live,
    metrics::Metrics,
    replica::Leadership,
    stop::{Stop, Stopper, stop},
    store::{Heartbeats, ReplicaId, Revision, Store},
};
use arrivals::Arrivals;
use clock::Clock;
use ear::Inbox;
use key_news::Bells;
use leave::Leaver;
use policies::Policies;
use questions::Questions;
use registry::Registry;
use unproven::Unproven;

/// How long giving back the leases may take when this replica stops. What is not is seen to be over by its silence.
const GIVE_BACK: Duration = Duration::from_secs(3);

/// The resources in force.
pub trait Desired: Send + Sync + 'static {
    /// A snapshot of them, which never waits.
    fn index(&self) -> Arc<Index> {
        self.in_force().0
    }

    /// A snapshot of them with its revision, which never waits.
    fn in_force(&self) -> (Arc<Index>, Revision);
}

/// What a channel server is made of.
pub struct ChannelOptions {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The organisation's keys.
    pub keys: KeyRing,
    /// The database.
    pub store: Store,
    /// The live layer.
    pub live: Arc<dyn Live>,
    /// The resources in force.
    pub desired: Arc<dyn Desired>,
    /// This start of this replica.
    pub replica: ReplicaId,
    /// Whether this replica leads.
    pub leadership: Leadership,
    /// Where addresses are.
    pub geo: Geo,
    /// Where what may be out of the ordinary is handed over.
    pub detect: Detect,
    /// The blocked addresses.
    pub blocks: Blocks,
    /// Figures.
    pub metrics: Metrics,
    /// Limits and patience.
    pub settings: ChannelSettings,
}

/// What every task of the channel shares.
struct Context {
    keys: KeyRing,
    store: Store,
    live: Arc<dyn Live>,
    desired: Arc<dyn Desired>,
    replica: ReplicaId,
    leadership: Leadership,
    geo: Geo,
    detect: Detect,
    blocks: Blocks,
    metrics: Metrics,
    settings: ChannelSettings,
    beats: Heartbeats,
    registry: Registry,
    leaver: Leaver,
    questions: Questions,
    inbox: Inbox,
    bells: Bells,
    /// The sweep is not to wait for its time.
    sweep_now: Notify,
    listener: Listener,
    stop: Stop,
    /// Peers are being sent to other replicas: no new ones are taken in.
    draining: AtomicBool,
    unproven: Unproven,
    /// The newest checkpoint of the audit trail.
    checkpoint: witness::Checkpoint,
    arrivals: Arrivals,
    policies: Policies,
    clock: Clock,
    /// The networks that are blocked, for the conversations that are open.
    blocked: watch::Sender<Vec<IpNet>>,
    /// The number of sessions may have changed since they were counted.
    recount: AtomicBool,
    /// How many refused secrets become events.
    refusals_told: accept::Told,
    /// How much of the rate of warnings about the limit of connections is used up.
    full_warning: Mutex<Option<Timestamp>>,
}

/// What replicas derive for packets: every replica has the same from its start on, and what another has is no more than a reason to
/// ask anew.
fn packets(store: &Store) -> Secret {
    let shared = store.shared_keys();
    let key = hmac::Key::new(hmac::HMAC_SHA256, shared[0].expose());
    let derived = hmac::sign(&key, b"horizon control packets v1");
    Secret::from_slice(derived.as_ref()).expect("an HMAC-SHA256 tag has 32 bytes")
}

/// The controller's side of the control channel, listening.
pub struct ChannelServer {
    context: Arc<Context>,
    stopper: Stopper,
    tasks: JoinSet<&'static str>,
}

impl ChannelServer {
    /// Listens, and serves from then on.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start(options: ChannelOptions) -> io::Result<Self> {
        let ChannelOptions { listen, keys, store, live, desired, replica, leadership, .. } = options;
        let ChannelOptions { geo, detect, blocks, metrics, settings, .. } = options;
        let now = keys.now();
        let listener = Listener::bind_replica(listen, &now.tls, &packets(&store))?;
        let beats = Heartbeats::start(store.clone());
        let (stopper, stop) = stop();
        let context = Arc::new(Context {
            keys,
            store,
            live,
            desired,
            replica,
            leadership,
            geo,
            detect,
            blocks,
            metrics,
            settings,
            beats,
            registry: Registry::default(),
            leaver: Leaver::default(),
            questions: Questions::default(),
            inbox: Inbox::default(),
            bells: Bells::default(),
            sweep_now: Notify::new(),
            listener,
            stop,
            draining: AtomicBool::new(false),
            unproven: Unproven::default(),
            checkpoint: witness::Checkpoint::default(),
            arrivals: Arrivals::default(),
            policies: Policies::default(),
            clock: Clock::new(Instant::now(), Timestamp::now()),
            blocked: watch::Sender::new(Vec::new()),
            recount: AtomicBool::new(false),
            refusals_told: accept::Told::default(),
            full_warning: Mutex::new(None),
        });
        // Subscribed before the first connection: no hint of it is missed.
        let hints = context.live.subscribe();
        let mut server = Self { context: context.clone(), stopper, tasks: JoinSet::new() };
        server.run("accept loop", accept::run(context.clone()));
        server.run("ear", ear::run(context.clone(), hints));
        server.run("keeper", keeper::run(context.clone()));
        server.run("sweep", sweep::run(context.clone()));
        server.run("keys", keys::run(context.clone()));
        server.run("checkpoints", witness::run(context.clone()));
        server.run("leases", leave::run(context));
        Ok(server)
    }

    fn run(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            task.await;
            name
        });
    }

    /// The address that was bound.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.context.listener.local_addr()
    }

    /// Waits until a part ends by itself, and names it. Cancel safe.
    pub async fn ended(&mut self) -> &'static str {
        match self.tasks.join_next().await {
            Some(Ok(part)) => part,
            Some(Err(error)) => {
                tracing::error!(%error, "a part of the control channel broke down");
                "part"
            }
            None => "last part",
        }
    }

    /// Sends all peers to the replicas with these addresses, or to those they know. Takes no new ones from then on. Returns when
    /// they have gone, or when they had [`ChannelSettings::leave_patience`] for it.
    pub async fn go_elsewhere(&self, addresses: Vec<String>) {
        self.context.send_all_away(addresses).await;
    }

    /// Ends all conversations and stops listening.
    pub async fn stop(mut self) {
        self.stopper.stop();
        self.context.listener.close("the controller stops").await;
        self.tasks.shutdown().await;
        let given_back = async {
            // Conversations end one by one now.
            while !self.context.registry.is_empty() {
                sleep(Duration::from_millis(5)).await;
            }
            self.context.give_back().await;
        };
        if timeout(GIVE_BACK, given_back).await.is_err() {
            tracing::info!("not every channel was given back; other replicas find out by themselves");
        }
    }
}

impl Context {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
