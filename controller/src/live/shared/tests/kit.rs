//! Replicas for tests, on a real Redis and a database that is a map.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use horizon_model::{DeviceId, Incarnation, Secret, ServerId};
use horizon_services::{Redis, RedisOptions};
use jiff::Timestamp;
use tokio::sync::broadcast;
use uuid::Uuid;

use super::super::{BusKey, Database, DatabaseError, Later, RedisUrl, Seat, Shared, SharedOptions, lock};
use crate::{
    live::{Hint, Live as _},
    metrics::Metrics,
    store::{ChannelLease, ReplicaId},
};

/// How long anything may take. Generous: tests share the machine with compilers.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// What replicas share when there is no Redis.
pub(super) struct Shelf {
    told: broadcast::Sender<String>,
    alive: Mutex<HashSet<ReplicaId>>,
    pub(super) seats: Mutex<HashMap<ServerId, Seat>>,
    devices: Mutex<HashSet<(DeviceId, ReplicaId)>>,
    away: AtomicBool,
    notified: std::sync::atomic::AtomicUsize,
}

impl Shelf {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            told: broadcast::channel(1024).0,
            alive: Mutex::default(),
            seats: Mutex::default(),
            devices: Mutex::default(),
            away: AtomicBool::new(false),
            notified: Default::default(),
        })
    }

    /// How many notifications there were.
    pub(super) fn notified(&self) -> usize {
        self.notified.load(Ordering::Relaxed)
    }

    pub(super) fn devices(&self) -> HashSet<(DeviceId, ReplicaId)> {
        lock(&self.devices).clone()
    }

    fn there<T: Send + 'static>(&self, with: impl FnOnce() -> T) -> Later<'static, T> {
        let answer = match self.away.load(Ordering::Relaxed) {
            true => Err(DatabaseError("away".into())),
            false => Ok(with()),
        };
        async { answer }.boxed()
    }
}

impl Database for Shelf {
    fn notify<'a>(&'a self, text: &'a str) -> Later<'a, ()> {
        assert!(text.len() < 8000);
        self.notified.fetch_add(1, Ordering::Relaxed);
        self.there(|| drop(self.told.send(text.to_owned())))
    }

    fn listen(&self) -> Later<'_, stream::BoxStream<'static, String>> {
        self.there(|| {
            let told = self.told.subscribe();
            stream::unfold(told, |mut told| async { told.recv().await.ok().map(|text| (text, told)) }).boxed()
        })
    }

    fn replicas(&self) -> Later<'_, Vec<ReplicaId>> {
        self.there(|| lock(&self.alive).iter().copied().collect())
    }

    fn seats<'a>(&'a self, of: Option<&'a [ServerId]>) -> Later<'a, Vec<Seat>> {
        let wanted = |seat: &&Seat| of.is_none_or(|of| of.contains(&seat.server));
        self.there(|| lock(&self.seats).values().filter(wanted).copied().collect())
    }

    fn devices<'a>(&'a self, of: Option<&'a [DeviceId]>) -> Later<'a, Vec<(DeviceId, ReplicaId)>> {
        let wanted = |(device, _): &&(DeviceId, ReplicaId)| of.is_none_or(|of| of.contains(device));
        self.there(|| lock(&self.devices).iter().filter(wanted).copied().collect())
    }

    fn put_devices<'a>(
        &'a self,
        replica: ReplicaId,
        whole: bool,
        online: &'a [DeviceId],
        offline: &'a [DeviceId],
    ) -> Later<'a, ()> {
        self.there(|| {
            let mut devices = lock(&self.devices);
            devices.retain(|(device, at)| *at != replica || !(whole || offline.contains(device)));
            devices.extend(online.iter().map(|device| (*device, replica)));
        })
    }
}

/// What all replicas of tests have.
pub(super) fn key() -> BusKey {
    BusKey::new(&[Secret::new([42; 32])])
}

/// A replica.
pub(super) struct Replica {
    pub(super) id: ReplicaId,
    pub(super) live: Arc<Shared>,
    pub(super) metrics: Metrics,
    shelf: Option<Arc<Shelf>>,
}

impl Replica {
    pub(super) fn start(redis: Option<&str>, prefix: &str, shelf: Option<&Arc<Shelf>>) -> Self {
        let id = ReplicaId(Uuid::new_v4());
        let metrics = Metrics::default();
        if let Some(shelf) = shelf {
            lock(&shelf.alive).insert(id);
        }
        let live = Shared::start(SharedOptions {
            replica: id,
            key: key(),
            database: shelf.map(|shelf| shelf.clone() as Arc<dyn Database>),
            redis: redis.map(|url| RedisUrl::parse(url).unwrap()),
            prefix: prefix.to_owned(),
            metrics: metrics.clone(),
        });
        Self { id, live, metrics, shelf: shelf.cloned() }
    }

    /// One on a database that is there already.
    pub(super) fn on(database: impl Database) -> Self {
        let id = ReplicaId(Uuid::new_v4());
        let metrics = Metrics::default();
        let live = Shared::start(SharedOptions {
            replica: id,
            key: key(),
            database: Some(Arc::new(database)),
            redis: None,
            prefix: String::new(),
            metrics: metrics.clone(),
        });
        Self { id, live, metrics, shelf: None }
    }

    /// A server connects here.
    pub(super) fn attach(&self, server: ServerId, lease: i64) {
        let (now, incarnation, lease) =
            (Timestamp::now(), Incarnation(Uuid::from_u128(7)), ChannelLease(lease));
        if let Some(shelf) = &self.shelf {
            let seat = Seat { server, replica: self.id, incarnation, lease, since: now };
            lock(&shelf.seats).insert(server, seat);
        }
        self.live.server_online(server, incarnation, lease, now);
    }

    /// It goes.
    pub(super) fn detach(&self, server: ServerId, lease: i64) {
        if let Some(shelf) = &self.shelf {
            lock(&shelf.seats).retain(|id, seat| *id != server || seat.lease.0 != lease);
        }
        self.live.server_offline(server, ChannelLease(lease), Timestamp::now());
    }

    /// It ends as if killed: nothing is said to anybody.
    pub(super) fn die(self) {
        if let Some(shelf) = &self.shelf {
            lock(&shelf.alive).remove(&self.id);
        }
        let stopping = lock(&self.live.stopping).take();
        if let Some((stopper, mut tasks)) = stopping {
            tasks.abort_all();
            // The word to stop would have it sign off.
            std::mem::forget(stopper);
        }
    }

    pub(super) fn sees(&self, server: ServerId) -> bool {
        self.live.presence(server).is_some_and(|presence| presence.online)
    }

    /// Waits until it hears others, and is heard.
    pub(super) async fn hears(&self, by: &str) {
        until("it hears", || self.live.bus_health().is_some_and(|health| health.up && health.by == by)).await;
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Some(shelf) = &self.shelf {
            lock(&shelf.alive).remove(&self.id);
        }
    }
}

pub(super) fn server(number: u128) -> ServerId {
    ServerId(Uuid::from_u128(number))
}

pub(super) fn device(number: u128) -> DeviceId {
    DeviceId(Uuid::from_u128(number))
}

/// Waits until something is so.
pub(super) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(tokio::time::Instant::now() < end, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits for a hint.
pub(super) async fn hint(hints: &mut broadcast::Receiver<Hint>, wanted: &Hint) {
    let heard = async {
        loop {
            if hints.recv().await.as_ref() == Ok(wanted) {
                return;
            }
        }
    };
    assert!(tokio::time::timeout(PATIENCE, heard).await.is_ok(), "waited in vain for {wanted:?}");
}

/// A Redis of its own.
pub(super) fn redis(options: &RedisOptions) -> (Redis, String) {
    let redis = Redis::start(options).unwrap();
    let url = redis.url().unwrap();
    (redis, url)
}

/// A Redis that tests share, and a prefix of this test's own.
pub(super) fn shared_redis() -> (&'static Redis, String, String) {
    let redis = Redis::shared().unwrap();
    (redis, redis.url().unwrap(), format!("test-{}:", Uuid::new_v4()))
}
