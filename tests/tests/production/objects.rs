//! Objects that are wrong, large, many, or claim what another has.

use std::collections::BTreeMap;

use horizon_tests::lab::within;
use horizon_tests::production::{ClusterOptions, Estate, NAMESPACE};
use horizon_tests::products::repository;
use serde_json::{Value, json};

use super::{RETURN, SOON, assert_in_force, assert_served, user, wait_until_observed};

fn condition<'o>(object: &'o Value, kind: &str) -> Option<&'o Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

#[test]
fn wrong_and_large_objects_get_a_condition_and_stop_nothing() {
    let mut estate = Estate::for_test(ClusterOptions::default()).unwrap();
    let laptop = estate.connected_device().unwrap();
    let cluster = &estate.cluster;

    // A reference to nothing.
    let policy = json!({
        "apiVersion": "horizon.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"name": "dangling"},
        "spec": {"subjects": {"users": ["nobody"]}, "servers": ["nowhere"], "destinations": [{"cidr": "::/0"}]},
    });
    cluster.apply(&policy).unwrap();
    let policy = wait_until_observed(cluster, "accesspolicy", "dangling", SOON);
    let accepted = condition(&policy, "Accepted").unwrap();
    assert_eq!(accepted["status"], "False");
    assert!(accepted["message"].as_str().unwrap().contains("there is no User \"nobody\""), "{accepted}");

    // As much as an API server takes: 1.5 MB with all that it adds.
    let mut large = user("large");
    let labels: BTreeMap<_, _> = (0..9_000).map(|n| (format!("{n:0>60}"), format!("{n:0>40}"))).collect();
    large["metadata"]["labels"] = json!(labels);
    let created = cluster.kube.kubectl_with(&large.to_string(), ["create", "-n", NAMESPACE, "-f", "-"]);
    created.unwrap();
    let mut larger = user("larger");
    larger["metadata"]["labels"] =
        json!((0..30_000).map(|n| (format!("{n:0>60}"), "x".repeat(60))).collect::<BTreeMap<_, _>>());
    let refused = cluster.kube.kubectl_refused(&larger.to_string(), ["create", "-n", NAMESPACE, "-f", "-"]);
    let refused = refused.unwrap().to_lowercase();
    assert!(refused.contains("too large") || refused.contains("limit"), "{refused}");

    // What an older, looser schema let in.
    let crd = repository().join("crds/yaml/users.yaml").display().to_string();
    let loose = r#"[{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec", "value":
        {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}]"#;
    cluster.kube.kubectl(["patch", "crd", "users.horizon.dev", "--type=json", "-p", loose]).unwrap();
    let mut malformed = user("malformed");
    malformed["spec"] = json!({"deviceLimit": "many", "colour": "red"});
    within(SOON, "the looser schema is in force", || cluster.apply(&malformed).ok()).unwrap();
    cluster.kube.kubectl(["apply", "--server-side", "--force-conflicts", "-f", &crd]).unwrap();
    within(SOON, "the malformed user has a condition", || {
        let object = cluster.object("user", "malformed").ok()?;
        (condition(&object, "Accepted")?["status"] == "False").then_some(())
    })
    .unwrap_or_else(|error| {
        panic!("{error}: {}\n{}", cluster.object("user", "malformed").unwrap(), estate.logs())
    });

    // All of them together stop nothing.
    cluster.apply(&user("fine")).unwrap();
    wait_until_observed(cluster, "user", "fine", SOON);
    assert_in_force(&estate, &laptop, SOON);
    assert_served(&laptop, &estate);
}

#[test]
fn two_servers_never_are_one_machine_at_once() {
    let mut estate = Estate::for_test(ClusterOptions::default()).unwrap();
    let berlin = json!({
        "apiVersion": "horizon.dev/v1alpha1", "kind": "Server", "metadata": {"name": "berlin"}, "spec": {},
    });
    estate.cluster.apply(&berlin).unwrap();
    let token = estate.cluster.registration_token("berlin").unwrap();
    estate.appliance.process().unwrap().stop().unwrap();
    let refusal = estate.appliance.cli(["enroll", &token]).refused().unwrap();
    assert!(refusal.contains("--force"), "{refusal}");
    estate.appliance.cli(["enroll", &token, "--force"]).ok().unwrap();
    estate.appliance.start().unwrap();
    estate.cluster.wait("condition=Online", "server/berlin").unwrap();
    let online = |name: &str| {
        let server = estate.cluster.object("server", name).unwrap();
        condition(&server, "Online").unwrap()["status"].as_str().unwrap().to_owned()
    };
    // Online is damped, so that a short absence is none.
    within(3 * RETURN, "the other is offline", || (online("gateway") == "False").then_some(())).unwrap();
    assert_eq!(online("berlin"), "True");
}

#[test]
fn a_namespace_with_a_thousand_objects_and_a_dead_appliance_ends() {
    let mut estate = Estate::for_test(ClusterOptions::default()).unwrap();
    let users: Vec<_> = (0..1_000).map(|n| user(&format!("user-{n}"))).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": users});
    estate.cluster.apply(&list).unwrap();
    wait_until_observed(&estate.cluster, "user", "user-999", RETURN);
    estate.appliance.process().unwrap().kill().unwrap();
    estate.cluster.kube.kubectl(["delete", "namespace", NAMESPACE, "--timeout=120s"]).unwrap();
}
