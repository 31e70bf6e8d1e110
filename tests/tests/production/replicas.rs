//! Two replicas, of which one fails.

use horizon_tests::lab::within;
use horizon_tests::production::{ClusterOptions, Estate};
use rustix::process::Signal;

use super::{RETURN, SOON, assert_in_force, assert_served, user, wait_until_observed};

#[test]
fn a_killed_leader_is_replaced_and_no_session_ends() {
    let mut estate = Estate::for_test(ClusterOptions::default()).unwrap();
    let laptop = estate.connected_device().unwrap();
    let (leader, follower) = estate.leader_and_follower().unwrap();
    estate.pods[leader].process().unwrap().kill().unwrap();
    // Acknowledged by the API server while nobody leads.
    estate.cluster.apply(&user("written")).unwrap();
    wait_until_observed(&estate.cluster, "user", "written", SOON);
    assert!(estate.pods[follower].is(&estate.cluster.leader().unwrap()));
    assert_served(&laptop, &estate);
    assert_in_force(&estate, &laptop, RETURN);
    assert_eq!(laptop.status().unwrap()["phase"], "connected");
    estate.pods[leader].start().unwrap();
    estate.pods[leader].wait_until_ready().unwrap();
    laptop.disconnect().unwrap();
    within(RETURN, "a new session is granted", || laptop.connect("gateway").ok()).unwrap();
    assert_served(&laptop, &estate);
}

#[test]
fn a_leader_frozen_past_its_lease_writes_nothing_when_it_goes_on() {
    let mut estate = Estate::for_test(ClusterOptions::default()).unwrap();
    let laptop = estate.connected_device().unwrap();
    let (frozen, other) = estate.leader_and_follower().unwrap();
    estate.pods[frozen].process().unwrap().signal(Signal::STOP).unwrap();
    within(SOON, "the other replica leads", || {
        estate.cluster.leader().filter(|holder| estate.pods[other].is(holder)).map(drop)
    })
    .unwrap();
    assert_in_force(&estate, &laptop, RETURN);
    // Something it would write about if it still believed to lead.
    estate.cluster.apply(&user("meanwhile")).unwrap();
    wait_until_observed(&estate.cluster, "user", "meanwhile", SOON);

    let before = estate.cluster.kube.audited().unwrap().len();
    let epochs = "select max(epoch) from leadership";
    let epoch = estate.cluster.postgres.psql_in("horizon", epochs).unwrap();
    estate.pods[frozen].process().unwrap().signal(Signal::CONT).unwrap();
    estate.pods[frozen].wait_until_ready().unwrap();
    estate.cluster.apply(&user("after")).unwrap();
    wait_until_observed(&estate.cluster, "user", "after", SOON);
    assert_in_force(&estate, &laptop, SOON);

    let address = estate.pods[frozen].host().v4().to_string();
    let written: Vec<_> = estate.cluster.kube.audited().unwrap()[before..]
        .iter()
        .filter(|request| request.source == address && request.status < 300)
        .filter(|request| !["get", "list", "watch"].contains(&request.verb.as_str()))
        .map(|request| format!("{} {}", request.permission(), request.name))
        .collect();
    assert!(written.is_empty(), "the frozen replica wrote: {written:?}");
    assert_eq!(estate.cluster.postgres.psql_in("horizon", epochs).unwrap(), epoch, "somebody else led since");
    assert!(estate.pods[other].is(&estate.cluster.leader().unwrap()));
    assert_served(&laptop, &estate);
}
