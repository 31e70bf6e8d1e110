//! Rates and lockouts that hold for all replicas together. What a replica counts decides at once, and is added to a common
//! counter behind; what others counted comes back and uses up the right here.
//!
//! Within one [`SYNC`] each of N replicas may admit what a limit allows, N times the limit in all; what was admitted too
//! much is missing afterwards, so that the rate holds over time. Without Redis each replica limits by itself, N times the
//! limit in all, and lockouts still reach the others over the bus.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use redis::{Cmd, Value};
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use super::{
    Inner,
    keys::milliseconds,
    lock,
    message::{Item, MAX_LOCKOUT},
};
use crate::{
    live::{Counted, Limit, Lockout, party},
    stop::Stop,
};

/// How often counts are added to the common ones.
const SYNC: Duration = Duration::from_secs(1);
/// How many counters wait for that; others count here alone.
const MAX_WAITING: usize = 10_000;
/// How many are added at once.
const CHUNK: usize = 500;

/// The generic cell rate algorithm, for several at once. KEYS[1]: the time (µs) until which the right is used up. ARGV: how
/// many more, the step of one and the window (µs). Returns for how long it is used up now.
const COUNT: &str = "local t = redis.call('TIME') local now = t[1] * 1000000 + t[2] \
    local used = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now) + ARGV[1] * ARGV[2] \
    used = math.min(used, now + 2 * ARGV[3]) \
    redis.call('SET', KEYS[1], string.format('%.0f', used), 'PX', math.ceil((used - now) / 1000)) \
    return math.floor(used - now)";

/// Adds failures. ARGV: how many, the window (ms). Returns how many there were within it.
const FAIL: &str = "local n = redis.call('INCRBY', KEYS[1], ARGV[1]) \
    if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return n";

/// What was counted here and is not yet in the common counters.
#[derive(Default)]
pub(super) struct Limits {
    counted: Mutex<HashMap<Counted, (u32, Limit)>>,
    failed: Mutex<HashMap<IpAddr, (u32, Lockout)>>,
    locked: Mutex<HashMap<IpAddr, Duration>>,
    killed: Mutex<HashMap<Uuid, Duration>>,
}

impl Limits {
    /// One was admitted here.
    pub(super) fn counted(&self, what: Counted, limit: Limit) {
        if matches!(what, Counted::FirstPacket(_)) {
            return;
        }
        add(&self.counted, what.per_party(), |waiting| match waiting {
            Some((count, _)) => (count.saturating_add(1), limit),
            None => (1, limit),
        });
    }

    /// An address failed here.
    pub(super) fn failed(&self, from: IpAddr, lockout: Lockout) {
        add(&self.failed, party(from), |waiting| match waiting {
            Some((count, _)) => (count.saturating_add(1), lockout),
            None => (1, lockout),
        });
    }

    /// An address was locked out here.
    pub(super) fn locked(&self, from: IpAddr, left: Duration) {
        add(&self.locked, party(from), |_| left);
    }

    /// A token was made worthless here.
    pub(super) fn killed(&self, token: Uuid, left: Duration) {
        add(&self.killed, token, |_| left);
    }
}

fn add<K: Eq + std::hash::Hash, V: Copy>(
    waiting: &Mutex<HashMap<K, V>>,
    key: K,
    with: impl FnOnce(Option<V>) -> V,
) {
    let mut waiting = lock(waiting);
    let known = waiting.get(&key).copied();
    if known.is_some() || waiting.len() < MAX_WAITING {
        waiting.insert(key, with(known));
    }
}

/// Adds what was counted to the common counters until the word to stop comes.
pub(super) async fn sync(shared: Arc<Inner>, mut stop: Stop) {
    let mut due = interval(SYNC);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.requested() => return,
            _ = due.tick() => shared.sync_limits().await,
        }
    }
}

impl Inner {
    /// What could not be added because Redis is away stays counted here alone.
    async fn sync_limits(&self) {
        let counted: Vec<_> = lock(&self.limits.counted).drain().collect();
        let failed: Vec<_> = lock(&self.limits.failed).drain().collect();
        let locked: Vec<_> = lock(&self.limits.locked).drain().collect();
        let killed: Vec<_> = lock(&self.limits.killed).drain().collect();
        for chunk in killed.chunks(CHUNK) {
            let set = chunk.iter().map(|(token, left)| {
                let mut set = redis::cmd("SET");
                set.arg(self.keys.dead_token(*token)).arg(1).arg("PX").arg(milliseconds(*left));
                set
            });
            self.redis_run(set.collect()).await;
        }
        for chunk in locked.chunks(CHUNK) {
            let set = chunk.iter().map(|(address, left)| self.lock_key(*address, *left)).collect();
            self.redis_run(set).await;
        }
        for chunk in counted.chunks(CHUNK) {
            self.sync_counted(chunk).await;
        }
        for chunk in failed.chunks(CHUNK) {
            self.sync_failed(chunk).await;
        }
    }

    async fn sync_counted(&self, chunk: &[(Counted, (u32, Limit))]) {
        let mut commands = Vec::with_capacity(chunk.len() * 2);
        for (what, (count, limit)) in chunk {
            let Some(key) = self.keys.limit(what) else { continue };
            let (step, window) = limit.microseconds();
            commands.push(script(COUNT, key.clone(), &[u64::from(*count), step, window]));
            // A replica that is new learns in this way who is locked out.
            let mut locked = redis::cmd("PTTL");
            // Who is no address is not locked out: the lifetime of their own key is not read as that.
            locked.arg(what.address().map_or(key, |address| self.keys.lockout(address)));
            commands.push(locked);
        }
        let Some(answers) = self.redis_run(commands).await else { return };
        let now = Timestamp::now();
        for ((what, (_, limit)), answers) in chunk.iter().zip(answers.chunks(2)) {
            if let [Value::Int(used), locked] = answers {
                self.here.use_up(what, now.checked_add(used_up(*used, *limit)).unwrap_or(now));
                if let (Value::Int(left @ 1..), Some(address)) = (locked, what.address()) {
                    self.here.lock_out(address, locked_out(*left), now);
                }
            }
        }
    }

    async fn sync_failed(&self, chunk: &[(IpAddr, (u32, Lockout))]) {
        let commands = chunk.iter().map(|(address, (count, lockout))| {
            script(FAIL, self.keys.failures(*address), &[u64::from(*count), milliseconds(lockout.window)])
        });
        let Some(answers) = self.redis_run(commands.collect()).await else { return };
        let now = Timestamp::now();
        let mut set = Vec::new();
        for ((address, (_, lockout)), total) in chunk.iter().zip(answers) {
            if matches!(total, Value::Int(total) if total >= i64::from(lockout.threshold)) {
                set.push(self.lock_key(*address, lockout.duration));
                let mut forget = redis::cmd("DEL");
                forget.arg(self.keys.failures(*address));
                set.push(forget);
                self.here.lock_out(*address, lockout.duration, now);
                self.bus.say(Item::Lockout(*address, lockout.duration));
                tracing::warn!(%address, "too many failures at several replicas: the address is locked out");
            }
        }
        self.redis_run(set).await;
    }

    fn lock_key(&self, address: IpAddr, left: Duration) -> Cmd {
        let mut set = redis::cmd("SET");
        set.arg(self.keys.lockout(address)).arg(1).arg("PX").arg(milliseconds(left));
        set
    }

    async fn redis_run(&self, commands: Vec<Cmd>) -> Option<Vec<Value>> {
        match &self.redis {
            Some(redis) if !commands.is_empty() => redis.run(commands).await.ok(),
            _ => None,
        }
    }
}

/// For how long a right is used up, by what Redis says (µs): never longer than the script would say.
fn used_up(said: i64, limit: Limit) -> Duration {
    let (_, window) = limit.microseconds();
    Duration::from_micros(u64::try_from(said).unwrap_or(0).min(window.saturating_mul(2)))
}

/// For how long an address is locked out, by what Redis says (ms), as far as that is believed.
fn locked_out(said: i64) -> Duration {
    Duration::from_millis(u64::try_from(said).unwrap_or(0)).min(MAX_LOCKOUT)
}

fn script(text: &str, key: String, args: &[u64]) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(text).arg(1).arg(key).arg(args);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_says_is_believed_within_bounds() {
        let limit = Limit::per_minute(60);
        assert_eq!(used_up(-1, limit), Duration::ZERO);
        assert_eq!(used_up(90_000_000, limit), Duration::from_secs(90));
        assert_eq!(used_up(i64::MAX, limit), Duration::from_secs(120));
        assert_eq!(locked_out(1500), Duration::from_millis(1500));
        assert_eq!(locked_out(i64::MAX), MAX_LOCKOUT);
    }
}
