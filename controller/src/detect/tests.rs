//! Facts as conversations hand them over, and what comes of them in the database.

use std::{net::IpAddr, sync::Arc, time::Duration};

use horizon_controller_core::Index;
use horizon_model::ServerId;
use tokio::{task::JoinHandle, time::timeout};
use uuid::Uuid;

use super::{
    Arrived, Attached, Blocks, Detect, DetectOptions, Fact, Schedule, Who, run,
    tasks::{TRAFFIC, UPKEEP},
};
use crate::{
    channel::Desired,
    geo::{Geo, mmdb},
    live::InProcess,
    metrics::Metrics,
    notify::Notify,
    replica::Leadership,
    stop::{Stopper, stop},
    store::{Anomaly, EnvelopeKey, ReplicaId, Retention, Revision, Store},
};

const ANN: Uuid = Uuid::from_u128(7);
const BERLIN: &str = "192.0.2.10";
const SYDNEY: &str = "198.51.100.10";

struct Nothing;

impl Desired for Nothing {
    fn in_force(&self) -> (Arc<Index>, Revision) {
        (Arc::new(Index::new(Vec::new())), Revision(0))
    }
}

struct Kit {
    dir: tempfile::TempDir,
    store: Store,
    detect: Detect,
    _stopper: Stopper,
    _running: JoinHandle<()>,
}

impl Kit {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = EnvelopeKey(horizon_model::Secret::new([1; 32]));
        let store = Store::open(dir.path().join("horizon.db"), &key, Metrics::default()).await.unwrap();
        let place = |country, city, position| mmdb::Entry {
            country: Some(country),
            city: Some(city),
            position: Some(position),
            ..mmdb::Entry::default()
        };
        let file = dir.path().join("places.mmdb");
        let berlin = ("192.0.2.0/24", place("DE", "Berlin", (52.5, 13.4)));
        let sydney = ("198.51.100.0/24", place("AU", "Sydney", (-33.9, 151.2)));
        std::fs::write(&file, mmdb::write(&[berlin, sydney])).unwrap();
        let (detect, facts) = Detect::new();
        let options = DetectOptions {
            store: store.clone(),
            live: Arc::new(InProcess::default()),
            desired: Arc::new(Nothing),
            geo: Geo::open(vec![file]).unwrap(),
            blocks: Blocks::default(),
        };
        let (stopper, stop) = stop();
        let running = tokio::spawn(run(options, facts, stop));
        Self { dir, store, detect, _stopper: stopper, _running: running }
    }

    fn arrives(&self, address: &str) {
        let user = Who { id: ANN, namespace: "default".parse().unwrap(), name: "ann".parse().unwrap() };
        let address: IpAddr = address.parse().unwrap();
        self.detect.note(Fact::Arrived(Box::new(Arrived { user, address })));
    }

    fn attaches(&self, capabilities: &[&str]) {
        let server =
            Who { id: ServerId(ANN), namespace: "default".parse().unwrap(), name: "home".parse().unwrap() };
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        self.detect.note(Fact::Attached(Box::new(Attached {
            server,
            address: "203.0.113.1".parse().unwrap(),
            capabilities: set(capabilities),
            declared: set(&["vpn"]),
            version: "1".into(),
        })));
    }

    /// The anomalies, once there are so many.
    async fn anomalies(&self, count: usize) -> Vec<Anomaly> {
        let found = async {
            loop {
                let found = self.store.list_anomalies(10).await.unwrap();
                if found.len() >= count {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(30), found).await.expect("the anomalies did not come")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_used_at_two_ends_of_the_world_is_told_and_its_user_flagged() {
    let kit = Kit::new().await;
    (0..5).for_each(|_| kit.arrives(BERLIN));
    kit.arrives("203.0.113.7"); // Nobody knows where that is: nothing is said of it.
    kit.arrives(SYDNEY);
    let found = kit.anomalies(2).await;
    let kinds: Vec<_> = found.iter().rev().map(|anomaly| anomaly.kind.as_str()).collect();
    assert_eq!(kinds, ["new_country", "impossible_travel"], "{found:#?}");
    assert!(found[0].description.contains("was in Berlin") && found[0].description.contains("Sydney"));
    let flags = kit.store.list_flags(10).await.unwrap();
    assert_eq!((flags[0].subject.as_str(), flags[0].by.as_str()), ("ann", "impossible_travel"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_appliance_that_can_do_more_than_declared_is_told() {
    let kit = Kit::new().await;
    kit.attaches(&["vpn"]);
    kit.attaches(&["vpn", "relay"]);
    let found = kit.anomalies(1).await;
    assert_eq!((found[0].kind.as_str(), found[0].feature.as_str()), ("capability_change", "+relay-"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_does_what_is_due_and_writes_down_how_it_went() {
    let kit = Kit::new().await;
    let epoch = kit.store.take_leadership(ReplicaId::random(), "one", jiff::Timestamp::now()).await.unwrap();
    let schedule = Schedule {
        store: kit.store.clone(),
        desired: Arc::new(Nothing),
        leadership: Leadership::always(epoch),
        notify: Notify::default(),
        retention: Retention::default(),
    };
    let now = jiff::Timestamp::now();
    for task in [UPKEEP, TRAFFIC] {
        let due = crate::store::TaskSpec { first: jiff::SignedDuration::ZERO, ..task };
        kit.store.declare_task(&due, now).await.unwrap();
        schedule.attempt(&due, epoch).await;
    }
    let tasks = kit.store.list_tasks().await.unwrap();
    for task in &tasks {
        assert_eq!(task.last_status.as_deref(), Some("succeeded"), "{task:?}");
        assert!(task.next_run > now);
    }
    assert!(tasks[0].last_output.as_deref().unwrap().contains("looked at"), "{tasks:?}");
    assert!(kit.dir.path().exists());
}
