//! What happens to an API server as a whole: restarts, lost history, definitions that are missing, older or looser, and
//! namespaces that end. Its API server is its own, and the tests take turns with it. It lists no objects by watch, as
//! older ones do not.
#![expect(clippy::unwrap_used, reason = "a test that finds nothing fails")]

#[path = "../kubernetes/kit.rs"]
mod kit;

use std::{collections::BTreeSet, sync::OnceLock, time::Duration};

use horizon_controller::{
    engine::{Shown, StatusSink as _, StatusWrite},
    kubernetes::{Events, StatusBudget, Statuses},
};
use horizon_crds::{KindName, Problem};
use horizon_services::{KubeApi, KubeOptions};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

use kit::{Follower, cluster, create, create_users, delete, id, objects_of, until};

/// The API server, for one test at a time.
async fn api() -> (&'static KubeApi, MutexGuard<'static, ()>) {
    static TURN: Mutex<()> = Mutex::const_new(());
    static API: OnceLock<KubeApi> = OnceLock::new();
    let turn = TURN.lock().await;
    let start = || {
        let apiserver = vec!["--feature-gates=WatchList=false".to_owned()];
        KubeApi::start(KubeOptions { apiserver, ..KubeOptions::default() }).unwrap()
    };
    (API.get_or_init(start), turn)
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_and_lost_history_remove_nothing_that_is_there() {
    let (api, _turn) = api().await;
    let namespace = api.fresh_namespace().unwrap();
    let client = cluster(&api.kubeconfig()).await.client;
    create_users(&client, &namespace, 1100).await;
    let mut follower = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    assert!(follower.complete);
    assert_eq!(follower.count(), 1100);
    // An attempt by watch of each kind, which this server refuses; three pages of users and one of each other kind.
    let kinds = KindName::ALL.len() as u64;
    assert_eq!((follower.requests("list"), follower.requests("watch") >= kinds), (kinds + 2, true));

    for round in 0..2 {
        let (gone, new) = (format!("user-{round:05}"), format!("round-{round}"));
        api.kill().unwrap();
        follower.drain();
        api.revive().unwrap();
        // Its history is lost: what happened cannot be told, and has to be found out by listing.
        delete(&client, KindName::User, &namespace, &gone).await;
        create(&client, KindName::User, &namespace, &new, json!({})).await;
        api.compact().unwrap();
        api.kill().unwrap();
        api.revive().unwrap();
        let (gone, new) = (id(KindName::User, &namespace, &gone), id(KindName::User, &namespace, &new));
        follower.until("what changed", |f| f.has(&new) && !f.has(&gone)).await;
        assert_eq!((follower.count(), follower.gone.len()), (1100, round + 1));
    }

    // Frozen, as a machine without a processor: nothing is gone, and afterwards it goes on.
    api.freeze().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    api.thaw().unwrap();
    create(&client, KindName::User, &namespace, "after", json!({})).await;
    let after = id(KindName::User, &namespace, "after");
    follower.until("the rest", |f| f.has(&after)).await;
    assert_eq!(follower.gone.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_definition_is_named_and_removes_nothing() {
    let (api, _turn) = api().await;
    let namespace = api.fresh_namespace().unwrap();
    let client = cluster(&api.kubeconfig()).await.client;
    create(&client, KindName::User, &namespace, "ana", json!({})).await;
    create(&client, KindName::Approval, &namespace, "old", approval()).await;
    let mut follower = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    assert!(follower.complete);
    api.kubectl(["delete", "crd", "approvals.horizon.dev"]).unwrap();
    let lost = |f: &Follower| {
        !f.complete && f.problems.iter().any(|p| p.message.contains("does not know approvals"))
    };
    follower.until("the problem", lost).await;
    assert!(follower.problems[0].remedy.contains("kubectl apply"), "{}", follower.problems[0]);
    // Others go on, but nothing counts as removed until everything is known again.
    create(&client, KindName::User, &namespace, "ben", json!({})).await;
    let ben = id(KindName::User, &namespace, "ben");
    follower.until("another object", |f| f.has(&ben)).await;
    assert!(!follower.complete);
    // One that starts now says the same, without waiting for long.
    let begin = std::time::Instant::now();
    let late = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    assert!(lost(&late) && late.has(&ben) && begin.elapsed() < Duration::from_secs(10));
    api.install_crds().unwrap();
    follower.until("the definition", |f| f.complete && f.problems.is_empty()).await;
}

fn approval() -> Value {
    json!({ "serverRef": "a", "identityDigest": format!("sha256:{}", "ab".repeat(32)) })
}

/// Lets the API server take any network, stores these, and then brings the schema back.
async fn store_loosely(api: &KubeApi, namespace: &str, specs: &[(&str, Value)]) {
    let strict = api.get(["crd", "virtualnetworks.horizon.dev"]).unwrap();
    let mut spec = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let set = |spec: &Value| {
        let patch = json!([{
            "op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec", "value": spec,
        }]);
        api.kubectl(["patch", "crd", "virtualnetworks.horizon.dev", "--type=json", "-p", &patch.to_string()])
            .unwrap();
    };
    set(&spec);
    let client = cluster(&api.kubeconfig()).await.client;
    let networks = objects_of(&client, KindName::VirtualNetwork, namespace);
    for (name, spec) in specs {
        let document = kit::document(KindName::VirtualNetwork, name, spec.clone());
        // The looser schema takes effect soon.
        until("a loose object", || async {
            networks.create(&kube::api::PostParams::default(), &document).await.ok()
        })
        .await;
    }
    spec = strict["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone();
    set(&spec);
    until("the strict schema", || async {
        let document = kit::document(KindName::VirtualNetwork, "probe", json!({ "mtu": "x" }));
        let params = kube::api::PostParams { dry_run: true, ..kube::api::PostParams::default() };
        networks.create(&params, &document).await.is_err().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_older_schema_took_gets_a_condition_and_stops_nothing() {
    let (api, _turn) = api().await;
    let namespace = api.fresh_namespace().unwrap();
    let specs = [
        ("range", json!({ "addressRanges": ["10.0.0.1/99"] })),
        ("choice", json!({ "addressRanges": ["10.1.0.0/24"], "layer": "L7" })),
        ("missing", json!({})),
        ("number", json!({ "addressRanges": ["10.2.0.0/24"], "mtu": "large" })),
        ("list", json!({ "addressRanges": "10.3.0.0/24" })),
        ("large", json!({ "addressRanges": ["10.4.0.0/24"], "domain": "x".repeat(1_450_000) })),
    ];
    store_loosely(api, &namespace, &specs).await;
    let client = cluster(&api.kubeconfig()).await.client;
    create(
        &client,
        KindName::VirtualNetwork,
        &namespace,
        "good",
        json!({ "addressRanges": ["10.5.0.0/24"] }),
    )
    .await;
    let mut follower = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    assert!(follower.complete);
    let network = |name: &str| id(KindName::VirtualNetwork, &namespace, name);
    assert!(follower.has(&network("good")));
    let events = Events::start(&follower.cluster, "test-0");
    let (cluster, objects) = (follower.cluster.clone(), follower.objects.clone());
    let (statuses, _writing) = Statuses::start(cluster, objects, events, StatusBudget::default(), || true);
    let write = |follower: &Follower, name: &str| {
        let id = network(name);
        let problems: Vec<Problem> = follower.file(&id).unwrap().problems.clone();
        assert!(!problems.is_empty(), "{name} is malformed");
        StatusWrite { object: follower.desired.object(&id), id, what: Shown::Rejected { problems } }
    };
    for (name, _) in &specs {
        statuses.show(vec![write(&follower, name)]);
    }
    let accepted = |name: &'static str| {
        let networks = objects_of(&client, KindName::VirtualNetwork, &namespace);
        async move {
            until("the condition", || async {
                let object = networks.get(name).await.unwrap();
                let condition = object.data["status"]["conditions"].as_array()?.first()?.clone();
                (condition["type"] == "Accepted").then_some(condition)
            })
            .await
        }
    };
    for name in ["range", "choice", "missing", "number"] {
        let condition = accepted(name).await;
        assert_eq!(
            (&condition["status"], &condition["reason"]),
            (&json!("False"), &json!("Invalid")),
            "{name}"
        );
        let message = condition["message"].as_str().unwrap();
        assert!(message.starts_with("spec.") && !message.contains("kubernetes/"), "{message}");
    }
    // For what is so malformed that the API server takes no status, and for what is as large as it may be, there are
    // events, as there are for the others.
    let told = || async {
        let list = api.get(["events.events.k8s.io", "-n", &namespace]).unwrap();
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let name = |event: &Value| event["regarding"]["name"].as_str().map(str::to_owned);
        let names: BTreeSet<_> =
            items.iter().filter(|event| event["reason"] == "Invalid").filter_map(name).collect();
        (names.len() == specs.len()).then_some(())
    };
    until("the events", told).await;
    let said_at = accepted("choice").await["lastTransitionTime"].clone();

    // Another leader says it again, and nothing changes; not even when it happened.
    let other = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    let events = Events::start(&other.cluster, "test-1");
    let (cluster, objects) = (other.cluster.clone(), other.objects.clone());
    let (again, _writing) = Statuses::start(cluster, objects, events, StatusBudget::default(), || true);
    for name in ["choice", "missing"] {
        again.show(vec![write(&other, name)]);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(other.requests("patch"), 0);
    assert_eq!(accepted("choice").await["lastTransitionTime"], said_at);

    // Mended, it is taken.
    let mended = json!({ "spec": { "addressRanges": ["10.6.0.0/24"] } });
    kit::merge(&client, KindName::VirtualNetwork, &namespace, "missing", mended).await;
    follower.until("the mended object", |f| f.has(&network("missing"))).await;
    assert_eq!(follower.desired.object(&network("missing")).map(|object| object.generation), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_with_a_thousand_objects_ends() {
    let (api, _turn) = api().await;
    let namespace = api.fresh_namespace().unwrap();
    let client = cluster(&api.kubeconfig()).await.client;
    create_users(&client, &namespace, 1000).await;
    let mut follower = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    assert_eq!(follower.count(), 1000);
    // Nobody answers for the objects: no finalizer waits for an appliance, or for the controller.
    api.kubectl(["delete", "namespace", &namespace, "--wait=true", "--timeout=100s"]).unwrap();
    follower.until("the end of all", |f| f.count() == 0).await;
    assert!(follower.complete);
}
