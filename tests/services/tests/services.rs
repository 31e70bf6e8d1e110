//! What everybody who uses the fixtures takes for granted.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::{Duration, Instant};

use horizon_services::{
    KubeApi, KubeOptions, Postgres, PostgresOptions, Proxy, Redis, RedisOptions, RedisShape, Site, until,
};

#[test]
fn namespaces_end_and_owned_objects_are_collected() {
    let api = KubeApi::shared().unwrap();
    let namespace = api.fresh_namespace().unwrap();
    let owner = r#"{"apiVersion":"horizon.dev/v1alpha1","kind":"User","metadata":{"name":"ana"},"spec":{}}"#;
    api.apply(&namespace, owner).unwrap();
    let uid =
        api.get(["user", "ana", "-n", &namespace]).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let owned = format!(
        r#"{{"apiVersion":"v1","kind":"Secret","metadata":{{"name":"key","ownerReferences":
           [{{"apiVersion":"horizon.dev/v1alpha1","kind":"User","name":"ana","uid":"{uid}"}}]}}}}"#
    );
    api.apply(&namespace, &owned).unwrap();
    api.kubectl(["delete", "user", "ana", "-n", &namespace]).unwrap();
    until("the owned Secret is collected", || {
        api.kubectl_refused("", ["get", "secret", "key", "-n", &namespace]).is_ok().then_some(())
    })
    .unwrap();
    api.apply(&namespace, owner).unwrap();
    api.kubectl(["delete", "namespace", &namespace, "--timeout=60s"]).unwrap();
}

#[test]
fn accounts_may_do_what_roles_grant_and_the_audit_log_tells() {
    let api = KubeApi::shared().unwrap();
    let namespace = api.fresh_namespace().unwrap();
    api.kubectl(["create", "serviceaccount", "robot", "-n", &namespace]).unwrap();
    let config = api.kubeconfig_of_account(&namespace, "robot").unwrap();
    let config = format!("--kubeconfig={}", config.display());
    api.kubectl_refused("", ["get", "users.horizon.dev", &config]).unwrap();
    api.kubectl([
        "create",
        "role",
        "reader",
        "--verb=list",
        "--resource=users.horizon.dev",
        "-n",
        &namespace,
    ])
    .unwrap();
    let account = format!("--serviceaccount={namespace}:robot");
    api.kubectl(["create", "rolebinding", "reader", "--role=reader", &account, "-n", &namespace]).unwrap();
    until("the role is in force", || api.kubectl(["get", "users.horizon.dev", &config]).ok()).unwrap();
    let user = format!("system:serviceaccount:{namespace}:robot");
    assert!(api.used(&user).unwrap().contains("list horizon.dev/users"), "{:?}", api.used(&user));
}

#[test]
fn an_api_server_is_frozen_killed_and_revived() {
    let api = KubeApi::start(KubeOptions::default()).unwrap();
    api.kubectl(["create", "namespace", "kept"]).unwrap();
    api.freeze().unwrap();
    let late = api.kubectl_refused("", ["get", "namespaces", "--request-timeout=200ms"]).unwrap();
    assert!(!late.contains("kept"), "{late}");
    api.thaw().unwrap();
    api.kubectl(["get", "namespace", "kept"]).unwrap();
    api.compact().unwrap();
    api.kill().unwrap();
    api.kubectl_refused("", ["get", "namespaces"]).unwrap();
    api.revive().unwrap();
    api.kubectl(["get", "namespace", "kept"]).unwrap();
    let old = "/api/v1/namespaces?watch=true&resourceVersion=1&timeoutSeconds=5";
    let answer = api.kubectl_refused("", ["get", "--raw", old]);
    let answer = answer.unwrap_or_else(|_| api.kubectl(["get", "--raw", old]).unwrap());
    assert!(answer.contains("Expired") || answer.contains("too old"), "{answer}");
}

#[test]
fn helm_renders_a_chart() {
    let api = KubeApi::shared().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let chart = folder.path().join("chart");
    api.helm(["create", chart.to_str().unwrap()]).unwrap();
    assert!(api.helm(["template", chart.to_str().unwrap()]).unwrap().contains("kind: Deployment"));
}

#[test]
fn postgres_keeps_what_it_committed() {
    let postgres =
        Postgres::start(&PostgresOptions { tls: true, connections: 20, ..Default::default() }).unwrap();
    let database = postgres.fresh_database().unwrap();
    postgres.role("reader", "").unwrap();
    assert!(postgres.role_url("reader", &database).contains("sslmode=verify-full"));
    postgres.psql_in(&database, "create table t (n int); insert into t values (7)").unwrap();
    postgres.kill().unwrap();
    postgres.psql("select 1").unwrap_err();
    postgres.revive().unwrap();
    assert_eq!(postgres.psql_in(&database, "select n from t").unwrap().trim(), "7");
    assert_eq!(postgres.psql("show max_connections").unwrap().trim(), "20");
    postgres.drop_connections().unwrap();
}

#[test]
fn a_disk_is_full_and_then_not() {
    let small = PostgresOptions { disk: Some(160 << 20), ..Default::default() };
    let postgres = Postgres::start(&small).unwrap();
    postgres.psql("create table t (n int, s text)").unwrap();
    postgres.fill_disk().unwrap();
    let fill = "insert into t select i, repeat('x', 1000) from generate_series(1, 40000) i";
    let error = format!("{:#}", postgres.psql(fill).unwrap_err());
    assert!(error.contains("No space left") || error.contains("could not"), "{error}");
    postgres.free_disk().unwrap();
    until("it works again", || postgres.psql("insert into t values (1, 'y')").ok()).unwrap();
}

#[test]
fn redis_in_every_shape() {
    let secret = RedisOptions {
        password: Some("secret".into()),
        tls: true,
        memory: Some(8 << 20),
        ..Default::default()
    };
    for shape in [RedisShape::Single, RedisShape::Sentinel, RedisShape::Cluster] {
        let redis = Redis::start(&RedisOptions { shape, ..secret.clone() }).unwrap();
        redis.cli(["set", "key", "value"]).unwrap();
        assert_eq!(redis.cli(["get", "key"]).unwrap().trim(), "value", "{shape:?}");
        assert!(redis.url().unwrap().starts_with("rediss"), "{:?}", redis.url());
    }
}

#[test]
fn a_durable_redis_survives_and_a_small_one_refuses() {
    let redis =
        Redis::start(&RedisOptions { durable: true, memory: Some(4 << 20), ..Default::default() }).unwrap();
    redis.cli(["set", "key", "value"]).unwrap();
    redis.kill(0).unwrap();
    redis.cli(["get", "key"]).unwrap_err();
    redis.revive(0).unwrap();
    assert_eq!(redis.cli(["get", "key"]).unwrap().trim(), "value");
    let large = "x".repeat(100_000);
    assert!((0..100).any(|n| redis.cli(["set", &n.to_string(), &large]).is_err()), "it takes all");
}

#[test]
fn a_primary_that_dies_is_replaced() {
    let redis = Redis::start(&RedisOptions { shape: RedisShape::Sentinel, ..Default::default() }).unwrap();
    redis.kill(0).unwrap();
    let second = redis.addresses().unwrap()[1];
    let site = Site::default();
    let proxy = Proxy::start(&site, second).unwrap();
    until("the replica is promoted", || {
        let role = ask(proxy.address(), b"ROLE\r\n")?;
        role.contains("master").then_some(())
    })
    .unwrap();
    proxy.delay(Duration::from_millis(300));
    let begin = Instant::now();
    ask(proxy.address(), b"PING\r\n").unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(300));
    proxy.refuse(true);
    assert_eq!(ask(proxy.address(), b"PING\r\n").unwrap_or_default(), "");
}

fn ask(address: std::net::SocketAddr, words: &[u8]) -> Option<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    stream.write_all(words).ok()?;
    let mut answer = [0; 256];
    let n = stream.read(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer[..n]).into_owned())
}
