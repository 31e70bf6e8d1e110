//! Postgres that fails: killed under load, with a full disk, cut connections, transactions in each other's way, a certificate
//! of somebody else.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use horizon_model::{Incarnation, PublicKey, Secret, ServerId};
use horizon_services::{Postgres, PostgresOptions as Server};

use super::{
    kit::{BASICS, Kit, at, attach, envelope, puts, request},
    place::{ENGINE, On, Place, migrate, server},
};
use crate::{
    metrics::Metrics,
    store::{
        Actor, Beat, EventFilter, Guard, HeartbeatOptions, Heartbeats, NewEvent, PostgresOptions, ReplicaId,
        Severity, Source, Store, StoreError, dialect::query,
    },
};

/// A server of its own, for a test that does things to it, and a store on it.
async fn own(options: Server) -> (Arc<Postgres>, PostgresOptions, Store) {
    let server = Arc::new(Postgres::start(&options).unwrap());
    server.role("horizon_run", "").unwrap();
    server.role("horizon_reader", "").unwrap();
    server.role("horizon_backup", "").unwrap();
    let database = server.fresh_database().unwrap();
    migrate(PostgresOptions::parse(&server.admin_url(&database)).unwrap());
    let options = PostgresOptions::parse(&server.role_url("horizon_run", &database)).unwrap();
    let store = Store::open(options.clone(), &envelope(), Metrics::default()).await.unwrap();
    (server, options, store)
}

fn event(text: String) -> NewEvent {
    NewEvent {
        kind: "test",
        severity: Severity::Low,
        source: Source::System,
        address: None,
        description: text,
        data: serde_json::Value::Null,
    }
}

/// Servers whose appliances are registered, as many heartbeats need them.
async fn appliances(store: &Store, count: u8) -> Vec<(ServerId, PublicKey)> {
    let mut toml = String::new();
    for n in 0..count {
        toml.push_str(&format!(
            "[[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'Server'\nmetadata.name = 's{n}'\n[resource.spec]\n\
             [[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'RegistrationKey'\nmetadata.name = 'k{n}'\n\
             spec.serverRef = 's{n}'\n"
        ));
    }
    let done =
        store.commit_resources(&puts(&toml), &Actor::System("test"), at(0), Guard::NONE).await.unwrap();
    let mut all = Vec::new();
    for (n, key) in done.assigned.iter().filter(|a| a.id.kind.as_str() == "RegistrationKey").enumerate() {
        let secret = store.issue_registration_secret(key.uid, at(0)).await.unwrap();
        let public = PublicKey([n as u8; 32]);
        let mut asked = request(secret, public);
        asked.key_name = key.id.name.to_string();
        all.push((store.register_server(&asked, at(1)).await.unwrap().server, public));
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_that_was_acknowledged() {
    let (server, _, store) = own(Server { fsync: true, ..Server::default() }).await;
    let fleet = appliances(&store, 8).await;
    let beats = Heartbeats::start_with(store.clone(), HeartbeatOptions::default());
    let stop = Arc::new(AtomicBool::new(false));
    let counts: Vec<_> = fleet.iter().map(|_| Arc::new(AtomicU64::new(0))).collect();
    let mut load = tokio::task::JoinSet::new();
    for (n, (id, key)) in fleet.iter().copied().enumerate() {
        let (store, beats, stop, count) = (store.clone(), beats.clone(), stop.clone(), counts[n].clone());
        load.spawn(async move {
            let replica = ReplicaId(uuid::Uuid::from_u128(1));
            let run = Incarnation(uuid::Uuid::from_u128(1));
            let lease = attach(&store, id, replica, run, None, at(1)).await.unwrap().lease;
            let (mut acknowledged, mut events, mut counter) = (0, Vec::new(), 0);
            while !stop.load(Ordering::Relaxed) {
                counter += 1;
                let beat = Beat {
                    server: id,
                    lease,
                    counter,
                    sent: at(1),
                    received: at(1),
                    generation: 0,
                    active_sessions: 0,
                    metrics: Default::default(),
                    key,
                    secret: Secret::new([1; 32]),
                    previous: Secret::new([2; 32]),
                };
                if beats.submit(beat).await.is_ok() {
                    acknowledged = counter;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                let text = format!("{n}/{counter}");
                if store.record_event(&event(text.clone()), at(1)).await.is_ok() {
                    events.push(text);
                }
            }
            (id, acknowledged, events)
        });
    }
    // Every appliance has beats acknowledged before the first end of the server, between the two, and after the last.
    let all_go_on = async || {
        for count in &counts {
            let before = count.load(Ordering::Relaxed);
            while count.load(Ordering::Relaxed) < before + 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    for _ in 0..2 {
        all_go_on().await;
        let server = server.clone();
        tokio::task::spawn_blocking(move || {
            server.kill().unwrap();
            server.revive().unwrap();
        })
        .await
        .unwrap();
    }
    all_go_on().await;
    stop.store(true, Ordering::Relaxed);
    let done = load.join_all().await;
    let filter = EventFilter { limit: 1_000_000, ..Default::default() };
    let kept: BTreeSet<String> =
        store.list_security_events(&filter).await.unwrap().into_iter().map(|e| e.description).collect();
    for (id, acknowledged, events) in done {
        assert!(acknowledged > 0);
        let newest = store.list_beats(id, 1_000_000).await.unwrap().iter().map(|b| b.counter).max().unwrap();
        assert!(newest >= acknowledged, "{newest} is kept of {acknowledged}");
        assert!(!events.is_empty());
        for text in events {
            assert!(kept.contains(&text), "{text} was acknowledged");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_are_not_noticed() {
    ENGINE
        .scope(On::Postgres, async {
            let kit = Kit::with_basics().await;
            let Place::Postgres(name) = &kit.place else { panic!("on Postgres") };
            let cut = format!(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}' and usename = 'horizon_run'"
            );
            let stop = Arc::new(AtomicBool::new(false));
            let mut writers = tokio::task::JoinSet::new();
            for n in 0..4 {
                let (store, stop) = (kit.store.clone(), stop.clone());
                writers.spawn(async move {
                    let (mut done, mut unknown) = (0_u32, 0_u32);
                    while !stop.load(Ordering::Relaxed) {
                        match store.record_event(&event(format!("{n}")), at(1)).await {
                            Ok(()) => done += 1,
                            // The one case that is nobody's to decide: the connection broke during the commit.
                            Err(StoreError::Unknown(_)) => unknown += 1,
                            Err(other) => panic!("{other}"),
                        }
                    }
                    (done, unknown)
                });
            }
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(30)).await;
                let cut = cut.clone();
                tokio::task::spawn_blocking(move || server().psql(&cut).unwrap()).await.unwrap();
            }
            stop.store(true, Ordering::Relaxed);
            let counts = writers.join_all().await;
            let filter = EventFilter { limit: 1_000_000, ..Default::default() };
            let kept = kit.store.list_security_events(&filter).await.unwrap().len() as u32;
            let (done, unknown) =
                counts.iter().fold((0, 0), |(done, unknown), (d, u)| (done + d, unknown + u));
            assert!(done > 0 && (done..=done + unknown).contains(&kept), "{kept} of {done} and {unknown}");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_said_and_passes() {
    let options = Server { fsync: true, disk: Some(160 << 20), ..Server::default() };
    let (server, _, store) = own(options).await;
    let user = |n: usize| {
        format!("apiVersion = 'horizon.dev/v1alpha1'\nkind = 'User'\nmetadata.name = 'u{n}'\n[spec]\n")
    };
    let commit = async |toml: &str| {
        store.commit_resources(&puts(toml), &Actor::System("test"), at(0), Guard::NONE).await
    };
    commit(BASICS).await.unwrap();
    server.fill_disk().unwrap();
    let mut acknowledged = 5;
    let failed = loop {
        let text: String = (0..200)
            .map(|n| {
                format!(
                    "[[resource]]\n{}",
                    user(acknowledged * 1000 + n).replace("[spec]", "[resource.spec]")
                )
            })
            .collect();
        match commit(&text).await {
            Ok(done) => acknowledged += done.assigned.len(),
            Err(error) => break error,
        }
    };
    let said = failed.to_string();
    assert!(said.contains("No space left") || said.contains("could not"), "{said}");
    server.free_disk().unwrap();
    // A log that could not be written stops Postgres, which its supervisor starts again.
    let _ = server.kill();
    server.revive().unwrap();
    commit(&user(1)).await.unwrap();
    assert_eq!(store.load_resources().await.unwrap().0.len(), acknowledged + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_transaction_gives_its_locks_back() {
    ENGINE
        .scope(On::Postgres, async {
            let kit = Kit::new().await;
            let replica = ReplicaId(uuid::Uuid::from_u128(1));
            let epoch = kit.store.take_leadership(replica, "a", at(0)).await.unwrap();
            // A leader that stops in the middle of a write, as under SIGSTOP.
            let mut frozen = kit.store.begin().await.unwrap();
            assert!(crate::store::leadership::leads(&mut frozen, epoch).await.unwrap());
            let other = kit.replica().await;
            let second =
                other.take_leadership(ReplicaId(uuid::Uuid::from_u128(2)), "b", at(1)).await.unwrap();
            assert!(second > epoch);
            assert!(frozen.commit().await.is_err(), "what it resumes with is nothing");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_in_each_others_way_are_done_again() {
    ENGINE
        .scope(On::Postgres, async {
            let kit = Kit::with_basics().await;
            let store = &kit.store;
            let uids: Vec<String> = kit.stored().await.iter().map(|stored| stored.uid.to_string()).collect();
            // Two transactions that lock two rows the other way round: the database ends one of them.
            let meet = Arc::new(tokio::sync::Barrier::new(2));
            let first_try = [AtomicBool::new(true), AtomicBool::new(true)];
            let run = async |me: usize| {
                store
                    .retried("test", || async {
                        let mut tx = store.begin().await?;
                        for step in [me, 1 - me] {
                            query("UPDATE resources SET updated_at = updated_at + 1 WHERE uid = $1")
                                .bind(&uids[step])
                                .execute(&mut *tx)
                                .await?;
                            if step == me && first_try[me].swap(false, Ordering::Relaxed) {
                                meet.wait().await;
                            }
                        }
                        tx.commit().await
                    })
                    .await
            };
            let (one, two) = tokio::join!(run(0), run(1));
            one.unwrap();
            two.unwrap();
            let registry = store.inner.metrics.registry();
            let text = crate::metrics::render(&registry);
            assert!(text.contains("store_retries_total{name=\"test\"} 1"), "{text}");
            for figure in [
                "store_connections{name=\"busy\"}",
                "store_connections{name=\"idle\"}",
                "store_wait_seconds_count",
            ] {
                assert!(text.contains(figure), "{figure}");
            }
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_must_prove_its_name() {
    let server = Postgres::start(&Server {
        tls: true,
        settings: vec![("listen_addresses".into(), "127.0.0.1,127.0.0.2".into())],
        ..Server::default()
    })
    .unwrap();
    let database = server.fresh_database().unwrap();
    let authority = server.authority().unwrap().display().to_string();
    let address = server.address();
    let url = |host: &str, options: &str| {
        let text = format!("postgres://postgres:admin@{host}:{}/{database}?{options}", address.port());
        PostgresOptions::parse(&text).unwrap()
    };
    let right = format!("sslmode=verify-full&sslrootcert={authority}");
    Store::migrate(url(&address.ip().to_string(), &right)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let strange = dir.path().join("strange.pem");
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            "/CN=strange",
        ])
        .arg("-keyout")
        .arg(dir.path().join("strange.key"))
        .arg("-out")
        .arg(&strange)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let wrong_authority = format!("sslmode=verify-full&sslrootcert={}", strange.display());
    let cases = [
        ("an authority of somebody else", url(&address.ip().to_string(), &wrong_authority)),
        ("a name that is not the server's", url("127.0.0.2", &right)),
        ("no file", url(&address.ip().to_string(), "sslmode=verify-full&sslrootcert=/nowhere.pem")),
        ("no encryption", url(&address.ip().to_string(), "sslmode=disable")),
    ];
    for (what, options) in cases {
        let error = Store::open(options, &envelope(), Metrics::default()).await;
        let error = error.map(drop).expect_err(what).to_string();
        assert!(!error.contains("admin"), "{error}");
    }
}
