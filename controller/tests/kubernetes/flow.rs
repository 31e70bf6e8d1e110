//! Objects on their way to the engine.

use horizon_crds::{KindName, Resource, document, example, parse};
use serde_json::json;

use crate::kit::{Follower, api, create, delete, id, merge, objects_of, until};

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_every_kind_are_followed() {
    let api = api();
    let namespace = api.fresh_namespace().unwrap();
    let mut yaml = String::new();
    for kind in KindName::ALL {
        let parsed = parse("example.toml", example(kind).as_bytes());
        let resources: Vec<_> = parsed.resources.into_iter().map(|(resource, _)| resource).collect();
        yaml += &format!("---\n{}", document::to_yaml(&resources).unwrap());
    }
    let yaml = yaml.replace("namespace: default", &format!("namespace: {namespace}"));
    api.apply(&namespace, &yaml).unwrap();
    let mut follower = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    assert!(follower.complete && follower.problems.is_empty(), "{:?}", follower.problems);
    for kind in KindName::ALL {
        let resource = parse("example.toml", example(kind).as_bytes()).resources.remove(0).0;
        let name = resource.name().clone();
        let candidate = follower.candidate(&id(kind, &namespace, name.as_str())).unwrap();
        assert_eq!(candidate.resource.canonical_spec(), resource.canonical_spec(), "{kind}");
    }
    assert_eq!(follower.requests("list"), 0);
    assert_eq!(follower.requests("watch"), KindName::ALL.len() as u64, "one for each kind");

    let client = follower.cluster.client.clone();
    let name = parse("user.toml", example(KindName::User).as_bytes()).resources[0].0.name().to_string();
    let user = id(KindName::User, &namespace, &name);
    merge(&client, KindName::User, &namespace, &name, json!({ "spec": { "suspended": true } })).await;
    let suspended = |follower: &Follower| {
        let candidate = follower.candidate(&user);
        candidate.is_some_and(|c| matches!(&*c.resource, Resource::User(user) if user.spec.suspended))
    };
    follower.until("the change", suspended).await;
    assert_eq!(follower.desired.object(&user).unwrap().generation, 2);
    delete(&client, KindName::User, &namespace, &name).await;
    follower.until("the deletion", |follower| !follower.has(&user)).await;
    assert!(follower.complete);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_namespaces_that_are_named_are_followed() {
    let api = api();
    let [first, second, other] = [(); 3].map(|()| api.fresh_namespace().unwrap());
    let client = crate::kit::cluster(&api.kubeconfig()).await.client;
    for namespace in [&first, &second, &other] {
        create(&client, KindName::User, namespace, "ana", json!({})).await;
    }
    let follower = Follower::start(&api.kubeconfig(), &[&first, &second]).await;
    assert_eq!(follower.count(), 2);
    let all = Follower::start(&api.kubeconfig(), &[]).await;
    assert!(all.complete && all.count() >= 3);
    assert_eq!(all.requests("watch"), KindName::ALL.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_who_changed_an_object_is_known_and_cannot_be_forged() {
    let api = api();
    let namespace = api.fresh_namespace().unwrap();
    let mut follower = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    let user = id(KindName::User, &namespace, "ana");
    let author = |follower: &Follower| follower.file(&user).and_then(|file| file.author.clone());
    let text = |suspended: bool| {
        format!(
            "{{apiVersion: horizon.dev/v1alpha1, kind: User, metadata: {{name: ana, namespace: {namespace}, \
             annotations: {{horizon.dev/changed-by: mallory}}}}, spec: {{suspended: {suspended}}}}}"
        )
    };
    let apply = |text: &str, user: &str| {
        let as_user = format!("--as={user}");
        api.kubectl_with(text, ["apply", &as_user, "--as-group=system:masters", "-f", "-"]).unwrap();
    };
    apply(&text(false), "alice");
    follower.until("the object", |follower| follower.has(&user)).await;
    assert_eq!(author(&follower).as_deref(), Some("alice"));
    // What changes nothing is nobody's change.
    api.kubectl([
        "annotate",
        "users.horizon.dev",
        "ana",
        "-n",
        &namespace,
        "--overwrite",
        "--as=bob",
        "--as-group=system:masters",
        "horizon.dev/changed-by=bob",
    ])
    .unwrap();
    apply(&text(true), "carol");
    follower.until("the change", |follower| author(follower).as_deref() != Some("alice")).await;
    assert_eq!(author(&follower).as_deref(), Some("carol"));
    let shown = api.get(["users.horizon.dev", "ana", "-n", &namespace]).unwrap();
    assert_eq!(shown["metadata"]["annotations"]["horizon.dev/changed-by"], "carol");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_recreated_under_a_name_is_another() {
    let api = api();
    let namespace = api.fresh_namespace().unwrap();
    let mut follower = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    let client = follower.cluster.client.clone();
    let server = id(KindName::Server, &namespace, "paris");
    let first = create(&client, KindName::Server, &namespace, "paris", json!({})).await;
    follower.until("the object", |follower| follower.has(&server)).await;
    delete(&client, KindName::Server, &namespace, "paris").await;
    let second = create(&client, KindName::Server, &namespace, "paris", json!({})).await;
    let uid = |object: &kube::api::DynamicObject| object.metadata.uid.clone().unwrap();
    let path = |uid: &str| format!("kubernetes/{namespace}/Server/paris/{uid}");
    let is_second = |follower: &Follower| {
        follower.candidate(&server).is_some_and(|candidate| candidate.place.file() == path(&uid(&second)))
    };
    follower.until("the other object", is_second).await;
    assert_eq!(follower.gone.get(path(&uid(&first)).as_str()), Some(&1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_ends_is_gone_although_others_keep_it() {
    let api = api();
    let namespace = api.fresh_namespace().unwrap();
    let mut follower = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    let client = follower.cluster.client.clone();
    let user = id(KindName::User, &namespace, "ana");
    create(&client, KindName::User, &namespace, "ana", json!({})).await;
    let finalizers = |list: serde_json::Value| json!({ "metadata": { "finalizers": list } });
    merge(&client, KindName::User, &namespace, "ana", finalizers(json!(["example.org/slow"]))).await;
    follower.until("the object", |follower| follower.has(&user)).await;
    delete(&client, KindName::User, &namespace, "ana").await;
    follower.until("the end", |follower| !follower.has(&user)).await;
    // A listing has it still, and it is none the less gone.
    let again = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    assert!(again.complete && !again.has(&user));
    merge(&client, KindName::User, &namespace, "ana", finalizers(json!(null))).await;
    let users = objects_of(&client, KindName::User, &namespace);
    until("the object to be gone", || async { users.get_opt("ana").await.unwrap().is_none().then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_changes_comes_in_few_batches_and_a_restart_lists_anew() {
    let api = api();
    let namespace = api.fresh_namespace().unwrap();
    let mut follower = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    let client = follower.cluster.client.clone();
    crate::kit::create_users(&client, &namespace, 300).await;
    follower.until("all objects", |follower| follower.count() == 300).await;
    assert!(follower.batches < 150, "{} batches", follower.batches);
    follower.restart();
    follower.next().await;
    assert!(follower.complete, "the first word is whole");
    assert_eq!(follower.count(), 300);
}
