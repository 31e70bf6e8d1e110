//! Redis killed, emptied, slow, full, and back in another role: everything goes on through the database, and recovers by
//! itself.

use horizon_services::{Redis, RedisOptions};

use super::{
    kit::{Replica, Shelf, device, redis, server, until},
    together,
};
use crate::live::Live as _;

struct Pair {
    redis: Redis,
    shelf: std::sync::Arc<Shelf>,
    a: Replica,
    b: Replica,
}

async fn pair(options: &RedisOptions) -> Pair {
    let (redis, url) = redis(options);
    let shelf = Shelf::new();
    let start = || Replica::start(Some(&url), "", Some(&shelf));
    let (a, b) = (start(), start());
    a.hears("redis").await;
    b.hears("redis").await;
    // Each knows that the other hears.
    until("nobody is deaf", || !a.live.inner.bus.anybody_deaf() && !b.live.inner.bus.anybody_deaf()).await;
    a.attach(server(50), 50);
    b.attach(server(51), 51);
    a.live.device_online(device(50), true);
    until("both see both", || b.sees(server(50)) && a.sees(server(51))).await;
    until("the device is seen", || b.live.is_device_online(device(50))).await;
    Pair { redis, shelf, a, b }
}

impl Pair {
    /// Nobody who was there seems to be gone.
    fn nothing_is_lost(&self) {
        for replica in [&self.a, &self.b] {
            assert!(replica.sees(server(50)) && replica.sees(server(51)));
            assert!(replica.live.is_device_online(device(50)));
        }
    }

    /// Redis fails; all goes on; it is well again, and used.
    async fn survives(self, fail: impl FnOnce(&Redis), heal: impl FnOnce(&Redis)) {
        fail(&self.redis);
        self.a.hears("database").await;
        self.b.hears("database").await;
        until("the breakers are open", || {
            [&self.a, &self.b].iter().all(|replica| replica.metrics.live.redis_breaker.get() == 2)
        })
        .await;
        // Devices are known to the database from here on.
        until("the database knows", || self.shelf.devices().contains(&(device(50), self.a.id))).await;
        Box::pin(together_then_leave(&self.a, &self.b, 0)).await;
        self.nothing_is_lost();
        heal(&self.redis);
        self.a.hears("redis").await;
        self.b.hears("redis").await;
        until("the breakers are closed", || {
            [&self.a, &self.b].iter().all(|replica| replica.metrics.live.redis_breaker.get() == 0)
        })
        .await;
        until("nobody is deaf", || !self.a.live.inner.bus.anybody_deaf()).await;
        let before = self.shelf.notified();
        Box::pin(together_then_leave(&self.a, &self.b, 1)).await;
        self.nothing_is_lost();
        assert!(self.shelf.notified() <= before + 2, "the database is not bothered any more");
    }
}

async fn together_then_leave(a: &Replica, b: &Replica, round: u8) {
    let others = [server(50), server(51)];
    others.iter().for_each(|server| assert!(a.sees(*server) && b.sees(*server)));
    Box::pin(together(a, b, round)).await;
    b.detach(server(2), 3 + 10 * i64::from(round));
    until("it is gone", || !a.sees(server(2))).await;
}

#[tokio::test]
async fn redis_is_killed() {
    let pair = pair(&RedisOptions::default()).await;
    pair.survives(|redis| redis.kill(0).unwrap(), |redis| redis.revive(0).unwrap()).await;
}

#[tokio::test]
async fn redis_does_not_answer() {
    let pair = pair(&RedisOptions::default()).await;
    pair.survives(|redis| redis.freeze(0).unwrap(), |redis| redis.thaw(0).unwrap()).await;
}

#[tokio::test]
async fn redis_is_full() {
    let pair = pair(&RedisOptions::default()).await;
    let limit = |redis: &Redis, bytes: &str| {
        redis.cli(["config", "set", "maxmemory-policy", "noeviction"]).unwrap();
        redis.cli(["config", "set", "maxmemory", bytes]).unwrap();
    };
    pair.survives(|redis| limit(redis, "1"), |redis| limit(redis, "0")).await;
}

#[tokio::test]
async fn redis_comes_back_as_a_replica() {
    let pair = pair(&RedisOptions::default()).await;
    pair.survives(
        |redis| drop(redis.cli(["replicaof", "127.0.0.1", "1"]).unwrap()),
        |redis| drop(redis.cli(["replicaof", "no", "one"]).unwrap()),
    )
    .await;
}

#[tokio::test]
async fn redis_is_emptied() {
    let pair = pair(&RedisOptions::default()).await;
    pair.redis.cli(["flushall"]).unwrap();
    let key = format!("presence:servers:{}", pair.a.id);
    until("it is written anew", || pair.redis.cli(["hlen", &key]).unwrap().trim() == "2").await;
    let key = format!("presence:devices:{}", pair.a.id);
    until("devices too", || pair.redis.cli(["scard", &key]).unwrap().trim() == "1").await;
    until("both see both", || pair.b.sees(server(50)) && pair.a.sees(server(51))).await;
    until("the device is seen", || pair.b.live.is_device_online(device(50))).await;
    assert_eq!(pair.a.metrics.live.redis_breaker.get(), 0);
}
