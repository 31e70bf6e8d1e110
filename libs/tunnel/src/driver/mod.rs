//! The loop: one thread that reads the socket, the TUN device and commands, and does what follows from them.

mod commands;
mod links;
mod packets;
mod sessions;
mod timers;
mod tun_port;

use std::{
    collections::{HashMap, VecDeque},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, mpsc::Receiver},
    time::Instant,
};

use bytes::BytesMut;
use horizon_tls::Credentials;
use horizon_tunnel_core::{
    cid::{IssuedKey, Locator},
    forward::Forwarder,
    ids::Slot,
    limit::TokenBucket,
    queue::MemoryBudget,
};
use quinn_proto::{Endpoint, TransportConfig, crypto::HandshakeTokenKey};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::{links::Link, sessions::Session, timers::Timers, tun_port::TunPort};
use crate::{
    GlobalCounters, SessionId, TunnelConfig, TunnelEvent, TunnelLimits,
    handle::Command,
    socket::UdpPort,
    tls,
    transport::{self, CurrentSlot},
};

/// Dial-back probes reported in a second: anybody can send them.
const PROBES_PER_SECOND: u64 = 10;

/// What the loop is made of.
pub(crate) struct DriverParts {
    pub(crate) config: TunnelConfig,
    pub(crate) credentials: Credentials,
    pub(crate) port: UdpPort,
    pub(crate) wake: Arc<OwnedFd>,
    pub(crate) commands: Receiver<Command>,
    pub(crate) events: Box<dyn FnMut(TunnelEvent) + Send>,
}

/// The state of the loop.
pub(crate) struct Driver {
    now: Instant,
    endpoint: Endpoint,
    credentials: Credentials,
    transport: Arc<TransportConfig>,
    token_key: Arc<dyn HandshakeTokenKey>,
    issued_key: IssuedKey,
    current_slot: CurrentSlot,
    port: UdpPort,
    wake: Arc<OwnedFd>,
    commands: Receiver<Command>,
    events: Box<dyn FnMut(TunnelEvent) + Send>,
    limits: TunnelLimits,
    tun: Option<TunPort>,
    /// Memory that datagrams are cut from.
    arena: BytesMut,
    forwarder: Forwarder,
    /// Sessions by slot; empty slots are used again.
    sessions: Vec<Option<Session>>,
    by_id: HashMap<SessionId, Slot>,
    by_locator: HashMap<Locator, Slot>,
    /// Sessions that have a connection.
    connected: usize,
    budget: MemoryBudget,
    /// Connections by QUIC's handle.
    links: Vec<Option<Box<Link>>>,
    /// Connections with something to do.
    dirty: VecDeque<usize>,
    timers: Timers,
    counters: GlobalCounters,
    /// How many dial-back probes are still reported.
    probes: TokenBucket,
    stopping: bool,
}

impl Driver {
    pub(crate) fn new(parts: DriverParts) -> Result<Self, rustls::Error> {
        let DriverParts { config, credentials, port, wake, commands, events } = parts;
        let issued_key = transport::issued_key(&config.identity);
        let current_slot = CurrentSlot::default();
        let endpoint_config =
            transport::endpoint(&config.identity, &config.transport, &issued_key, &current_slot);
        let transport = transport::transport(&config.transport, port.segmentation());
        // Every accepted connection brings its session's own configuration; this one trusts only our own key.
        let refusing = tls::server(&credentials, &config.identity.public_key())?;
        let token_key = transport::token_key(&config.identity);
        let server = transport::server(refusing, token_key.clone(), transport.clone());
        let discovery = !port.may_fragment();
        let endpoint = Endpoint::new(Arc::new(endpoint_config), Some(Arc::new(server)), discovery, None);
        Ok(Self {
            now: Instant::now(),
            endpoint,
            credentials,
            transport,
            token_key,
            issued_key,
            current_slot,
            port,
            wake,
            commands,
            events,
            limits: config.limits,
            tun: None,
            arena: BytesMut::new(),
            forwarder: Forwarder::default(),
            sessions: Vec::new(),
            by_id: HashMap::new(),
            by_locator: HashMap::new(),
            connected: 0,
            budget: MemoryBudget::new(config.limits.total_queue),
            links: Vec::new(),
            dirty: VecDeque::new(),
            timers: Timers::default(),
            counters: GlobalCounters::default(),
            probes: TokenBucket::new(PROBES_PER_SECOND, PROBES_PER_SECOND),
            stopping: false,
        })
    }

    pub(crate) fn run(mut self) {
        while !self.stopping {
            let ready = self.wait();
            self.now = Instant::now();
            if ready.commands {
                self.take_commands();
            }
            if ready.socket {
                self.receive();
            }
            self.fire_timers();
            if ready.tun {
                self.read_tun();
            }
            self.port.retry();
            self.serve_links();
        }
    }

    /// Sleeps until something is to be done.
    fn wait(&self) -> Ready {
        let mut socket = PollFlags::IN;
        socket.set(PollFlags::OUT, self.port.is_blocked());
        let mut descriptors = smallvec::SmallVec::<[PollFd<'_>; 3]>::new();
        descriptors.push(PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN));
        descriptors.push(PollFd::from_borrowed_fd(self.port.as_fd(), socket));
        if let Some(tun) = &self.tun {
            let interest = if self.tun_is_held() { PollFlags::empty() } else { PollFlags::IN };
            descriptors.push(PollFd::from_borrowed_fd(tun.as_fd(), interest));
        }
        // Connections that wait for a blocked socket are no reason to stay awake.
        let busy = !self.dirty.is_empty() && !self.port.is_blocked();
        let timeout = match (busy, self.timers.next()) {
            (true, _) => Some(Timespec { tv_sec: 0, tv_nsec: 0 }),
            (false, Some(at)) => {
                let left = at.saturating_duration_since(Instant::now());
                Some(Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() })
            }
            (false, None) => None,
        };
        if let Err(error) = poll(&mut descriptors, timeout.as_ref()) {
            if error != rustix::io::Errno::INTR {
                tracing::error!(%error, "poll failed");
            }
            return Ready { commands: true, socket: true, tun: self.tun.is_some() };
        }
        let ready = |index: usize| {
            let returned = descriptors.get(index).map_or(PollFlags::empty(), |d| d.revents());
            returned.intersects(PollFlags::IN | PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL)
        };
        Ready { commands: ready(0), socket: ready(1), tun: ready(2) }
    }

    fn emit(&mut self, event: TunnelEvent) {
        (self.events)(event);
    }

    fn session(&mut self, slot: Slot) -> Option<&mut Session> {
        self.sessions.get_mut(slot.0 as usize)?.as_mut()
    }
}

/// What poll found readable.
struct Ready {
    commands: bool,
    socket: bool,
    tun: bool,
}
