//! Measures the store's operations on SQLite and on Postgres, each against what the engine does when it is asked plainly, in
//! the same run. Prints one JSON object a line.
//!
//! `cargo run --release --example store_bench -- [SERVERS]` (1000 unless said otherwise). Postgres is started for the run, with
//! commits that wait for the disk, and taken away again; a running controller's role is used, not the owner's.

use std::{
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use horizon_controller::{
    metrics::Metrics,
    store::{
        Actor, Answered, AppliedState, Attachment, Beat, ChallengeId, ChallengeType, Change, ChannelLease,
        Database, EnvelopeKey, Guard, HeartbeatOptions, PostgresOptions, RegisterRequest, ReplicaId,
        Revision, Store,
    },
};
use horizon_controller_core::Origin;
use horizon_model::{Capability, Digest, Incarnation, PublicKey, Secret, ServerId};
use horizon_services::{Postgres, PostgresOptions as Server};
use jiff::Timestamp;
use serde_json::json;
use sqlx::Executor as _;
use uuid::Uuid;

/// How many do the same at once, where that is measured too.
const MANY: usize = 8;
/// How long each operation is measured.
const SPAN: Duration = Duration::from_millis(1500);
/// Resources that are loaded at once.
const RESOURCES: usize = 10_000;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let servers = std::env::args().nth(1).map_or(Ok(1000), |n| n.parse()).context("SERVERS is a number")?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("horizon.db");
    let plain = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(dir.path().join("plain.db"))
        .create_if_missing(true)
        .journal_mode(sqlx::sqlite::SqliteJournalMode::Wal)
        .synchronous(sqlx::sqlite::SqliteSynchronous::Full);
    // One connection, since SQLite has one writer.
    let pool = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1).connect_with(plain).await?;
    baseline(&Bench { engine: "sqlite" }, &pool).await?;
    operations(Bench { engine: "sqlite" }, file.into(), servers).await?;

    let server = Postgres::start(&Server { fsync: true, ..Server::default() })?;
    server.role("horizon_run", "")?;
    let database = server.fresh_database()?;
    let owner = server.admin_url(&database);
    Store::migrate(PostgresOptions::parse(&owner)?).await?;
    let bench = Bench { engine: "postgres" };
    server.tool("pgbench", ["-i", "-q", "-s", "10", "postgres"])?;
    for clients in ["1", "8"] {
        let said =
            server.tool("pgbench", ["-n", "-M", "prepared", "-N", "-T", "3", "-c", clients, "postgres"])?;
        let rate =
            said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse::<f64>().ok());
        let rate = rate.context("pgbench gives no rate")?;
        say(
            &json!({ "engine": "postgres", "operation": "pgbench simple update", "concurrency": clients, "perSecond": rate.round() }),
        );
    }
    let pool = sqlx::PgPool::connect(&owner).await?;
    baseline(&bench, &pool).await?;
    pool.close().await;
    let run = PostgresOptions::parse(&server.role_url("horizon_run", &database))?;
    operations(bench, run.into(), servers).await
}

fn say(line: &serde_json::Value) {
    // Whoever reads may have heard enough.
    let _ = writeln!(std::io::stdout(), "{line}");
}

#[derive(Clone, Copy)]
struct Bench {
    engine: &'static str,
}

impl Bench {
    /// Does something for a while, `concurrency` at once, and prints how long each took.
    async fn measure<F, Fut>(&self, operation: &str, concurrency: usize, run: F) -> Result<()>
    where
        F: Fn(usize) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send,
    {
        let run = Arc::new(run);
        let (next, end) = (Arc::new(std::sync::atomic::AtomicUsize::new(0)), Instant::now() + SPAN);
        let started = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..concurrency {
            let (run, next) = (run.clone(), next.clone());
            tasks.spawn(async move {
                let mut took = Vec::new();
                while Instant::now() < end {
                    let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let since = Instant::now();
                    run(n).await?;
                    took.push(since.elapsed());
                }
                anyhow::Ok(took)
            });
        }
        let mut all = Vec::new();
        while let Some(took) = tasks.join_next().await {
            all.extend(took??);
        }
        let seconds = started.elapsed().as_secs_f64();
        all.sort_unstable();
        let at = |part: usize| all.get(all.len() * part / 100).or(all.last()).map_or(0, Duration::as_micros);
        let line = json!({
            "engine": self.engine, "operation": operation, "concurrency": concurrency, "count": all.len(),
            "perSecond": (all.len() as f64 / seconds).round(), "p50Micros": at(50), "p99Micros": at(99),
        });
        say(&line);
        Ok(())
    }
}

/// What the engine does for a plain update and a plain insert, each committed.
async fn baseline<DB>(bench: &Bench, pool: &sqlx::Pool<DB>) -> Result<()>
where
    DB: sqlx::Database,
    for<'c> &'c mut DB::Connection: sqlx::Executor<'c, Database = DB>,
    for<'c> &'c sqlx::Pool<DB>: sqlx::Executor<'c, Database = DB>,
    for<'q> i64: sqlx::Encode<'q, DB> + sqlx::Type<DB>,
    for<'q> String: sqlx::Encode<'q, DB> + sqlx::Type<DB>,
    DB::Arguments: sqlx::IntoArguments<DB>,
{
    pool.execute("CREATE TABLE plain (id BIGINT PRIMARY KEY, value BIGINT NOT NULL, text TEXT NOT NULL)")
        .await?;
    pool.execute("CREATE TABLE plain_history (id BIGINT NOT NULL, text TEXT NOT NULL)").await?;
    for id in 0..1000_i64 {
        let insert = sqlx::query::<DB>("INSERT INTO plain (id, value, text) VALUES ($1, 0, 'x')").bind(id);
        pool.execute(insert).await?;
    }
    for concurrency in [1, MANY] {
        let each = pool.clone();
        bench
            .measure("plain update", concurrency, move |n| {
                let pool = each.clone();
                async move {
                    let id = i64::try_from(n % 1000)?;
                    pool.execute(
                        sqlx::query::<DB>("UPDATE plain SET value = value + 1 WHERE id = $1").bind(id),
                    )
                    .await?;
                    Ok(())
                }
            })
            .await?;
        let each = pool.clone();
        bench
            .measure("plain insert", concurrency, move |n| {
                let pool = each.clone();
                async move {
                    let insert = sqlx::query::<DB>("INSERT INTO plain_history (id, text) VALUES ($1, $2)");
                    pool.execute(insert.bind(i64::try_from(n)?).bind("x".repeat(200))).await?;
                    Ok(())
                }
            })
            .await?;
    }
    Ok(())
}

/// A registered appliance.
#[derive(Clone)]
struct Appliance {
    server: ServerId,
    key: PublicKey,
    lease: ChannelLease,
}

const REPLICA: ReplicaId = ReplicaId(Uuid::from_u128(1));
const RUN: Incarnation = Incarnation(Uuid::from_u128(1));

fn changes(toml: &str) -> Vec<Change> {
    let parsed = horizon_crds::parse("bench.toml", toml.as_bytes());
    assert!(parsed.problems.is_empty(), "{:?}", parsed.problems.first());
    let put = |resource| Change::Put { resource: Arc::new(resource), origin: Origin::Api, actor: None };
    parsed.resources.into_iter().map(|(resource, _)| put(resource)).collect()
}

fn user(name: &str, reason: usize) -> String {
    format!(
        "[[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'User'\nmetadata.name = '{name}'\n\
         [resource.spec]\nsuspended = true\nsuspensionReason = 'r{reason}'\n"
    )
}

async fn populate(store: &Store, servers: usize) -> Result<Vec<Appliance>> {
    let now = Timestamp::now();
    let declared = |n| {
        changes(&format!(
            "[[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'Server'\nmetadata.name = 's{n}'\n[resource.spec]\n\
             [[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'RegistrationKey'\nmetadata.name = 'k{n}'\n\
             spec.serverRef = 's{n}'\n"
        ))
    };
    let declared: Vec<Change> = (0..servers).flat_map(declared).collect();
    let done = store.commit_resources(&declared, &Actor::System("bench"), now, Guard::NONE).await?;
    let mut fleet = Vec::new();
    for assigned in done.assigned.iter().filter(|a| a.id.kind.as_str() == "RegistrationKey") {
        let mut key = [0; 32];
        key[..16].copy_from_slice(assigned.uid.as_bytes());
        let request = RegisterRequest {
            key_name: assigned.id.name.to_string(),
            secret: store.issue_registration_secret(assigned.uid, now).await?,
            public_key: PublicKey(key),
            hostname: "bench".into(),
            version: "0".into(),
            capabilities: vec![Capability::Vpn],
            factors: Vec::new(),
            address: [127, 0, 0, 1].into(),
        };
        let server = store.register_server(&request, now).await?.server;
        let attached = store.attach(&attachment(server, PublicKey(key), None), now).await?;
        let lease = attached.context("nobody holds it")?.lease;
        fleet.push(Appliance { server, key: PublicKey(key), lease });
    }
    Ok(fleet)
}

fn attachment(server: ServerId, key: PublicKey, expected: Option<ChannelLease>) -> Attachment {
    Attachment {
        server,
        replica: REPLICA,
        incarnation: RUN,
        expected,
        key,
        address: [127, 0, 0, 1].into(),
        version: "0".into(),
        capabilities: vec![Capability::Vpn],
        held: AppliedState {
            epoch: 1,
            generation: 0,
            digest: None,
            problems: Vec::new(),
            addresses: Vec::new(),
        },
    }
}

fn beat(appliance: &Appliance, counter: usize) -> Beat {
    Beat {
        server: appliance.server,
        lease: appliance.lease,
        counter: counter as u64,
        sent: Timestamp::now(),
        received: Timestamp::now(),
        generation: 1,
        active_sessions: 3,
        metrics: Default::default(),
        key: appliance.key,
        secret: Secret::new([1; 32]),
        previous: Secret::new([2; 32]),
    }
}

async fn operations(bench: Bench, database: Database, servers: usize) -> Result<()> {
    let envelope = EnvelopeKey(Secret::new([7; 32]));
    let store = Store::open(database, &envelope, Metrics::default()).await?;
    let since = Instant::now();
    let fleet = Arc::new(populate(&store, servers).await?);
    let rate = (fleet.len() as f64 / since.elapsed().as_secs_f64()).round();
    say(
        &json!({ "engine": bench.engine, "operation": "issue + register + take channel", "concurrency": 1, "count": fleet.len(), "perSecond": rate }),
    );

    macro_rules! measure {
        ($name:expr, $concurrency:expr, |$store:ident, $fleet:ident, $n:ident| $run:expr) => {{
            let (store, fleet) = (store.clone(), fleet.clone());
            bench
                .measure($name, $concurrency, move |$n| {
                    let ($store, $fleet) = (store.clone(), fleet.clone());
                    async move {
                        $run;
                        Ok(())
                    }
                })
                .await?;
        }};
    }
    for concurrency in [1, MANY] {
        measure!("number_state", concurrency, |store, fleet, n| {
            let a = &fleet[n % fleet.len()];
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&n.to_be_bytes());
            store.number_state(a.server, a.lease, Digest(digest), Revision(1)).await?
        });
        measure!("note_applied", concurrency, |store, fleet, n| {
            let a = &fleet[n % fleet.len()];
            let held = AppliedState {
                epoch: 1,
                generation: n as u64,
                digest: None,
                problems: Vec::new(),
                addresses: Vec::new(),
            };
            store.note_applied(a.server, a.lease, &held).await?
        });
        measure!("note_challenge", concurrency, |store, fleet, n| {
            let a = &fleet[n % fleet.len()];
            let answered = Answered {
                challenge: ChallengeId(Uuid::now_v7()),
                kind: ChallengeType::Hmac,
                asked: Timestamp::now(),
                right: true,
                detail: String::new(),
                tolerated: 3,
                newest_secret: false,
                arrival: None,
            };
            store.note_challenge(a.server, a.lease, &answered, Timestamp::now()).await?
        });
        measure!("server", concurrency, |store, fleet, n| store
            .server(fleet[n % fleet.len()].server)
            .await?);
        measure!("commit one resource", concurrency, |store, _fleet, n| {
            let changes = changes(&user(&format!("u{}", n % 100), n));
            store.commit_resources(&changes, &Actor::System("bench"), Timestamp::now(), Guard::NONE).await?
        });
        for size in [1, 333] {
            for history in [false, true] {
                let name = format!("{size} heartbeats{}", if history { " with history" } else { "" });
                measure!(&name, concurrency, |store, fleet, n| {
                    let beats: Vec<_> =
                        (0..size).map(|i| beat(&fleet[(n * size + i) % fleet.len()], n + 1)).collect();
                    store.commit_beats(&beats, HeartbeatOptions { history }).await?
                });
            }
        }
        measure!("servers_changed", concurrency, |store, _fleet, _n| store.servers_changed(None).await?);
    }
    measure!("attach", 1, |store, fleet, n| {
        let a = &fleet[n % fleet.len()];
        let holder = store.channel_of(a.server).await?.map(|holder| holder.lease);
        let attachment = attachment(a.server, a.key, holder);
        store.attach(&attachment, Timestamp::now()).await?.context("nobody else takes it")?
    });
    let many: Vec<Change> = (0..RESOURCES).flat_map(|n| changes(&user(&format!("m{n}"), 0))).collect();
    let since = Instant::now();
    store.commit_resources(&many, &Actor::System("bench"), Timestamp::now(), Guard::NONE).await?;
    let took = since.elapsed().as_millis();
    say(&json!({ "engine": bench.engine, "operation": "commit 10,000 resources", "millis": took }));
    measure!("load 10,000 resources", 1, |store, _fleet, _n| store.load_resources().await?);
    measure!("resources_since, nothing new", 1, |store, _fleet, _n| {
        store.resources_since(Revision(i64::MAX)).await?
    });
    store.close().await;
    Ok(())
}
