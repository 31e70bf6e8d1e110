//! Every key: what it is called, what is there, and for how long.

use std::time::Duration;

use horizon_controller_core::ServerStanding;
use horizon_services::Redis;
use jiff::Timestamp;
use uuid::Uuid;

use super::kit::{Replica, device, server, shared_redis, until};
use crate::live::{Counted, Limit, Live as _, Lockout};

struct Looks<'a> {
    redis: &'a Redis,
    prefix: &'a str,
}

impl Looks<'_> {
    fn ask<const N: usize>(&self, words: [&str; N]) -> String {
        self.redis.cli(words).unwrap().trim().to_owned()
    }

    /// Waits until a key is there; its lifetime in milliseconds is above 0 and at most `longest`.
    async fn key(&self, name: &str, kind: &str, longest: Duration) -> String {
        let key = format!("{}{name}", self.prefix);
        until(name, || self.ask(["exists", &key]) == "1").await;
        assert_eq!(self.ask(["type", &key]), kind, "{name}");
        let left: i64 = self.ask(["pttl", &key]).parse().unwrap();
        assert!(
            left > 0 && left <= i64::try_from(longest.as_millis()).unwrap(),
            "{name} lives for {left} ms"
        );
        key
    }
}

#[tokio::test]
async fn every_key_has_its_name_its_kind_and_a_lifetime() {
    let (redis, url, prefix) = shared_redis();
    let looks = Looks { redis, prefix: &prefix };
    let replica = Replica::start(Some(&url), &prefix, None);
    replica.hears("redis").await;
    let (id, now) = (replica.id, Timestamp::now());
    let renewed = Duration::from_secs(15);

    replica.attach(server(1), 3);
    replica.live.device_online(device(2), true);
    let replicas = looks.key("presence:replicas", "set", renewed).await;
    assert_eq!(looks.ask(["smembers", &replicas]), id.to_string());
    let servers = looks.key(&format!("presence:servers:{id}"), "hash", renewed).await;
    until("the server is there", || looks.ask(["hget", &servers, &server(1).to_string()]).contains(" 3 "))
        .await;
    let devices = looks.key(&format!("presence:devices:{id}"), "set", renewed).await;
    assert_eq!(looks.ask(["smembers", &devices]), device(2).to_string());

    let from = "198.51.100.9".parse().unwrap();
    for (what, name) in [
        (Counted::Handshake(from), "handshake"),
        (Counted::Registration(from), "registration"),
        (Counted::Enrolment(from), "enrolment"),
        (Counted::Request(from), "request"),
        (Counted::SignIn(from), "sign-in"),
    ] {
        assert!(replica.live.allow(what, Limit::per_minute(2), now));
        let key = looks.key(&format!("ratelimit:ip:{from}:{name}"), "string", Duration::from_secs(60)).await;
        let left: u64 = looks.ask(["pttl", &key]).parse().unwrap();
        assert!(left <= 30_000, "one of two in a minute uses half of it up, not {left} ms");
    }
    let user = Uuid::from_u128(7);
    for (what, name) in [
        (Counted::RequestOf(user), format!("ratelimit:user:{user}")),
        (Counted::RequestTo("GET /v1/servers"), "ratelimit:endpoint:GET /v1/servers".to_owned()),
    ] {
        assert!(replica.live.allow(what, Limit::per_minute(2), now));
        looks.key(&name, "string", Duration::from_secs(60)).await;
    }
    let token = Uuid::from_u128(8);
    replica.live.kill_token(token, Duration::from_secs(600), now);
    looks.key(&format!("blacklist:token:{token}"), "string", Duration::from_secs(600)).await;
    let lockout =
        Lockout { threshold: 2, window: Duration::from_secs(40), duration: Duration::from_secs(90) };
    assert!(!replica.live.note_failure(from, lockout, now));
    let failures = looks.key(&format!("failures:ip:{from}"), "string", lockout.window).await;
    assert_eq!(looks.ask(["get", &failures]), "1");
    assert!(replica.live.note_failure(from, lockout, now));
    looks.key(&format!("lockout:ip:{from}"), "string", lockout.duration).await;

    let read = async { Ok::<_, ()>(ServerStanding::Good) };
    replica.live.cache().server_standing(server(1), read).await.unwrap();
    let cached = looks.key(&format!("cache:server:{}", server(1)), "string", Duration::from_secs(60)).await;
    assert_eq!(looks.ask(["get", &cached]), "good");

    // There is nothing else.
    let mut keys: Vec<_> = looks.ask(["keys", &format!("{prefix}*")]).lines().map(str::to_owned).collect();
    keys.retain(|key| {
        ![
            "presence:",
            "ratelimit:ip:",
            "ratelimit:user:",
            "ratelimit:endpoint:",
            "blacklist:token:",
            "failures:ip:",
            "lockout:ip:",
            "cache:server:",
        ]
        .iter()
        .any(|known| key.starts_with(&format!("{prefix}{known}")))
    });
    assert_eq!(keys, Vec::<String>::new());

    // Signed off, it leaves no presence behind.
    replica.live.stop().await;
    assert_eq!(looks.ask(["exists", &replicas, &servers, &devices]), "0");
}
