//! PostgreSQL is killed, loses its connections, freezes, and its disk is full.

use horizon_services::PostgresOptions;
use horizon_tests::lab::within;
use horizon_tests::production::{ClusterOptions, Estate};

use super::{RETURN, SOON, assert_in_force, assert_served, user, wait_until_observed};

#[test]
fn it_is_killed_under_load_and_nothing_acknowledged_is_lost() {
    let mut estate = Estate::for_test(ClusterOptions::default()).unwrap();
    let laptop = estate.connected_device().unwrap();
    for n in 0..10 {
        estate.cluster.apply(&user(&format!("before-{n}"))).unwrap();
    }
    estate.cluster.postgres.kill().unwrap();
    for n in 0..10 {
        estate.cluster.apply(&user(&format!("during-{n}"))).unwrap();
    }
    assert_served(&laptop, &estate);
    estate.cluster.postgres.revive().unwrap();
    for n in 0..10 {
        wait_until_observed(&estate.cluster, "user", &format!("before-{n}"), SOON);
        wait_until_observed(&estate.cluster, "user", &format!("during-{n}"), SOON);
    }
    assert_in_force(&estate, &laptop, RETURN);

    // All connections at once, again and again, in the middle of changes.
    for _ in 0..5 {
        estate.cluster.postgres.drop_connections().unwrap();
        assert_in_force(&estate, &laptop, SOON);
    }
    estate.cluster.postgres.freeze().unwrap();
    assert_served(&laptop, &estate);
    estate.cluster.postgres.thaw().unwrap();
    laptop.disconnect().unwrap();
    within(RETURN, "a new session is granted", || laptop.connect("gateway").ok()).unwrap();
    assert_served(&laptop, &estate);
}

#[test]
fn its_disk_is_full_and_has_room_again() {
    let postgres = PostgresOptions { disk: Some(256 << 20), ..PostgresOptions::default() };
    let mut estate = Estate::for_test(ClusterOptions { postgres, ..ClusterOptions::default() }).unwrap();
    let laptop = estate.connected_device().unwrap();
    estate.cluster.postgres.fill_disk().unwrap();
    // More than fits into what the database has in reserve.
    let fill = "create table filler as select i, repeat('x', 1000) from generate_series(1, 100000) i";
    estate.cluster.postgres.psql(fill).unwrap_err();
    estate.cluster.apply(&user("during")).unwrap();
    assert_served(&laptop, &estate);
    estate.cluster.postgres.free_disk().unwrap();
    if estate.cluster.postgres.psql("select 1").is_err() {
        estate.cluster.postgres.kill().unwrap();
        estate.cluster.postgres.revive().unwrap();
    }
    wait_until_observed(&estate.cluster, "user", "during", RETURN);
    assert_in_force(&estate, &laptop, RETURN);
}
