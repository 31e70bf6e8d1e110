//! Statuses and events on their way back.

use std::{sync::Arc, time::Duration};

use horizon_controller::{
    engine::{Shown, StatusSink as _, StatusWrite},
    kubernetes::{Events, FIELD_MANAGER, StatusBudget, Statuses, Writing},
};
use horizon_controller_core::{Origin, Stored, status::Status};
use horizon_crds::{
    Condition, ConditionType, KindName, ResourceId, ServerPhase, ServerStatus, Text, set_condition,
};
use kube::api::DynamicObject;
use serde_json::{Value, json};

use crate::kit::{Follower, api, cluster, create, id, merge, objects_of, until};

/// A server's status as the engine makes it, about the store's own generation 1.
pub(crate) fn status(phase: ServerPhase, online: bool) -> Status {
    let mut status = ServerStatus { phase: Some(phase), observed_generation: 1, ..ServerStatus::default() };
    for (kind, holds) in [(ConditionType::Accepted, true), (ConditionType::Online, online)] {
        let condition = Condition {
            kind,
            status: holds.into(),
            reason: Text::lossy("Tested"),
            message: Text::lossy("a test says so"),
            observed_generation: 1,
            last_transition_time: "2026-01-01T00:00:00Z".parse().unwrap(),
        };
        set_condition(&mut status.conditions, condition);
    }
    Status::Server(Box::new(status))
}

pub(crate) fn write(
    follower: &Follower,
    id: &ResourceId,
    status: Status,
    before: Option<Status>,
) -> StatusWrite {
    let stored = Arc::new(Stored {
        resource: follower.candidate(id).unwrap().resource.clone(),
        uid: uuid::Uuid::nil(),
        generation: 1,
        origin: Origin::Api,
        number: None,
        created_at: jiff::Timestamp::UNIX_EPOCH,
    });
    let what = Shown::InForce {
        stored,
        status: Box::new(status),
        before: before.map(Box::new),
        problems: Vec::new(),
    };
    StatusWrite { id: id.clone(), object: follower.desired.object(id), what }
}

pub(crate) fn sink(follower: &Follower) -> (Statuses, Writing) {
    let events = Events::start(&follower.cluster, "test-0");
    let (cluster, objects) = (follower.cluster.clone(), follower.objects.clone());
    Statuses::start(cluster, objects, events, StatusBudget::default(), || true)
}

async fn shown(
    follower: &Follower,
    id: &ResourceId,
    check: impl Fn(&DynamicObject) -> bool,
) -> DynamicObject {
    let objects = objects_of(&follower.cluster.client, id.kind, id.namespace.as_str());
    until("the status", || async {
        let object = objects.get(id.name.as_str()).await.unwrap();
        check(&object).then_some(object)
    })
    .await
}

/// Waits until as many writes were answered, and makes sure that there were no more.
async fn written(follower: &Follower, count: u64) {
    until("the answers", || async { (follower.requests("patch") >= count).then_some(()) }).await;
    assert_eq!(follower.requests("patch"), count);
}

fn phase(object: &DynamicObject) -> &Value {
    &object.data["status"]["phase"]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condition_can_be_waited_for() {
    let api = api();
    let namespace = api.fresh_namespace().unwrap();
    let mut follower = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    let client = follower.cluster.client.clone();
    create(&client, KindName::Server, &namespace, "paris-1", json!({})).await;
    merge(&client, KindName::Server, &namespace, "paris-1", json!({ "spec": { "location": "Paris" } })).await;
    let paris = id(KindName::Server, &namespace, "paris-1");
    let second = |f: &Follower| f.desired.object(&paris).is_some_and(|object| object.generation == 2);
    follower.until("the object", second).await;
    let (statuses, _writing) = sink(&follower);
    statuses.show(vec![write(&follower, &paris, status(ServerPhase::Active, true), None)]);
    api.kubectl(["wait", "--for=condition=Online", "server/paris-1", "-n", &namespace, "--timeout=60s"])
        .unwrap();
    let object = shown(&follower, &paris, |_| true).await;
    let written = &object.data["status"];
    assert_eq!(written["observedGeneration"], 2, "that of the object");
    assert_eq!(written["conditions"][0]["observedGeneration"], 2);
    assert_eq!(object.metadata.generation, Some(2), "a status changes no generation");
    let fields = object.metadata.managed_fields.unwrap();
    let ours: Vec<_> = fields.iter().filter(|f| f.manager.as_deref() == Some(FIELD_MANAGER)).collect();
    assert_eq!(ours.len(), 1);
    assert_eq!(
        (ours[0].operation.as_deref(), ours[0].subresource.as_deref()),
        (Some("Apply"), Some("status"))
    );
    let table = api.kubectl(["get", "servers", "paris-1", "-n", &namespace, "--no-headers"]).unwrap();
    assert!(table.contains("active") && table.contains("True"), "{table}");
    let all = api.kubectl(["get", "horizon", "-n", &namespace, "-o", "name"]).unwrap();
    assert_eq!(all.trim(), "server.horizon.dev/paris-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_object_shows_already_is_not_written_again() {
    let api = api();
    let namespace = api.fresh_namespace().unwrap();
    let mut follower = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    let text = format!(
        "{{apiVersion: horizon.dev/v1alpha1, kind: Server, metadata: {{name: oslo, namespace: {namespace}}}, spec: {{}}}}"
    );
    api.kubectl_with(&text, ["apply", "-f", "-"]).unwrap();
    let oslo = id(KindName::Server, &namespace, "oslo");
    follower.until("the object", |f| f.has(&oslo)).await;
    let (statuses, _writing) = sink(&follower);
    let show = |phase, online| statuses.show(vec![write(&follower, &oslo, status(phase, online), None)]);
    show(ServerPhase::Pending, false);
    let version = |object: &DynamicObject| object.metadata.resource_version.clone().unwrap();
    let first = version(&shown(&follower, &oslo, |object| phase(object) == "pending").await);
    // The same again, many times, and then something else: exactly one more write.
    for _ in 0..50 {
        show(ServerPhase::Pending, false);
    }
    show(ServerPhase::Active, true);
    shown(&follower, &oslo, |object| phase(object) == "active").await;
    written(&follower, 2).await;
    // Nothing is left over for GitOps tools to fight about.
    let unchanged = api.kubectl_with(&text, ["apply", "-f", "-"]).unwrap();
    assert!(unchanged.contains("unchanged"), "{unchanged}");
    api.kubectl_with(&text, ["diff", "-f", "-"]).unwrap();
    assert!(follower.drain() == 0, "a status is no change of what is declared");

    // Another leader knows nothing of these writes, and finds that there is nothing to write.
    let other = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    let (statuses, _writing) = sink(&other);
    statuses.show(vec![write(&other, &oslo, status(ServerPhase::Active, true), None)]);
    statuses.show(vec![write(&other, &oslo, status(ServerPhase::Maintenance, true), None)]);
    let last = version(&shown(&other, &oslo, |object| phase(object) == "maintenance").await);
    written(&other, 1).await;
    assert_ne!(first, last);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_about_an_earlier_object_is_never_written() {
    let api = api();
    let namespace = api.fresh_namespace().unwrap();
    let mut follower = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    let client = cluster(&api.kubeconfig()).await.client;
    let rome = id(KindName::Server, &namespace, "rome");
    create(&client, KindName::Server, &namespace, "rome", json!({})).await;
    follower.until("the object", |f| f.has(&rome)).await;
    let old = write(&follower, &rome, status(ServerPhase::Active, true), None);
    merge(&client, KindName::Server, &namespace, "rome", json!({ "spec": { "location": "Roma" } })).await;
    let second = |f: &Follower| f.desired.object(&rome).is_some_and(|object| object.generation == 2);
    follower.until("the change", second).await;
    let (statuses, _writing) = sink(&follower);
    statuses.show(vec![old]);
    statuses.show(vec![write(&follower, &rome, status(ServerPhase::Maintenance, true), None)]);
    shown(&follower, &rome, |object| phase(object) == "maintenance").await;
    // The old one was not sent at all.
    written(&follower, 1).await;

    // A version that the watch has not told of yet: the write is refused and tried over the new one.
    let objects = objects_of(&client, KindName::Server, &namespace);
    for round in 0..5 {
        let label = json!({ "metadata": { "labels": { "round": format!("r{round}") } } });
        let wanted = if round % 2 == 0 { ServerPhase::Active } else { ServerPhase::Unavailable };
        statuses.show(vec![write(&follower, &rome, status(wanted, true), None)]);
        objects
            .patch("rome", &kube::api::PatchParams::default(), &kube::api::Patch::Merge(label))
            .await
            .unwrap();
    }
    let object = shown(&follower, &rome, |object| phase(object) == "active").await;
    assert_eq!(object.metadata.labels.unwrap()["round"], "r4");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_does_not_lead_writes_nothing() {
    let api = api();
    let namespace = api.fresh_namespace().unwrap();
    let mut follower = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    let client = follower.cluster.client.clone();
    let lima = id(KindName::Server, &namespace, "lima");
    create(&client, KindName::Server, &namespace, "lima", json!({})).await;
    follower.until("the object", |f| f.has(&lima)).await;
    let leads = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asked = leads.clone();
    let (statuses, _writing) = Statuses::start(
        follower.cluster.clone(),
        follower.objects.clone(),
        Events::start(&follower.cluster, "test-0"),
        StatusBudget::default(),
        move || asked.load(std::sync::atomic::Ordering::Relaxed),
    );
    statuses.show(vec![write(&follower, &lima, status(ServerPhase::Pending, false), None)]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    leads.store(true, std::sync::atomic::Ordering::Relaxed);
    statuses.show(vec![write(&follower, &lima, status(ServerPhase::Active, true), None)]);
    shown(&follower, &lima, |object| phase(object) == "active").await;
    written(&follower, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_are_told_by_events_once() {
    let api = api();
    let namespace = api.fresh_namespace().unwrap();
    let mut follower = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    let client = follower.cluster.client.clone();
    let bonn = id(KindName::Server, &namespace, "bonn");
    create(&client, KindName::Server, &namespace, "bonn", json!({})).await;
    follower.until("the object", |f| f.has(&bonn)).await;
    let (statuses, _writing) = sink(&follower);
    let (up, down) = (status(ServerPhase::Active, true), status(ServerPhase::Unavailable, false));
    for _ in 0..3 {
        statuses.show(vec![write(&follower, &bonn, down.clone(), Some(up.clone()))]);
    }
    let events = || async {
        let list = api.get(["events.events.k8s.io", "-n", &namespace]).unwrap();
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let count = items.iter().map(|event| event["series"]["count"].as_i64().unwrap_or(1)).sum::<i64>();
        (count >= 3).then_some(items)
    };
    let items = until("the events", events).await;
    assert_eq!(items.len(), 1, "repeated ones are counted as one: {items:?}");
    assert_eq!(
        (&items[0]["reason"], &items[0]["type"], &items[0]["regarding"]["name"]),
        (&json!("Offline"), &json!("Warning"), &json!("bonn"))
    );
    assert_eq!(items[0]["reportingController"], FIELD_MANAGER);
    let described = api.kubectl(["describe", "server", "bonn", "-n", &namespace]).unwrap();
    assert!(described.contains("Offline") && described.contains("a test says so"), "{described}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_wrote_into_a_status_is_put_right() {
    let api = api();
    let namespace = api.fresh_namespace().unwrap();
    let mut follower = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    let client = follower.cluster.client.clone();
    create(&client, KindName::Server, &namespace, "paris", json!({})).await;
    let paris = id(KindName::Server, &namespace, "paris");
    follower.until("the object", |f| f.has(&paris)).await;
    let (statuses, _writing) = sink(&follower);
    let right = status(ServerPhase::Active, true);
    statuses.show(vec![write(&follower, &paris, right.clone(), None)]);
    shown(&follower, &paris, |object| phase(object) == "active").await;
    let wrong = json!({ "status": { "phase": "compromised" } }).to_string();
    api.kubectl([
        "patch",
        "server",
        "paris",
        "-n",
        &namespace,
        "--subresource=status",
        "--type=merge",
        "-p",
        &wrong,
    ])
    .unwrap();
    let path = follower.path(&paris);
    follower.until("word of the foreign hand", |f| f.overwritten.contains(&path)).await;
    // What the engine does then.
    statuses.show(vec![write(&follower, &paris, right.clone(), Some(right))]);
    shown(&follower, &paris, |object| phase(object) == "active").await;
}
