//! The privileged service: it holds the device key, the session and every change of the host.

mod access;
mod actor;
mod answers;
mod data;
mod device;
mod host;
mod keeper;
mod link;
mod refusal;
mod resolver;
mod server;
mod settings;
mod store;
mod supervisor;
mod worker;

use std::{future::pending, path::PathBuf, time::Duration};

use anyhow::Context;
use horizon_hostnet::Net;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::timeout,
};

pub use supervisor::supervise;

/// Where the service listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/horizon/client.sock";
/// Where it keeps its state unless told otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/horizon-client";

/// How long a service waits for one that is stopping; putting the host back takes a fraction of it.
const START_PATIENCE: Duration = Duration::from_secs(5);
/// How long a repair waits for a service that is ending.
const REPAIR_PATIENCE: Duration = Duration::from_secs(2);

/// How long the goodbye to the controller may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// How the service runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The socket that front ends connect to.
    pub socket: PathBuf,
    /// The folder of the device key, the enrolment and the journal.
    pub state_dir: PathBuf,
    /// The resolver's file.
    pub resolv_conf: PathBuf,
    /// The name of the TUN device.
    pub device: String,
    /// A user who may speak to the service besides root.
    pub owner: Option<String>,
    /// A group whose members may.
    pub group: Option<String>,
    /// How long an unconfirmed connection lasts when the user sits at the far end of an SSH login.
    pub confirm_within: Duration,
    /// Whether a session that a former run left open is taken up.
    pub resume: bool,
}

/// Puts back what a former run left changed on the host. Whether there was anything.
pub fn repair(settings: &Settings) -> anyhow::Result<bool> {
    runtime()?.block_on(async {
        let store = store::Store::open(&settings.state_dir)?;
        let _alone = store.lock(REPAIR_PATIENCE).await?;
        Ok(host::repair(&store).await?)
    })
}

/// Runs the service until it is told to stop (SIGTERM, SIGINT).
pub fn run(settings: &Settings) -> anyhow::Result<()> {
    // Before there are threads.
    let hardened = horizon_hardening::harden(horizon_hardening::Program::Client);
    tracing::debug!(?hardened, "what the system allows against leaks of keys");
    runtime()?.block_on(serve(settings))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}

async fn serve(settings: &Settings) -> anyhow::Result<()> {
    let access = access::Access::new(settings.owner.as_deref(), settings.group.as_deref())?;
    let store = store::Store::open(&settings.state_dir)?;
    let _alone = store.lock(START_PATIENCE).await?;
    // Of a damaged journal nothing can be undone; it must not keep the user from working.
    if let Err(error) = host::repair(&store).await {
        tracing::error!(%error, "what a former run left could not be put back completely");
    }
    let key = store.device_key()?;
    let enrolment = store.enrolment()?;
    let shown = settings.socket.display();
    let listener = server::bind(&settings.socket, access)
        .await
        .with_context(|| format!("cannot listen on {shown}; is the service running already?"))?;

    let (calls_in, calls) = mpsc::channel(server::MESSAGES);
    let (link_in, link_events) = mpsc::channel(16);
    let (done_in, done) = mpsc::channel(32);
    let (path_in, path) = watch::channel(data::PathState::default());
    let (link, keeper) = link::Link::start(store.clone(), key.clone(), enrolment.clone(), link_in, random);
    let net = Net::open()?;
    let places =
        worker::Places { resolv_conf: settings.resolv_conf.clone(), device: settings.device.clone() };
    let public = key.public();
    let own = key.clone();
    let jobs = worker::Worker::start(store.clone(), key, places, net, path_in, done_in);
    let outputs = actor::Outputs { link, jobs, store: store.clone(), key: own };
    let mut actor = actor::Actor::new(outputs, public, enrolment, settings.confirm_within);
    if settings.resume {
        if let Some(ticket) = store.ticket()? {
            actor.resume(&ticket);
        }
    } else {
        store.set_ticket(None)?;
    }
    tokio::spawn(server::serve(listener, access, calls_in));
    tracing::info!(socket = %shown, device_key = %public, "the service is ready");
    actor.run(actor::Inputs { calls, link: link_events, done, path }, stopped()).await;
    // The actor's end lets go of the control channel, which says goodbye.
    let _ = timeout(GOODBYE, keeper).await;
    // The socket disappears with the service, so that front ends say that it does not run.
    let _ = std::fs::remove_file(&settings.socket);
    Ok(())
}

/// Ends when the process is told to stop.
async fn stopped() {
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        _ => pending().await,
    }
}

/// A random number in 0.0..1.0, for jitter.
fn random() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness there is no jitter, and nothing worse.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}
