//! Redis with a password and TLS, watched by sentinels, and as a cluster.

use horizon_services::{RedisOptions, RedisShape};

use super::{
    ends,
    kit::{Replica, Shelf, redis, until},
    together,
};
use crate::live::Live as _;

const PASSWORD: &str = "a-password-nobody-prints";

#[tokio::test]
async fn a_password_and_tls() {
    let options = RedisOptions { password: Some(PASSWORD.into()), tls: true, ..RedisOptions::default() };
    let (_redis, url) = redis(&options);
    let start = || Replica::start(Some(&url), "", None);
    let (a, b) = (start(), start());
    a.hears("redis").await;
    b.hears("redis").await;
    Box::pin(together(&a, &b, 0)).await;
    assert!(!a.live.bus_health().unwrap().text.contains(PASSWORD));
    let c = start();
    Box::pin(ends(a, b, c)).await;
}

/// An authority nobody told of, and another password: neither is used, both are told without the password.
#[tokio::test]
async fn a_wrong_password_and_an_unknown_authority_are_refused() {
    let options = RedisOptions { password: Some(PASSWORD.into()), tls: true, ..RedisOptions::default() };
    let (_redis, url) = redis(&options);
    let unknown = Replica::start(url.split('?').next(), "", None);
    let wrong = Replica::start(Some(&url.replace(PASSWORD, "another-password-nobody-prints")), "", None);
    for replica in [&unknown, &wrong] {
        until("it is away", || replica.live.bus_health().unwrap().text.contains("is away (")).await;
        until("it is left alone", || replica.metrics.live.redis_breaker.get() == 2).await;
        let text = replica.live.bus_health().unwrap().text;
        assert!(!replica.live.bus_health().unwrap().up && !text.contains("nobody-prints"), "{text}");
    }
}

#[tokio::test]
async fn sentinels_and_a_failover() {
    let options = RedisOptions {
        shape: RedisShape::Sentinel,
        password: Some(PASSWORD.into()),
        ..RedisOptions::default()
    };
    let (redis, url) = redis(&options);
    let shelf = Shelf::new();
    let start = || Replica::start(Some(&url), "", Some(&shelf));
    let (a, b) = (start(), start());
    a.hears("redis").await;
    b.hears("redis").await;
    Box::pin(together(&a, &b, 0)).await;
    // The primary is gone: first the database carries on, then the replica that became the primary does.
    redis.kill(0).unwrap();
    a.hears("database").await;
    a.hears("redis").await;
    b.hears("redis").await;
    // What was the primary comes back with a new role.
    redis.revive(0).unwrap();
    b.detach(super::server(2), 3);
    until("it is gone", || !a.sees(super::server(2))).await;
    Box::pin(together(&a, &b, 1)).await;
    let c = start();
    Box::pin(ends(a, b, c)).await;
}

#[tokio::test]
async fn a_cluster() {
    let options = RedisOptions {
        shape: RedisShape::Cluster,
        password: Some(PASSWORD.into()),
        ..RedisOptions::default()
    };
    let (_redis, url) = redis(&options);
    let start = || Replica::start(Some(&url), "", None);
    let (a, b) = (start(), start());
    a.hears("redis").await;
    b.hears("redis").await;
    Box::pin(together(&a, &b, 0)).await;
    let c = start();
    Box::pin(ends(a, b, c)).await;
}
