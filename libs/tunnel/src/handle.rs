//! Starting a tunnel and speaking to its thread.

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use horizon_tls::Credentials;
use rustix::event::{EventfdFlags, eventfd};

use crate::{
    ConfigError, NetworkConfig, NetworkId, SessionConfig, SessionId, Snapshot, TunDevice, TunnelConfig,
    TunnelEvent,
    driver::{Driver, DriverParts},
    socket::UdpPort,
};

/// Commands that may wait for the thread. Callers wait when there are more.
const COMMANDS: usize = 64;

/// Why a tunnel could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The UDP socket.
    #[error("cannot listen for UDP on {address}: {source}")]
    Socket {
        /// The configured address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The key pair.
    #[error("cannot use the identity key for TLS: {0}")]
    Identity(rustls::Error),
    /// The thread or its wake-up.
    #[error("cannot start the tunnel's thread: {0}")]
    Thread(io::Error),
}

/// The tunnel's thread has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tunnel has stopped")]
pub struct Stopped;

/// A running tunnel. Dropping it ends its thread without a word to the peers; see [`Tunnel::shutdown`].
pub struct Tunnel {
    handle: TunnelHandle,
    local: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

/// Speaks to a tunnel's thread. Commands take effect in the order given. Cheap to clone.
#[derive(Clone)]
pub struct TunnelHandle {
    commands: SyncSender<Command>,
    wake: Arc<OwnedFd>,
}

pub(crate) enum Command {
    UpsertSession(Box<SessionConfig>),
    RemoveSession { id: SessionId, text: String },
    SetNetwork(NetworkConfig),
    RemoveNetwork(NetworkId),
    AttachTun(Box<TunDevice>),
    DetachTun,
    Stats(SyncSender<Snapshot>),
    Stop { graceful: bool },
}

impl Tunnel {
    /// Binds the socket in the calling thread (and its network namespace) and starts the loop. `events` is called on
    /// the loop's thread.
    pub fn start(
        config: TunnelConfig,
        events: Box<dyn FnMut(TunnelEvent) + Send>,
    ) -> Result<Self, StartError> {
        let address = config.listen;
        let credentials = Credentials::new(&config.identity).map_err(StartError::Identity)?;
        let port =
            UdpPort::bind(address, config.fwmark).map_err(|source| StartError::Socket { address, source })?;
        let local = port.local_addr();
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| StartError::Thread(error.into()))?;
        let wake = Arc::new(wake);
        let (sender, commands): (_, Receiver<Command>) = sync_channel(COMMANDS);
        let parts = DriverParts { config, credentials, port, wake: wake.clone(), commands, events };
        let driver = Driver::new(parts).map_err(StartError::Identity)?;
        let thread = std::thread::Builder::new()
            .name("horizon-tunnel".into())
            .spawn(move || driver.run())
            .map_err(StartError::Thread)?;
        let handle = TunnelHandle { commands: sender, wake };
        Ok(Self { handle, local, thread: Some(thread) })
    }

    /// The UDP address it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// A handle to speak to it.
    pub fn handle(&self) -> TunnelHandle {
        self.handle.clone()
    }

    /// Closes all connections with a word to their peers, and waits for the thread to end.
    pub fn shutdown(mut self) {
        self.stop(true);
    }

    fn stop(&mut self, graceful: bool) {
        if let Some(thread) = self.thread.take() {
            // An error means that the thread has ended already.
            let _ = self.handle.send(Command::Stop { graceful });
            if thread.join().is_err() {
                tracing::error!("the tunnel's thread panicked");
            }
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop(false);
    }
}

/// Why a session was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpsertError {
    /// Its configuration is out of bounds.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tunnel has ended.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl TunnelHandle {
    /// Adds a session or changes it in place.
    pub fn upsert_session(&self, session: SessionConfig) -> Result<(), UpsertError> {
        session.check()?;
        Ok(self.send(Command::UpsertSession(Box::new(session)))?)
    }

    /// Removes a session and closes its connection; the peer sees `text` (at most 200 bytes of it).
    pub fn remove_session(&self, id: SessionId, text: &str) -> Result<(), Stopped> {
        self.send(Command::RemoveSession { id, text: text.to_owned() })
    }

    /// Adds or changes a network. Packets in networks that were never set are dropped.
    pub fn set_network(&self, network: NetworkConfig) -> Result<(), Stopped> {
        self.send(Command::SetNetwork(network))
    }

    /// Removes a network.
    pub fn remove_network(&self, id: NetworkId) -> Result<(), Stopped> {
        self.send(Command::RemoveNetwork(id))
    }

    /// Takes a TUN device into use, in place of the one before.
    pub fn attach_tun(&self, device: TunDevice) -> Result<(), Stopped> {
        self.send(Command::AttachTun(Box::new(device)))
    }

    /// Drops the TUN device, which removes the interface.
    pub fn detach_tun(&self) -> Result<(), Stopped> {
        self.send(Command::DetachTun)
    }

    /// What has been counted. Waits for the thread, which answers within a turn of its loop; never to be called from
    /// the event callback.
    pub fn stats(&self) -> Result<Snapshot, Stopped> {
        let (sender, receiver) = sync_channel(1);
        self.send(Command::Stats(sender))?;
        receiver.recv().map_err(|_| Stopped)
    }

    fn send(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).map_err(|_| Stopped)?;
        // It fails only when the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        Ok(())
    }
}
