//! The leader's Lease.

use std::time::Duration;

use horizon_controller::{
    kubernetes::{Cluster, KubernetesLease, LEASE},
    replica::{Attempt, Elector as _},
};
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::MicroTime};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::Instant;

use crate::kit::{account, api, cluster};

const DURATION: Duration = Duration::from_secs(1);

/// A cluster in which the controller is in `namespace`, with the rights to the Lease alone.
async fn place(namespace: &str) -> Cluster {
    let api = api();
    let config = account(api, namespace, "leader");
    api.kubectl([
        "create",
        "role",
        "lease",
        "-n",
        namespace,
        "--verb=get,create,update",
        "--resource=leases.coordination.k8s.io",
    ])
    .unwrap();
    let bound = format!("--serviceaccount={namespace}:leader");
    api.kubectl(["create", "rolebinding", "lease", "-n", namespace, "--role=lease", &bound]).unwrap();
    cluster(&config).await
}

fn replica(cluster: &Cluster, name: &str) -> KubernetesLease {
    KubernetesLease::new(cluster, format!("{name}_1"), DURATION)
}

fn other(name: &str) -> Attempt {
    Attempt::Other { name: Some(name.to_owned()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_leads_until_it_stops_or_falls_silent() {
    let namespace = api().fresh_namespace().unwrap();
    let cluster = place(&namespace).await;
    assert_eq!(cluster.namespace, namespace);
    let (mut a, mut b) = (replica(&cluster, "a"), replica(&cluster, "b"));
    assert_eq!(a.attempt().await.unwrap(), Attempt::Held(None));
    assert_eq!(b.attempt().await.unwrap(), other("a"));
    let begin = Instant::now();
    while begin.elapsed() < DURATION * 2 {
        assert_eq!(a.attempt().await.unwrap(), Attempt::Held(None));
        assert_eq!(b.attempt().await.unwrap(), other("a"), "it is renewed");
        tokio::time::sleep(DURATION / 10).await;
    }
    // Given up: taken at once.
    a.release().await.unwrap();
    assert_eq!(b.attempt().await.unwrap(), Attempt::Held(None));
    assert_eq!(a.attempt().await.unwrap(), other("b"));
    // Fallen silent: taken when a has watched it for the whole time, and not before.
    let begin = Instant::now();
    while a.attempt().await.unwrap() != Attempt::Held(None) {
        tokio::time::sleep(DURATION / 20).await;
    }
    assert!(begin.elapsed() >= DURATION - DURATION / 10, "{:?}", begin.elapsed());
    // The one that fell silent finds out at its next attempt.
    assert_eq!(b.attempt().await.unwrap(), other("a"));
    let leases: Api<Lease> =
        Api::namespaced(crate::kit::cluster(&api().kubeconfig()).await.client, &namespace);
    let spec = leases.get(LEASE).await.unwrap().spec.unwrap();
    assert_eq!(spec.lease_transitions, Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clocks_say_makes_nobody_a_leader() {
    let namespace = api().fresh_namespace().unwrap();
    let cluster = place(&namespace).await;
    let (mut a, mut b) = (replica(&cluster, "a"), replica(&cluster, "b"));
    let leases: Api<Lease> =
        Api::namespaced(crate::kit::cluster(&api().kubeconfig()).await.client, &namespace);
    assert_eq!(a.attempt().await.unwrap(), Attempt::Held(None));
    for hours in [-1, 1] {
        let time = MicroTime(jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours));
        let step = json!({ "spec": { "renewTime": time, "acquireTime": time } });
        leases.patch(LEASE, &PatchParams::default(), &Patch::Merge(step)).await.unwrap();
        assert_eq!(b.attempt().await.unwrap(), other("a"), "an hour is not what b has watched");
        // The holder's own version is an old one now: it looks, and goes on.
        assert_eq!(a.attempt().await.unwrap(), Attempt::Held(None));
    }
    let begin = Instant::now();
    assert_eq!(b.attempt().await.unwrap(), other("a"));
    while b.attempt().await.unwrap() != Attempt::Held(None) {
        tokio::time::sleep(DURATION / 20).await;
    }
    assert!(begin.elapsed() >= DURATION - DURATION / 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_try_at_once_one_leads() {
    let namespace = api().fresh_namespace().unwrap();
    let cluster = place(&namespace).await;
    for _ in 0..3 {
        let mut replicas: Vec<_> = (0..8).map(|number| replica(&cluster, &format!("r{number}"))).collect();
        let attempts =
            futures_util::future::join_all(replicas.iter_mut().map(|replica| replica.attempt())).await;
        let held: Vec<_> = attempts.iter().map(|attempt| matches!(attempt, Ok(Attempt::Held(_)))).collect();
        assert_eq!(held.iter().filter(|held| **held).count(), 1, "{attempts:?}");
        for (replica, _) in replicas.iter_mut().zip(held).filter(|(_, held)| *held) {
            replica.release().await.unwrap();
        }
    }
}
