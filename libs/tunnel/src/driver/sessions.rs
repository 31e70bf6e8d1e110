//! The sessions of a tunnel: configuration, dialling, and which connection carries each.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use horizon_tunnel_core::{
    cid::InitialKey,
    dial::{Dialer, Patience},
    fragment::{Fragmenter, Reassembler},
    ids::Slot,
    limit::TokenBucket,
    queue::ByteQueue,
};
use quinn_proto::{ClientConfig, ConnectionId, ServerConfig};
use smallvec::SmallVec;

use super::{Driver, timers::Subject};
use crate::{
    CloseCode, DownReason, Role, SessionConfig, SessionId, TunnelEvent, tls,
    transport::{self, jitter, random},
};

/// Handshakes of one session that may be under way at the accepting end.
pub(super) const MAX_HANDSHAKES: usize = 8;
/// Above this many, or above the rate, the peer must first prove its address (RFC 9000, section 8.1.2).
pub(super) const UNPROVEN_HANDSHAKES: usize = 4;
/// Handshakes a second, and at once, without such a proof.
const HANDSHAKES_PER_SECOND: u64 = 5;
const HANDSHAKE_BURST: u64 = 20;
/// Violations a second reported for one session.
const VIOLATIONS_PER_SECOND: u64 = 2;
/// Longest text sent with a close.
const MAX_CLOSE_TEXT: usize = 200;

pub(super) struct Session {
    pub(super) config: SessionConfig,
    pub(super) key: InitialKey,
    pub(super) crypto: SessionCrypto,
    /// The connection that carries packets.
    pub(super) active: Option<usize>,
    /// Connections whose handshake is under way.
    pub(super) handshaking: SmallVec<[usize; 4]>,
    pub(super) handshakes: TokenBucket,
    pub(super) dialer: Option<Dialer>,
    pub(super) queue: ByteQueue,
    pub(super) fragmenter: Fragmenter,
    pub(super) reassembler: Reassembler,
    pub(super) violations: TokenBucket,
    /// What the connection's path can carry, as of its last turn.
    pub(super) path: Path,
}

/// What a path can carry.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Path {
    /// Largest QUIC datagram, in bytes.
    pub(super) max_datagram: usize,
    /// When MTU discovery has had its time.
    pub(super) settled: Option<Instant>,
}

/// How QUIC proves and checks keys for a session.
pub(super) enum SessionCrypto {
    Accept(Arc<ServerConfig>),
    Dial(ClientConfig),
}

impl Driver {
    pub(super) fn upsert_session(&mut self, config: SessionConfig) {
        let slot = match self.by_id.get(&config.id) {
            Some(slot) => {
                let slot = *slot;
                if self.session(slot).is_some_and(|session| session.has_same_keys(&config)) {
                    return self.update_session(slot, config);
                }
                self.remove_session(config.id, "the session's keys changed");
                slot
            }
            None => match self.free_slot() {
                Some(slot) => slot,
                None => {
                    let reason = format!("the tunnel already has its {} sessions", self.limits.sessions);
                    return self.emit(TunnelEvent::SessionRefused { id: config.id, reason });
                }
            },
        };
        self.add_session(slot, config);
    }

    fn add_session(&mut self, slot: Slot, config: SessionConfig) {
        let key = InitialKey::new(&config.secret);
        let (crypto, dialer) = match self.session_crypto(&config, &key) {
            Ok(parts) => parts,
            Err(error) => {
                let reason = format!("TLS cannot be prepared: {error}");
                return self.emit(TunnelEvent::SessionRefused { id: config.id, reason });
            }
        };
        self.forwarder.set_session(slot, config.attachments.clone(), config.limits);
        self.by_id.insert(config.id, slot);
        self.by_locator.insert(key.locator(), slot);
        let index = slot.0 as usize;
        if self.sessions.len() <= index {
            self.sessions.resize_with(index + 1, || None);
        }
        self.timers.set(Subject::Dial(slot), dialer.as_ref().and_then(Dialer::due));
        self.sessions[index] = Some(Session {
            config,
            key,
            crypto,
            active: None,
            handshaking: SmallVec::new(),
            handshakes: TokenBucket::new(HANDSHAKES_PER_SECOND, HANDSHAKE_BURST),
            dialer,
            queue: ByteQueue::new(self.limits.session_queue),
            fragmenter: Fragmenter::default(),
            reassembler: Reassembler::default(),
            violations: TokenBucket::new(VIOLATIONS_PER_SECOND, VIOLATIONS_PER_SECOND * 5),
            path: Path::default(),
        });
    }

    fn session_crypto(
        &self,
        config: &SessionConfig,
        key: &InitialKey,
    ) -> Result<(SessionCrypto, Option<Dialer>), rustls::Error> {
        match &config.role {
            Role::Accept => {
                let crypto = tls::server(&self.credentials, &config.peer_key)?;
                let server = transport::server(crypto, self.token_key.clone(), self.transport.clone());
                Ok((SessionCrypto::Accept(Arc::new(server)), None))
            }
            Role::Dial { addresses } => {
                let mut client = ClientConfig::new(tls::client(&self.credentials, &config.peer_key)?);
                let key = key.clone();
                client
                    .transport_config(self.transport.clone())
                    .token_store(Arc::new(quinn_proto::NoneTokenStore))
                    .initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&key.issue(random()))));
                Ok((SessionCrypto::Dial(client), Some(Dialer::new(self.now, addresses.clone()))))
            }
        }
    }

    fn update_session(&mut self, slot: Slot, config: SessionConfig) {
        self.forwarder.set_session(slot, config.attachments.clone(), config.limits);
        let now = self.now;
        let Some(session) = self.session(slot) else { return };
        let connected = session.active.is_some();
        if let (Some(dialer), Role::Dial { addresses }) = (&mut session.dialer, &config.role) {
            dialer.set_addresses(now, addresses.clone(), connected);
        }
        session.config = config;
        let due = session.dialer.as_ref().and_then(Dialer::due);
        self.timers.set(Subject::Dial(slot), due);
    }

    pub(super) fn remove_session(&mut self, id: SessionId, text: &str) {
        let Some(slot) = self.by_id.remove(&id) else { return };
        let active = self.set_active(slot, None);
        let Some(session) = self.sessions.get_mut(slot.0 as usize).and_then(Option::take) else { return };
        self.by_locator.remove(&session.key.locator());
        self.forwarder.remove_session(slot);
        self.timers.set(Subject::Dial(slot), None);
        for link in active.into_iter().chain(session.handshaking) {
            self.close_link(link, CloseCode::SessionEnded, text);
        }
        if active.is_some() {
            self.emit(TunnelEvent::SessionDown { id, reason: DownReason::Local });
        }
    }

    /// A slot without a session. Connections that only take leave may still name it; nobody asks them any more.
    fn free_slot(&self) -> Option<Slot> {
        let free = self.sessions.iter().position(Option::is_none);
        let index = free.unwrap_or(self.sessions.len());
        (index < self.limits.sessions).then_some(Slot(index as u32))
    }

    /// Starts the attempts that are due for a session.
    pub(super) fn dial(&mut self, slot: Slot) {
        let now = self.now;
        loop {
            let Some(session) = self.session(slot) else { return };
            let Some(dialer) = &mut session.dialer else { return };
            let Some(address) = dialer.poll(now) else { break };
            self.start_attempt(slot, address);
        }
        self.schedule_dial(slot);
    }

    fn start_attempt(&mut self, slot: Slot, address: SocketAddr) {
        let remote = self.port.to_socket(address);
        let Some(Session { crypto: SessionCrypto::Dial(config), .. }) = self.session(slot) else { return };
        let config = config.clone();
        self.current_slot.set(slot);
        match self.endpoint.connect(self.now, config, remote, "horizon") {
            Ok((handle, connection)) => self.add_link(handle, connection, slot, true),
            Err(error) => {
                tracing::debug!(%error, %address, "cannot dial");
                self.attempt_failed(slot, address, DownReason::Transport(error.to_string()));
            }
        }
    }

    /// Notes that an attempt to dial came to nothing.
    pub(super) fn attempt_failed(&mut self, slot: Slot, remote: SocketAddr, reason: DownReason) {
        let now = self.now;
        let Some(session) = self.session(slot) else { return };
        let (id, in_flight) = (session.config.id, session.handshaking.len());
        if let Some(dialer) = session.dialer.as_mut().filter(|_| session.active.is_none()) {
            dialer.failed(now, in_flight, jitter());
        }
        self.schedule_dial(slot);
        self.emit(TunnelEvent::AttemptFailed { id, remote, reason });
    }

    /// Notes that a session's connection is gone.
    pub(super) fn session_lost(&mut self, slot: Slot, reason: DownReason) {
        let now = self.now;
        let Some(session) = self.session(slot) else { return };
        let id = session.config.id;
        let patience = match reason {
            DownReason::ClosedByPeer { code: CloseCode::SessionEnded | CloseCode::Replaced, .. } => {
                Patience::Later
            }
            _ => Patience::Soon,
        };
        if let Some(dialer) = &mut session.dialer {
            dialer.lost(now, patience, jitter());
        }
        self.set_active(slot, None);
        self.schedule_dial(slot);
        self.emit(TunnelEvent::SessionDown { id, reason });
    }

    /// Changes which connection carries a session; returns the one that did. Without one nothing waits.
    pub(super) fn set_active(&mut self, slot: Slot, link: Option<usize>) -> Option<usize> {
        let session = self.sessions.get_mut(slot.0 as usize)?.as_mut()?;
        let old = std::mem::replace(&mut session.active, link);
        if link.is_none() {
            session.queue.clear(&mut self.budget);
            session.path = Path::default();
        }
        self.connected += usize::from(link.is_some());
        self.connected -= usize::from(old.is_some());
        old
    }

    fn schedule_dial(&mut self, slot: Slot) {
        let due = self.session(slot).and_then(|session| session.dialer.as_ref()?.due());
        self.timers.set(Subject::Dial(slot), due);
    }
}

impl Session {
    fn has_same_keys(&self, config: &SessionConfig) -> bool {
        let same_role = matches!(
            (&self.config.role, &config.role),
            (Role::Accept, Role::Accept) | (Role::Dial { .. }, Role::Dial { .. })
        );
        same_role && self.config.secret == config.secret && self.config.peer_key == config.peer_key
    }
}

/// The part of a close's text that is sent.
pub(super) fn bounded(text: &str) -> &str {
    let mut end = text.len().min(MAX_CLOSE_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
