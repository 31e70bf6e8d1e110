use std::{fs, future::Future, path::PathBuf, sync::Arc, time::Duration};

use horizon_controller_core::{Index, PruneLimit, status::Status};
use horizon_crds::{ConditionStatus, ConditionType, KindName, PersonalKeyPhase, Resource, parse};
use horizon_model::{Incarnation, Secret, ServerId};
use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;
use tokio::{sync::broadcast, task::JoinHandle};
use uuid::Uuid;

use super::{Engine, EngineOptions, EngineParts, PutError};
use crate::{
    live::{Hint, InProcess, Live},
    metrics::{Health, Metrics},
    replica::Leadership,
    source::SourceOptions,
    stop::{Stopper, stop},
    store::{Actor, ChannelLease, EnvelopeKey, ReplicaId, Store},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A directory, a database, and an engine between them.
struct Rig {
    dir: TempDir,
    store: Store,
    live: Arc<InProcess>,
    health: Health,
    engine: Engine,
    stopper: Stopper,
    handle: JoinHandle<()>,
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

fn resources(dir: &TempDir) -> PathBuf {
    dir.path().join("resources")
}

fn write_into(dir: &TempDir, path: &str, text: &str) {
    fs::create_dir_all(resources(dir)).unwrap();
    fs::write(resources(dir).join(path), text).unwrap();
}

impl Rig {
    async fn start(files: &[(&str, String)]) -> Self {
        let dir = TempDir::new().unwrap();
        for (path, text) in files {
            write_into(&dir, path, text);
        }
        Self::open(dir).await
    }

    async fn open(dir: TempDir) -> Self {
        let envelope = EnvelopeKey(Secret::new([42; 32]));
        let store = Store::open(&dir.path().join("horizon.db"), &envelope, Metrics::default()).await.unwrap();
        let (live, health) = (Arc::new(InProcess::default()), Health::default());
        let (stopper, stop) = stop();
        let options = EngineOptions {
            source: Arc::new(SourceOptions::new(resources(&dir))),
            limit: PruneLimit::default(),
            shared: false,
        };
        let epoch = store.take_leadership(ReplicaId::random(), "one", Timestamp::now()).await.unwrap();
        let parts = EngineParts {
            store: store.clone(),
            live: live.clone(),
            leadership: Leadership::always(epoch),
            statuses: None,
            metrics: Metrics::default(),
            ready: health.part("index"),
            stop,
        };
        let (engine, handle) = Engine::start(options, parts).await.unwrap();
        Self { dir, store, live, health, engine, stopper, handle }
    }

    async fn ready(self) -> Self {
        eventually("ready", || async { self.health.missing().is_empty() }).await;
        self
    }

    async fn stop(self) -> (TempDir, Store) {
        self.stopper.stop();
        self.handle.await.unwrap();
        (self.dir, self.store)
    }

    async fn reopen(self) -> Self {
        let (dir, store) = self.stop().await;
        store.close().await;
        Self::open(dir).await
    }

    fn write(&self, path: &str, text: &str) {
        write_into(&self.dir, path, text);
    }

    fn delete(&self, path: &str) {
        fs::remove_file(resources(&self.dir).join(path)).unwrap();
    }

    /// Waits until the index is as wanted.
    async fn until(&self, mut what: impl FnMut(&Arc<Index>) -> bool) -> Arc<Index> {
        let mut seen = self.engine.subscribe();
        let found = seen.wait_for(|in_force| what(&in_force.index));
        tokio::time::timeout(PATIENCE, found).await.expect("the index changes").unwrap().index.clone()
    }

    async fn has(&self, kind: KindName, name: &str) {
        self.until(|index| index.get(kind, "default", name).is_some()).await;
    }

    fn uid(&self, kind: KindName, name: &str) -> Uuid {
        self.engine.index().get(kind, "default", name).unwrap().uid
    }

    async fn status(&self, kind: KindName, name: &str) -> Option<Status> {
        let json = self.store.statuses().await.unwrap().remove(&self.uid(kind, name))?;
        Some(Status::from_json(kind, json).unwrap())
    }

    async fn until_condition(
        &self,
        kind: KindName,
        name: &str,
        of: ConditionType,
        expected: ConditionStatus,
    ) -> String {
        let mut message = String::new();
        eventually(&format!("{of:?} of {name} becomes {expected:?}"), || async {
            let status = self.status(kind, name).await;
            status.and_then(|s| s.condition(of).map(|c| c.status == expected)).unwrap_or_default()
        })
        .await;
        if let Some(condition) = self.status(kind, name).await.unwrap().condition(of) {
            message.push_str(condition.message.as_str());
        }
        message
    }
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !check().await {
        assert!(tokio::time::Instant::now() < end, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn basics() -> Vec<(&'static str, String)> {
    let policy =
        "subjects.users = [\"ana\"]\nservers = [\"berlin\"]\ndestinations = [{ cidr = \"10.0.0.0/8\" }]";
    vec![
        ("berlin.toml", document("Server", "berlin", "")),
        ("oslo.toml", document("Server", "oslo", "")),
        ("ana.toml", document("User", "ana", "")),
        ("policy.toml", document("AccessPolicy", "all", policy)),
    ]
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
async fn what_files_declare_comes_into_force() {
    let rig = Rig::start(&basics()).await.ready().await;
    let index = rig.engine.index();
    assert_eq!(index.len(), 4);
    assert!(rig.engine.problems().is_empty());
    rig.until_condition(KindName::AccessPolicy, "all", ConditionType::Ready, ConditionStatus::True).await;
    rig.until_condition(KindName::Server, "berlin", ConditionType::Registered, ConditionStatus::False).await;

    let mut hints = rig.live.subscribe();
    rig.write("berlin.toml", &document("Server", "berlin", "tunnel.port = 99"));
    let index = rig.until(|i| i.server("default", "berlin").is_some_and(|(_, s)| s.tunnel.port == 99)).await;
    assert_eq!(index.get(KindName::Server, "default", "berlin").unwrap().generation, 2);
    eventually("the server is told", || {
        let found = told(&mut hints);
        async move { !found.is_empty() }
    })
    .await;
    rig.stop().await;
}

#[tokio::test]
async fn only_those_concerned_are_told() {
    let rig = Rig::start(&basics()).await.ready().await;
    let mut hints = rig.live.subscribe();
    let berlin = ServerId(rig.uid(KindName::Server, "berlin"));
    let policy =
        "subjects.users = [\"ana\"]\nservers = [\"berlin\"]\ndestinations = [{ cidr = \"192.0.2.0/24\" }]";
    rig.write("policy.toml", &document("AccessPolicy", "all", policy));
    rig.until(|i| i.all(KindName::AccessPolicy)[0].generation == 2).await;
    // Hints follow the index, and the pass after this one follows them.
    rig.engine
        .put(
            resource("Revocation", "r", "target = { kind = \"Device\", name = \"d\" }\nreason = \"x\""),
            admin(),
        )
        .await
        .unwrap();
    assert_eq!(told(&mut hints), [berlin]);
    rig.stop().await;
}

#[tokio::test]
async fn a_broken_file_keeps_its_last_good_state() {
    let rig = Rig::start(&basics()).await.ready().await;
    rig.write("ana.toml", &document("User", "ana", "suspendet = true"));
    let message =
        rig.until_condition(KindName::User, "ana", ConditionType::Accepted, ConditionStatus::False).await;
    assert!(
        message.starts_with("ana.toml:5:1: User default/ana: ") && message.contains("suspended"),
        "{message}"
    );
    assert_eq!(rig.engine.problems().len(), 1);
    rig.write("more.toml", &document("User", "ben", ""));
    rig.has(KindName::User, "ben").await;
    assert!(rig.engine.index().user("default", "ana").is_some());

    let rig = rig.reopen().await.ready().await;
    assert!(rig.engine.index().user("default", "ana").is_some(), "also after a restart");
    rig.write("ana.toml", &document("User", "ana", "suspended = true"));
    rig.until(|i| i.user("default", "ana").is_some_and(|(_, user)| user.suspended)).await;
    rig.until_condition(KindName::User, "ana", ConditionType::Accepted, ConditionStatus::True).await;
    eventually("no problem is left", || async { rig.engine.problems().is_empty() }).await;
    rig.stop().await;
}

#[tokio::test]
async fn removals_of_many_wait_for_a_confirmation() {
    let mut files: Vec<_> =
        (0..20).map(|i| (format!("u{i}.toml"), document("User", &format!("u{i}"), ""))).collect();
    files.push(("s.toml".into(), document("Server", "s", "")));
    let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), text.clone())).collect();
    let rig = Rig::start(&files).await.ready().await;
    for i in 0..8 {
        rig.delete(&format!("u{i}.toml"));
    }
    rig.delete("s.toml");
    rig.until(|index| index.all(KindName::Server).is_empty()).await;
    eventually("the removals wait", || async { rig.engine.held().is_some() }).await;
    let held = rig.engine.held().unwrap();
    assert_eq!((held.resources.len(), rig.engine.index().all(KindName::User).len()), (8, 20));
    assert_eq!(rig.engine.confirm_prune(admin()).await.unwrap(), 8);
    assert_eq!((rig.engine.held(), rig.engine.index().all(KindName::User).len()), (None, 12));
    assert_eq!(rig.engine.confirm_prune(admin()).await.unwrap(), 0);
    rig.stop().await;
}

#[tokio::test]
async fn a_row_that_cannot_be_read_stops_no_other_status() {
    let rig = Rig::start(&basics()).await.ready().await;
    eventually("all have statuses", || async { rig.store.status_texts().await.unwrap().len() == 4 }).await;
    let (dir, store) = rig.stop().await;
    store.close().await;
    let url = format!("sqlite://{}", dir.path().join("horizon.db").display());
    let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
    let spoil = "UPDATE servers SET problems = '{' WHERE name = 'berlin'; \
                 UPDATE resource_status SET status = '{' WHERE uid = (SELECT uid FROM resources WHERE name = 'ana')";
    sqlx::raw_sql(spoil).execute(&pool).await.unwrap();
    pool.close().await;
    write_into(&dir, "ben.toml", &document("User", "ben", ""));
    let rig = Rig::open(dir).await.ready().await;
    rig.has(KindName::User, "ben").await;
    // Servers are made before users; the one that cannot be read was looked at.
    let uids = [rig.uid(KindName::User, "ben"), rig.uid(KindName::User, "ana")];
    eventually("the others are made", || async {
        let texts = rig.store.status_texts().await.unwrap();
        uids.iter().all(|uid| texts.iter().any(|(of, text)| of == uid && text != "{"))
    })
    .await;
    rig.stop().await;
}

#[tokio::test]
async fn a_directory_that_is_emptied_or_gone_removes_nothing() {
    let rig = Rig::start(&basics()).await.ready().await;
    for (path, _) in basics() {
        rig.delete(path);
    }
    eventually("the removals wait", || async { rig.engine.held().is_some_and(|h| h.resources.len() == 4) })
        .await;
    assert_eq!(rig.engine.index().len(), 4);
    let (dir, store) = rig.stop().await;
    store.close().await;
    fs::remove_dir_all(resources(&dir)).unwrap();
    let rig = Rig::open(dir).await.ready().await;
    assert_eq!((rig.engine.index().len(), rig.engine.held()), (4, None));
    assert!(rig.engine.problems()[0].message.contains("it does not exist"));
    rig.stop().await;
}

#[tokio::test]
async fn a_restart_changes_nothing_that_files_did_not() {
    let rig = Rig::start(&basics()).await.ready().await;
    let before = rig.uid(KindName::User, "ana");
    let rig = rig.reopen().await.ready().await;
    assert_eq!(rig.uid(KindName::User, "ana"), before);
    assert!(rig.engine.index().iter().all(|stored| stored.generation == 1));

    // What happens while nobody looks is found.
    let (dir, store) = rig.stop().await;
    store.close().await;
    fs::remove_file(resources(&dir).join("oslo.toml")).unwrap();
    write_into(&dir, "rome.toml", &document("Server", "rome", ""));
    let rig = Rig::open(dir).await.ready().await;
    rig.has(KindName::Server, "rome").await;
    rig.until(|index| index.server("default", "oslo").is_none()).await;
    // A recreated name inherits nothing.
    rig.write("oslo.toml", &document("Server", "oslo", ""));
    rig.has(KindName::Server, "oslo").await;
    rig.stop().await;
}

#[tokio::test]
async fn the_interface_puts_what_no_file_declares() {
    let rig = Rig::start(&basics()).await.ready().await;
    let key = resource("RegistrationKey", "berlin-1", "serverRef = \"berlin\"");
    let stored = rig.engine.put(key.clone(), admin()).await.unwrap();
    assert_eq!(rig.engine.put(key, admin()).await.unwrap().uid, stored.uid, "asking again changes nothing");
    rig.until_condition(KindName::RegistrationKey, "berlin-1", ConditionType::Ready, ConditionStatus::True)
        .await;

    let refused =
        rig.engine.put(resource("RegistrationKey", "x", "serverRef = \"berln\""), admin()).await.unwrap_err();
    assert!(
        matches!(refused, PutError::Refused(_)) && refused.to_string().contains("did you mean \"berlin\"?"),
        "{refused}"
    );
    let refused = rig.engine.put(resource("User", "ana", "suspended = true"), admin()).await.unwrap_err();
    assert!(refused.to_string().contains("already belongs to ana.toml"), "{refused}");

    let rig = rig.reopen().await.ready().await;
    assert_eq!(rig.uid(KindName::RegistrationKey, "berlin-1"), stored.uid);
    let engine = rig.engine.clone();
    rig.stop().await;
    let stopped = engine.put(resource("User", "zoe", ""), admin()).await;
    assert!(matches!(stopped, Err(PutError::Stopped)));
}

#[tokio::test]
async fn statuses_follow_the_live_layer() {
    let rig = Rig::start(&basics()).await.ready().await;
    let server = ServerId(rig.uid(KindName::Server, "berlin"));
    rig.until_condition(KindName::Server, "berlin", ConditionType::Online, ConditionStatus::False).await;
    rig.live.server_online(server, Incarnation(Uuid::from_u128(1)), ChannelLease(1), Timestamp::now());
    rig.live.publish(Hint::StatusDirty(server.0));
    rig.until_condition(KindName::Server, "berlin", ConditionType::Online, ConditionStatus::True).await;
    rig.stop().await;
}

#[tokio::test]
async fn documents_wait_for_what_they_name() {
    let rig = Rig::start(&[("k.toml", document("RegistrationKey", "k", "serverRef = \"late\""))])
        .await
        .ready()
        .await;
    assert!(rig.engine.index().is_empty());
    assert_eq!(rig.engine.problems().len(), 1);
    rig.write("late.toml", &document("Server", "late", ""));
    rig.has(KindName::RegistrationKey, "k").await;
    eventually("no problem is left", || async { rig.engine.problems().is_empty() }).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_key_expires_by_itself() {
    let rig = Rig::start(&basics()).await.ready().await;
    let soon = Timestamp::now().checked_add(SignedDuration::from_secs(1)).unwrap();
    let key = resource("PersonalKey", "ana-1", &format!("userRef = \"ana\"\nexpiresAt = \"{soon}\""));
    rig.engine.put(key, admin()).await.unwrap();
    eventually("the key expires", || async {
        let status = rig.status(KindName::PersonalKey, "ana-1").await;
        matches!(status, Some(Status::PersonalKey(key)) if key.phase == Some(PersonalKeyPhase::Expired))
    })
    .await;
    assert!(Timestamp::now() >= soon);
    rig.stop().await;
}
