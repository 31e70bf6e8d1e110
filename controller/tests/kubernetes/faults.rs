//! An API server that is slow, silent, away, too busy, or lets nobody in: nothing is taken for gone.

use std::time::Duration;

use horizon_crds::KindName;
use horizon_services::{Proxy, Site};
use serde_json::json;

use crate::kit::{Follower, account, api, cluster, create, create_users, delete, id, may_read};

/// A kubeconfig through a proxy.
fn through(proxy: &Proxy, namespace: &str, name: &str) -> std::path::PathBuf {
    let file = format!("{namespace}.{name}.proxied");
    api().kubeconfig_for(&file, "admin-token", namespace, proxy.address()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_and_a_broken_network_lose_nothing() {
    let api = api();
    let namespace = api.fresh_namespace().unwrap();
    let direct = cluster(&api.kubeconfig()).await.client;
    create_users(&direct, &namespace, 50).await;
    let proxy = Proxy::start(&Site::default(), api.address()).unwrap();
    proxy.delay(Duration::from_millis(150));
    let mut follower = Follower::start(&through(&proxy, &namespace, "slow"), &[&namespace]).await;
    follower.until("everything, slowly", |f| f.complete && f.count() == 50).await;
    proxy.delay(Duration::ZERO);

    for round in 0..3 {
        // Away for a while: what happens meanwhile is heard afterwards, and nothing else.
        proxy.refuse(true);
        proxy.cut();
        create(&direct, KindName::User, &namespace, &format!("while-away-{round}"), json!({})).await;
        delete(&direct, KindName::User, &namespace, &format!("user-{round:05}")).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        follower.drain();
        assert!(follower.gone.len() <= round, "nothing is gone because nobody answers");
        proxy.refuse(false);
        let (new, old) = (format!("while-away-{round}"), format!("user-{round:05}"));
        let (new, old) = (id(KindName::User, &namespace, &new), id(KindName::User, &namespace, &old));
        follower.until("what happened meanwhile", |f| f.has(&new) && !f.has(&old)).await;
    }
    assert_eq!((follower.count(), follower.gone.len()), (50, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_be_reached_is_a_problem_and_no_end() {
    let api = api();
    let namespace = api.fresh_namespace().unwrap();
    let direct = cluster(&api.kubeconfig()).await.client;
    create(&direct, KindName::User, &namespace, "ana", json!({})).await;
    let proxy = Proxy::start(&Site::default(), api.address()).unwrap();
    proxy.refuse(true);
    // Somebody is told after a while, although nothing is known.
    let mut follower = Follower::start(&through(&proxy, &namespace, "away"), &[&namespace]).await;
    assert!(!follower.complete && !follower.problems.is_empty());
    assert_eq!(follower.count(), 0);
    proxy.refuse(false);
    follower.until("everything", |f| f.complete && f.problems.is_empty()).await;
    assert_eq!(follower.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_too_much_to_do_is_waited_for() {
    let api = api();
    let namespace = api.fresh_namespace().unwrap();
    let direct = cluster(&api.kubeconfig()).await.client;
    create(&direct, KindName::User, &namespace, "ana", json!({})).await;
    create_users(&direct, &namespace, 200).await;
    let config = account(api, &namespace, "busy");
    may_read(api, &namespace, "busy");
    // Priority and fairness: this account has one seat, and whoever finds it taken gets 429.
    let fairness = format!(
        r#"
apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: PriorityLevelConfiguration
metadata: {{name: {namespace}}}
spec: {{type: Limited, limited: {{nominalConcurrencyShares: 0, lendablePercent: 0, borrowingLimitPercent: 0, limitResponse: {{type: Reject}}}}}}
---
apiVersion: flowcontrol.apiserver.k8s.io/v1
kind: FlowSchema
metadata: {{name: {namespace}}}
spec:
  priorityLevelConfiguration: {{name: {namespace}}}
  matchingPrecedence: 2
  rules:
    - subjects: [{{kind: ServiceAccount, serviceAccount: {{name: busy, namespace: {namespace}}}}}]
      resourceRules: [{{verbs: ["*"], apiGroups: ["*"], resources: ["*"], namespaces: ["*"], clusterScope: true}}]
"#
    );
    api.kubectl_with(&fairness, ["apply", "--server-side", "-f", "-"]).unwrap();
    let crowd = connect_plainly(&config).await;
    let others = tokio::spawn(keep_busy(crowd, namespace.clone()));
    let busy = cluster(&config).await;
    let mut follower = Follower::with(busy.clone(), &[&namespace]).await;
    while follower.answers("429") == 0 {
        follower.restart();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    others.abort();
    api.kubectl(["delete", "flowschema,prioritylevelconfiguration", &namespace]).unwrap();
    follower.until("everything", |f| f.complete && f.count() == 201).await;
    assert!(follower.gone.is_empty());
}

/// Asks for all users without a pause, four at a time.
async fn keep_busy(client: kube::Client, namespace: String) {
    let users = crate::kit::objects_of(&client, KindName::User, &namespace);
    let ask = || async {
        loop {
            // Refusals are what this is for.
            let _ = users.list(&kube::api::ListParams::default()).await;
        }
    };
    tokio::join!(ask(), ask(), ask(), ask());
}

/// A client that tries again at once, whatever the server asks.
async fn connect_plainly(config: &std::path::Path) -> kube::Client {
    let config = kube::config::Kubeconfig::read_from(config).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(config, &options).await.unwrap();
    config.default_retry = false;
    kube::Client::try_from(config).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_rights_are_named_and_healed() {
    let api = api();
    let namespace = api.fresh_namespace().unwrap();
    let direct = cluster(&api.kubeconfig()).await.client;
    create(&direct, KindName::User, &namespace, "ana", json!({})).await;
    let config = account(api, &namespace, "stranger");
    let mut follower = Follower::start(&config, &[&namespace]).await;
    assert!(!follower.complete);
    let text = follower.problems[0].to_string();
    assert!(text.contains("does not let the controller read") && text.contains("forbidden"), "{text}");
    may_read(api, &namespace, "stranger");
    follower.until("everything", |f| f.complete && f.problems.is_empty() && f.count() == 1).await;
    // Taken away again while it is followed: what is known stays.
    api.kubectl(["delete", "rolebinding", &format!("{namespace}-stranger"), "-n", &namespace]).unwrap();
    follower.drain();
    assert_eq!((follower.count(), follower.gone.len()), (1, 0));
}
