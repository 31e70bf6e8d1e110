//! Who is connected to this controller: one connection per server, any number per device.

use std::{
    collections::{HashMap, HashSet},
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use horizon_model::{DeviceId, Incarnation, PublicKey, ServerId, SessionId};
use jiff::Timestamp;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::live::{Hint, Live};

/// What a connection's task is asked by others.
#[derive(Debug)]
pub(super) enum Command {
    /// Have the appliance prove that it lives.
    ProveAlive(oneshot::Sender<bool>),
    /// Another connection speaks for the server from now on.
    MakeWay,
}

/// Who speaks for a server.
#[derive(Debug)]
pub(super) struct Speaker {
    pub(super) incarnation: Incarnation,
    pub(super) key: PublicKey,
    pub(super) commands: mpsc::Sender<Command>,
}

/// A session that ended, for its device.
#[derive(Clone, Debug)]
pub(super) struct EndNote {
    pub(super) session: SessionId,
    pub(super) reason: Arc<str>,
}

/// Commands that wait for an appliance's task.
const COMMANDS: usize = 8;
/// Ends of sessions that wait for a device's task.
const NOTES: usize = 16;

struct ServerEntry {
    number: u64,
    incarnation: Incarnation,
    key: PublicKey,
    commands: mpsc::Sender<Command>,
    changed: Arc<Notify>,
    /// The sessions in the state that the appliance last reported to have applied; unknown before.
    applied: Option<HashSet<SessionId>>,
    /// How large its state is, in bytes.
    state_bytes: usize,
}

/// The number of a device's connection, and the way to it.
type DeviceEntry = (u64, mpsc::Sender<EndNote>);

/// An appliance's task in the registry.
pub(super) struct ServerSeat {
    registry: Registry,
    server: ServerId,
    number: u64,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) changed: Arc<Notify>,
}

/// A device's task in the registry.
pub(super) struct DeviceSeat {
    registry: Registry,
    device: DeviceId,
    number: u64,
    pub(super) notes: mpsc::Receiver<EndNote>,
}

#[derive(Default)]
struct Inner {
    next: AtomicU64,
    servers: Mutex<HashMap<ServerId, ServerEntry>>,
    devices: Mutex<HashMap<DeviceId, Vec<DeviceEntry>>>,
}

/// Who is connected. A clone is the same registry.
#[derive(Clone, Default)]
pub(super) struct Registry(Arc<Inner>);

/// Each change of the maps is one step, so they are whole whatever thread panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// Who speaks for a server now, and how to ask it.
    pub(super) fn server(&self, server: ServerId) -> Option<Speaker> {
        lock(&self.0.servers).get(&server).map(|entry| Speaker {
            incarnation: entry.incarnation,
            key: entry.key,
            commands: entry.commands.clone(),
        })
    }

    /// Takes the seat from whoever speaks for a server under another key than this.
    pub(super) fn evict_others(&self, server: ServerId, key: PublicKey) {
        let mut servers = lock(&self.0.servers);
        if servers.get(&server).is_some_and(|entry| entry.key != key)
            && let Some(old) = servers.remove(&server)
        {
            // A task whose queue is full finds out when it next looks for its seat.
            let _ = old.commands.try_send(Command::MakeWay);
        }
    }

    /// How large the state of a server is that is connected, in bytes.
    pub(super) fn state_bytes(&self, server: ServerId) -> usize {
        lock(&self.0.servers).get(&server).map_or(0, |entry| entry.state_bytes)
    }

    /// Takes the seat of a server if `expected` still holds it. Whoever held it is asked to make way.
    pub(super) fn take_seat(
        &self,
        server: ServerId,
        incarnation: Incarnation,
        key: PublicKey,
        expected: Option<Incarnation>,
    ) -> Option<ServerSeat> {
        let (sender, commands) = mpsc::channel(COMMANDS);
        let changed = Arc::new(Notify::new());
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let entry = ServerEntry {
            number,
            incarnation,
            key,
            commands: sender,
            changed: changed.clone(),
            applied: None,
            state_bytes: 0,
        };
        let mut servers = lock(&self.0.servers);
        if servers.get(&server).map(|entry| entry.incarnation) != expected {
            return None;
        }
        if let Some(old) = servers.insert(server, entry) {
            // A task whose queue is full finds out when it next looks for its seat.
            let _ = old.commands.try_send(Command::MakeWay);
        }
        drop(servers);
        Some(ServerSeat { registry: self.clone(), server, number, commands, changed })
    }

    /// Wakes the task of a server, if it is connected here.
    pub(super) fn wake(&self, server: ServerId) {
        if let Some(entry) = lock(&self.0.servers).get(&server) {
            entry.changed.notify_one();
        }
    }

    /// Wakes every appliance's task.
    pub(super) fn wake_all(&self) {
        for entry in lock(&self.0.servers).values() {
            entry.changed.notify_one();
        }
    }

    /// Whether a server's appliance may still admit a session: not once it applied a state without it.
    pub(super) fn may_hold(&self, server: ServerId, session: SessionId) -> bool {
        match lock(&self.0.servers).get(&server) {
            Some(ServerEntry { applied: Some(applied), .. }) => applied.contains(&session),
            _ => true,
        }
    }

    /// Takes a place among the connections of a device.
    pub(super) fn seat_device(&self, device: DeviceId) -> DeviceSeat {
        let (sender, notes) = mpsc::channel(NOTES);
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.0.devices).entry(device).or_default().push((number, sender));
        DeviceSeat { registry: self.clone(), device, number, notes }
    }

    /// Tells a device's connections that a session ended.
    pub(super) fn tell_device(&self, device: DeviceId, note: &EndNote) {
        for (_, sender) in lock(&self.0.devices).get(&device).into_iter().flatten() {
            // A device that does not read is about to be dropped; it asks when it returns.
            let _ = sender.try_send(note.clone());
        }
    }
}

impl ServerSeat {
    /// Notes how large the state is, in bytes.
    pub(super) fn set_state_bytes(&self, bytes: usize) {
        if let Some(entry) = lock(&self.registry.0.servers).get_mut(&self.server)
            && entry.number == self.number
        {
            entry.state_bytes = bytes;
        }
    }

    /// Notes which sessions the appliance has applied.
    pub(super) fn applied(&self, sessions: HashSet<SessionId>) {
        if let Some(entry) = lock(&self.registry.0.servers).get_mut(&self.server)
            && entry.number == self.number
        {
            entry.applied = Some(sessions);
        }
    }

    /// Whether this task still speaks for the server.
    pub(super) fn is_held(&self) -> bool {
        lock(&self.registry.0.servers).get(&self.server).is_some_and(|entry| entry.number == self.number)
    }

    /// Whether another task speaks for the server now.
    fn is_taken(&self) -> bool {
        lock(&self.registry.0.servers).get(&self.server).is_some_and(|entry| entry.number != self.number)
    }
}

/// A seat whose end makes known that the server's appliance is gone, unless another connection speaks for it by then. That
/// holds also for a connection that took the seat of one that was there and never became that itself.
pub(super) struct Presence {
    seat: ServerSeat,
    live: Arc<dyn Live>,
}

impl Presence {
    pub(super) fn new(seat: ServerSeat, live: Arc<dyn Live>) -> Self {
        Self { seat, live }
    }
}

impl Deref for Presence {
    type Target = ServerSeat;
    fn deref(&self) -> &ServerSeat {
        &self.seat
    }
}

impl DerefMut for Presence {
    fn deref_mut(&mut self) -> &mut ServerSeat {
        &mut self.seat
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let server = self.seat.server;
        let there = self.live.presence(server).filter(|presence| presence.online);
        if let Some(presence) = there.filter(|_| !self.seat.is_taken()) {
            self.live.server_offline(server, presence.incarnation, Timestamp::now());
            self.live.publish(Hint::StatusDirty(server.0));
        }
    }
}

impl Drop for ServerSeat {
    fn drop(&mut self) {
        let mut servers = lock(&self.registry.0.servers);
        if servers.get(&self.server).is_some_and(|entry| entry.number == self.number) {
            servers.remove(&self.server);
        }
    }
}

impl Drop for DeviceSeat {
    fn drop(&mut self) {
        let mut devices = lock(&self.registry.0.devices);
        if let Some(seats) = devices.get_mut(&self.device) {
            seats.retain(|(number, _)| *number != self.number);
            if seats.is_empty() {
                devices.remove(&self.device);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const KEY: PublicKey = PublicKey([1; 32]);

    #[test]
    fn a_seat_is_taken_once_and_given_back_once() {
        let registry = Registry::default();
        let server = ServerId(Uuid::from_u128(1));
        let (a, b) = (Incarnation(Uuid::from_u128(1)), Incarnation(Uuid::from_u128(2)));
        let mut first = registry.take_seat(server, a, KEY, None).unwrap();
        assert!(registry.take_seat(server, b, KEY, None).is_none());
        let second = registry.take_seat(server, b, KEY, Some(a)).unwrap();
        assert!(matches!(first.commands.try_recv(), Ok(Command::MakeWay)));
        assert!(!first.is_held() && second.is_held());
        drop(first);
        assert_eq!(registry.server(server).map(|speaker| speaker.incarnation), Some(b));
        let session = SessionId(Uuid::from_u128(5));
        assert!(registry.may_hold(server, session));
        second.applied(HashSet::new());
        assert!(!registry.may_hold(server, session));
        registry.evict_others(server, KEY);
        assert!(second.is_held());
        registry.evict_others(server, PublicKey([2; 32]));
        assert!(!second.is_held());
        assert!(registry.server(server).is_none());
        assert!(registry.may_hold(server, session));
    }

    #[test]
    fn every_connection_of_a_device_is_told() {
        let registry = Registry::default();
        let device = DeviceId(Uuid::from_u128(1));
        let (mut a, mut b) = (registry.seat_device(device), registry.seat_device(device));
        let note = EndNote { session: SessionId(Uuid::from_u128(2)), reason: "policy".into() };
        registry.tell_device(device, &note);
        assert_eq!(a.notes.try_recv().unwrap().session, note.session);
        drop(b.notes.try_recv().unwrap());
        drop(a);
        registry.tell_device(device, &note);
        assert!(b.notes.try_recv().is_ok());
    }
}
