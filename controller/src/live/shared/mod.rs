//! The live layer of several controllers. Each answers from its own memory at once; a bus between them carries hints, over
//! Redis or the notifications of the database, and what is known of the others is read behind. When Redis is away,
//! everything goes on through the database, slower, and recovers by itself.

mod bus;
mod cache;
mod database;
mod keys;
mod limits;
mod message;
mod mirror;
mod redis;
mod roster;
mod sequence;
mod store;
mod tag;
#[cfg(test)]
mod tests;

pub use cache::Cache;
pub use database::{Database, DatabaseError, Later, Seat};
pub use redis::{RedisUrl, RedisUrlError};
pub use tag::BusKey;

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use horizon_model::{DeviceId, Incarnation, ServerId};
use jiff::Timestamp;
use tokio::{sync::broadcast, task::JoinSet};
use uuid::Uuid;

use self::{
    bus::Bus, keys::Keys, limits::Limits, message::Item, mirror::Mirror, redis::Redis, roster::Roster,
};
use super::{BusHealth, Counted, Hint, InProcess, Limit, Live, LiveMetrics, Lockout, Presence};
use crate::{
    metrics::Metrics,
    stop::{self, Stopper},
    store::{ChannelLease, ReplicaId},
};

/// How long signing off may take.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// What a shared live layer is made of.
pub struct SharedOptions {
    /// This replica.
    pub replica: ReplicaId,
    /// What shows that a message is another replica's.
    pub key: BusKey,
    /// The database that replicas share.
    pub database: Option<Arc<dyn Database>>,
    /// Redis.
    pub redis: Option<RedisUrl>,
    /// What every key and channel in Redis begins with, for a Redis that others use too.
    pub prefix: String,
    /// Where figures go.
    pub metrics: Metrics,
}

/// The live layer of one of several controllers.
pub struct Shared {
    inner: Arc<Inner>,
    stopping: Mutex<Option<(Stopper, JoinSet<()>)>>,
}

struct Inner {
    replica: ReplicaId,
    bus_key: BusKey,
    here: InProcess,
    mirror: Mirror,
    roster: Roster,
    bus: Bus,
    limits: Limits,
    cache: Cache,
    redis: Option<Arc<Redis>>,
    database: Option<Arc<dyn Database>>,
    keys: Keys,
    metrics: Metrics,
    live_metrics: LiveMetrics,
}

/// Each change of what is behind a lock is one step, so it is whole whatever thread panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Starts it, on the runtime of the caller. Neither Redis nor the database need be there yet.
    pub fn start(options: SharedOptions) -> Arc<Self> {
        let SharedOptions { replica, key, database, redis, prefix, metrics } = options;
        let live_metrics = metrics.live.clone();
        let keys = Keys::new(prefix);
        let redis = redis.map(|url| Arc::new(Redis::new(url, live_metrics.clone())));
        let (bus, queue) = Bus::new();
        let inner = Arc::new(Inner {
            replica,
            bus_key: key,
            here: InProcess::default(),
            mirror: Mirror::default(),
            roster: Roster::default(),
            bus,
            limits: Limits::default(),
            cache: Cache::new(redis.clone(), keys.clone(), live_metrics.clone()),
            redis,
            database,
            keys,
            metrics,
            live_metrics,
        });
        let (stopper, stop) = stop::stop();
        let mut tasks = JoinSet::new();
        tasks.spawn(bus::hear_redis(inner.clone(), stop.clone()));
        tasks.spawn(bus::hear_database(inner.clone(), stop.clone()));
        tasks.spawn(bus::heal(inner.clone(), stop.clone()));
        tasks.spawn(mirror::follow(inner.clone(), stop.clone()));
        tasks.spawn(limits::sync(inner.clone(), stop.clone()));
        // What the roster says last is still sent.
        let (said_all, last_word) = stop::stop();
        tasks.spawn({
            let inner = inner.clone();
            async move {
                roster::tell(inner, stop).await;
                said_all.stop();
            }
        });
        tasks.spawn(bus::send(inner.clone(), queue, last_word));
        Arc::new(Self { inner, stopping: Mutex::new(Some((stopper, tasks))) })
    }

    /// Signs off: the others know at once that nobody is connected here any more.
    pub async fn stop(&self) {
        let Some((stopper, mut tasks)) = lock(&self.stopping).take() else { return };
        stopper.stop();
        let ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_PATIENCE, ended).await.is_err() {
            tracing::debug!("signing off took too long: others find out by themselves");
        }
    }

    /// What is cached and published under a hint is forgotten.
    fn forget(&self, hint: &Hint) {
        if let Some(id) = self.inner.cache.changed(hint)
            && self.inner.redis.is_some()
        {
            self.inner.bus.say(Item::Cached(cache::SERVERS.to_owned(), id));
        }
    }
}

impl Live for Shared {
    fn server_online(&self, server: ServerId, incarnation: Incarnation, lease: ChannelLease, now: Timestamp) {
        self.inner.here.server_online(server, incarnation, lease, now);
        self.inner.roster.server_changed(server);
    }

    fn server_seen(&self, server: ServerId, now: Timestamp) {
        self.inner.here.server_seen(server, now);
    }

    fn server_offline(&self, server: ServerId, lease: ChannelLease, now: Timestamp) {
        self.inner.here.server_offline(server, lease, now);
        self.inner.roster.server_changed(server);
    }

    fn presence(&self, server: ServerId) -> Option<Presence> {
        let (here, there) = (self.inner.here.presence(server), self.inner.mirror.presence(server));
        here.into_iter().chain(there).max_by_key(|presence| presence.lease)
    }

    fn online_servers(&self) -> usize {
        let here = self.inner.here.servers().into_iter().filter(|(_, presence)| presence.online);
        let mut online: HashSet<ServerId> = here.map(|(server, _)| server).collect();
        online.extend(self.inner.mirror.online());
        online.len()
    }

    fn device_online(&self, device: DeviceId, online: bool) {
        self.inner.here.device_online(device, online);
        self.inner.roster.device_changed(device);
    }

    fn is_device_online(&self, device: DeviceId) -> bool {
        self.inner.here.is_device_online(device) || self.inner.mirror.is_device_online(device)
    }

    fn publish(&self, hint: Hint) {
        self.forget(&hint);
        self.inner.bus.say(Item::Hint(hint.clone()));
        self.inner.here.publish(hint);
    }

    fn publish_here(&self, hint: Hint) {
        self.forget(&hint);
        self.inner.here.publish(hint);
    }

    fn cache(&self) -> Cache {
        self.inner.cache.clone()
    }

    fn bus_health(&self) -> Option<BusHealth> {
        let inner = &self.inner;
        let by_database = inner.database.is_some() && inner.bus.hears_database();
        Some(match &inner.redis {
            Some(redis) if redis.usable() && inner.bus.hears_redis() => {
                BusHealth { by: "redis", up: true, text: format!("hints travel over {}", redis.url()) }
            }
            Some(redis) => {
                let trouble = redis.trouble();
                let why = if trouble.is_empty() { "it is not heard yet" } else { &trouble };
                let instead =
                    if by_database { "hints travel over the database" } else { "changes show late" };
                let text = format!("{} is away ({why}): {instead}", redis.url());
                BusHealth { by: "database", up: by_database, text }
            }
            None if by_database => {
                BusHealth { by: "database", up: true, text: "hints travel over the database".into() }
            }
            None => BusHealth {
                by: "database",
                up: false,
                text: "the database's notifications are not heard: changes show late".into(),
            },
        })
    }

    fn subscribe(&self) -> broadcast::Receiver<Hint> {
        self.inner.here.subscribe()
    }

    fn allow(&self, what: Counted, limit: Limit, now: Timestamp) -> bool {
        let allowed = self.inner.here.allow(what.clone(), limit, now);
        if allowed && self.inner.redis.is_some() {
            self.inner.limits.counted(what, limit);
        }
        allowed
    }

    fn note_failure(&self, from: IpAddr, lockout: Lockout, now: Timestamp) -> bool {
        let locked = self.inner.here.note_failure(from, lockout, now);
        if locked {
            self.inner.limits.locked(from, lockout.duration);
            self.inner.bus.say(Item::Lockout(super::party(from), lockout.duration));
        } else if self.inner.redis.is_some() {
            self.inner.limits.failed(from, lockout);
        }
        locked
    }

    fn locked_out_until(&self, from: IpAddr, now: Timestamp) -> Option<Timestamp> {
        self.inner.here.locked_out_until(from, now)
    }

    fn locked_out(&self, now: Timestamp) -> usize {
        self.inner.here.locked_out(now)
    }

    fn kill_token(&self, token: Uuid, left: Duration, now: Timestamp) {
        self.inner.here.kill_token(token, left, now);
        if self.inner.redis.is_some() {
            self.inner.limits.killed(token, left);
        }
        self.inner.bus.say(Item::DeadToken(token, left));
    }

    fn is_token_dead(&self, token: Uuid, now: Timestamp) -> bool {
        self.inner.here.is_token_dead(token, now)
    }
}
