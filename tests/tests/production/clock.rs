//! The clocks of the machines are set by an hour.

use horizon_tests::lab::within;
use horizon_tests::production::{ClusterOptions, Estate};

use super::{RETURN, SOON, assert_in_force, assert_served, user, wait_until_observed};

#[test]
fn a_controllers_clock_is_set_by_an_hour_and_back() {
    let mut estate = Estate::for_test(ClusterOptions::default()).unwrap();
    let laptop = estate.connected_device().unwrap();
    for pod in &mut estate.pods {
        pod.process().unwrap().stop().unwrap();
        pod.fake_clock().unwrap();
        pod.start().unwrap();
        pod.wait_until_ready().unwrap();
    }
    assert_in_force(&estate, &laptop, RETURN);
    for (n, offset) in ["+3600", "-3600", "+0"].into_iter().enumerate() {
        let (leader, _) = estate.leader_and_follower().unwrap();
        estate.pods[leader].set_clock(offset).unwrap();
        let name = format!("step-{n}");
        estate.cluster.apply(&user(&name)).unwrap();
        wait_until_observed(&estate.cluster, "user", &name, SOON);
        assert_in_force(&estate, &laptop, SOON);
        assert_served(&laptop, &estate);
        assert_eq!(laptop.status().unwrap()["phase"], "connected");
        estate.pods[leader].set_clock("+0").unwrap();
    }
    within(SOON, "a new session is granted", || {
        laptop.disconnect().ok()?;
        laptop.connect("gateway").ok()
    })
    .unwrap();
}
