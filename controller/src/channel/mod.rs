//! The control channel: appliances and devices over QUIC.
//!
//! Each connection is one task. An appliance registers or attaches, proves itself, and gets its state when it changes; a
//! device enrols, asks for sessions, and hears when they end. One more task, the keeper, listens to hints: it looks at
//! the sessions that may have lost their right, and wakes the connections that are concerned.

mod accept;
mod appliance;
mod attach;
mod beat;
mod clones;
mod compose;
mod device;
mod keeper;
mod opening;
mod probe;
mod proof;
mod refusals;
mod registry;
mod reports;
mod sessions;
mod settings;
mod takeover;
#[cfg(test)]
mod tests;
mod unproven;
mod wire;

pub use settings::ChannelSettings;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use horizon_channel::Listener;
use horizon_controller_core::Index;
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    keys::Keys,
    live::Live,
    metrics::Metrics,
    stop::{Stop, Stopper, stop},
    store::{Heartbeats, Store},
};
use registry::Registry;
use unproven::Unproven;

/// The resources in force.
pub trait Desired: Send + Sync + 'static {
    /// A snapshot of them, which never waits.
    fn index(&self) -> Arc<Index>;
}

/// What a channel server is made of.
pub struct ChannelOptions {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The organisation's keys.
    pub keys: Arc<Keys>,
    /// The database.
    pub store: Store,
    /// The live layer.
    pub live: Arc<dyn Live>,
    /// The resources in force.
    pub desired: Arc<dyn Desired>,
    /// Figures.
    pub metrics: Metrics,
    /// Limits and patience.
    pub settings: ChannelSettings,
}

/// What every task of the channel shares.
struct Context {
    keys: Arc<Keys>,
    store: Store,
    live: Arc<dyn Live>,
    desired: Arc<dyn Desired>,
    metrics: Metrics,
    settings: ChannelSettings,
    beats: Heartbeats,
    registry: Registry,
    listener: Listener,
    stop: Stop,
    unproven: Unproven,
    /// The networks that are blocked, for the conversations that are open.
    blocked: watch::Sender<Vec<IpNet>>,
    /// How much of the rate of warnings about the limit of connections is used up.
    full_warning: Mutex<Option<Timestamp>>,
}

/// The controller's side of the control channel, listening.
pub struct ChannelServer {
    context: Arc<Context>,
    stopper: Stopper,
    tasks: Vec<JoinHandle<()>>,
}

impl ChannelServer {
    /// Listens, and serves from then on.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start(options: ChannelOptions) -> io::Result<Self> {
        let ChannelOptions { listen, keys, store, live, desired, metrics, settings } = options;
        let listener = Listener::bind(listen, &keys.tls)?;
        let beats = Heartbeats::start(store.clone());
        let (stopper, stop) = stop();
        let registry = Registry::default();
        let context = Arc::new(Context {
            keys,
            store,
            live,
            desired,
            metrics,
            settings,
            beats,
            registry,
            listener,
            stop,
            unproven: Unproven::default(),
            blocked: watch::Sender::new(Vec::new()),
            full_warning: Mutex::new(None),
        });
        // Subscribed before the first connection: no hint of it is missed.
        let hints = context.live.subscribe();
        let tasks = vec![
            tokio::spawn(accept::run(context.clone())),
            tokio::spawn(keeper::run(context.clone(), hints)),
        ];
        Ok(Self { context, stopper, tasks })
    }

    /// The address that was bound.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.context.listener.local_addr()
    }

    /// Ends all conversations and stops listening.
    pub async fn stop(self) {
        self.stopper.stop();
        self.context.listener.close("the controller stops").await;
        for task in self.tasks {
            // A task that panicked has said so, and is over as well.
            let _ = task.await;
        }
    }
}

impl Context {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
