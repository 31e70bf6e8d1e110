//! Who is connected to this replica: one connection per server, any number per device. A server's place is numbered by the
//! lease of its channel, which the store gives out: a newer one replaces an older one, here and at every other replica.

use std::{
    collections::HashMap,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use horizon_model::{DeviceId, ServerId, SessionId};
use tokio::sync::Notify;

use super::questions::Asker;
use crate::store::ChannelLease;

/// The most that wait for an appliance's proof that it lives; who comes later is told nothing and tries again.
const ASKERS: usize = 8;
/// The most ends of sessions that wait for a device's task. A device that does not read is about to be dropped; it asks when
/// it returns.
const NOTES: usize = 16;

/// What waits for an appliance's task. It is looked at as a whole, so that nothing is lost and nothing queues up.
#[derive(Debug, Default)]
pub(super) struct Mail {
    /// What its appliance should hold may have changed.
    pub(super) changed: bool,
    /// There is a newer KeySet.
    pub(super) keys: bool,
    /// Another connection speaks for the server.
    pub(super) make_way: bool,
    /// Where its appliance is to go.
    pub(super) elsewhere: Option<Elsewhere>,
    /// Who wants to know whether its appliance lives.
    pub(super) askers: Vec<Asker>,
}

/// The most connections of one device: more than it has while it moves between networks.
const MOST_OF_A_DEVICE: usize = 8;

/// What waits for a device's task.
#[derive(Debug, Default)]
pub(super) struct DeviceMail {
    /// The device has too many connections, of which this is the oldest.
    pub(super) make_way: bool,
    /// Sessions that ended.
    pub(super) ended: Vec<EndNote>,
    /// A session of which it is to report at once.
    pub(super) check: Option<SessionId>,
    /// There is a newer KeySet.
    pub(super) keys: bool,
    /// Where the device is to go.
    pub(super) elsewhere: Option<Elsewhere>,
}

/// The addresses of other replicas.
pub(super) type Elsewhere = Arc<[String]>;

/// A session that ended, for its device.
#[derive(Clone, Debug)]
pub(super) struct EndNote {
    pub(super) session: SessionId,
    pub(super) reason: Arc<str>,
}

/// The way to a task.
#[derive(Debug, Default)]
pub(super) struct Mailbox<M> {
    mail: Mutex<M>,
    bell: Notify,
}

impl<M: Default> Mailbox<M> {
    fn put(&self, what: impl FnOnce(&mut M)) {
        what(&mut lock(&self.mail));
        self.bell.notify_one();
    }

    /// Waits for mail. Cancel safe: nothing is taken before this returns.
    async fn next(&self) -> M {
        self.bell.notified().await;
        mem::take(&mut *lock(&self.mail))
    }
}

struct ServerEntry {
    lease: ChannelLease,
    mailbox: Arc<Mailbox<Mail>>,
    /// How large its state is, in bytes.
    state_bytes: usize,
}

struct DeviceEntry {
    number: u64,
    mailbox: Arc<Mailbox<DeviceMail>>,
}

/// The live session of a device that was granted over a connection to this replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) session: SessionId,
    pub(super) server: ServerId,
}

#[derive(Default)]
struct Devices {
    seats: HashMap<DeviceId, Vec<DeviceEntry>>,
    granted: HashMap<DeviceId, Granted>,
}

/// An appliance's task in the registry.
pub(super) struct ServerSeat {
    registry: Registry,
    pub(super) server: ServerId,
    pub(super) lease: ChannelLease,
    mailbox: Arc<Mailbox<Mail>>,
}

/// A device's task in the registry.
pub(super) struct DeviceSeat {
    registry: Registry,
    device: DeviceId,
    number: u64,
    mailbox: Arc<Mailbox<DeviceMail>>,
}

#[derive(Default)]
struct Inner {
    next: AtomicU64,
    servers: Mutex<HashMap<ServerId, ServerEntry>>,
    devices: Mutex<Devices>,
}

/// Who is connected. A clone is the same registry.
#[derive(Clone, Default)]
pub(super) struct Registry(Arc<Inner>);

/// Each change of what is behind these locks is one step, so it is whole whatever thread panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// Seats the holder of a lease. Whoever holds an older one is asked to make way. `None` when a newer one has the seat.
    pub(super) fn take_seat(&self, server: ServerId, lease: ChannelLease) -> Option<ServerSeat> {
        let mailbox = Arc::new(Mailbox::default());
        let entry = ServerEntry { lease, mailbox: mailbox.clone(), state_bytes: 0 };
        let mut servers = lock(&self.0.servers);
        if servers.get(&server).is_some_and(|entry| entry.lease >= lease) {
            return None;
        }
        if let Some(old) = servers.insert(server, entry) {
            old.mailbox.put(|mail| mail.make_way = true);
        }
        drop(servers);
        Some(ServerSeat { registry: self.clone(), server, lease, mailbox })
    }

    /// Takes the seat from whoever holds an older lease than this.
    pub(super) fn evict_older(&self, server: ServerId, lease: ChannelLease) {
        let mut servers = lock(&self.0.servers);
        if servers.get(&server).is_some_and(|entry| entry.lease < lease)
            && let Some(old) = servers.remove(&server)
        {
            old.mailbox.put(|mail| mail.make_way = true);
        }
    }

    /// Asks the task that holds a lease to have its appliance prove that it lives. Whoever asks gets no answer when there is
    /// no such task.
    pub(super) fn ask(&self, server: ServerId, lease: ChannelLease, asker: Asker) {
        if let Some(entry) = lock(&self.0.servers).get(&server).filter(|entry| entry.lease == lease) {
            entry.mailbox.put(|mail| {
                if mail.askers.len() < ASKERS {
                    mail.askers.push(asker);
                }
            });
        }
    }

    /// How large the state of a server is that is connected here, in bytes.
    pub(super) fn state_bytes(&self, server: ServerId) -> usize {
        lock(&self.0.servers).get(&server).map_or(0, |entry| entry.state_bytes)
    }

    /// Wakes the task of a server, if it is connected here.
    pub(super) fn wake(&self, server: ServerId) {
        if let Some(entry) = lock(&self.0.servers).get(&server) {
            entry.mailbox.put(|mail| mail.changed = true);
        }
    }

    /// The servers whose appliances are connected here.
    pub(super) fn servers(&self) -> Vec<ServerId> {
        lock(&self.0.servers).keys().copied().collect()
    }

    /// Takes a place among the connections of a device. When there are too many the oldest is asked to make way: one device must
    /// not fill the controller.
    pub(super) fn seat_device(&self, device: DeviceId) -> DeviceSeat {
        let mailbox = Arc::new(Mailbox::default());
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let entry = DeviceEntry { number, mailbox: mailbox.clone() };
        let mut devices = lock(&self.0.devices);
        let seats = devices.seats.entry(device).or_default();
        seats.push(entry);
        if let Some(over) = seats.len().checked_sub(MOST_OF_A_DEVICE) {
            seats.iter().take(over).for_each(|old| old.mailbox.put(|mail| mail.make_way = true));
        }
        drop(devices);
        DeviceSeat { registry: self.clone(), device, number, mailbox }
    }

    /// Notes the session that a device was granted.
    pub(super) fn granted(&self, device: DeviceId, granted: Granted) {
        let mut devices = lock(&self.0.devices);
        if devices.seats.contains_key(&device) {
            devices.granted.insert(device, granted);
        }
    }

    /// The sessions that devices were granted here and not told the end of.
    pub(super) fn grants(&self) -> Vec<(DeviceId, Granted)> {
        lock(&self.0.devices).granted.iter().map(|(device, granted)| (*device, *granted)).collect()
    }

    /// Tells a device's connections that a session ended.
    pub(super) fn tell_device(&self, device: DeviceId, note: &EndNote) {
        let mut devices = lock(&self.0.devices);
        if devices.granted.get(&device).is_some_and(|granted| granted.session == note.session) {
            devices.granted.remove(&device);
        }
        for entry in devices.seats.get(&device).into_iter().flatten() {
            entry.mailbox.put(|mail| {
                if mail.ended.len() < NOTES {
                    mail.ended.push(note.clone());
                }
            });
        }
    }

    /// Has a device report of a session at once.
    pub(super) fn check_session(&self, device: DeviceId, session: SessionId) {
        for entry in lock(&self.0.devices).seats.get(&device).into_iter().flatten() {
            entry.mailbox.put(|mail| mail.check = Some(session));
        }
    }

    /// The ways to all peers that are connected here, in no particular order.
    pub(super) fn everybody(&self) -> Vec<Peer> {
        let mut all: Vec<_> =
            lock(&self.0.servers).values().map(|entry| Peer::Appliance(entry.mailbox.clone())).collect();
        let devices = lock(&self.0.devices);
        all.extend(devices.seats.values().flatten().map(|entry| Peer::Device(entry.mailbox.clone())));
        all
    }

    /// Whether nobody is connected here.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0.servers).is_empty() && lock(&self.0.devices).seats.is_empty()
    }
}

/// The way to a peer's task.
pub(super) enum Peer {
    Appliance(Arc<Mailbox<Mail>>),
    Device(Arc<Mailbox<DeviceMail>>),
}

impl Peer {
    /// Has it look at the newest KeySet.
    pub(super) fn new_keys(&self) {
        match self {
            Self::Appliance(mailbox) => mailbox.put(|mail| mail.keys = true),
            Self::Device(mailbox) => mailbox.put(|mail| mail.keys = true),
        }
    }

    /// Has it go elsewhere.
    pub(super) fn send_away(&self, elsewhere: &Elsewhere) {
        match self {
            Self::Appliance(mailbox) => mailbox.put(|mail| mail.elsewhere = Some(elsewhere.clone())),
            Self::Device(mailbox) => mailbox.put(|mail| mail.elsewhere = Some(elsewhere.clone())),
        }
    }
}

impl ServerSeat {
    /// Waits for mail. Cancel safe.
    pub(super) async fn mail(&self) -> Mail {
        self.mailbox.next().await
    }

    /// Notes how large the state is, in bytes.
    pub(super) fn set_state_bytes(&self, bytes: usize) {
        if let Some(entry) = lock(&self.registry.0.servers).get_mut(&self.server)
            && entry.lease == self.lease
        {
            entry.state_bytes = bytes;
        }
    }

    /// Whether this task still speaks for the server, as far as this replica knows.
    pub(super) fn is_held(&self) -> bool {
        lock(&self.registry.0.servers).get(&self.server).is_some_and(|entry| entry.lease == self.lease)
    }
}

impl DeviceSeat {
    /// Waits for mail. Cancel safe.
    pub(super) async fn mail(&self) -> DeviceMail {
        self.mailbox.next().await
    }
}

impl Drop for ServerSeat {
    fn drop(&mut self) {
        let mut servers = lock(&self.registry.0.servers);
        if servers.get(&self.server).is_some_and(|entry| entry.lease == self.lease) {
            servers.remove(&self.server);
        }
    }
}

impl Drop for DeviceSeat {
    fn drop(&mut self) {
        let mut devices = lock(&self.registry.0.devices);
        if let Some(seats) = devices.seats.get_mut(&self.device) {
            seats.retain(|entry| entry.number != self.number);
            if seats.is_empty() {
                devices.seats.remove(&self.device);
                devices.granted.remove(&self.device);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use uuid::Uuid;

    use super::*;

    fn mail(seat: &ServerSeat) -> Mail {
        seat.mail().now_or_never().expect("there is mail")
    }

    #[test]
    fn the_newest_lease_has_the_seat() {
        let registry = Registry::default();
        let server = ServerId(Uuid::from_u128(1));
        let lease = ChannelLease;
        let first = registry.take_seat(server, lease(4)).unwrap();
        assert!(registry.take_seat(server, lease(4)).is_none());
        assert!(registry.take_seat(server, lease(3)).is_none());
        registry.evict_older(server, lease(4));
        assert!(first.mail().now_or_never().is_none());
        let second = registry.take_seat(server, lease(5)).unwrap();
        assert!(mail(&first).make_way);
        assert!(!first.is_held() && second.is_held());
        drop(first);
        assert_eq!(registry.servers(), [server]);
        registry.evict_older(server, lease(6));
        assert!(mail(&second).make_way && !second.is_held() && registry.is_empty());
    }

    #[test]
    fn mail_is_found_as_a_whole() {
        let registry = Registry::default();
        let server = ServerId(Uuid::from_u128(1));
        let seat = registry.take_seat(server, ChannelLease(1)).unwrap();
        registry.wake(server);
        assert_eq!(registry.servers(), [server]);
        registry.ask(server, ChannelLease(1), Asker::There(Uuid::from_u128(7)));
        registry.ask(server, ChannelLease(2), Asker::There(Uuid::from_u128(8)));
        let away: Elsewhere = Arc::from(["a:1".to_owned()]);
        registry.everybody().iter().for_each(|peer| peer.send_away(&away));
        let mail = mail(&seat);
        assert!(mail.changed && !mail.make_way);
        assert_eq!((mail.askers.len(), mail.elsewhere), (1, Some(away)));
        assert!(seat.mail().now_or_never().is_none());
    }

    #[test]
    fn a_device_has_so_many_connections_and_the_oldest_make_way() {
        let registry = Registry::default();
        let (device, other) = (DeviceId(Uuid::from_u128(1)), DeviceId(Uuid::from_u128(2)));
        let leaves = |seat: &DeviceSeat| seat.mail().now_or_never().is_some_and(|mail| mail.make_way);
        let first = registry.seat_device(device);
        let rest: Vec<_> = (1..MOST_OF_A_DEVICE).map(|_| registry.seat_device(device)).collect();
        let _other = registry.seat_device(other);
        assert!(!leaves(&first));
        let newest = registry.seat_device(device);
        assert!(leaves(&first) && !leaves(&rest[0]) && !leaves(&newest));
        drop(first);
        let _another = registry.seat_device(device);
        assert!(leaves(&rest[0]) && !leaves(&rest[1]));
    }

    #[test]
    fn every_connection_of_a_device_is_told() {
        let registry = Registry::default();
        let device = DeviceId(Uuid::from_u128(1));
        let (a, b) = (registry.seat_device(device), registry.seat_device(device));
        let note = EndNote { session: SessionId(Uuid::from_u128(2)), reason: "policy".into() };
        let granted = Granted { session: note.session, server: ServerId(Uuid::from_u128(3)) };
        registry.granted(device, granted);
        assert_eq!(registry.grants(), [(device, granted)]);
        registry.tell_device(device, &note);
        let ended = |seat: &DeviceSeat| seat.mail().now_or_never().map(|mail| mail.ended.len());
        assert_eq!((ended(&a), ended(&b), ended(&b)), (Some(1), Some(1), None));
        assert!(registry.grants().is_empty());
        registry.granted(device, granted);
        drop(a);
        registry.tell_device(device, &EndNote { session: SessionId(Uuid::from_u128(9)), ..note });
        assert_eq!((ended(&b), registry.grants().len()), (Some(1), 1));
        drop(b);
        assert!(registry.grants().is_empty() && registry.is_empty());
    }
}
