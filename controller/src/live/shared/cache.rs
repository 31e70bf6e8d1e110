//! A cache before the database, for what is shown to people and may be a moment old. Nothing that decides about access is
//! read from it, and no secret is kept in it: a decision always asks the database.
//!
//! What was read is kept in the process for a short while, and in Redis for all replicas. A change makes known that it is
//! no longer right; a reader that was under way with the old answer then does not keep it. Should word of a change be
//! lost, the old answer is gone with its lifetime.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use horizon_controller_core::ServerStanding;
use horizon_model::ServerId;
use redis::Value;
use uuid::Uuid;

use super::{
    keys::{Keys, milliseconds},
    lock,
    redis::Redis,
};
use crate::live::{Hint, LiveMetrics};

/// How much is kept in the process.
const MAX_ENTRIES: usize = 20_000;
/// For how long, in the process.
const HERE: Duration = Duration::from_secs(5);
/// For how long, in Redis.
pub(super) const SHARED: Duration = Duration::from_secs(60);
/// How long one may take to read before another reads too.
const READING: Duration = Duration::from_secs(5);
/// The cache of the standing of servers.
pub(super) const SERVERS: &str = "server";

/// Keeps a value if nobody said meanwhile that it changed. KEYS[1]: where. ARGV: the mark left before reading, the value,
/// its lifetime (ms).
const KEEP: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then \
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) return 1 end return 0";

struct Entry {
    /// `None` while somebody reads it.
    standing: Option<ServerStanding>,
    until: Instant,
    /// Which reading it is from.
    reading: u64,
}

#[derive(Default)]
struct Entries {
    map: HashMap<Uuid, Entry>,
    readings: u64,
}

/// A cache. A clone is the same. The default keeps nothing.
#[derive(Clone, Default)]
pub struct Cache(Option<Arc<Inside>>);

struct Inside {
    entries: Mutex<Entries>,
    redis: Option<Arc<Redis>>,
    keys: Keys,
    metrics: LiveMetrics,
}

impl Cache {
    pub(super) fn new(redis: Option<Arc<Redis>>, keys: Keys, metrics: LiveMetrics) -> Self {
        Self(Some(Arc::new(Inside { entries: Mutex::default(), redis, keys, metrics })))
    }

    /// The standing of a server, for lists. `read` asks the database.
    ///
    /// # Errors
    /// Those of `read`.
    pub async fn server_standing<E>(
        &self,
        server: ServerId,
        read: impl Future<Output = Result<ServerStanding, E>>,
    ) -> Result<ServerStanding, E> {
        let Some(inside) = &self.0 else { return read.await };
        let id = server.0;
        if let Some(standing) = inside.kept(id) {
            inside.metrics.cache_lookup(SERVERS, true);
            return Ok(standing);
        }
        let reading = inside.begin(id);
        let (found, mark) = inside.ask_redis(id).await;
        inside.metrics.cache_lookup(SERVERS, found.is_some());
        if let Some(standing) = found {
            inside.keep(id, reading, standing);
            return Ok(standing);
        }
        let standing = read.await?;
        inside.keep(id, reading, standing);
        if let Some(mark) = mark {
            inside.keep_in_redis(id, &mark, standing).await;
        }
        Ok(standing)
    }

    /// What a hint is about may have another standing now.
    pub(super) fn changed(&self, hint: &Hint) -> Option<Uuid> {
        let id = match hint {
            Hint::ServerChanged(server) => server.0,
            Hint::StatusDirty(uid) => *uid,
            _ => return None,
        };
        self.forget(SERVERS, id);
        Some(id)
    }

    /// Something that is cached is no longer right.
    pub(super) fn forget(&self, cache: &str, id: Uuid) {
        if let Some(inside) = self.0.as_ref().filter(|_| cache == SERVERS) {
            lock(&inside.entries).map.remove(&id);
        }
    }

    /// Anything may no longer be right.
    pub(super) fn forget_all(&self) {
        if let Some(inside) = &self.0 {
            lock(&inside.entries).map.clear();
        }
    }
}

impl Inside {
    fn kept(&self, id: Uuid) -> Option<ServerStanding> {
        let entries = lock(&self.entries);
        entries.map.get(&id).filter(|entry| entry.until > Instant::now()).and_then(|entry| entry.standing)
    }

    fn begin(&self, id: Uuid) -> u64 {
        let mut entries = lock(&self.entries);
        if entries.map.len() >= MAX_ENTRIES && !entries.map.contains_key(&id) {
            let now = Instant::now();
            entries.map.retain(|_, entry| entry.until > now);
            if entries.map.len() > MAX_ENTRIES / 2 {
                entries.map.clear();
            }
        }
        entries.readings += 1;
        let reading = entries.readings;
        entries.map.insert(id, Entry { standing: None, until: Instant::now() + READING, reading });
        reading
    }

    fn keep(&self, id: Uuid, reading: u64, standing: ServerStanding) {
        if let Some(entry) = lock(&self.entries).map.get_mut(&id).filter(|entry| entry.reading == reading) {
            (entry.standing, entry.until) = (Some(standing), Instant::now() + HERE);
        }
    }

    /// What is kept in Redis; else the mark that was left there, if nobody else reads it.
    async fn ask_redis(&self, id: Uuid) -> (Option<ServerStanding>, Option<String>) {
        // While it was away, nobody could say there that something changed.
        let Some(redis) = self.redis.as_ref().filter(|redis| redis.steady(SHARED)) else {
            return (None, None);
        };
        let key = self.keys.cache(SERVERS, id);
        let mark = format!("reading {}", Uuid::new_v4());
        let (mut get, mut set) = (redis::cmd("GET"), redis::cmd("SET"));
        get.arg(&key);
        set.arg(&key).arg(&mark).arg("NX").arg("PX").arg(milliseconds(READING));
        match redis.run(vec![get, set]).await.as_deref() {
            Ok([Value::BulkString(text), _]) if read(text).is_some() => (read(text), None),
            Ok([_, Value::Okay]) => (None, Some(mark)),
            _ => (None, None),
        }
    }

    async fn keep_in_redis(&self, id: Uuid, mark: &str, standing: ServerStanding) {
        let Some(redis) = &self.redis else { return };
        let mut keep = redis::cmd("EVAL");
        keep.arg(KEEP).arg(1).arg(self.keys.cache(SERVERS, id));
        keep.arg(mark).arg(write(standing)).arg(milliseconds(SHARED));
        // Not kept is read again.
        let _ = redis.run(vec![keep]).await;
    }
}

fn write(standing: ServerStanding) -> &'static str {
    match standing {
        ServerStanding::Good => "good",
        ServerStanding::Unregistered => "unregistered",
        ServerStanding::Quarantined => "quarantined",
        ServerStanding::Revoked => "revoked",
    }
}

fn read(text: &[u8]) -> Option<ServerStanding> {
    use ServerStanding::{Good, Quarantined, Revoked, Unregistered};
    [Good, Unregistered, Quarantined, Revoked]
        .into_iter()
        .find(|standing| write(*standing).as_bytes() == text)
}
