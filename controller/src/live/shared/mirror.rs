//! Who is connected to other replicas, as far as this one knows: read from Redis, and from the database what Redis does not
//! know. A replica that is gone takes all of its own with it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use horizon_model::{DeviceId, ServerId};
use jiff::{SignedDuration, Timestamp};
use redis::{FromRedisValue, Value};
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::{
    Inner,
    bus::BEAT,
    database::DatabaseError,
    lock,
    redis::Away,
    roster::{self, command},
};
use crate::{
    live::{Hint, Live as _, Presence},
    stop::Stop,
    store::{ChannelLease, ReplicaId},
};

/// How often everything is read anew, whatever was heard.
const SWEEP: Duration = Duration::from_secs(60);
/// What changes within this time is read together.
const GATHER: Duration = Duration::from_millis(10);
/// How long a replica that lost Redis may take to write down in the database which devices it has.
const MOVING: Duration = Duration::from_secs(15);
/// When more changed than this, everything is read.
const MANY: usize = 5_000;
/// For how long the lease of one that went counts, far longer than sessions wait for an appliance that is gone. After it any
/// other is believed: what Redis said wrongly does not stay, and a database may be back at smaller leases.
const BELIEVED: SignedDuration = SignedDuration::from_mins(15);
/// How many servers are remembered although they went longer ago.
const MAX_GONE: usize = 50_000;
/// How many fields are asked for at once.
const CHUNK: usize = 1_000;
/// The most replicas that are looked at.
const MAX_REPLICAS: usize = 256;

#[derive(Clone, Copy)]
struct Remote {
    replica: ReplicaId,
    presence: Presence,
}

/// What is to be read: everything, or these.
#[derive(Default)]
struct Dirty {
    everything: bool,
    servers: HashSet<ServerId>,
    devices: HashSet<DeviceId>,
}

impl Dirty {
    /// Adds what was to be read before. Of too many, everything is.
    fn add(&mut self, other: Self) {
        self.everything |= other.everything;
        if !self.everything {
            self.servers.extend(other.servers);
            self.devices.extend(other.devices);
            self.everything = self.servers.len().max(self.devices.len()) > MANY;
        }
        if self.everything {
            (self.servers, self.devices) = Default::default();
        }
    }
}

/// Who is connected elsewhere.
#[derive(Default)]
pub(super) struct Mirror {
    servers: Mutex<HashMap<ServerId, Remote>>,
    devices: Mutex<HashMap<DeviceId, Vec<ReplicaId>>>,
    dirty: Mutex<Dirty>,
    wake: Notify,
}

/// Where a replica's own are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Redis,
    Database,
}

/// Why nothing could be read.
struct Unread;

impl From<Away> for Unread {
    fn from(Away: Away) -> Self {
        Self
    }
}

impl From<DatabaseError> for Unread {
    fn from(error: DatabaseError) -> Self {
        tracing::debug!(%error, "the database did not say who is connected to other replicas");
        Self
    }
}

impl Mirror {
    /// Whether a server is connected elsewhere; `None` when it never was.
    pub(super) fn presence(&self, server: ServerId) -> Option<Presence> {
        lock(&self.servers).get(&server).map(|remote| remote.presence)
    }

    /// The servers that are online elsewhere.
    pub(super) fn online(&self) -> Vec<ServerId> {
        lock(&self.servers).iter().filter(|(_, remote)| remote.presence.online).map(|(id, _)| *id).collect()
    }

    pub(super) fn is_device_online(&self, device: DeviceId) -> bool {
        lock(&self.devices).contains_key(&device)
    }

    pub(super) fn server_changed(&self, server: ServerId) {
        self.changed(Dirty { servers: [server].into(), ..Dirty::default() });
    }

    pub(super) fn device_changed(&self, device: DeviceId) {
        self.changed(Dirty { devices: [device].into(), ..Dirty::default() });
    }

    pub(super) fn everything_changed(&self) {
        self.changed(Dirty { everything: true, ..Dirty::default() });
    }

    fn changed(&self, what: Dirty) {
        lock(&self.dirty).add(what);
        self.wake.notify_one();
    }

    /// Takes in who holds which of the servers `of`, or of all. Returns the servers for which something changed.
    fn take_servers(
        &self,
        of: Option<&HashSet<ServerId>>,
        found: Vec<(ServerId, Remote)>,
        now: Timestamp,
    ) -> Vec<ServerId> {
        let mut newest: HashMap<ServerId, Remote> = HashMap::with_capacity(found.len());
        for (server, remote) in found {
            let known = newest.entry(server).or_insert(remote);
            if known.presence.lease < remote.presence.lease {
                *known = remote;
            }
        }
        let mut changed = Vec::new();
        let mut servers = lock(&self.servers);
        for (server, known) in
            servers.iter_mut().filter(|(server, _)| of.is_none_or(|of| of.contains(server)))
        {
            if known.presence.online && !newest.contains_key(server) {
                (known.presence.online, known.presence.since, known.presence.last_seen) = (false, now, now);
                changed.push(*server);
            }
        }
        if of.is_none() {
            let many = servers.len() > MAX_GONE;
            servers.retain(|_, known| {
                let long_gone =
                    !known.presence.online && now.duration_since(known.presence.since) >= BELIEVED;
                if long_gone {
                    known.presence.lease = ChannelLease(i64::MIN);
                }
                !(long_gone && many)
            });
        }
        for (server, remote) in newest {
            let known = servers.get(&server);
            // What was read may be older than what is known.
            if known.is_none_or(|known| {
                known.presence.lease < remote.presence.lease
                    || (known.presence.lease == remote.presence.lease && !known.presence.online)
            }) {
                servers.insert(server, remote);
                changed.push(server);
            }
        }
        changed
    }

    /// The same for devices. What is known of a replica that is `moving` is kept.
    fn take_devices(
        &self,
        of: Option<&HashSet<DeviceId>>,
        found: Vec<(DeviceId, ReplicaId)>,
        moving: &HashSet<ReplicaId>,
    ) {
        let mut devices = lock(&self.devices);
        match of {
            None => devices.retain(|_, replicas| {
                replicas.retain(|replica| moving.contains(replica));
                !replicas.is_empty()
            }),
            Some(of) => of.iter().for_each(|device| drop(devices.remove(device))),
        }
        for (device, replica) in found {
            let replicas = devices.entry(device).or_default();
            if !replicas.contains(&replica) {
                replicas.push(replica);
            }
        }
    }

    /// Forgets what is only known of replicas that live no more. Returns the servers concerned.
    fn keep(&self, alive: &BTreeMap<ReplicaId, Place>, now: Timestamp) -> Vec<ServerId> {
        let mut changed = Vec::new();
        for (server, known) in lock(&self.servers).iter_mut() {
            if known.presence.online && !alive.contains_key(&known.replica) {
                (known.presence.online, known.presence.since, known.presence.last_seen) = (false, now, now);
                changed.push(*server);
            }
        }
        lock(&self.devices).retain(|_, replicas| {
            replicas.retain(|replica| alive.contains_key(replica));
            !replicas.is_empty()
        });
        changed
    }
}

/// Keeps the mirror right until the word to stop comes.
pub(super) async fn follow(shared: Arc<Inner>, mut stop: Stop) {
    let mut look = interval(BEAT);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known: BTreeMap<ReplicaId, Place> = BTreeMap::new();
    // Since when replicas are read from the database that were read from Redis before.
    let mut moved: HashMap<ReplicaId, Instant> = HashMap::new();
    let mut swept: Option<Instant> = None;
    loop {
        tokio::select! {
            () = stop.requested() => return,
            _ = look.tick() => {}
            () = shared.mirror.wake.notified() => sleep(GATHER).await,
        }
        let Ok(alive) = shared.alive().await else { continue };
        let mut dirty = std::mem::take(&mut *lock(&shared.mirror.dirty));
        // Whoever is new, or is now read somewhere else, is read as a whole.
        dirty.everything |= alive != known || swept.is_none_or(|at| at.elapsed() >= SWEEP);
        moved.retain(|replica, since| alive.contains_key(replica) && since.elapsed() < MOVING);
        moved.extend(alive.iter().filter_map(|(replica, place)| {
            let moves = *place == Place::Database && known.get(replica) == Some(&Place::Redis);
            moves.then(|| (*replica, Instant::now()))
        }));
        let moving = moved.keys().copied().collect();
        let now = Timestamp::now();
        let mut changed = shared.mirror.keep(&alive, now);
        match shared.look(&alive, &dirty, &moving, now).await {
            Ok(more) => {
                changed.extend(more);
                if dirty.everything {
                    swept = Some(Instant::now());
                }
                known = alive;
            }
            Err(Unread) => {
                lock(&shared.mirror.dirty).add(dirty);
            }
        }
        changed.into_iter().for_each(|server| shared.here.publish(Hint::PresenceChanged { server }));
    }
}

impl Inner {
    /// The other replicas that live, and where their own are to be read.
    async fn alive(&self) -> Result<BTreeMap<ReplicaId, Place>, Unread> {
        let mut alive = BTreeMap::new();
        let in_redis = self.alive_in_redis().await;
        match &self.database {
            Some(database) => {
                let there = database.replicas().await?.into_iter();
                alive.extend(there.map(|replica| (replica, Place::Database)));
                alive.extend(in_redis.unwrap_or_default().into_iter().map(|replica| (replica, Place::Redis)));
            }
            None => alive.extend(in_redis?.into_iter().map(|replica| (replica, Place::Redis))),
        }
        alive.remove(&self.replica);
        Ok(alive)
    }

    async fn alive_in_redis(&self) -> Result<Vec<ReplicaId>, Away> {
        let redis = self.redis.as_ref().ok_or(Away)?;
        let members = redis.run(vec![command("SMEMBERS", &[self.keys.replicas()])]).await?;
        let members: Vec<String> = members.into_iter().next().map(parsed).unwrap_or_default();
        let others: Vec<ReplicaId> = members
            .iter()
            .filter_map(|member| member.parse().ok())
            .filter(|replica| *replica != self.replica)
            .take(MAX_REPLICAS)
            .collect();
        let there = others
            .iter()
            .map(|replica| command("HEXISTS", &[self.keys.servers(*replica), roster::HERE.to_owned()]))
            .collect();
        let there = redis.run(there).await?;
        let (mut alive, mut dead) = (Vec::new(), vec![self.keys.replicas()]);
        for (replica, there) in others.into_iter().zip(there) {
            if there == Value::Int(1) {
                alive.push(replica);
            } else {
                dead.push(replica.to_string());
            }
        }
        if dead.len() > 1 {
            redis.run(vec![command("SREM", &dead)]).await?;
        }
        Ok(alive)
    }

    async fn look(
        &self,
        alive: &BTreeMap<ReplicaId, Place>,
        dirty: &Dirty,
        moving: &HashSet<ReplicaId>,
        now: Timestamp,
    ) -> Result<Vec<ServerId>, Unread> {
        let servers = (!dirty.everything).then_some(&dirty.servers);
        let devices = (!dirty.everything).then_some(&dirty.devices);
        let mut changed = Vec::new();
        if servers.is_none_or(|servers| !servers.is_empty()) {
            let of: Option<Vec<_>> = servers.map(|servers| servers.iter().copied().collect());
            let mut found = self.servers_in_redis(alive, of.as_deref()).await?;
            if let Some(database) = self.database.as_ref().filter(|_| has(alive, Place::Database)) {
                let seats = database.seats(of.as_deref()).await?;
                let seats =
                    seats.into_iter().filter(|seat| alive.get(&seat.replica) == Some(&Place::Database));
                found.extend(seats.map(|seat| {
                    let presence = Presence {
                        online: true,
                        since: seat.since,
                        last_seen: seat.since,
                        incarnation: seat.incarnation,
                        lease: seat.lease,
                    };
                    (seat.server, Remote { replica: seat.replica, presence })
                }));
            }
            changed = self.mirror.take_servers(servers, found, now);
        }
        if devices.is_none_or(|devices| !devices.is_empty()) {
            let of: Option<Vec<_>> = devices.map(|devices| devices.iter().copied().collect());
            let mut found = self.devices_in_redis(alive, of.as_deref()).await?;
            if let Some(database) = self.database.as_ref().filter(|_| has(alive, Place::Database)) {
                let there = database.devices(of.as_deref()).await?;
                found.extend(there.into_iter().filter(|(_, at)| alive.get(at) == Some(&Place::Database)));
            }
            self.mirror.take_devices(devices, found, moving);
        }
        Ok(changed)
    }

    async fn servers_in_redis(
        &self,
        alive: &BTreeMap<ReplicaId, Place>,
        of: Option<&[ServerId]>,
    ) -> Result<Vec<(ServerId, Remote)>, Unread> {
        let mut found = Vec::new();
        for replica in in_redis(alive) {
            let redis = self.redis.as_ref().ok_or(Unread)?;
            let key = self.keys.servers(replica);
            let mut add = |server: ServerId, text: &str| {
                found.extend(roster::read(text).map(|presence| (server, Remote { replica, presence })));
            };
            match of {
                None => {
                    let all = redis.run(vec![command("HGETALL", &[key])]).await?;
                    let all: HashMap<String, String> = all.into_iter().next().map(parsed).unwrap_or_default();
                    for (server, text) in &all {
                        if let Ok(server) = server.parse() {
                            add(server, text);
                        }
                    }
                }
                Some(of) => {
                    for chunk in of.chunks(CHUNK) {
                        let mut words = vec![key.clone()];
                        words.extend(chunk.iter().map(ToString::to_string));
                        let texts = redis.run(vec![command("HMGET", &words)]).await?;
                        let texts: Vec<Option<String>> =
                            texts.into_iter().next().map(parsed).unwrap_or_default();
                        for (server, text) in chunk.iter().zip(texts) {
                            text.iter().for_each(|text| add(*server, text));
                        }
                    }
                }
            }
        }
        Ok(found)
    }

    async fn devices_in_redis(
        &self,
        alive: &BTreeMap<ReplicaId, Place>,
        of: Option<&[DeviceId]>,
    ) -> Result<Vec<(DeviceId, ReplicaId)>, Unread> {
        let mut found = Vec::new();
        for replica in in_redis(alive) {
            let redis = self.redis.as_ref().ok_or(Unread)?;
            let key = self.keys.devices(replica);
            match of {
                None => {
                    let all = redis.run(vec![command("SMEMBERS", &[key])]).await?;
                    let all: Vec<String> = all.into_iter().next().map(parsed).unwrap_or_default();
                    found.extend(all.iter().filter_map(|device| Some((device.parse().ok()?, replica))));
                }
                Some(of) => {
                    for chunk in of.chunks(CHUNK) {
                        let mut words = vec![key.clone()];
                        words.extend(chunk.iter().map(ToString::to_string));
                        let there = redis.run(vec![command("SMISMEMBER", &words)]).await?;
                        let there: Vec<bool> = there.into_iter().next().map(parsed).unwrap_or_default();
                        let there = chunk.iter().zip(there).filter(|(_, there)| *there);
                        found.extend(there.map(|(device, _)| (*device, replica)));
                    }
                }
            }
        }
        Ok(found)
    }
}

fn in_redis(alive: &BTreeMap<ReplicaId, Place>) -> impl Iterator<Item = ReplicaId> {
    alive.iter().filter(|(_, place)| **place == Place::Redis).map(|(replica, _)| *replica)
}

fn has(alive: &BTreeMap<ReplicaId, Place>, place: Place) -> bool {
    alive.values().any(|p| *p == place)
}

/// What Redis answered; nothing when it is not what it should be.
fn parsed<T: FromRedisValue + Default>(value: Value) -> T {
    redis::from_redis_value(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use horizon_model::Incarnation;
    use uuid::Uuid;

    use super::*;

    fn server(number: u128) -> ServerId {
        ServerId(Uuid::from_u128(number))
    }

    fn remote(lease: i64, now: Timestamp) -> Remote {
        let presence = Presence {
            online: true,
            since: now,
            last_seen: now,
            incarnation: Incarnation(Uuid::nil()),
            lease: ChannelLease(lease),
        };
        Remote { replica: ReplicaId(Uuid::from_u128(1)), presence }
    }

    #[test]
    fn a_lease_that_nobody_has_is_not_believed_for_ever() {
        let (mirror, start) = (Mirror::default(), Timestamp::UNIX_EPOCH);
        let later = |by: SignedDuration| start.checked_add(by).unwrap();
        let is = || mirror.presence(server(1)).map(|presence| (presence.online, presence.lease.0));
        mirror.take_servers(None, vec![(server(1), remote(i64::MAX, start))], start);
        assert_eq!(is(), Some((true, i64::MAX)));
        // It is gone, and the true one does not win against it yet.
        let now = later(SignedDuration::from_secs(1));
        assert_eq!(mirror.take_servers(None, vec![(server(1), remote(7, now))], now), []);
        assert_eq!(mirror.take_servers(None, Vec::new(), now), [server(1)]);
        let now = later(SignedDuration::from_secs(60));
        assert_eq!(mirror.take_servers(None, vec![(server(1), remote(7, now))], now), []);
        assert_eq!(is(), Some((false, i64::MAX)));
        // Looking at some forgets nothing.
        let now = later(BELIEVED + SignedDuration::from_secs(1));
        mirror.take_servers(Some(&[server(2)].into()), Vec::new(), now);
        assert_eq!(is(), Some((false, i64::MAX)));
        assert_eq!(mirror.take_servers(None, vec![(server(1), remote(7, now))], now), [server(1)]);
        assert_eq!(is(), Some((true, 7)));
    }

    #[test]
    fn not_every_server_that_ever_was_is_remembered() {
        let (mirror, now) = (Mirror::default(), Timestamp::UNIX_EPOCH);
        let later = now.checked_add(BELIEVED).unwrap();
        let some = |range: std::ops::Range<u128>| range.map(|n| (server(n), remote(7, now))).collect();
        mirror.take_servers(None, some(0..10), now);
        mirror.take_servers(None, Vec::new(), now);
        mirror.take_servers(None, Vec::new(), later);
        // Few: it is still known that they were there.
        assert_eq!(mirror.presence(server(1)).map(|presence| presence.online), Some(false));
        mirror.take_servers(None, some(0..MAX_GONE as u128 + 1), now);
        mirror.take_servers(None, Vec::new(), now);
        assert_eq!(lock(&mirror.servers).len(), MAX_GONE + 1);
        mirror.take_servers(None, some(0..10), later);
        assert_eq!(lock(&mirror.servers).len(), 10);
        assert_eq!(mirror.online().len(), 10);
    }

    #[test]
    fn what_is_to_be_read_is_bounded() {
        let mirror = Mirror::default();
        let sizes = || {
            let dirty = lock(&mirror.dirty);
            (dirty.everything, dirty.servers.len(), dirty.devices.len())
        };
        for number in 0..MANY as u128 {
            mirror.server_changed(server(number));
        }
        mirror.device_changed(DeviceId(Uuid::from_u128(1)));
        assert_eq!(sizes(), (false, MANY, 1));
        mirror.server_changed(server(MANY as u128));
        assert_eq!(sizes(), (true, 0, 0));
        // Nothing gathers while everything is to be read, nor when reading fails again and again.
        mirror.server_changed(server(1));
        mirror.device_changed(DeviceId(Uuid::from_u128(2)));
        assert_eq!(sizes(), (true, 0, 0));
        let unread = std::mem::take(&mut *lock(&mirror.dirty));
        mirror.server_changed(server(1));
        assert_eq!(sizes(), (false, 1, 0));
        lock(&mirror.dirty).add(unread);
        assert_eq!(sizes(), (true, 0, 0));
    }
}
