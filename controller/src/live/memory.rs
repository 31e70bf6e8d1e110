//! The live layer of a single controller: maps in its memory.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use horizon_model::{DeviceId, Incarnation, ServerId};
use jiff::Timestamp;
use tokio::sync::broadcast;
use uuid::Uuid;

use super::{Counted, HINT_QUEUE, Hint, Limit, Live, Lockout, Presence, party};
use crate::store::ChannelLease;

/// How many counters are kept; beyond it those that are used up no more are forgotten, then the rest.
const MAX_COUNTERS: usize = 100_000;
/// By how much threads, which take the time before they take a lock, may see it later than others.
const CLOCKS_APART: Duration = Duration::from_secs(5);

/// What an address did wrong.
struct Failures {
    count: u32,
    window_ends: Timestamp,
    locked: Option<Locked>,
}

/// For which time an address is locked out.
#[derive(Clone, Copy)]
struct Locked {
    since: Timestamp,
    until: Timestamp,
}

impl Locked {
    /// Whether that is so now. The clock may have been set back since: what was to last minutes does not last years by it.
    fn holds(self, now: Timestamp) -> bool {
        later(now, CLOCKS_APART) >= self.since && now < self.until
    }
}

/// The live layer in this process alone.
pub struct InProcess {
    servers: Mutex<HashMap<ServerId, Presence>>,
    devices: Mutex<HashMap<DeviceId, usize>>,
    /// What forged packets fill is apart from what they cannot.
    counters: [Mutex<HashMap<Counted, Timestamp>>; 2],
    failures: Mutex<HashMap<IpAddr, Failures>>,
    dead: Mutex<HashMap<Uuid, Timestamp>>,
    hints: broadcast::Sender<Hint>,
}

impl Default for InProcess {
    fn default() -> Self {
        Self {
            servers: Mutex::default(),
            devices: Mutex::default(),
            counters: Default::default(),
            failures: Mutex::default(),
            dead: Mutex::default(),
            hints: broadcast::channel(HINT_QUEUE).0,
        }
    }
}

/// The maps stay consistent whatever thread panics: each change is one insertion or removal.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl InProcess {
    /// The servers that are or were connected here.
    pub(super) fn servers(&self) -> Vec<(ServerId, Presence)> {
        lock(&self.servers).iter().map(|(server, presence)| (*server, *presence)).collect()
    }

    /// The devices that are connected here.
    pub(super) fn devices(&self) -> Vec<DeviceId> {
        lock(&self.devices).keys().copied().collect()
    }

    /// Others counted too: the right to more is used up at least until then.
    pub(super) fn use_up(&self, what: &Counted, until: Timestamp) {
        if let Some(known) = lock(&self.counters[usize::from(matches!(what, Counted::FirstPacket(_)))])
            .get_mut(&what.clone().per_party())
        {
            *known = until.max(*known);
        }
    }

    /// Another replica locked an address out for so long.
    pub(super) fn lock_out(&self, from: IpAddr, left: Duration, now: Timestamp) {
        let mut failures = lock(&self.failures);
        make_room(&mut failures, now);
        let entry = failures.entry(party(from)).or_insert(Failures::none(now));
        let until = later(now, left);
        let known = entry.locked.filter(|locked| locked.holds(now)).map(|locked| locked.until);
        entry.locked = Some(Locked { since: now, until: known.map_or(until, |known| known.max(until)) });
    }
}

impl Failures {
    fn none(now: Timestamp) -> Self {
        Self { count: 0, window_ends: now, locked: None }
    }

    fn is_locked(&self, now: Timestamp) -> bool {
        self.locked.is_some_and(|locked| locked.holds(now))
    }
}

/// Forgets those that are over when there are too many, then all.
fn make_room(failures: &mut HashMap<IpAddr, Failures>, now: Timestamp) {
    if failures.len() >= MAX_COUNTERS {
        failures.retain(|_, f| f.is_locked(now) || f.window_ends > now);
        if failures.len() >= MAX_COUNTERS {
            failures.clear();
        }
    }
}

impl Live for InProcess {
    fn server_online(&self, server: ServerId, incarnation: Incarnation, lease: ChannelLease, now: Timestamp) {
        let mut servers = lock(&self.servers);
        if servers.get(&server).is_none_or(|known| known.lease <= lease) {
            servers.insert(server, Presence { online: true, since: now, last_seen: now, incarnation, lease });
        }
    }

    fn server_seen(&self, server: ServerId, now: Timestamp) {
        if let Some(presence) = lock(&self.servers).get_mut(&server) {
            presence.last_seen = now;
        }
    }

    fn server_offline(&self, server: ServerId, lease: ChannelLease, now: Timestamp) {
        if let Some(presence) = lock(&self.servers).get_mut(&server)
            && presence.lease <= lease
            && presence.online
        {
            presence.online = false;
            presence.since = now;
        }
    }

    fn presence(&self, server: ServerId) -> Option<Presence> {
        lock(&self.servers).get(&server).copied()
    }

    fn online_servers(&self) -> usize {
        lock(&self.servers).values().filter(|p| p.online).count()
    }

    fn device_online(&self, device: DeviceId, online: bool) {
        let mut devices = lock(&self.devices);
        if online {
            *devices.entry(device).or_default() += 1;
        } else if let Some(channels) = devices.get_mut(&device) {
            *channels -= 1;
            if *channels == 0 {
                devices.remove(&device);
            }
        }
    }

    fn is_device_online(&self, device: DeviceId) -> bool {
        lock(&self.devices).contains_key(&device)
    }

    fn publish(&self, hint: Hint) {
        // Without listeners there is nobody to tell.
        let _ = self.hints.send(hint);
    }

    fn subscribe(&self) -> broadcast::Receiver<Hint> {
        self.hints.subscribe()
    }

    fn allow(&self, what: Counted, limit: Limit, now: Timestamp) -> bool {
        let what = what.per_party();
        let mut counters = lock(&self.counters[usize::from(matches!(what, Counted::FirstPacket(_)))]);
        let Some(next) = limit.count(counters.get(&what).copied(), now) else { return false };
        if counters.len() >= MAX_COUNTERS && !counters.contains_key(&what) {
            counters.retain(|_, until| *until > now);
            // Looking through them all again for each new one would cost more than forgetting them.
            if counters.len() > MAX_COUNTERS / 2 {
                counters.clear();
            }
        }
        counters.insert(what, next);
        true
    }

    fn note_failure(&self, from: IpAddr, lockout: Lockout, now: Timestamp) -> bool {
        let mut failures = lock(&self.failures);
        make_room(&mut failures, now);
        let entry = failures.entry(party(from)).or_insert(Failures::none(now));
        // A window that is still longer than it ever was began under a clock that was set back since.
        if entry.window_ends <= now || entry.window_ends > later(now, lockout.window) {
            entry.count = 0;
            entry.window_ends = later(now, lockout.window);
        }
        entry.count += 1;
        if entry.count < lockout.threshold {
            return false;
        }
        entry.count = 0;
        entry.locked = Some(Locked { since: now, until: later(now, lockout.duration) });
        true
    }

    fn locked_out_until(&self, from: IpAddr, now: Timestamp) -> Option<Timestamp> {
        let locked = lock(&self.failures).get(&party(from))?.locked;
        locked.filter(|locked| locked.holds(now)).map(|locked| locked.until)
    }

    fn locked_out(&self, now: Timestamp) -> usize {
        lock(&self.failures).values().filter(|f| f.is_locked(now)).count()
    }

    fn kill_token(&self, token: Uuid, left: Duration, now: Timestamp) {
        let mut dead = lock(&self.dead);
        if dead.len() >= MAX_COUNTERS {
            dead.retain(|_, until| *until > now);
            // What is forgotten here is still refused by the database.
            if dead.len() >= MAX_COUNTERS {
                dead.clear();
            }
        }
        dead.insert(token, later(now, left));
    }

    fn is_token_dead(&self, token: Uuid, now: Timestamp) -> bool {
        lock(&self.dead).get(&token).is_some_and(|until| *until > now)
    }
}

fn later(now: Timestamp, by: Duration) -> Timestamp {
    now.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_newer_lease_stays_online() {
        let live = InProcess::default();
        let server = ServerId(Uuid::from_u128(1));
        let incarnation = Incarnation(Uuid::from_u128(1));
        let (first, second) = (ChannelLease(1), ChannelLease(2));
        assert_eq!(live.presence(server), None);
        live.server_online(server, incarnation, first, at(1));
        live.server_online(server, incarnation, second, at(2));
        live.server_offline(server, first, at(3));
        live.server_online(server, incarnation, first, at(3));
        assert_eq!(live.presence(server).unwrap().lease, second);
        assert!(live.presence(server).unwrap().online);
        live.server_seen(server, at(4));
        live.server_offline(server, second, at(5));
        let presence = live.presence(server).unwrap();
        assert_eq!((presence.online, presence.since, presence.last_seen), (false, at(5), at(4)));
        assert_eq!(live.online_servers(), 0);
    }

    #[test]
    fn addresses_are_limited_per_party() {
        let live = InProcess::default();
        let limit = Limit::per_minute(1);
        let from = |text: &str| Counted::Handshake(text.parse().unwrap());
        assert!(live.allow(from("192.0.2.1"), limit, at(0)));
        assert!(live.allow(from("192.0.2.2"), limit, at(0)));
        assert!(!live.allow(from("192.0.2.1"), limit, at(0)));
        assert!(!live.allow(from("::ffff:192.0.2.1"), limit, at(0)));
        assert!(live.allow(from("2001:db8::1"), limit, at(0)));
        assert!(!live.allow(from("2001:db8::2"), limit, at(0)));
        assert!(live.allow(from("2001:db8:0:1::2"), limit, at(0)));
        assert!(live.allow(Counted::Enrolment("192.0.2.1".parse().unwrap()), limit, at(0)));
    }

    #[test]
    fn failures_lock_out_for_a_while() {
        let live = InProcess::default();
        let lockout =
            Lockout { threshold: 3, window: Duration::from_secs(10), duration: Duration::from_secs(60) };
        let address = "192.0.2.1".parse().unwrap();
        assert!(!live.note_failure(address, lockout, at(0)));
        assert!(!live.note_failure(address, lockout, at(1)));
        // The window is over: counting starts again.
        assert!(!live.note_failure(address, lockout, at(11)));
        assert!(!live.note_failure(address, lockout, at(12)));
        assert!(live.note_failure(address, lockout, at(13)));
        assert_eq!(live.locked_out_until(address, at(13)), Some(at(73)));
        assert_eq!((live.locked_out(at(72)), live.locked_out(at(73))), (1, 0));
        assert_eq!(live.locked_out_until(address, at(73)), None);
    }

    #[test]
    fn a_clock_that_was_set_back_locks_nobody_out_for_longer() {
        let live = InProcess::default();
        let minute = Duration::from_secs(60);
        let lockout = Lockout { threshold: 2, window: minute, duration: minute };
        let (address, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let year = 365 * 24 * 3600;
        // While the clock is a year early.
        assert!(!live.note_failure(address, lockout, at(year)));
        assert!(live.note_failure(address, lockout, at(year)));
        assert!(!live.note_failure(other, lockout, at(year)));
        assert_eq!(live.locked_out_until(address, at(year)), Some(at(year + 60)));
        // Set right, it is over, and what fails now counts anew and locks as ever.
        assert_eq!((live.locked_out_until(address, at(0)), live.locked_out(at(0))), (None, 0));
        assert!(!live.note_failure(other, lockout, at(0)));
        assert!(live.note_failure(other, lockout, at(1)));
        assert_eq!(live.locked_out_until(other, at(2)), Some(at(61)));
        live.lock_out(address, minute, at(2));
        assert_eq!(live.locked_out_until(address, at(3)), Some(at(62)));
        let limit = Limit::per_minute(1);
        let asks = |now| live.allow(Counted::Handshake(address), limit, now);
        assert!(asks(at(year)) && asks(at(0)) && !asks(at(1)));
    }

    #[test]
    fn devices_may_have_several_channels() {
        let live = InProcess::default();
        let device = DeviceId(Uuid::from_u128(1));
        live.device_online(device, true);
        live.device_online(device, true);
        live.device_online(device, false);
        assert!(live.is_device_online(device));
        live.device_online(device, false);
        assert!(!live.is_device_online(device));
    }
}
