//! Postgres: what each role may do, what grows and goes, what replicas tell each other.

use futures_util::StreamExt as _;
use horizon_model::{PublicKey, SessionUsage};
use jiff::{SignedDuration, Timestamp};

use super::{
    kit::{BASICS, Kit, at, envelope},
    place::{ENGINE, On, Place, server},
};
use crate::{
    metrics::Metrics,
    store::{
        Database, PostgresOptions, Retention, Snapshot, Store, StoreError, dialect::query,
        migrate::MIGRATIONS, row::Columns as _,
    },
};

async fn on_postgres<T>(test: impl Future<Output = T>) -> T {
    ENGINE.scope(On::Postgres, test).await
}

fn name(kit: &Kit) -> &str {
    let Place::Postgres(name) = &kit.place else { panic!("on Postgres") };
    name
}

/// The error code that a statement of the running controller meets.
async fn refused(store: &Store, sql: &'static str) -> Option<String> {
    let mut tx = store.begin().await.unwrap();
    let error = query(sql).execute(&mut *tx).await.err()?;
    Some(error.as_database_error()?.code()?.into_owned())
}

#[tokio::test]
async fn a_running_controller_can_neither_change_tables_nor_rewrite_the_audit_trail() {
    on_postgres(async {
        const DENIED: Option<&str> = Some("42501");
        let kit = Kit::with_basics().await;
        assert!(!kit.store.list_audit(10).await.unwrap().is_empty());
        for sql in [
            "UPDATE audit_logs SET actor_name = 'nobody'",
            "DELETE FROM audit_logs",
            "TRUNCATE audit_logs",
            "UPDATE audit_links SET dropped = 0",
            "DELETE FROM audit_links",
            "UPDATE audit_checkpoints SET made_date = 0",
            "DELETE FROM audit_checkpoints",
            "DROP TABLE audit_logs",
            "ALTER TABLE audit_logs ADD COLUMN a BIGINT",
            "ALTER TABLE audit_logs DISABLE TRIGGER ALL",
            "INSERT INTO audit_logs_rest SELECT * FROM audit_logs",
            "DELETE FROM audit_logs_rest",
            "ALTER TABLE audit_logs DETACH PARTITION audit_logs_rest",
            "DELETE FROM resources",
            "DELETE FROM servers",
            "DELETE FROM connections",
            "TRUNCATE heartbeats",
            "DELETE FROM heartbeats",
            "ALTER TABLE servers DROP COLUMN hostname",
            "ALTER TABLE servers DISABLE ROW LEVEL SECURITY",
            "DROP POLICY running ON servers",
            "CREATE TABLE mine (a BIGINT)",
            "CREATE INDEX mine ON servers(hostname)",
            "CREATE FUNCTION mine() RETURNS BIGINT LANGUAGE sql AS 'SELECT 1'",
            "CREATE OR REPLACE FUNCTION horizon_make_partitions() RETURNS BIGINT LANGUAGE sql AS 'SELECT 1'",
            "UPDATE schema_migrations SET digest = ''",
            "INSERT INTO schema_migrations (version, digest, applied_at) VALUES (9, '', 0)",
            "INSERT INTO leadership (singleton, epoch) VALUES (1, 1)",
            "DELETE FROM leadership",
            "DELETE FROM counters",
            "SET ROLE horizon_migrate",
            "CREATE ROLE mine",
        ] {
            assert_eq!(refused(&kit.store, sql).await.as_deref(), DENIED, "{sql}");
        }
        // Partitions of the audit trail cannot be dropped before their time, whoever asks and whatever they say.
        let mut tx = kit.store.begin().await.unwrap();
        let row = query("SELECT horizon_drop_partitions('audit_logs', 9223372036854775807) AS n");
        assert_eq!(row.fetch_one(&mut *tx).await.unwrap().int("n").unwrap(), 0);
        tx.commit().await.unwrap();
        let none = refused(&kit.store, "SELECT horizon_drop_partitions('servers', 0)").await;
        assert_eq!(none.as_deref(), Some("22023"));
        // Nor by objects of one's own that come before those of the function.
        let shadow = "CREATE TEMPORARY TABLE audit_logs_rest (timestamp BIGINT)";
        let _ = refused(&kit.store, shadow).await;
        assert!(!kit.store.list_audit(10).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn reports_see_the_rows_of_their_namespaces_and_no_secret() {
    on_postgres(async {
        let kit = Kit::with_basics().await;
        let elsewhere = BASICS.replace("[resource.spec]", "metadata.namespace = 'other'\n[resource.spec]");
        let elsewhere = elsewhere.replace("\nspec.", "\nmetadata.namespace = 'other'\nspec.");
        kit.put(&elsewhere).await;
        kit.register(PublicKey([1; 32])).await;
        let server = server();
        let report = format!("report_{}", name(&kit));
        server.role(&report, "in role horizon_reader, horizon_reader_default").unwrap();
        let stranger = format!("stranger_{}", name(&kit));
        server.role(&stranger, "in role horizon_reader").unwrap();
        let connect = async |role: &str| {
            let url = server.role_url(role, name(&kit));
            sqlx::PgPool::connect(&url).await.unwrap()
        };
        let count = async |pool: &sqlx::PgPool, sql: &'static str| -> Result<i64, sqlx::Error> {
            sqlx::query_scalar::<_, i64>(sql).fetch_one(pool).await
        };
        let (reader, other) = (connect(&report).await, connect(&stranger).await);
        assert_eq!(kit.stored().await.len(), 10);
        assert_eq!(count(&reader, "SELECT COUNT(*) FROM resources").await.unwrap(), 5);
        assert_eq!(
            count(&reader, "SELECT COUNT(*) FROM resources WHERE namespace <> 'default'").await.unwrap(),
            0
        );
        assert_eq!(count(&reader, "SELECT COUNT(server_id) FROM servers").await.unwrap(), 1);
        assert_eq!(count(&other, "SELECT COUNT(*) FROM resources").await.unwrap(), 0);
        for sql in [
            "SELECT COUNT(verification_secret) FROM servers",
            "SELECT COUNT(secret) FROM connections",
            "SELECT COUNT(*) FROM personal_keys",
            "SELECT COUNT(*) FROM registration_keys",
            "SELECT COUNT(*) FROM audit_logs",
            "WITH done AS (UPDATE resources SET name = 'x' RETURNING 1) SELECT COUNT(*) FROM done",
            "SELECT horizon_make_partitions()",
        ] {
            let error = count(&reader, sql).await.unwrap_err();
            let code = error.as_database_error().and_then(|e| e.code().map(std::borrow::Cow::into_owned));
            assert_eq!(code.as_deref(), Some("42501"), "{sql}: {error}");
        }
        // A namespace is a membership, which is not the member's to change.
        let granted = sqlx::query("GRANT horizon_reader_other TO CURRENT_USER").execute(&reader).await;
        assert!(granted.is_err());
        reader.close().await;
        other.close().await;
        server
            .psql_in(
                name(&kit),
                &format!("drop owned by {report}, {stranger}; drop role {report}, {stranger}"),
            )
            .unwrap();
    })
    .await;
}

#[tokio::test]
async fn whoever_makes_backups_reads_everything_and_changes_nothing() {
    on_postgres(async {
        let kit = Kit::with_basics().await;
        kit.register(PublicKey([1; 32])).await;
        let role = format!("nightly_{}", name(&kit));
        server().role(&role, "in role horizon_backup").unwrap();
        let options = PostgresOptions::parse(&server().role_url(&role, name(&kit))).unwrap();
        let mut snapshot = Snapshot::take(options.clone()).await.unwrap();
        let mut rows = 0;
        for shape in snapshot.tables().to_vec() {
            snapshot
                .rows(&shape, |_| {
                    rows += 1;
                    Ok::<_, StoreError>(())
                })
                .await
                .unwrap();
        }
        snapshot.close().await;
        let mut all = Snapshot::take(kit.place.owned()).await.unwrap();
        let mut expected = 0;
        for shape in all.tables().to_vec() {
            all.rows(&shape, |_| {
                expected += 1;
                Ok::<_, StoreError>(())
            })
            .await
            .unwrap();
        }
        all.close().await;
        assert_eq!(rows, expected, "the policies of rows hide none");
        let pool = sqlx::PgPool::connect(&server().role_url(&role, name(&kit))).await.unwrap();
        for sql in [
            "UPDATE servers SET name = 'x'",
            "DELETE FROM resources",
            "INSERT INTO counters (name, value) VALUES ('x', 1)",
            "SELECT horizon_make_partitions()",
            "SELECT horizon_forget_sessions(0, 1)",
            "CREATE TABLE mine (a BIGINT)",
        ] {
            let error = sqlx::query(sql).execute(&pool).await.unwrap_err();
            let code = error.as_database_error().and_then(|e| e.code().map(std::borrow::Cow::into_owned));
            assert_eq!(code.as_deref(), Some("42501"), "{sql}: {error}");
        }
        pool.close().await;
        server().psql_in(name(&kit), &format!("drop owned by {role}; drop role {role}")).unwrap();
    })
    .await;
}

#[tokio::test]
async fn an_older_schema_is_the_migrations_to_change() {
    let server = server();
    let database = server.fresh_database().unwrap();
    let options = PostgresOptions::parse(&server.role_url("horizon_run", &database)).unwrap();
    let error = Store::open(options.clone(), &envelope(), Metrics::default()).await.unwrap_err();
    assert!(matches!(error, StoreError::OldSchema { found: 0, .. }), "{error}");
    assert!(error.to_string().contains("horizon-controller migrate"));
    let denied = Store::migrate(options).await.unwrap_err();
    assert!(denied.to_string().contains("permission denied"), "{denied}");
    // Whoever owns everything needs no other role.
    let admin = PostgresOptions::parse(&server.admin_url(&database)).unwrap();
    let report = Store::migrate(admin.clone()).await.unwrap();
    let versions = MIGRATIONS.map(|migration| migration.version);
    assert_eq!(report.applied, versions);
    assert_eq!(Some(&report.version), versions.last());
    assert_eq!(Store::migrate(admin.clone()).await.unwrap().applied, [0; 0]);
    let store = Store::open(admin, &envelope(), Metrics::default()).await.unwrap();
    store.load_resources().await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn partitions_are_made_ahead_and_go_when_their_time_is_over() {
    on_postgres(async {
        let kit = Kit::with_basics().await;
        let server_id = kit.register(PublicKey([1; 32])).await.server;
        let partitions = async || {
            let sql = "SELECT COUNT(*) AS n FROM pg_inherits WHERE inhparent IN ('heartbeats'::regclass, \
                       'connection_metrics'::regclass, 'audit_logs'::regclass)";
            query(sql).fetch_one(kit.store.readers()).await.unwrap().int("n").unwrap()
        };
        // Three ahead of each, and one for the rest.
        assert_eq!(partitions().await, 12);
        let now = Timestamp::now();
        let done = kit.store.maintain(now, &Retention::default()).await.unwrap();
        assert_eq!((done.made, done.dropped), (0, 0));
        // As things are a week from now, for whoever looks at the oldest beats.
        let hour = SignedDuration::from_hours(1).as_millis() as i64;
        let old = now.as_millisecond() / hour - 24 * 7;
        let sql = format!(
            "CREATE TABLE heartbeats_{old} PARTITION OF heartbeats FOR VALUES FROM ({}) TO ({}); \
             ALTER TABLE heartbeats_{old} OWNER TO horizon_migrate; \
             INSERT INTO heartbeats (server_id, received_time, server_time, counter, applied_generation, \
             active_connections, system_metrics) SELECT '{server_id}', t, t, 1, 1, 0, '{{}}' FROM UNNEST(ARRAY[{}, {}]::BIGINT[]) t",
            old * hour,
            (old + 1) * hour,
            old * hour + 1,
            (old - 1) * hour,
        );
        server().psql_in(name(&kit), &sql).unwrap();
        assert_eq!(kit.store.list_beats(server_id, 10).await.unwrap().len(), 2, "one of them among the rest");
        let week = Retention { beats: SignedDuration::from_hours(24 * 8), ..Retention::default() };
        assert_eq!(kit.store.maintain(now, &week).await.unwrap().dropped, 0);
        let day = Retention { beats: SignedDuration::from_hours(24), ..Retention::default() };
        assert_eq!(kit.store.maintain(now, &day).await.unwrap().dropped, 1);
        assert!(kit.store.list_beats(server_id, 10).await.unwrap().is_empty());
        assert_eq!(partitions().await, 12);
        // A partition that is missing is made, and what waited among the rest stays where it is.
        let next = now.as_millisecond() / hour + 2;
        server().psql_in(name(&kit), &format!("DROP TABLE heartbeats_{next}")).unwrap();
        assert_eq!(kit.store.maintain(now, &day).await.unwrap().made, 1);
        assert_eq!(partitions().await, 12);
        assert!(!kit.store.list_audit(10).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn replicas_hear_what_others_tell() {
    on_postgres(async {
        let kit = Kit::new().await;
        let other = kit.replica().await;
        assert!(kit.store.is_postgres());
        let mut told = kit.store.listen().await.unwrap();
        other.notify("one").await.unwrap();
        other.notify(&"x".repeat(crate::store::MAX_NOTICE)).await.unwrap();
        assert!(other.notify(&"x".repeat(8000)).await.is_err());
        assert_eq!(told.next().await.as_deref(), Some("one"));
        assert_eq!(told.next().await.map(|text| text.len()), Some(crate::store::MAX_NOTICE));
        // A broken connection ends it, so that whoever listens knows.
        let end = format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{}' and query like 'LISTEN%'",
            name(&kit)
        );
        server().psql(&end).unwrap();
        assert_eq!(told.next().await, None);
        let mut again = kit.store.listen().await.unwrap();
        other.notify("two").await.unwrap();
        assert_eq!(again.next().await.as_deref(), Some("two"));
    })
    .await;
}

#[tokio::test]
async fn on_sqlite_there_is_nobody_to_tell() {
    let kit = Kit::new().await;
    assert!(!kit.store.is_postgres());
    kit.store.notify("one").await.unwrap();
    let mut told = kit.store.listen().await.unwrap();
    assert!(futures_util::FutureExt::now_or_never(told.next()).is_none());
}

#[tokio::test]
async fn old_rows_go_on_sqlite_too() {
    let kit = Kit::with_basics().await;
    let server = kit.register(PublicKey([1; 32])).await.server;
    let attached = kit.attach(server).await;
    assert!(kit.answer(&attached, server, true, 1).await);
    let audit = kit.store.list_audit(100).await.unwrap().len();
    assert_eq!(kit.store.maintain(at(10), &Retention::default()).await.unwrap().deleted, 0);
    let year = at(0).checked_add(SignedDuration::from_hours(24 * 500)).unwrap();
    let done = kit.store.maintain(year, &Retention::default()).await.unwrap();
    assert_eq!(done.deleted, audit as u64 + 1);
    assert!(kit.store.list_audit(100).await.unwrap().is_empty());
    let usage: [SessionUsage; 0] = [];
    assert_eq!(
        kit.store.note_usage(server, attached.lease, &usage, at(0)).await.unwrap(),
        Default::default()
    );
}

#[test]
fn what_is_shown_of_a_database_holds_no_password() {
    let url = "postgres://ana:s3cret@db.example/horizon";
    let database: Database = PostgresOptions::parse(url).unwrap().into();
    assert!(!format!("{database:?}").contains("s3cret"));
}
