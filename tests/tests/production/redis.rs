//! Redis is killed, flushed, frozen and full; nobody notices.

use horizon_services::RedisOptions;
use horizon_tests::lab::within;
use horizon_tests::production::{ClusterOptions, Estate};

use super::{RETURN, SOON, assert_in_force, assert_served, user, wait_until_observed};

#[test]
fn nobody_notices_what_happens_to_it() {
    let redis = RedisOptions { memory: Some(16 << 20), ..RedisOptions::default() };
    let mut estate = Estate::for_test(ClusterOptions { redis, ..ClusterOptions::default() }).unwrap();
    let laptop = estate.connected_device().unwrap();
    let usable = |estate: &Estate, name: &str| {
        estate.cluster.apply(&user(name)).unwrap();
        wait_until_observed(&estate.cluster, "user", name, SOON);
        assert_in_force(estate, &laptop, SOON);
        assert_served(&laptop, estate);
        laptop.disconnect().unwrap();
        within(RETURN, "a new session is granted", || laptop.connect("gateway").ok())
            .unwrap_or_else(|error| panic!("{error}\n{}", estate.logs()));
    };
    usable(&estate, "with-redis");

    estate.cluster.redis.cli(["flushall"]).unwrap();
    usable(&estate, "flushed");

    let large = "x".repeat(100_000);
    assert!((0..400).any(|n| estate.cluster.redis.cli(["set", &format!("filler-{n}"), &large]).is_err()));
    usable(&estate, "full");
    estate.cluster.redis.cli(["flushall"]).unwrap();

    estate.cluster.redis.freeze(0).unwrap();
    usable(&estate, "frozen");
    estate.cluster.redis.thaw(0).unwrap();

    estate.cluster.redis.kill(0).unwrap();
    usable(&estate, "killed");
    assert!(
        estate.pods.iter().all(horizon_tests::production::Pod::is_ready),
        "Redis is no reason not to serve"
    );
    estate.cluster.redis.revive(0).unwrap();
    usable(&estate, "revived");
}
