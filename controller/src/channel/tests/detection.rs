//! What those see who try secrets, and what is done about them.

use std::time::Duration;

use axum::{Router, body::Bytes, routing::post};
use horizon_model::{KeyId, TaggedSecret};
use horizon_wire::{
    proto::{self, RefusalCode, Role, to_controller::Message as Say},
    refusal::Refusal,
};
use jiff::Timestamp;
use tokio::{sync::mpsc, time::timeout};
use uuid::Uuid;

use super::kit::{Appliance, Controller, Device, fresh_key, refusal, register_message, soon};
use crate::{
    live::Hint,
    notify::{Notify, NotifySettings},
    replica::Leadership,
    stop,
    store::{
        Actor, EventFilter, random,
        tests::{
            kit::BASICS,
            place::{ENGINE, On},
        },
    },
};

/// A policy under which six wrong secrets block, wherever they come from.
const STRICT: &str = r#"
[[resource]]
apiVersion = "horizon.dev/v1alpha1"
kind = "SecurityPolicy"
metadata.name = "strict"
[resource.spec]
lockout.threshold = 1000
rateLimits.enrolmentsPerMinute = 1000
detection.blocking = { failures = 6, window = "10m", duration = "1h", spared = [] }
"#;

fn garbage() -> TaggedSecret {
    TaggedSecret::new(&random(), random())
}

async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    soon(async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

/// Where notifications arrive.
async fn receiver() -> (String, mpsc::UnboundedReceiver<serde_json::Value>) {
    let (sender, received) = mpsc::unbounded_channel();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let router = Router::new().route(
        "/hook",
        post(move |body: Bytes| {
            let _ = sender.send(serde_json::from_slice(&body).unwrap());
            async {}
        }),
    );
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, received)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brute_force_is_told_blocks_its_address_at_once_and_the_block_can_be_lifted() {
    let controller = Controller::start(&format!("{BASICS}{STRICT}")).await;
    let (url, mut received) = receiver().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), "s").unwrap();
    let settings = dir.path().join("notify.toml");
    std::fs::write(&settings, format!("[webhook]\nurl = \"{url}\"\nsecret_file = \"secret\"\n")).unwrap();
    let notify = Notify::new(NotifySettings::read(&settings).unwrap()).unwrap();
    let epoch = controller.store.take_leadership(controller.replica, "one", Timestamp::now()).await.unwrap();
    let (_stopper, stop) = stop::stop();
    let running = tokio::spawn(notify.run(controller.store.clone(), Leadership::always(epoch), stop));

    let (key, _) = controller.personal("ana-1").await;
    let mut bystander = Device::connect(&controller).await;
    let attacker = Device::connect(&controller).await;
    for _ in 0..6 {
        let refused = refusal(attacker.enrol(&(key, garbage()), "x").await);
        assert_eq!(refused.code, RefusalCode::Unauthenticated);
    }
    // Row, status and event.
    let block = until(async || controller.store.list_blocks(10).await.unwrap().pop()).await;
    assert_eq!((block.range.to_string().as_str(), block.source.as_str()), ("127.0.0.1/32", "threshold"));
    assert!(block.until.is_some());
    let events = controller.store.list_security_events(&EventFilter::default()).await.unwrap();
    let told = events.iter().find(|event| event.kind == "brute_force" && event.source_id.is_none()).unwrap();
    assert!(told.description.contains("127.0.0.1"), "{told:?}");
    let anomalies = controller.store.list_anomalies(10).await.unwrap();
    let about: Vec<_> = anomalies.iter().map(|anomaly| anomaly.subject_type.as_str()).collect();
    assert!(about.contains(&"address"), "{anomalies:?}");
    // Whoever is connected from there is refused in the middle of it, and nobody else comes.
    soon(async { while bystander.channel.inbox.recv().await.is_some() {} }).await;
    assert_eq!(controller.blocks.count(), 1);
    let key = fresh_key();
    assert!(timeout(Duration::from_secs(1), controller.dial(&key, Role::Device)).await.is_err());
    // An administrator hears of it.
    let notification = soon(received.recv()).await.unwrap();
    assert!(notification.to_string().contains("brute force"), "{notification}");

    // It is lifted, and who comes is let in again; how many were turned away is kept.
    let admin = Actor::Admin("ann".into());
    assert!(controller.store.unblock_range(block.range, &admin, Timestamp::now()).await.unwrap());
    controller.live.publish(Hint::BlocksChanged);
    soon(controller.dial(&key, Role::Device)).await.unwrap();
    running.abort();
    controller.stop().await;
}

/// All that a refused peer sees.
fn seen(refusal: &Refusal) -> (RefusalCode, String, String, u32) {
    (refusal.code, refusal.message.clone(), refusal.remedy.clone(), refusal.retry_after_seconds)
}

async fn alike_scenario() {
    let second = BASICS
        .split("[[resource]]")
        .find(|part| part.contains("kind = \"PersonalKey\""))
        .map(|part| format!("[[resource]]{}", part.replace("ana-1", "ana-2")))
        .unwrap();
    let controller = Controller::start(&format!("{BASICS}{second}")).await;
    let (known, secret) = controller.personal("ana-1").await;
    let (revoked, revoked_secret) = controller.personal("ana-2").await;
    controller
        .put(
            "[[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'Revocation'\nmetadata.name = 'lost'\n\
             [resource.spec]\nreason = 'it was lost'\n[resource.spec.target]\nkind = 'PersonalKey'\nname = 'ana-2'\n",
        )
        .await;
    let unknown = KeyId(Uuid::now_v7());
    // The right secret of another key is as good as none.
    let cases = [
        (unknown, garbage()),
        (known, garbage()),
        (revoked, garbage()),
        (known, revoked_secret.clone()),
        (unknown, secret),
    ];
    let mut answers = Vec::new();
    for case in &cases {
        let device = Device::connect(&controller).await;
        answers.push(seen(&refusal(device.enrol(case, "x").await)));
    }
    assert_eq!(answers[0].0, RefusalCode::Unauthenticated);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");
    // Its holder is told why.
    let device = Device::connect(&controller).await;
    let told = refusal(device.enrol(&(revoked, revoked_secret), "x").await);
    assert_eq!(told.code, RefusalCode::Revoked);
    assert!(told.message.contains("it was lost"), "{told:?}");

    // The same of registration tokens, and of appliances.
    let token = controller.token("berlin-1").await;
    let mut answers = Vec::new();
    for (name, secret) in
        [("berlin-1", random()), ("nobody-1", random()), ("nobody-1", *token.secret.expose())]
    {
        let mut tried = token.clone();
        (tried.key_name, tried.secret) = (name.into(), horizon_model::Secret::new(secret));
        let channel = controller.dial(&fresh_key(), Role::Appliance).await.unwrap();
        answers.push(seen(&refusal(soon(channel.requests.request(register_message(&tried))).await)));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");
    let appliance = Appliance::enrol_with(&controller, &token).await;
    let mut answers = Vec::new();
    for server in [appliance.server.as_bytes().to_vec(), Uuid::now_v7().as_bytes().to_vec()] {
        let channel = controller.dial(&fresh_key(), Role::Appliance).await.unwrap();
        let attach = proto::Attach {
            server_id: server,
            incarnation: vec![1; 16],
            version: "0.1.0".into(),
            ..Default::default()
        };
        answers.push(seen(&refusal(soon(channel.requests.request(Say::Attach(attach))).await)));
    }
    assert_eq!(answers[0], answers[1]);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_wrong_and_revoked_secrets_look_alike_on_sqlite() {
    ENGINE.scope(On::Sqlite, alike_scenario()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_wrong_and_revoked_secrets_look_alike_on_postgres() {
    ENGINE.scope(On::Postgres, alike_scenario()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_wrong_secrets_becomes_few_rows() {
    let settings = crate::channel::ChannelSettings { messages_per_second: 10_000, ..Default::default() };
    let loose = STRICT.replace("failures = 6", "failures = 100000").replace("= 1000\n", "= 10000\n");
    let controller = Controller::with(&format!("{BASICS}{loose}"), settings).await;
    let (key, _) = controller.personal("ana-1").await;
    let attacker = Device::connect(&controller).await;
    for _ in 0..500 {
        let refused = refusal(attacker.enrol(&(key, garbage()), "x").await);
        assert_eq!(refused.code, RefusalCode::Unauthenticated, "{refused:?}");
    }
    let filter = EventFilter { limit: 10_000, ..EventFilter::default() };
    let events = controller.store.list_security_events(&filter).await.unwrap();
    let refused = events.iter().filter(|event| event.kind == "enrolment_refused").count();
    assert!(refused < 250, "{refused} rows of 500 tries");
    controller.stop().await;
}
