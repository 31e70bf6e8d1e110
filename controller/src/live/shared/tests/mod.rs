mod faults;
mod keys;
mod kit;
mod postgres;
mod shapes;

use std::{sync::Arc, time::Duration};

use horizon_controller_core::ServerStanding;
use horizon_services::Redis;
use jiff::Timestamp;
use uuid::Uuid;

use self::kit::{Replica, Shelf, device, hint, key, server, shared_redis, until};
use super::{BusKey, Database as _};
use crate::{
    live::{Counted, Hint, Limit, Live as _, Lockout},
    store::Revision,
};

/// What replicas do together, whatever the bus.
async fn together(a: &Replica, b: &Replica, round: u8) {
    let lease = |number: i64| number + 10 * i64::from(round);
    let online = (a.live.online_servers(), b.live.online_servers());
    // Hints arrive, once, and not at the sender a second time.
    let (mut at_a, mut at_b) = (a.live.subscribe(), b.live.subscribe());
    let said = [Hint::ResourcesChanged(Revision(7)), Hint::StatusDirty(Uuid::from_u128(1))];
    said.iter().for_each(|said| a.live.publish(said.clone()));
    for said in &said {
        hint(&mut at_b, said).await;
    }
    b.live.publish(Hint::ResourcesChanged(Revision(8)));
    let mut heard = Vec::new();
    while heard.last() != Some(&Hint::ResourcesChanged(Revision(8))) {
        heard.extend(at_a.recv().await);
    }
    heard.retain(|heard| said.contains(heard));
    assert_eq!(heard, said, "its own are heard once");
    a.live.publish_here(Hint::ResourcesChanged(Revision(9)));
    a.live.publish(Hint::ResourcesChanged(Revision(10)));
    loop {
        let heard = at_b.recv().await.unwrap();
        assert_ne!(heard, Hint::ResourcesChanged(Revision(9)));
        if heard == Hint::ResourcesChanged(Revision(10)) {
            break;
        }
    }

    // Servers and devices are seen everywhere.
    a.attach(server(1), lease(1));
    hint(&mut at_b, &Hint::PresenceChanged { server: server(1) }).await;
    assert!(a.sees(server(1)) && b.sees(server(1)));
    assert_eq!((a.live.online_servers(), b.live.online_servers()), (online.0 + 1, online.1 + 1));
    // It connects elsewhere before its old connection is seen to end.
    b.attach(server(1), lease(2));
    until("both know the newer lease", || a.live.presence(server(1)).unwrap().lease.0 == lease(2)).await;
    a.detach(server(1), lease(1));
    a.live.device_online(device(5), true);
    until("the device is seen", || b.live.is_device_online(device(5))).await;
    assert!(a.sees(server(1)) && b.sees(server(1)), "the newer lease holds");
    b.detach(server(1), lease(2));
    until("it is gone", || !a.sees(server(1)) && !b.sees(server(1))).await;
    a.live.device_online(device(5), false);
    until("the device is gone", || !b.live.is_device_online(device(5))).await;

    // Whom one locks out is locked out everywhere.
    let lockout =
        Lockout { threshold: 1, window: Duration::from_secs(60), duration: Duration::from_secs(600) };
    let address = format!("2001:db8::{:x}:0:0:0:1", Uuid::new_v4().as_u128() as u16).parse().unwrap();
    assert!(a.live.note_failure(address, lockout, Timestamp::now()));
    until("it is locked out", || b.live.locked_out_until(address, Timestamp::now()).is_some()).await;
    // What one makes worthless is worthless everywhere.
    let (token, now) = (Uuid::new_v4(), Timestamp::now());
    assert!(!b.live.is_token_dead(token, now));
    a.live.kill_token(token, Duration::from_secs(600), now);
    until("it is dead", || b.live.is_token_dead(token, Timestamp::now())).await;
    let left = b.live.locked_out_until(address, Timestamp::now()).unwrap() - Timestamp::now();
    assert!(left.get_seconds() <= 600 && left.get_seconds() > 500);

    // What one changed is not read from a cache.
    let listed = server(1000 + u128::from(round));
    let standing = |replica: &Replica, now: ServerStanding| {
        let cache = replica.live.cache();
        async move { cache.server_standing(listed, async { Ok::<_, ()>(now) }).await.unwrap() }
    };
    assert_eq!(standing(a, ServerStanding::Unregistered).await, ServerStanding::Unregistered);
    assert_eq!(standing(a, ServerStanding::Good).await, ServerStanding::Unregistered, "it is cached");
    b.live.publish(Hint::StatusDirty(listed.0));
    let mut seen = ServerStanding::Unregistered;
    let end = tokio::time::Instant::now() + kit::PATIENCE;
    while seen != ServerStanding::Good && tokio::time::Instant::now() < end {
        seen = standing(a, ServerStanding::Good).await;
    }
    assert_eq!(seen, ServerStanding::Good);

    // One that goes takes its own with it; one that comes is told everything.
    b.attach(server(2), lease(3));
    until("it is seen", || a.sees(server(2))).await;
}

/// What is seen when one signs off, and when one is killed.
async fn ends(a: Replica, b: Replica, c: Replica) {
    until("a newcomer knows", || c.sees(server(2))).await;
    b.live.stop().await;
    drop(b);
    until("its servers are gone", || !a.sees(server(2)) && !c.sees(server(2))).await;
    c.attach(server(4), 4);
    until("it is seen", || a.sees(server(4))).await;
    c.die();
    until("its servers are gone", || !a.sees(server(4))).await;
}

#[tokio::test]
async fn replicas_work_together_over_redis() {
    let (_, url, prefix) = shared_redis();
    let start = || Replica::start(Some(&url), &prefix, None);
    let (a, b) = (start(), start());
    a.hears("redis").await;
    b.hears("redis").await;
    Box::pin(together(&a, &b, 0)).await;
    let c = start();
    Box::pin(ends(a, b, c)).await;
}

#[tokio::test]
async fn replicas_work_together_over_the_database() {
    let shelf = Shelf::new();
    let start = || Replica::start(None, "", Some(&shelf));
    let (a, b) = (start(), start());
    a.hears("database").await;
    b.hears("database").await;
    Box::pin(together(&a, &b, 0)).await;
    let c = start();
    Box::pin(ends(a, b, c)).await;
}

/// Who hears Redis and who does not still hear each other.
#[tokio::test]
async fn one_that_is_cut_off_from_redis_hears_the_others() {
    let (_, url, prefix) = shared_redis();
    let shelf = Shelf::new();
    // Nothing listens at that port: it was given out and given back.
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let a = Replica::start(Some(&url), &prefix, Some(&shelf));
    let b = Replica::start(Some(&format!("redis://{nowhere}")), &prefix, Some(&shelf));
    a.hears("redis").await;
    b.hears("database").await;
    until("one is known to be deaf", || a.live.inner.bus.anybody_deaf()).await;
    Box::pin(together(&a, &b, 0)).await;
    let c = Replica::start(Some(&url), &prefix, Some(&shelf));
    Box::pin(ends(a, b, c)).await;
}

#[tokio::test]
async fn rates_hold_for_all_together() {
    let (_, url, prefix) = shared_redis();
    let start = || Replica::start(Some(&url), &prefix, None);
    let replicas = [start(), start(), start()];
    for replica in &replicas {
        replica.hears("redis").await;
    }
    let (limit, from) = (Limit::per_minute(60), "192.0.2.77".parse().unwrap());
    let try_all = |tries: usize| {
        let each = replicas.iter().map(|replica| {
            let tried =
                (0..tries).filter(|_| replica.live.allow(Counted::Enrolment(from), limit, Timestamp::now()));
            tried.count()
        });
        each.sum::<usize>()
    };
    let at_once = try_all(100);
    assert!((180..=183).contains(&at_once), "each decides by itself at once: {at_once}");
    // What was admitted too much is missing afterwards.
    until("what the others counted is known", || try_all(1) == 0).await;
    let end = tokio::time::Instant::now() + Duration::from_secs(5);
    let mut later = 0;
    while tokio::time::Instant::now() < end {
        later += try_all(1);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // By themselves they would have admitted fifteen. One that was told before others had counted learns the rest with
    // the next it admits.
    assert!(later <= 6, "{later} were admitted");
    // What may be forged is nobody else's business.
    assert!(replicas[0].live.allow(Counted::FirstPacket(from), limit, Timestamp::now()));

    // Failures add up.
    let lockout =
        Lockout { threshold: 5, window: Duration::from_secs(60), duration: Duration::from_secs(60) };
    let from = "192.0.2.78".parse().unwrap();
    for replica in &replicas {
        assert!(!replica.live.note_failure(from, lockout, Timestamp::now()));
        assert!(!replica.live.note_failure(from, lockout, Timestamp::now()));
    }
    for replica in &replicas {
        until("it is locked out", || replica.live.locked_out_until(from, Timestamp::now()).is_some()).await;
    }
    // One that starts later learns it once the address comes.
    let late = start();
    late.hears("redis").await;
    assert!(late.live.locked_out_until(from, Timestamp::now()).is_none());
    assert!(late.live.allow(Counted::Handshake(from), limit, Timestamp::now()));
    until("it is locked out", || late.live.locked_out_until(from, Timestamp::now()).is_some()).await;
}

/// Whoever may notify or publish without having the envelope key is not heard: neither what they say nor whose name they use.
#[tokio::test]
async fn only_replicas_are_heard() {
    let (redis, url, prefix) = shared_redis();
    let shelf = Shelf::new();
    let by_redis = [&(), &()].map(|()| Replica::start(Some(&url), &prefix, None));
    let by_database = [&(), &()].map(|()| Replica::start(None, "", Some(&shelf)));
    let from: std::net::IpAddr = "192.0.2.99".parse().unwrap();
    for ([a, b], by) in [(&by_redis, "redis"), (&by_database, "database")] {
        a.hears(by).await;
        b.hears(by).await;
        let text = format!(r#"{{"r":"{}","n":18446744073709551615,"h":[{{"l":["{from}",600000]}}]}}"#, a.id);
        let other = BusKey::new(&[horizon_model::Secret::new([43; 32])]);
        let elsewhere: &[u8] = if by == "redis" { b"database" } else { b"redis" };
        let forged = [
            text.clone(),
            format!("{}{text}", "0".repeat(super::tag::TAG)),
            other.tagged(by.as_bytes(), &text),
            key().tagged(elsewhere, &text),
        ];
        let malformed = || {
            let name = crate::metrics::NameLabel { name: "malformed" };
            b.metrics.live.hints.get_or_create(&name).get()
        };
        let before = malformed();
        for text in &forged {
            match by {
                "redis" => {
                    drop(redis.cli(["publish", &b.live.inner.keys.channel("system:events"), text]).unwrap())
                }
                _ => shelf.notify(text).await.unwrap(),
            }
        }
        until("they were looked at", || malformed() == before + forged.len() as u64).await;
        assert_eq!(b.live.locked_out_until(from, Timestamp::now()), None);
        // Whose name they used is heard as before.
        let mut at_b = b.live.subscribe();
        a.live.publish(Hint::ResourcesChanged(Revision(3)));
        hint(&mut at_b, &Hint::ResourcesChanged(Revision(3))).await;
        let said = key().tagged(by.as_bytes(), &text);
        match by {
            "redis" => {
                drop(redis.cli(["publish", &b.live.inner.keys.channel("system:events"), &said]).unwrap())
            }
            _ => shelf.notify(&said).await.unwrap(),
        }
        until("a true one is heard", || b.live.locked_out_until(from, Timestamp::now()).is_some()).await;
    }
}

/// A reader that was under way while something changed does not keep the old answer.
#[tokio::test]
async fn what_changed_while_it_was_read_is_not_cached() {
    let (_, url, prefix) = shared_redis();
    let start = || Replica::start(Some(&url), &prefix, None);
    let (a, b) = (Arc::new(start()), start());
    a.hears("redis").await;
    b.hears("redis").await;
    let (cache, (changed, wait)) = (a.live.cache(), tokio::sync::oneshot::channel::<()>());
    let reads = tokio::spawn(async move {
        let old = async {
            wait.await.unwrap();
            Ok::<_, ()>(ServerStanding::Good)
        };
        cache.server_standing(server(9), old).await.unwrap()
    });
    until("it reads", || {
        let key = b.live.inner.keys.cache("server", server(9).0);
        Redis::shared().unwrap().cli(["exists", &key]).unwrap().trim() == "1"
    })
    .await;
    b.live.publish(Hint::ServerChanged(server(9)));
    let mut at_a = a.live.subscribe();
    b.live.publish(Hint::ResourcesChanged(Revision(1)));
    hint(&mut at_a, &Hint::ResourcesChanged(Revision(1))).await;
    until("the mark is gone", || {
        let key = b.live.inner.keys.cache("server", server(9).0);
        Redis::shared().unwrap().cli(["exists", &key]).unwrap().trim() == "0"
    })
    .await;
    changed.send(()).unwrap();
    assert_eq!(reads.await.unwrap(), ServerStanding::Good);
    for replica in [&*a, &b] {
        let now = async { Ok::<_, ()>(ServerStanding::Revoked) };
        assert_eq!(replica.live.cache().server_standing(server(9), now).await, Ok(ServerStanding::Revoked));
    }
}
