//! Every right that the manifests give the controller is one that it uses, and it asks for nothing else.

use std::collections::BTreeSet;

use horizon_tests::lab::{Lab, eventually};
use horizon_tests::production::{Cluster, ClusterOptions, NAMESPACE, Pod, SYSTEM};
use horizon_tests::products::{Programs, repository};
use serde_json::{Value, json};

use crate::roles::rights;
use crate::running::declare_more;
use crate::tools::text;

const ACCOUNT: &str = "system:serviceaccount:horizon-system:horizon-controller";

/// Waits for an event of a reason, seen at least `times`, about an object.
fn wait_for_event(cluster: &Cluster, namespace: &str, about: &str, reason: &str, times: u64) {
    let all = || -> Vec<Value> {
        let events = cluster.kube.get(["events.events.k8s.io", "-n", namespace]).unwrap();
        events["items"].as_array().unwrap().clone()
    };
    let count = |event: &Value| event.pointer("/series/count").and_then(Value::as_u64).unwrap_or(1);
    let found = eventually("the event", || {
        let is = |event: &Value| {
            text(event, "/regarding/name") == about && event["reason"] == reason && count(event) >= times
        };
        all().iter().any(is).then_some(())
    });
    assert!(found.is_ok(), "no {times} {reason} about {about}: {:#?}", all());
}

/// Lets the controller do all that it ever does at the API server.
fn everything(cluster: &Cluster) {
    let kube = &cluster.kube;
    let status = |object: &str, pointer: &str| {
        eventually(&format!("{object} shows {pointer}"), || {
            let object = kube.get([object, "-n", NAMESPACE]).ok()?;
            Some(text(&object, pointer).to_owned()).filter(|found| !found.is_empty())
        })
        .unwrap()
    };

    // Taking away all there is asks for a confirmation, as an event about the Lease; twice, and it is counted.
    let only = json!({
        "apiVersion": "horizon.dev/v1alpha1", "kind": "User", "metadata": { "name": "only" }, "spec": {},
    });
    for times in 1..=2 {
        cluster.apply(&only).unwrap();
        status("user/only", "/status/conditions/0/type");
        kube.kubectl(["delete", "user/only", "-n", NAMESPACE]).unwrap();
        wait_for_event(cluster, SYSTEM, "horizon-controller", "PruneHeld", times);
    }
    cluster.apply(&only).unwrap();

    // Every kind has a status; one object is refused, mended, and refused again.
    cluster.declare(&repository().join("examples/quickstart")).unwrap();
    cluster
        .apply(&json!({
            "apiVersion": "horizon.dev/v1alpha1", "kind": "PersonalKey", "metadata": { "name": "ada-1" },
            "spec": { "userRef": "ada" },
        }))
        .unwrap();
    declare_more(cluster);
    let keys = || kube.get(["secret/horizon-keys", "-n", SYSTEM]).unwrap()["data"].clone();
    let before = keys();
    for (kind, name, spec) in [
        ("RotationPolicy", "quarterly", json!({ "target": "personalKeys", "every": "90d" })),
        (
            "KeyRotation",
            "tls-now",
            json!({ "target": "controllerKeys", "names": ["tls"], "type": "emergency", "reason": "a test" }),
        ),
        (
            "DeviceDecision",
            "not-here",
            json!({ "device": "0198c5c0-7a3e-7cc1-9f5e-2b1de8a7f001", "decision": "block", "reason": "a test" }),
        ),
    ] {
        let document = json!({
            "apiVersion": "horizon.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec,
        });
        cluster.apply(&document).unwrap();
    }
    eventually("the Secret has the new key", || (keys() != before).then_some(())).unwrap();
    for object in kube.get(["horizon", "-n", NAMESPACE]).unwrap()["items"].as_array().unwrap() {
        let name = format!("{}/{}", text(object, "/kind"), text(object, "/metadata/name"));
        status(&name, "/status/conditions/0/type");
    }
    wait_for_event(cluster, NAMESPACE, "typo", "Invalid", 1);
    cluster.patch("accesspolicy", "typo", &json!({ "spec": { "servers": ["gateway"] } })).unwrap();
    cluster.wait("condition=Accepted", "accesspolicy/typo").unwrap();
    cluster.patch("accesspolicy", "typo", &json!({ "spec": { "servers": ["nowhere"] } })).unwrap();
    wait_for_event(cluster, NAMESPACE, "typo", "Invalid", 2);

    // A key that goes takes its Secret away. One whose Secret is there already, as when a leader was killed before it could
    // write that down, gets its string into that.
    let name = status("registrationkey/spare-1", "/status/secretRef/name");
    let read = || kube.get(["secret", &name, "-n", NAMESPACE]);
    let mut left = read().unwrap();
    let before = text(&left, "/data/token").to_owned();
    kube.kubectl(["delete", "registrationkey/spare-1", "-n", NAMESPACE, "--cascade=orphan"]).unwrap();
    eventually("the Secret is gone", || read().is_err().then_some(())).unwrap();
    left["metadata"]
        .as_object_mut()
        .unwrap()
        .retain(|field, _| ["name", "labels", "annotations"].contains(&&**field));
    kube.kubectl_with(&left.to_string(), ["create", "-n", NAMESPACE, "-f", "-"]).unwrap();
    cluster
        .apply(&json!({
            "apiVersion": "horizon.dev/v1alpha1", "kind": "RegistrationKey", "metadata": { "name": "spare-1" },
            "spec": { "serverRef": "spare" },
        }))
        .unwrap();
    eventually("another token", || (text(&read().ok()?, "/data/token") != before).then_some(())).unwrap();
}

#[test]
fn the_controller_uses_every_right_and_lacks_none() {
    let programs = Programs::for_tests().unwrap();
    let mut lab = Lab::new().unwrap();
    // One that cannot begin a watch with what there is: elsewhere nothing need be listed.
    let apiserver = vec!["--feature-gates=WatchList=false".to_owned()];
    let options = ClusterOptions { apiserver, ..ClusterOptions::default() };
    let cluster = Cluster::start(lab.public_host("cluster").unwrap(), options).unwrap();
    cluster.install(&[]).unwrap();
    let mut pod = Pod::place(&cluster, lab.public_host("horizon-0").unwrap(), programs).unwrap();
    pod.start().unwrap();
    pod.wait_until_ready().unwrap();
    everything(&cluster);

    // As `NAMESPACE: VERB GROUP/RESOURCE`; what has no namespace is granted in every one.
    let everybody = rights(&cluster.kube, "system:serviceaccount:default:default", NAMESPACE);
    let mut granted = BTreeSet::new();
    for namespace in [NAMESPACE, SYSTEM] {
        for right in rights(&cluster.kube, ACCOUNT, namespace).difference(&everybody) {
            let (right, _) = right.split_once('=').unwrap_or((right, ""));
            let namespace = if right.contains("admissionregistration.k8s.io/") { "" } else { namespace };
            granted.insert(format!("{namespace}: {}", right.replace(" /", " ")));
        }
    }
    let asked = cluster.kube.audited().unwrap().into_iter().filter(|request| request.user == ACCOUNT);
    let (refused, asked): (Vec<_>, Vec<_>) =
        asked.filter(|request| !request.resource.is_empty()).partition(|request| request.status == 403);
    assert!(refused.is_empty(), "{refused:#?}");
    let used: BTreeSet<_> =
        asked.iter().map(|request| format!("{}: {}", request.namespace, request.permission())).collect();
    let unused: Vec<_> = granted.difference(&used).collect();
    assert!(unused.is_empty(), "granted and never used: {unused:#?}\n{}", pod.log());
}
