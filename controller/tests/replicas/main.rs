//! Several controllers on one Postgres database, as processes: who leads, what the others do, and what becomes of a leader
//! that is killed, frozen, or asked to stop, and of all of them when the database is away.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what does not work ends the test, and shows the logs"
)]

mod fleet;

use std::time::{Duration, Instant};

use fleet::{Fleet, WallClock, until};
use horizon_services::{Postgres, PostgresOptions};
use nix::sys::signal::Signal;

#[test]
fn a_leader_that_is_killed_is_replaced_within_five_seconds() {
    let fleet = Fleet::new();
    let mut first = fleet.start("one");
    until("it leads", || first.leads().then_some(()));
    let second = fleet.start("two");
    assert!(!second.leads());
    fleet.declare("ana");
    until("the follower follows", || second.has("ana").then_some(()));

    first.kill();
    fleet.declare("ben");
    let killed = Instant::now();
    until("the other acts", || second.has("ben").then_some(()));
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    println!("a new leader acted {took:?} after the old one was killed");
    assert_eq!(second.figure("leader_epoch"), Some(2));

    // The one that was killed comes back and follows.
    let first = fleet.start("one");
    assert!(first.has("ben") && !first.leads());
    assert_eq!(first.status()["replication"]["leader"], "two");
}

#[test]
fn a_leader_that_was_frozen_writes_nothing_when_it_goes_on() {
    let fleet = Fleet::new();
    let first = fleet.start("one");
    until("it leads", || first.leads().then_some(()));
    let second = fleet.start("two");
    fleet.declare("ana");
    until("it is in force", || second.has("ana").then_some(()));

    first.signal(Signal::SIGSTOP);
    until("the other leads", || second.leads().then_some(()));
    fleet.declare("ben");
    until("the other acts", || second.has("ben").then_some(()));
    let before = fleet.user_changes();
    // The frozen one has all of this before it when it goes on: changed files, a lease that is over.
    fleet.declare("eve");
    first.signal(Signal::SIGCONT);
    until("it knows that it leads no more", || (first.figure("leader") == Some(0)).then_some(()));
    until("both follow", || (first.has("eve") && second.has("eve")).then_some(()));
    assert!(second.leads() && !first.leads());
    let (before, after): (u32, u32) = (before.parse().unwrap(), fleet.user_changes().parse().unwrap());
    assert_eq!(after, before + 1, "each change was written once");
    assert_eq!(fleet.sql("select epoch from leadership"), "2");
    assert!(!first.log().contains("panicked"));
}

#[test]
fn who_stops_hands_over_at_once() {
    let fleet = Fleet::new();
    let mut first = fleet.start("one");
    until("it leads", || first.leads().then_some(()));
    let second = fleet.start("two");
    first.signal(Signal::SIGTERM);
    let asked = Instant::now();
    until("the other leads", || second.leads().then_some(()));
    // Far less than a lease, which would end by itself after 3 s.
    assert!(asked.elapsed() < Duration::from_millis(2500), "it took {:?}", asked.elapsed());
    assert!(first.wait().success());
    assert!(first.log().contains("two.example.org"), "peers are sent to the other one:\n{}", first.log());
    until("it left the roll", || (fleet.sql("select count(*) from replicas") == "1").then_some(()));
}

#[test]
fn every_replica_takes_what_is_asked_of_it() {
    let fleet = Fleet::new();
    let (one, two) = (fleet.start("one"), fleet.start("two"));
    for replica in [&one, &two] {
        assert!(replica.tell(&["token", "home"]).starts_with("hzn-reg-"));
        assert!(replica.tell(&["invite", "ann"]).starts_with("hzn-key-"));
    }
    for replica in [&one, &two] {
        until("all keys show", || {
            let keys = replica.tell(&["get", "all"]);
            (keys.matches("personalkey/ann-").count() == 2 && keys.matches("registrationkey/").count() == 2)
                .then_some(())
        });
    }
    let status = two.tell(&["status"]);
    assert!(status.contains("Database        answers") && status.contains("\nReplicas:\n"), "{status}");
    assert!(status.contains("one (leader), lives") || status.contains("two (leader), lives"), "{status}");

    // Removals that wait are confirmed wherever somebody asks.
    let users: Vec<String> = (0..10).map(|i| format!("u{i}")).collect();
    users.iter().for_each(|user| fleet.declare(user));
    until("they are in force", || two.has("u9").then_some(()));
    until("all are in force", || users.iter().all(|user| two.has(user)).then_some(()));
    users.iter().for_each(|user| fleet.forget(user));
    let follower = if one.leads() { &two } else { &one };
    until("the follower shows what waits", || {
        (follower.status()["prunePending"].as_array()?.len() == 10).then_some(())
    });
    assert!(follower.tell(&["confirm-prune"]).contains("10 resources were let go"));
    until("they are gone", || (!follower.has("u9")).then_some(()));
}

#[test]
fn steps_of_the_wall_clock_elect_and_depose_nobody() {
    let fleet = Fleet::new();
    let (leaders, followers) = (WallClock::new(), WallClock::new());
    let leader = fleet.start_with("one", &leaders.environment());
    until("it leads", || leader.leads().then_some(()));
    let follower = fleet.start_with("two", &followers.environment());
    let renewals = || fleet.sql("select renewals from leadership").parse::<u64>().unwrap();
    let hour = 3600;
    for (n, (one, two)) in
        [(hour, 0), (-hour, 0), (0, hour), (0, -hour), (hour, -hour), (0, 0)].into_iter().enumerate()
    {
        leaders.step(one);
        followers.step(two);
        // More than the lease lasts without being renewed.
        let before = renewals();
        until("the lease is renewed", || (renewals() >= before + 4).then_some(()));
        let user = format!("user-{n}");
        fleet.declare(&user);
        until("the change is in force", || (leader.has(&user) && follower.has(&user)).then_some(()));
        assert!(leader.leads() && !follower.leads(), "{one} s, {two} s");
        assert_eq!((leader.readiness().0, follower.readiness().0), (200, 200));
        let status = follower.status();
        let replicas = status["replication"]["replicas"].as_array().unwrap();
        assert!(replicas.iter().all(|replica| replica["alive"] == true), "{status}");
    }
    assert_eq!(fleet.sql("select epoch from leadership"), "1");
    // The clocks were really stepped.
    leaders.step(hour);
    assert!(leader.tell(&["token", "home"]).starts_with("hzn-reg-"));
    let ahead = fleet
        .sql("select max(creation_date) / 1000 > extract(epoch from now()) + 1800 from registration_keys");
    assert_eq!(ahead, "t");
}

#[test]
fn an_older_schema_is_refused_with_the_command_that_helps() {
    let fleet = Fleet::new();
    let again = fleet.migrate();
    assert!(again.contains("up to date"), "{again}");
    let postgres = Postgres::shared().unwrap();
    let empty = Fleet::on(postgres);
    let refused = empty.refused("one");
    assert!(refused.contains("run `horizon-controller migrate`"), "{refused}");
    let migrated = empty.migrate();
    assert!(migrated.contains("applied"), "{migrated}");
    drop(empty.start("one"));
}

#[test]
fn a_database_that_is_away_ends_nobody() {
    let postgres = Postgres::start(&PostgresOptions::default()).unwrap();
    fleet::roles(&postgres);
    let fleet = Fleet::on(&postgres);
    fleet.migrate();
    let (one, two) = (fleet.start("one"), fleet.start("two"));
    fleet.declare("ana");
    until("it is in force", || (one.has("ana") && two.has("ana")).then_some(()));

    // Connections that break are made anew, and nobody notices.
    postgres.drop_connections().unwrap();
    fleet.declare("ben");
    until("it is in force", || (one.has("ben") && two.has("ben")).then_some(()));

    postgres.kill().unwrap();
    assert_eq!(one.readiness().0, 200, "a moment does not count");
    until("they are not ready", || (one.readiness().0 == 503 && two.readiness().0 == 503).then_some(()));
    assert_ne!(one.status()["database"], "answers");
    assert!(!one.leads() && !two.leads(), "nobody leads without a lease");
    fleet.declare("eve");
    postgres.revive().unwrap();
    until("they are ready", || (one.readiness().0 == 200 && two.readiness().0 == 200).then_some(()));
    until("one leads, and acts", || (one.has("eve") && two.has("eve")).then_some(()));
    assert!(one.leads() != two.leads());
    for replica in [&one, &two] {
        assert!(!replica.log().contains("panicked"), "{}", replica.log());
    }
}
