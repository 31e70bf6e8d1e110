//! Secrets that belong to keys, and the Secret with the organisation's keys.

use std::{collections::BTreeMap, io, sync::Arc};

use horizon_controller::{
    config::SecretName,
    deliver::SecretSink as _,
    kubernetes::{KeysSecretError, Secrets, keys_secret},
};
use horizon_controller_core::{Origin, Stored};
use horizon_crds::{KindName, ResourceId};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, api::PostParams};
use serde_json::json;
use zeroize::Zeroizing;

use crate::kit::{Follower, account, api, cluster, create, delete, id, until};

fn stored(follower: &Follower, id: &ResourceId) -> Arc<Stored> {
    Arc::new(Stored {
        resource: follower.candidate(id).unwrap().resource.clone(),
        uid: uuid::Uuid::new_v4(),
        generation: 1,
        origin: Origin::Api,
        number: None,
        created_at: jiff::Timestamp::UNIX_EPOCH,
    })
}

fn text(text: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("{text}\n"))
}

fn token(secret: &Secret, field: &str) -> String {
    String::from_utf8(secret.data.as_ref().unwrap()[field].0.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_string_is_delivered_in_a_secret_that_ends_with_its_key() {
    let api = api();
    let namespace = api.fresh_namespace().unwrap();
    let mut follower = Follower::start(&api.kubeconfig(), &[&namespace]).await;
    let client = follower.cluster.client.clone();
    create(&client, KindName::RegistrationKey, &namespace, "paris", json!({ "serverRef": "paris" })).await;
    create(&client, KindName::PersonalKey, &namespace, "ana", json!({ "userRef": "ana" })).await;
    let (registration, personal) =
        (id(KindName::RegistrationKey, &namespace, "paris"), id(KindName::PersonalKey, &namespace, "ana"));
    follower.until("the keys", |f| f.has(&registration) && f.has(&personal)).await;

    // With exactly these rights.
    let config = account(api, &namespace, "sink");
    api.kubectl([
        "create",
        "role",
        "sink",
        "-n",
        &namespace,
        "--verb=create,patch,delete",
        "--resource=secrets",
    ])
    .unwrap();
    let bound = format!("--serviceaccount={namespace}:sink");
    api.kubectl(["create", "rolebinding", "sink", "-n", &namespace, "--role=sink", &bound]).unwrap();
    let sink = Secrets::new(cluster(&config).await, follower.objects.clone());
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);

    let key = stored(&follower, &registration);
    let place = sink.deliver(&key, &text("one")).await.unwrap();
    let secret = secrets.get("paris-token").await.unwrap();
    assert_eq!(token(&secret, "token"), "one");
    assert_eq!(place, format!("secret:paris-token/{}", secret.metadata.uid.as_ref().unwrap()));
    let owner = &secret.metadata.owner_references.as_ref().unwrap()[0];
    assert_eq!((owner.controller, owner.block_owner_deletion), (Some(true), Some(false)));
    // A new string for a key of the same name takes the place of the old one.
    let again = sink.deliver(&key, &text("two")).await.unwrap();
    assert_eq!(again, place);
    assert_eq!(token(&secrets.get("paris-token").await.unwrap(), "token"), "two");

    // Somebody else's Secret is left alone.
    let foreign: Secret = serde_json::from_value(json!({
        "metadata": { "name": "ana-key" }, "stringData": { "key": "theirs" },
    }))
    .unwrap();
    secrets.create(&PostParams::default(), &foreign).await.unwrap();
    let refused = sink.deliver(&stored(&follower, &personal), &text("mine")).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists, "{refused}");
    assert_eq!(token(&secrets.get("ana-key").await.unwrap(), "key"), "theirs");
    sink.withdraw(&personal, "secret:ana-key/00000000-0000-0000-0000-000000000000").await.unwrap();
    assert!(secrets.get_opt("ana-key").await.unwrap().is_some(), "it has another uid");

    // The garbage collector takes the Secret with its key; one that was used goes before.
    delete(&client, KindName::RegistrationKey, &namespace, "paris").await;
    until("the Secret to be collected", || async {
        secrets.get_opt("paris-token").await.unwrap().is_none().then_some(())
    })
    .await;
    sink.withdraw(&registration, &place).await.unwrap();
    follower.until("the end", |f| !f.has(&registration)).await;
    assert_eq!(sink.deliver(&key, &text("late")).await.unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_at_once_agree_on_the_keys() {
    let api = api();
    let namespace = api.fresh_namespace().unwrap();
    let cluster = cluster(&api.kubeconfig()).await;
    let name = SecretName { namespace: namespace.parse().unwrap(), name: "keys".parse().unwrap() };
    let make =
        |number: u8| move || BTreeMap::from([("root-1.key".to_owned(), Zeroizing::new(vec![number; 32]))]);
    let (a, b, c) = tokio::join!(
        keys_secret(&cluster, &name, make(1)),
        keys_secret(&cluster, &name, make(2)),
        keys_secret(&cluster, &name, make(3)),
    );
    let found = a.unwrap();
    assert_eq!((&found, &found), (&b.unwrap(), &c.unwrap()));
    let later = keys_secret(&cluster, &name, || unreachable!("there are keys already")).await.unwrap();
    assert_eq!(later, found);

    let empty = SecretName { name: "empty".parse().unwrap(), ..name.clone() };
    api.kubectl(["create", "secret", "generic", "empty", "-n", &namespace]).unwrap();
    let refused = keys_secret(&cluster, &empty, || unreachable!()).await.unwrap_err();
    assert!(matches!(refused, KeysSecretError::Empty(_)), "{refused}");

    let denied = crate::kit::cluster(&account(api, &namespace, "nobody")).await;
    let refused = keys_secret(&denied, &name, || unreachable!()).await.unwrap_err();
    assert!(
        refused.to_string().contains("cannot be read") && refused.to_string().contains("forbidden"),
        "{refused}"
    );
}
