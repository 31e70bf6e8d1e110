//! The thread of a fleet: one QUIC endpoint, one socket, all connections, all timers.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bytes::Bytes;
use horizon_appliance_core::Backoff;
use horizon_model::PublicKey;
use horizon_wire::challenge::BINDING_LABEL;
use horizon_wire::frame::{self, Decoder, MAX_FROM_CONTROLLER};
use horizon_wire::proto;
use quinn_proto::{
    Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, EndpointEvent, Event as Quic,
    StreamEvent, StreamId, WriteError,
};

use super::appliance::{Appliance, Event, Organisation, Over, Talk};
use super::port::{Port, address};
use super::tally::Tally;
use super::{Command, Entry, Group, Plan};

/// As the real appliance does: how long an attempt to connect may take, and how soon the next one follows.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// How often commands are looked for while nothing happens.
const NAP: Duration = Duration::from_millis(5);
/// Batches received before timers and commands have their turn.
const BATCHES: usize = 64;
/// Appliances that begin to connect before the socket has its turn.
const DIALS: usize = 64;

/// A connection.
struct Link {
    connection: Box<Connection>,
    handle: ConnectionHandle,
    stream: Option<StreamId>,
    peer: Option<PublicKey>,
    decoder: Decoder,
    talk: Talk,
    /// What flow control has kept back.
    unsent: Vec<u8>,
    deadline: Instant,
    attached: bool,
    verified: bool,
}

/// An appliance and its connection.
struct Slot {
    appliance: Appliance,
    group: Group,
    link: Option<Link>,
    backoff: Backoff,
    /// When it connects, while it is not.
    dial_at: Option<Instant>,
    /// When it beats next.
    beat_at: Option<Instant>,
    sent_at: Option<Instant>,
    /// Since when it has been away.
    away_since: Option<Instant>,
    /// The earliest time the heap holds for it.
    scheduled: Option<Instant>,
}

pub(super) struct Driver {
    port: Port,
    endpoint: Endpoint,
    controller: SocketAddr,
    slots: Vec<Slot>,
    /// The appliance of each connection.
    handles: Vec<usize>,
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    organisation: Organisation,
    tallies: [Arc<Tally>; Group::COUNT],
    /// Whether appliances that are away wait for a word.
    held: bool,
    buffer: Vec<u8>,
    commands: mpsc::Receiver<Command>,
}

impl Driver {
    pub(super) fn new(
        plans: Vec<Plan>,
        organisation: Organisation,
        controller: SocketAddr,
        tallies: [Arc<Tally>; Group::COUNT],
        commands: mpsc::Receiver<Command>,
    ) -> Result<Self> {
        let mut config = EndpointConfig::default();
        config.min_reset_interval(Duration::ZERO);
        let slot = |plan: Plan| Slot {
            appliance: Appliance::new(plan.seed, plan.enrolment),
            group: plan.group,
            link: None,
            backoff: Backoff::new(FIRST_RETRY, LONGEST_RETRY),
            dial_at: None,
            beat_at: None,
            sent_at: None,
            away_since: None,
            scheduled: None,
        };
        Ok(Self {
            port: Port::bind().context("cannot make the fleet's socket")?,
            endpoint: Endpoint::new(Arc::new(config), None, true, None),
            controller,
            slots: plans.into_iter().map(slot).collect(),
            handles: Vec::new(),
            timers: BinaryHeap::new(),
            organisation,
            tallies,
            held: false,
            buffer: Vec::new(),
            commands,
        })
    }

    /// Works until it is told to stop, or its owner is gone.
    pub(super) fn run(mut self) {
        loop {
            loop {
                match self.commands.try_recv() {
                    Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => return self.farewell(),
                    Ok(command) => self.obey(command),
                    Err(mpsc::TryRecvError::Empty) => break,
                }
            }
            self.receive();
            let next = self.on_time();
            let wait = next.map_or(NAP, |at| at.saturating_duration_since(Instant::now()).min(NAP));
            if !wait.is_zero() && self.port.wait(wait).is_err() {
                return;
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Connect { group, over } => {
                let members: Vec<_> = self.idle(group).collect();
                let step = over / u32::try_from(members.len()).unwrap_or(u32::MAX).max(1);
                for (n, index) in members.into_iter().enumerate() {
                    self.dial_at(index, now + step * u32::try_from(n).unwrap_or(u32::MAX));
                }
            }
            Command::Hold(held) => {
                self.held = held;
                if !held {
                    let waiting: Vec<_> = (0..self.slots.len())
                        .filter(|&i| self.slots[i].link.is_none() && self.slots[i].away_since.is_some())
                        .collect();
                    for index in waiting {
                        let delay = self.slots[index].backoff.next(chance());
                        self.dial_at(index, now + delay);
                    }
                }
            }
            Command::Drop { group, farewell } => {
                for index in 0..self.slots.len() {
                    if self.slots[index].group == group && self.slots[index].link.is_some() {
                        self.lose(index, now, farewell, None);
                    }
                }
            }
            Command::Ledger(reply) => {
                let entry = |slot: &Slot| {
                    let server = slot.appliance.server()?;
                    let (newest, all) = (slot.appliance.acknowledged, slot.appliance.ledger.clone());
                    Some(Entry { server, group: slot.group, newest, all })
                };
                // Who asked may have gone.
                let _ = reply.send(self.slots.iter().filter_map(entry).collect());
            }
            Command::Stop => {}
        }
    }

    /// The members of a group that have no connection and are not about to make one.
    fn idle(&self, group: Group) -> impl Iterator<Item = usize> {
        let idle = move |slot: &Slot| slot.group == group && slot.link.is_none() && slot.dial_at.is_none();
        self.slots.iter().enumerate().filter(move |(_, slot)| idle(slot)).map(|(index, _)| index)
    }

    fn dial_at(&mut self, index: usize, at: Instant) {
        self.slots[index].dial_at = Some(at);
        self.schedule(index);
    }

    /// Makes sure that the heap holds an appliance's next deadline or an earlier one.
    fn schedule(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let quic = slot.link.as_mut().and_then(|link| {
            let timeout = link.connection.poll_timeout();
            if link.attached {
                timeout
            } else {
                Some(timeout.map_or(link.deadline, |t| t.min(link.deadline)))
            }
        });
        let beat = slot.beat_at.filter(|_| slot.link.as_ref().is_some_and(|link| link.attached));
        let Some(due) = [quic, beat, slot.dial_at].into_iter().flatten().min() else { return };
        if slot.scheduled.is_none_or(|at| due < at) {
            slot.scheduled = Some(due);
            self.timers.push(Reverse((due, index)));
        }
    }

    fn receive(&mut self) {
        for _ in 0..BATCHES {
            let now = Instant::now();
            let mut touched = Vec::new();
            let (endpoint, slots, handles, buffer) =
                (&mut self.endpoint, &mut self.slots, &self.handles, &mut self.buffer);
            let more = self.port.receive(|received| {
                buffer.clear();
                let event = endpoint.handle(now, received.remote, None, received.ecn, received.data, buffer);
                let Some(DatagramEvent::ConnectionEvent(handle, event)) = event else { return };
                let Some(index) = handles.get(handle.0).copied() else { return };
                if let Some(link) = slots[index].link.as_mut().filter(|link| link.handle == handle) {
                    link.connection.handle_event(event);
                    touched.push(index);
                }
            });
            touched.dedup();
            for index in touched {
                self.serve(index, now);
            }
            if !more {
                return;
            }
        }
    }

    /// Does what is due; says when the next thing is.
    fn on_time(&mut self) -> Option<Instant> {
        let mut dials = 0;
        loop {
            let now = Instant::now();
            let &Reverse((at, index)) = self.timers.peek()?;
            if at > now || dials >= DIALS {
                return Some(at);
            }
            self.timers.pop();
            let slot = &mut self.slots[index];
            if slot.scheduled != Some(at) {
                continue;
            }
            slot.scheduled = None;
            if slot.dial_at.is_some_and(|at| at <= now) {
                slot.dial_at = None;
                dials += 1;
                self.dial(index, now);
                continue;
            }
            let Some(link) = &mut slot.link else {
                self.schedule(index);
                continue;
            };
            if !link.attached && link.deadline <= now {
                self.lose(index, now, true, Some("the attempt took too long"));
                continue;
            }
            if link.connection.poll_timeout().is_some_and(|at| at <= now) {
                link.connection.handle_timeout(now);
            }
            if link.attached && slot.beat_at.is_some_and(|at| at <= now) {
                self.beat(index, now);
            }
            self.serve(index, now);
        }
    }

    fn dial(&mut self, index: usize, now: Instant) {
        let slot = &mut self.slots[index];
        let tally = &self.tallies[slot.group as usize];
        let begun = horizon_channel::client_config(&slot.appliance.key())
            .map_err(anyhow::Error::from)
            .and_then(|config| Ok(self.endpoint.connect(now, config, self.controller, "controller")?));
        match begun {
            Ok((handle, connection)) => {
                if self.handles.len() <= handle.0 {
                    self.handles.resize(handle.0 + 1, usize::MAX);
                }
                self.handles[handle.0] = index;
                slot.link = Some(Link {
                    connection: Box::new(connection),
                    handle,
                    stream: None,
                    peer: None,
                    decoder: Decoder::new(MAX_FROM_CONTROLLER),
                    talk: Talk::default(),
                    unsent: Vec::new(),
                    deadline: now + CONNECT_TIMEOUT,
                    attached: false,
                    verified: false,
                });
                self.serve(index, now);
            }
            Err(error) => tally.error(format!("cannot connect: {error:#}")),
        }
    }

    fn beat(&mut self, index: usize, now: Instant) {
        let slot = &mut self.slots[index];
        let Some(link) = &mut slot.link else { return };
        slot.beat_at = Some(now + Duration::from_secs(slot.appliance.interval.into()));
        // Like the real one, an appliance does not beat while one is under way.
        if link.talk.is_waiting() {
            return;
        }
        if let Some(message) = slot.appliance.beat(&mut link.talk, unix_millis()) {
            slot.sent_at = Some(now);
            self.tallies[slot.group as usize].beats.add(1);
            say(link, &message);
        }
    }

    /// Lets a connection do what it wants: events, messages, packets.
    fn serve(&mut self, index: usize, now: Instant) {
        loop {
            let slot = &mut self.slots[index];
            let Some(link) = &mut slot.link else { return };
            let mut again = false;
            while let Some(event) = link.connection.poll_endpoint_events() {
                if let Some(event) = self.endpoint.handle_event(link.handle, event) {
                    link.connection.handle_event(event);
                    again = true;
                }
            }
            while let Some(event) = self.slots[index].link.as_mut().and_then(|link| link.connection.poll()) {
                if let Err(reason) = self.happened(index, event, now) {
                    return self.lose(index, now, true, Some(&reason));
                }
            }
            self.transmit(index, now);
            if !again {
                break;
            }
        }
        self.schedule(index);
    }

    fn transmit(&mut self, index: usize, now: Instant) {
        let Some(link) = &mut self.slots[index].link else { return };
        loop {
            self.buffer.clear();
            let segments = self.port.max_segments();
            let Some(transmit) = link.connection.poll_transmit(now, segments, &mut self.buffer) else {
                return;
            };
            self.port.send(address(index), &transmit, &self.buffer);
        }
    }

    /// Takes an event of a connection; an error is the reason for its end.
    fn happened(&mut self, index: usize, event: Quic, now: Instant) -> Result<(), String> {
        let slot = &mut self.slots[index];
        let Some(link) = &mut slot.link else { return Ok(()) };
        match event {
            Quic::Connected => {
                self.tallies[slot.group as usize].handshakes.add(1);
                link.peer = peer_key(&link.connection);
                link.stream = link.connection.streams().open(Dir::Bi);
                if link.stream.is_none() {
                    return Err("the controller allows no stream".to_owned());
                }
                link.talk.binding = binding(&link.connection);
                let hello = slot.appliance.hello(&mut link.talk, &self.organisation);
                say(link, &hello);
            }
            Quic::ConnectionLost { reason } => return Err(reason.to_string()),
            Quic::Stream(StreamEvent::Readable { .. }) => self.read(index, now)?,
            Quic::Stream(StreamEvent::Writable { .. } | StreamEvent::Available { .. }) => flush(link),
            _ => {}
        }
        Ok(())
    }

    fn read(&mut self, index: usize, now: Instant) -> Result<(), String> {
        let slot = &mut self.slots[index];
        let tally = &self.tallies[slot.group as usize];
        let Some(link) = &mut slot.link else { return Ok(()) };
        let Some(stream) = link.stream else { return Ok(()) };
        let mut ended = false;
        if let Ok(mut chunks) = link.connection.recv_stream(stream).read(true) {
            loop {
                match chunks.next(usize::MAX) {
                    Ok(Some(chunk)) => link.decoder.push(&chunk.bytes),
                    Ok(None) => break ended = true,
                    Err(quinn_proto::ReadError::Blocked) => break,
                    Err(error) => return Err(error.to_string()),
                }
            }
            // Whether that is worth a packet is asked below.
            let _ = chunks.finalize();
        }
        while let Some(message) = link.decoder.poll::<proto::FromController>().map_err(|e| e.to_string())? {
            use horizon_wire::Message as _;
            let peer = link.peer.ok_or("a message before the handshake")?;
            if message.request == 0 {
                tally.unasked_bytes.add(message.encoded_len() as u64);
            }
            let heard =
                slot.appliance.hear(&mut link.talk, &mut self.organisation, message, peer, unix_millis());
            let heard = match heard {
                Ok(heard) => heard,
                Err(over) => {
                    let reason = match over {
                        Over::Refused(refusal) => {
                            slot.dial_at = retry_after(&refusal).map(|after| now + after);
                            format!("refused, {:?}: {}", refusal.code, nameless(&refusal.message))
                        }
                        Over::GoElsewhere => "told to go elsewhere".to_owned(),
                        Over::Broken(error) => {
                            let server = slot.appliance.server();
                            tally.error(format!("{server:?}: {error:#}"));
                            "the controller broke the protocol".to_owned()
                        }
                    };
                    return Err(reason);
                }
            };
            for message in &heard.say {
                say(link, message);
            }
            match heard.event {
                Some(Event::Registered) => tally.registered.add(1),
                Some(Event::Attached) => {
                    link.attached = true;
                    tally.attached.up();
                    slot.beat_at = Some(now);
                }
                Some(Event::Verified) if !link.verified => {
                    link.verified = true;
                    tally.verified.up();
                    if let Some(since) = slot.away_since.take() {
                        tally.returned(now - since);
                    }
                }
                Some(Event::Acknowledged) => {
                    slot.backoff.reset();
                    tally.acknowledged.add(1);
                    if let Some(sent) = slot.sent_at.take() {
                        // The clock is read again: the heartbeats before this one in the batch took their time.
                        tally.latency(sent.elapsed());
                    }
                }
                Some(Event::StateApplied { bytes, before, sessions }) => {
                    tally.sessions.moved(before, sessions);
                    tally.states.add(1);
                    tally.state_bytes.add(bytes as u64);
                }
                Some(Event::Verified) | None => {}
            }
        }
        // What follows the Attached at once is the first heartbeat.
        if link.attached && slot.beat_at.is_some_and(|at| at <= now) {
            self.beat(index, now);
        }
        if ended { Err("the controller said goodbye".to_owned()) } else { Ok(()) }
    }

    /// Ends a connection; the appliance comes back after a while.
    fn lose(&mut self, index: usize, now: Instant, farewell: bool, reason: Option<&str>) {
        let slot = &mut self.slots[index];
        let tally = &self.tallies[slot.group as usize];
        let Some(mut link) = slot.link.take() else { return };
        if farewell && !link.connection.is_closed() {
            link.connection.close(now, 0u32.into(), Bytes::from_static(b"done"));
            self.buffer.clear();
            if let Some(transmit) = link.connection.poll_transmit(now, 1, &mut self.buffer) {
                self.port.send(address(index), &transmit, &self.buffer);
            }
        }
        let drained = EndpointEvent::drained();
        self.endpoint.handle_event(link.handle, drained);
        self.handles[link.handle.0] = usize::MAX;
        tally.losses.add(1);
        tally.reason(reason.unwrap_or("dropped by the fleet"));
        if link.attached {
            tally.attached.down();
        }
        if link.verified {
            tally.verified.down();
        }
        slot.away_since.get_or_insert(now);
        (slot.beat_at, slot.sent_at) = (None, None);
        let delay = slot.backoff.next(chance());
        let at = slot.dial_at.map_or(now + delay, |asked| asked.max(now + delay));
        slot.dial_at = (!self.held).then_some(at);
        self.schedule(index);
    }

    /// Ends all connections, so that the controller need not find out by itself.
    fn farewell(mut self) {
        self.held = true;
        for index in 0..self.slots.len() {
            self.lose(index, Instant::now(), true, Some("the fleet stops"));
        }
    }
}

fn say(link: &mut Link, message: &proto::ToController) {
    link.unsent.extend_from_slice(&frame::encode(message));
    flush(link);
}

fn flush(link: &mut Link) {
    let Some(stream) = link.stream else { return };
    while !link.unsent.is_empty() {
        match link.connection.send_stream(stream).write(&link.unsent) {
            Ok(written) => drop(link.unsent.drain(..written)),
            // What the connection lost says by itself.
            Err(WriteError::Blocked | WriteError::Stopped(_) | WriteError::ClosedStream) => return,
        }
    }
    // Room is taken again for the next message: most of the time there is none.
    link.unsent = Vec::new();
}

fn peer_key(connection: &Connection) -> Option<PublicKey> {
    let identity = connection.crypto_session().peer_identity()?;
    let presented = identity.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok()?;
    horizon_tls::presented_key(&presented).map(PublicKey)
}

/// What binds a statement to a connection; without it, the statement is refused.
fn binding(connection: &Connection) -> [u8; 32] {
    let mut binding = [0; 32];
    let _ = connection.crypto_session().export_keying_material(&mut binding, BINDING_LABEL, b"");
    binding
}

/// How long the controller asked to be left alone, as the real appliance understands it.
fn retry_after(refusal: &horizon_wire::refusal::Refusal) -> Option<Duration> {
    let seconds = u64::from(refusal.retry_after_seconds);
    Some(if seconds == 0 { LONGEST_RETRY } else { Duration::from_secs(seconds).min(LONGEST_RETRY) })
}

/// A message without what stands between quotes: the same for every appliance.
fn nameless(message: &str) -> String {
    let parts = message.split('\'').enumerate().map(|(n, part)| if n % 2 == 0 { part } else { "…" });
    parts.collect::<Vec<_>>().join("'")
}

fn chance() -> u32 {
    let mut bytes = [0; 4];
    // Without randomness the delay is at its shortest, which is a delay too.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u32::from_ne_bytes(bytes)
}

fn unix_millis() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}
