//! The API server restarts, forgets, is slow, and does not answer.

use std::time::Duration;

use horizon_services::{Proxy, Site};
use horizon_tests::production::{ClusterOptions, Estate};

use super::{SOON, assert_in_force, assert_served, user, wait_until_observed};

#[test]
fn it_restarts_forgets_its_history_and_freezes() {
    let mut estate = Estate::for_test(ClusterOptions::default()).unwrap();
    let laptop = estate.connected_device().unwrap();

    // Killed: sessions go on, and an edit that nobody watched is seen afterwards.
    estate.cluster.kube.kill().unwrap();
    assert_served(&laptop, &estate);
    estate.cluster.kube.compact().unwrap();
    estate.cluster.kube.revive().unwrap();
    estate.cluster.apply(&user("first")).unwrap();
    wait_until_observed(&estate.cluster, "user", "first", SOON);
    assert_in_force(&estate, &laptop, SOON);

    // Frozen for longer than a lease: nobody leads, nothing is lost, one leads again.
    estate.cluster.kube.freeze().unwrap();
    let ready = |estate: &Estate| estate.pods.iter().all(horizon_tests::production::Pod::is_ready);
    horizon_tests::lab::within(SOON, "sessions go on", || {
        (laptop.status().ok()?["phase"] == "connected").then_some(())
    })
    .unwrap();
    assert_served(&laptop, &estate);
    estate.cluster.kube.thaw().unwrap();
    estate.cluster.apply(&user("second")).unwrap();
    wait_until_observed(&estate.cluster, "user", "second", SOON);
    horizon_tests::lab::within(SOON, "all replicas are ready", || ready(&estate).then_some(())).unwrap();
    assert_in_force(&estate, &laptop, SOON);
}

#[test]
fn it_is_slow_and_throttles() {
    let throttled = ["--max-requests-inflight=4", "--max-mutating-requests-inflight=2"].map(str::to_owned);
    let options = ClusterOptions { apiserver: throttled.to_vec(), ..ClusterOptions::default() };
    let mut estate = Estate::for_test(options).unwrap();
    let laptop = estate.connected_device().unwrap();

    let host = estate.cluster.host();
    let site = Site::in_network(host.netns(), host.v4(), host.dir());
    let proxy = Proxy::start(&site, estate.cluster.kube.address()).unwrap();
    for pod in &mut estate.pods {
        pod.process().unwrap().stop().unwrap();
        pod.set("KUBERNETES_SERVICE_PORT", &proxy.address().port().to_string());
        pod.start().unwrap();
    }
    proxy.delay(Duration::from_millis(200));
    estate.pods.iter_mut().for_each(|pod| pod.wait_until_ready().unwrap());
    assert_in_force(&estate, &laptop, SOON);
    for n in 0..20 {
        estate.cluster.apply(&user(&format!("user-{n}"))).unwrap();
    }
    for n in 0..20 {
        wait_until_observed(&estate.cluster, "user", &format!("user-{n}"), SOON);
    }

    // No packet passes for longer than a lease, and then all connections break.
    proxy.hold(true);
    proxy.cut();
    assert_served(&laptop, &estate);
    proxy.hold(false);
    proxy.delay(Duration::ZERO);
    estate.cluster.apply(&user("after")).unwrap();
    wait_until_observed(&estate.cluster, "user", "after", SOON);
    assert_in_force(&estate, &laptop, SOON);
}
