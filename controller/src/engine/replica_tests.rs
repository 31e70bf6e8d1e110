//! Several engines on one database, each with a live layer of its own: no hint passes between them.

use std::{future::Future, sync::Arc, time::Duration};

use horizon_controller_core::{Index, PruneLimit, status::Status};
use horizon_crds::{ConditionStatus, ConditionType, KindName, Resource, parse};
use horizon_model::{Secret, ServerId};
use jiff::Timestamp;
use serde_json::json;
use tempfile::TempDir;
use tokio::{sync::broadcast, task::JoinHandle};

use super::{Engine, EngineOptions, EngineParts};
use crate::{
    live::{Hint, InProcess, Live},
    metrics::{Health, Metrics},
    replica::{Leadership, Standing, election::Moment},
    source::SourceOptions,
    stop::{Stopper, stop},
    store::{Actor, EnvelopeKey, LeaderEpoch, ReplicaId, Store},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A directory and a database.
struct Site {
    dir: TempDir,
    store: Store,
}

/// One replica of the controller.
struct Replica {
    live: Arc<InProcess>,
    leadership: Leadership,
    health: Health,
    engine: Engine,
    stopper: Stopper,
    handle: JoinHandle<()>,
}

impl Site {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::create_dir(dir.path().join("resources")).unwrap();
        let envelope = EnvelopeKey(Secret::new([42; 32]));
        let store = Store::open(dir.path().join("horizon.db"), &envelope, Metrics::default()).await.unwrap();
        Self { dir, store }
    }

    fn write(&self, name: &str, kind: &str, spec: &str) {
        let path = self.dir.path().join("resources").join(format!("{name}.toml"));
        std::fs::write(path, document(kind, name, spec)).unwrap();
    }

    fn delete(&self, name: &str) {
        std::fs::remove_file(self.dir.path().join("resources").join(format!("{name}.toml"))).unwrap();
    }

    async fn epoch(&self) -> LeaderEpoch {
        self.store.take_leadership(ReplicaId::random(), "test", Timestamp::now()).await.unwrap()
    }

    async fn replica(&self, leadership: Leadership) -> Replica {
        let (live, health) = (Arc::new(InProcess::default()), Health::default());
        let (stopper, stop) = stop();
        let source = SourceOptions::new(self.dir.path().join("resources"));
        let options = EngineOptions { source: Arc::new(source), limit: PruneLimit::default(), shared: true };
        let parts = EngineParts {
            store: self.store.clone(),
            live: live.clone(),
            leadership: leadership.clone(),
            statuses: None,
            metrics: Metrics::default(),
            ready: health.part("resources"),
            stop,
        };
        let (engine, handle) = Engine::start(options, parts).await.unwrap();
        let replica = Replica { live, leadership, health, engine, stopper, handle };
        eventually("ready", || async { replica.health.missing().is_empty() }).await;
        replica
    }

    async fn leader(&self) -> Replica {
        self.replica(Leadership::always(self.epoch().await)).await
    }

    async fn follower(&self) -> Replica {
        let leadership = Leadership::default();
        leadership.following(Some("test".into()));
        self.replica(leadership).await
    }

    /// How many changes of resources the audit trail has.
    async fn changes(&self) -> usize {
        self.store.list_audit(10_000).await.unwrap().len()
    }
}

impl Replica {
    async fn until(&self, mut what: impl FnMut(&Index) -> bool) -> Arc<Index> {
        let mut seen = self.engine.subscribe();
        let found = seen.wait_for(|in_force| what(&in_force.index));
        tokio::time::timeout(PATIENCE, found).await.expect("the index changes").unwrap().index.clone()
    }

    async fn has(&self, kind: KindName, name: &str) -> Arc<Index> {
        self.until(|index| index.get(kind, "default", name).is_some()).await
    }

    async fn stop(self) {
        self.stopper.stop();
        self.handle.await.unwrap();
    }
}

fn document(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"{kind}\"\nmetadata.name = \"{name}\"\n[spec]\n{spec}\n"
    )
}

fn resource(kind: &str, name: &str, spec: &str) -> Resource {
    parse("t.toml", document(kind, name, spec).as_bytes()).resources.pop().unwrap().0
}

fn admin() -> Actor {
    Actor::Admin("root".into())
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !check().await {
        assert!(tokio::time::Instant::now() < end, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The servers that hints named since the last look.
fn told(hints: &mut broadcast::Receiver<Hint>) -> Vec<ServerId> {
    let mut servers = Vec::new();
    while let Ok(hint) = hints.try_recv() {
        if let Hint::ServerChanged(server) = hint {
            servers.push(server);
        }
    }
    servers
}

#[tokio::test]
async fn a_follower_follows_and_tells_its_own_channels() {
    let site = Site::new().await;
    site.write("berlin", "Server", "");
    site.write("oslo", "Server", "");
    let (leader, follower) = (site.leader().await, site.follower().await);
    let index = follower.has(KindName::Server, "oslo").await;
    let berlin = index.server_named("default", "berlin").unwrap();

    let mut hints = follower.live.subscribe();
    site.write("berlin", "Server", "tunnel.port = 99");
    follower.until(|i| i.server("default", "berlin").is_some_and(|(_, s)| s.tunnel.port == 99)).await;
    // Hints follow the index.
    let mut servers = Vec::new();
    eventually("the server is told", || {
        servers.extend(told(&mut hints));
        let found = !servers.is_empty();
        async move { found }
    })
    .await;
    assert_eq!(servers, [berlin], "and nobody else");

    site.delete("oslo");
    follower.until(|index| index.server("default", "oslo").is_none()).await;
    let (one, other) = (leader.engine.in_force(), follower.engine.in_force());
    assert_eq!(one.revision, other.revision);
    let all = |index: &Index| index.iter().map(|stored| (**stored).clone()).collect::<Vec<_>>();
    assert_eq!(all(&one.index), all(&other.index));
    leader.stop().await;
    follower.stop().await;
}

#[tokio::test]
async fn a_follower_puts_what_is_asked_of_it() {
    let site = Site::new().await;
    site.write("berlin", "Server", "");
    let (leader, follower) = (site.leader().await, site.follower().await);
    // Also what it refers to is found, although the follower may not have followed yet.
    let key = resource("RegistrationKey", "berlin-1", "serverRef = \"berlin\"");
    let stored = follower.engine.put(key, admin()).await.unwrap();
    assert!(follower.engine.index().by_uid(stored.uid).is_some(), "it is in force here when that returns");
    leader.has(KindName::RegistrationKey, "berlin-1").await;
    eventually("the leader writes its status", || async {
        let Some(json) = site.store.status_of(stored.uid).await.unwrap() else { return false };
        let status = Status::from_json(KindName::RegistrationKey, json).unwrap();
        status.condition(ConditionType::Ready).is_some_and(|c| c.status == ConditionStatus::True)
    })
    .await;
    leader.stop().await;
    follower.stop().await;
}

#[tokio::test]
async fn replicas_that_put_at_once_all_succeed() {
    let site = Site::new().await;
    let (one, two) = (site.leader().await, site.follower().await);
    let put = |engine: Engine, name: String| async move {
        engine.put(resource("User", &name, ""), admin()).await.unwrap();
    };
    let both = (0..20).flat_map(|i| [(&one, format!("a-{i}")), (&two, format!("b-{i}"))]);
    let puts: Vec<_> = both.map(|(replica, name)| tokio::spawn(put(replica.engine.clone(), name))).collect();
    for put in puts {
        put.await.unwrap();
    }
    for replica in [&one, &two] {
        replica.until(|index| index.all(KindName::User).len() == 40).await;
    }
    assert_eq!(one.engine.in_force().revision.0, 40);
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_leader_that_was_replaced_writes_nothing() {
    let site = Site::new().await;
    site.write("ana", "User", "");
    // It believes to lead for good, as one does that was frozen and has not looked at its clock.
    let old = site.leader().await;
    old.has(KindName::User, "ana").await;
    let new = site.leader().await;
    let before = site.changes().await;
    site.write("ben", "User", "");
    new.has(KindName::User, "ben").await;
    old.has(KindName::User, "ben").await;
    site.write("eve", "User", "");
    new.has(KindName::User, "eve").await;
    eventually("the old one knows", || async { old.leadership.leads().is_none() }).await;
    assert_eq!(site.changes().await, before + 2, "each change was written once");
    assert_eq!(old.leadership.standing(), Standing::Follower { leader: None });
    // It still serves whoever asks.
    old.engine.put(resource("User", "zoe", ""), admin()).await.unwrap();
    new.has(KindName::User, "zoe").await;
    old.stop().await;
    new.stop().await;
}

#[tokio::test]
async fn who_takes_over_finds_what_happened_meanwhile() {
    let site = Site::new().await;
    site.write("ana", "User", "");
    let (first, second) = (site.leader().await, site.follower().await);
    second.has(KindName::User, "ana").await;
    first.leadership.following(None);
    eventually("the source is let go", || async { first.engine.problems().is_empty() }).await;
    site.write("ben", "User", "");
    site.write("broken", "User", "suspendet = true");
    second.leadership.leading(site.epoch().await, Moment::NEVER);
    second.has(KindName::User, "ben").await;
    first.has(KindName::User, "ben").await;
    eventually("it tells what is wrong", || async { !second.engine.problems().is_empty() }).await;
    eventually("the other one knows it too", || async {
        let told = first.engine.report().await.unwrap();
        told.problems.iter().any(|problem| problem.text.contains("suspended"))
    })
    .await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn removals_are_confirmed_at_any_replica() {
    let site = Site::new().await;
    for i in 0..10 {
        site.write(&format!("u{i}"), "User", "");
    }
    let (leader, follower) = (site.leader().await, site.follower().await);
    follower.until(|index| index.len() == 10).await;
    assert_eq!(follower.engine.confirm_prune(admin()).await.unwrap(), 0, "nothing waits");
    for i in 0..8 {
        site.delete(&format!("u{i}"));
    }
    eventually("the follower shows what waits", || async {
        follower.engine.report().await.unwrap().held.len() == 8
    })
    .await;
    assert_eq!(follower.engine.confirm_prune(admin()).await.unwrap(), 8);
    follower.until(|index| index.len() == 2).await;
    assert_eq!(leader.engine.held(), None);
    let audit = site.store.list_audit(1).await.unwrap();
    assert!(serde_json::to_string(&audit).unwrap().contains("root"), "it names who confirmed");
    leader.stop().await;
    follower.stop().await;
}

/// A confirmation speaks of what waited when it was given, and of nothing else.
#[tokio::test]
async fn a_confirmation_of_something_else_lets_nothing_go() {
    const REQUEST: &str = "leader.prune_request";
    let site = Site::new().await;
    for i in 0..10 {
        site.write(&format!("u{i}"), "User", "");
    }
    let leader = site.leader().await;
    leader.until(|index| index.len() == 10).await;
    let leave = async |digest: &str, asked_at: Timestamp| {
        let id = "0191d3a0-0000-7000-8000-000000000000";
        let request = json!({ "id": id, "account": "root", "held_digest": digest, "asked_at": asked_at });
        site.store.put_note(REQUEST, Some(&request), Timestamp::now(), None).await.unwrap();
        eventually("it is taken away", || async { site.store.note(REQUEST).await.unwrap().is_none() }).await;
        eventually("it is answered", || async {
            site.store.note("leader.prune_answer").await.unwrap().is_some_and(|answer| answer["id"] == id)
        })
        .await;
        let answer = site.store.note("leader.prune_answer").await.unwrap().unwrap();
        site.store.put_note("leader.prune_answer", None, Timestamp::now(), None).await.unwrap();
        answer["outcome"].clone()
    };
    let now = site.store.clock().await.unwrap();
    // Nothing waits any more.
    assert!(leave("ab", now).await["Err"].as_str().unwrap().contains("changed"));
    for i in 0..8 {
        site.delete(&format!("u{i}"));
    }
    eventually("they wait", || async { leader.engine.held().is_some_and(|held| held.resources.len() == 8) })
        .await;
    let digest = leader.engine.report().await.unwrap().held_digest;
    // Something else waits, or it was long ago.
    assert!(leave("ab", site.store.clock().await.unwrap()).await["Err"].is_string());
    assert!(leave(&digest, now - jiff::SignedDuration::from_mins(5)).await["Err"].is_string());
    assert_eq!((leader.engine.index().len(), leader.engine.held().unwrap().resources.len()), (10, 8));
    assert_eq!(leave(&digest, site.store.clock().await.unwrap()).await["Ok"], 8);
    leader.stop().await;
}

/// A backup that is restored under a running replica.
#[tokio::test]
async fn a_database_that_went_back_is_read_anew() {
    let site = Site::new().await;
    site.write("zoe", "User", "");
    let (leader, follower) = (site.leader().await, site.follower().await);
    follower.has(KindName::User, "zoe").await;
    for name in ["ana", "ben"] {
        follower.engine.put(resource("User", name, ""), admin()).await.unwrap();
    }
    let lost = leader.has(KindName::User, "zoe").await.get(KindName::User, "default", "zoe").unwrap().uid;
    leader.has(KindName::User, "ben").await;
    follower.until(|index| index.len() == 3).await;
    // What the leader brought into force is lost, too, and the last of the others.
    let url = format!("sqlite://{}", site.dir.path().join("horizon.db").display());
    let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
    let lose = "PRAGMA foreign_keys = OFF; BEGIN; DELETE FROM resources WHERE name IN ('zoe', 'ben'); \
                UPDATE counters SET value = 1 WHERE name = 'resources'; COMMIT;";
    sqlx::raw_sql(lose).execute(&pool).await.unwrap();
    pool.close().await;
    for replica in [&leader, &follower] {
        let index = replica
            .until(|index| {
                index.get(KindName::User, "default", "ben").is_none()
                    && index.get(KindName::User, "default", "zoe").is_some_and(|zoe| zoe.uid != lost)
            })
            .await;
        assert!(index.get(KindName::User, "default", "ana").is_some());
        assert_eq!(index.len(), 2);
    }
    leader.stop().await;
    follower.stop().await;
}

#[tokio::test]
async fn without_a_leader_nothing_waits_for_an_answer_for_ever() {
    let site = Site::new().await;
    let follower = site.follower().await;
    assert_eq!(follower.engine.confirm_prune(admin()).await.unwrap(), 0);
    follower.stop().await;
}
