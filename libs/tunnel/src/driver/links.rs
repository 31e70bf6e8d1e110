//! QUIC connections: from the first packet to the last, and their turn in the loop.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use horizon_tunnel_core::{
    cid::{INITIAL_LEN, PROBE_NONCE_LEN, Sighting},
    dial::ATTEMPT_TIMEOUT,
    header::WHOLE_LEN,
    ids::Slot,
};
use quinn_proto::{Connection, ConnectionError, ConnectionHandle, DatagramEvent, Event, Incoming};

use super::{
    Driver,
    sessions::{MAX_HANDSHAKES, SessionCrypto, UNPROVEN_HANDSHAKES, bounded},
    timers::Subject,
};
use crate::{CloseCode, DownReason, TunnelEvent, ViolationKind, socket::Received, socket::canonical};

/// Calls to the socket that one connection gets in one turn.
const SENDS_PER_TURN: usize = 16;
/// Calls for received packets in one turn of the loop.
const RECEIVES_PER_TURN: usize = 4;
/// How long after a connection is made nothing is refused for its size, because the path's MTU is still being found.
const MTU_SETTLES: Duration = Duration::from_secs(5);

/// How often, and how long each time, a shutdown waits for a socket that takes no more.
const FAREWELLS: usize = 10;
const FAREWELL_PAUSE: Duration = Duration::from_millis(20);

/// One QUIC connection.
pub(super) struct Link {
    handle: ConnectionHandle,
    pub(super) connection: Connection,
    pub(super) slot: Slot,
    dialled: bool,
    state: LinkState,
    /// Whether it is in the dirty list.
    dirty: bool,
    /// What the owner was told last.
    reported: (SocketAddr, usize),
    /// The connection of the same session that this one took over from.
    replaces: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkState {
    /// Until `deadline`.
    Handshaking { deadline: Instant },
    /// Carries the session's packets. Until it is confirmed, a dialling end cannot know whether its own key pleased.
    Active { confirmed: bool },
    /// No session cares about it any more; QUIC takes leave.
    Closing,
}

impl Driver {
    /// Takes packets from the socket.
    pub(super) fn receive(&mut self) {
        for _ in 0..RECEIVES_PER_TURN {
            let mut batch = smallvec::SmallVec::<[Received; 4]>::new();
            let more = self.port.receive(|received| batch.push(received));
            for received in batch {
                self.take_received(received);
            }
            if !more {
                break;
            }
        }
    }

    fn take_received(&mut self, received: Received) {
        let Received { remote, local_ip, ecn, stride, mut data } = received;
        let mut response = Vec::new();
        while !data.is_empty() {
            let payload = data.split_to(stride.min(data.len()));
            match Sighting::of(&payload) {
                Sighting::Probe(nonce) => {
                    self.report_probe(nonce, remote);
                    continue;
                }
                sighting if !self.is_expected(sighting) => {
                    self.counters.foreign_payloads += 1;
                    continue;
                }
                _ => {}
            }
            match self.endpoint.handle(self.now, remote, local_ip, ecn, payload, &mut response) {
                Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                    if let Some(Some(link)) = self.links.get_mut(handle.0) {
                        link.connection.handle_event(event);
                        self.mark_dirty(handle.0);
                    }
                }
                Some(DatagramEvent::NewConnection(incoming)) => self.accept(incoming),
                Some(DatagramEvent::Response(transmit)) => {
                    self.port.send_once(&transmit, &response);
                    response.clear();
                }
                None => {}
            }
        }
    }

    /// Whether a payload may belong to a session, judged without cryptography beyond one MAC.
    fn is_expected(&mut self, sighting: Sighting) -> bool {
        match sighting {
            Sighting::Short => true,
            Sighting::Issued(cid) => self.issued_key.verify(&cid).is_some(),
            Sighting::First { locator, cid } => {
                let Some(slot) = self.by_locator.get(&locator).copied() else { return false };
                let Some(session) = self.session(slot) else { return false };
                matches!(session.crypto, SessionCrypto::Accept(_)) && session.key.verify(&cid)
            }
            Sighting::Probe(_) | Sighting::Foreign => false,
        }
    }

    fn report_probe(&mut self, nonce: [u8; PROBE_NONCE_LEN], remote: SocketAddr) {
        if self.probes.take(self.now, 1) {
            self.emit(TunnelEvent::Probe { nonce, from: canonical(remote) });
        }
    }

    fn accept(&mut self, incoming: Incoming) {
        let Sighting::First { locator, .. } = first_sighting(&incoming) else {
            return self.endpoint.ignore(incoming);
        };
        let now = self.now;
        let slot = self.by_locator.get(&locator).copied();
        let Some((slot, session)) = slot.and_then(|slot| Some((slot, self.session(slot)?))) else {
            return self.endpoint.ignore(incoming);
        };
        let SessionCrypto::Accept(config) = &session.crypto else { return self.endpoint.ignore(incoming) };
        let config = config.clone();
        let many = session.handshaking.len() >= UNPROVEN_HANDSHAKES || !session.handshakes.take(now, 1);
        let too_many = session.handshaking.len() >= MAX_HANDSHAKES;
        self.current_slot.set(slot);
        let mut response = Vec::new();
        if many && incoming.may_retry() {
            // First packets can be replayed by whoever saw them; an address cannot.
            self.counters.address_proofs += 1;
            if let Ok(transmit) = self.endpoint.retry(incoming, &mut response) {
                self.port.send_once(&transmit, &response);
            }
            return;
        }
        if too_many {
            self.counters.refused_handshakes += 1;
            return self.endpoint.ignore(incoming);
        }
        match self.endpoint.accept(incoming, now, &mut response, Some(config)) {
            Ok((handle, connection)) => self.add_link(handle, connection, slot, false),
            Err(error) => {
                tracing::debug!(error = %error.cause, "first packet refused");
                if let Some(transmit) = error.response {
                    self.port.send_once(&transmit, &response);
                }
            }
        }
    }

    pub(super) fn add_link(
        &mut self,
        handle: ConnectionHandle,
        connection: Connection,
        slot: Slot,
        dialled: bool,
    ) {
        let deadline = self.now + ATTEMPT_TIMEOUT;
        let reported = (canonical(connection.remote_address()), 0);
        let state = LinkState::Handshaking { deadline };
        let link = Link { handle, connection, slot, dialled, state, dirty: false, reported, replaces: None };
        if self.links.len() <= handle.0 {
            self.links.resize_with(handle.0 + 1, || None);
        }
        self.links[handle.0] = Some(Box::new(link));
        if let Some(session) = self.session(slot) {
            session.handshaking.push(handle.0);
        }
        self.mark_dirty(handle.0);
    }

    pub(super) fn mark_dirty(&mut self, index: usize) {
        if let Some(Some(link)) = self.links.get_mut(index)
            && !link.dirty
        {
            link.dirty = true;
            self.dirty.push_back(index);
        }
    }

    pub(super) fn fire_timers(&mut self) {
        while let Some(subject) = self.timers.pop(self.now) {
            match subject {
                Subject::Dial(slot) => self.dial(slot),
                Subject::Link(index) => {
                    if let Some(Some(link)) = self.links.get_mut(index) {
                        link.connection.handle_timeout(self.now);
                        self.mark_dirty(index);
                    }
                }
            }
        }
    }

    /// Gives every connection that has something to do its turn.
    pub(super) fn serve_links(&mut self) {
        // Those that become dirty meanwhile, or have more to do, come in the next turn of the loop.
        for _ in 0..self.dirty.len() {
            let Some(index) = self.dirty.pop_front() else { break };
            let Some(mut link) = self.links.get_mut(index).and_then(Option::take) else { continue };
            link.dirty = false;
            self.now = Instant::now();
            self.take_events(&mut link);
            self.take_datagrams(&mut link);
            let more = self.transmit(&mut link);
            if link.connection.is_drained() {
                self.drop_link(*link);
                continue;
            }
            self.timers.set(Subject::Link(index), link.next_timeout());
            self.links[index] = Some(link);
            if more {
                self.mark_dirty(index);
            }
        }
        self.flush_tun();
    }

    fn take_events(&mut self, link: &mut Link) {
        while let Some(event) = link.connection.poll() {
            match event {
                Event::Connected => self.link_connected(link),
                Event::ConnectionLost { reason } => self.link_lost(link, reason),
                Event::HandshakeDataReady
                | Event::Stream(_)
                | Event::DatagramReceived
                | Event::DatagramsUnblocked => {}
            }
        }
        if let LinkState::Handshaking { deadline } = link.state
            && deadline <= self.now
        {
            self.handshake_ended(link, DownReason::TimedOut);
            link.close(self.now, CloseCode::Unneeded, "handshake took too long");
        }
        match link.state {
            LinkState::Active { confirmed: true } => self.observe_path(link),
            LinkState::Active { confirmed: false } if link.connection.stats().frame_rx.handshake_done > 0 => {
                self.link_confirmed(link);
            }
            _ => {}
        }
    }

    fn link_connected(&mut self, link: &mut Link) {
        let index = link.handle.0;
        let now = self.now;
        let Some(session) = self.session(link.slot).filter(|_| link.state != LinkState::Closing) else {
            return link.close(now, CloseCode::SessionEnded, "no such session");
        };
        link.state = LinkState::Active { confirmed: false };
        session.handshaking.retain(|other| *other != index);
        // At the dialling end the first connection wins and the other attempts end. At the accepting end they may
        // belong to a client that is just coming back, and the newest wins.
        let losers = if link.dialled { std::mem::take(&mut session.handshaking) } else { Default::default() };
        session.path.settled = Some(now + MTU_SETTLES);
        if let Some(dialer) = &mut session.dialer {
            dialer.hold();
        }
        self.timers.set(Subject::Dial(link.slot), None);
        link.replaces = self.set_active(link.slot, Some(index));
        if let Some(old) = link.replaces {
            self.close_link(old, CloseCode::Replaced, "a newer connection of this session took over");
        }
        for loser in losers {
            self.close_link(loser, CloseCode::Unneeded, "another path was faster");
        }
        self.update_path(link);
        if !link.dialled {
            self.link_confirmed(link);
        }
    }

    /// Both ends know that both keys are right.
    fn link_confirmed(&mut self, link: &mut Link) {
        link.state = LinkState::Active { confirmed: true };
        let mtu = self.update_path(link);
        let remote = canonical(link.connection.remote_address());
        link.reported = (remote, mtu);
        let Some(session) = self.session(link.slot) else { return };
        let id = session.config.id;
        if let Some(dialer) = &mut session.dialer {
            dialer.connected();
        }
        self.emit(TunnelEvent::SessionUp { id, remote, mtu, replaced: link.replaces.is_some() });
    }

    fn link_lost(&mut self, link: &mut Link, error: ConnectionError) {
        let authentication = is_authentication(&error);
        let reason = down_reason(error, authentication);
        match link.state {
            LinkState::Handshaking { .. } => {
                if authentication && !link.dialled {
                    self.report_violation(link.slot, ViolationKind::WrongKey);
                }
                self.handshake_ended(link, reason);
            }
            LinkState::Active { confirmed: true } => self.session_lost(link.slot, reason),
            LinkState::Active { confirmed: false } => {
                self.set_active(link.slot, None);
                self.handshake_ended(link, reason);
            }
            LinkState::Closing => {}
        }
        link.state = LinkState::Closing;
    }

    fn handshake_ended(&mut self, link: &Link, reason: DownReason) {
        let index = link.handle.0;
        if let Some(session) = self.session(link.slot) {
            session.handshaking.retain(|other| *other != index);
        }
        if link.dialled {
            let remote = canonical(link.connection.remote_address());
            self.attempt_failed(link.slot, remote, reason);
        }
    }

    /// Closes a connection that is not having its turn just now. Its session has forgotten it.
    pub(super) fn close_link(&mut self, index: usize, code: CloseCode, text: &str) {
        if let Some(Some(link)) = self.links.get_mut(index) {
            link.close(self.now, code, text);
            self.mark_dirty(index);
        }
    }

    /// Closes everything and sends what that needs.
    pub(super) fn close_all(&mut self) {
        for index in 0..self.links.len() {
            self.close_link(index, CloseCode::ShuttingDown, "the peer is shutting down");
        }
        self.serve_links();
        for _ in 0..FAREWELLS {
            if !self.port.is_blocked() {
                break;
            }
            self.port.wait_writable(FAREWELL_PAUSE);
            self.port.retry();
            self.serve_links();
        }
    }

    /// Stores what the path can carry; returns the largest packet that fits one datagram.
    fn update_path(&mut self, link: &mut Link) -> usize {
        let max_datagram = link.connection.datagrams().max_size().unwrap_or(0);
        if let Some(session) = self.session(link.slot) {
            session.path.max_datagram = max_datagram;
        }
        max_datagram.saturating_sub(WHOLE_LEN)
    }

    fn observe_path(&mut self, link: &mut Link) {
        let mtu = self.update_path(link);
        let remote = link.connection.remote_address();
        if link.reported.1 == mtu && link.reported.0.port() == remote.port() {
            let same = link.reported.0.ip() == remote.ip().to_canonical();
            if same {
                return;
            }
        }
        let remote = canonical(remote);
        link.reported = (remote, mtu);
        if let Some(id) = self.session(link.slot).map(|session| session.config.id) {
            self.emit(TunnelEvent::PathChanged { id, remote, mtu });
        }
    }

    fn take_datagrams(&mut self, link: &mut Link) {
        let slot = link.slot;
        while let Some(datagram) = link.connection.datagrams().recv() {
            if matches!(link.state, LinkState::Active { .. }) {
                self.deliver(slot, datagram);
            }
        }
    }

    /// Hands the session's packets to QUIC and QUIC's to the socket. Returns whether there is more to do at once.
    fn transmit(&mut self, link: &mut Link) -> bool {
        let mut more = true;
        for _ in 0..SENDS_PER_TURN {
            if self.port.is_blocked() {
                break;
            }
            if matches!(link.state, LinkState::Active { .. }) {
                self.feed(link);
            }
            self.port.out.clear();
            let segments = self.port.max_segments();
            match link.connection.poll_transmit(self.now, segments, &mut self.port.out) {
                Some(transmit) => self.port.send(transmit),
                None => {
                    more = false;
                    break;
                }
            }
        }
        self.current_slot.set(link.slot);
        while let Some(event) = link.connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(link.handle, event) {
                link.connection.handle_event(event);
                more = true;
            }
        }
        more
    }

    fn drop_link(&mut self, mut link: Link) {
        self.timers.set(Subject::Link(link.handle.0), None);
        if link.state != LinkState::Closing {
            self.link_lost(&mut link, ConnectionError::TimedOut);
        }
    }
}

impl Link {
    fn close(&mut self, now: Instant, code: CloseCode, text: &str) {
        self.state = LinkState::Closing;
        self.connection.close(now, code.to_varint(), Bytes::copy_from_slice(bounded(text).as_bytes()));
    }

    fn next_timeout(&mut self) -> Option<Instant> {
        let quic = self.connection.poll_timeout();
        match self.state {
            LinkState::Handshaking { deadline } => Some(quic.map_or(deadline, |quic| quic.min(deadline))),
            LinkState::Active { .. } | LinkState::Closing => quic,
        }
    }
}

/// What the connection id of a first packet says, which [`Driver::is_expected`] has verified.
fn first_sighting(incoming: &Incoming) -> Sighting {
    match <[u8; INITIAL_LEN]>::try_from(&incoming.orig_dst_cid()[..]) {
        Ok(cid) => Sighting::first(cid),
        Err(_) => Sighting::Foreign,
    }
}

/// Whether a TLS alert about the peer's key, ours or theirs, ended the handshake.
fn is_authentication(error: &ConnectionError) -> bool {
    // QUIC carries TLS alerts as 0x100 + alert (RFC 9001, section 4.8).
    let code = match error {
        ConnectionError::TransportError(error) => u64::from(error.code),
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        _ => return false,
    };
    (0x100..0x200).contains(&code)
}

fn down_reason(error: ConnectionError, authentication: bool) -> DownReason {
    match error {
        ConnectionError::ApplicationClosed(close) => DownReason::ClosedByPeer {
            code: CloseCode::from_varint(close.error_code),
            text: bounded(&String::from_utf8_lossy(&close.reason)).to_owned(),
        },
        ConnectionError::TimedOut => DownReason::TimedOut,
        ConnectionError::Reset => DownReason::Reset,
        ConnectionError::LocallyClosed => DownReason::Local,
        other if authentication => DownReason::Authentication(other.to_string()),
        other => DownReason::Transport(other.to_string()),
    }
}
