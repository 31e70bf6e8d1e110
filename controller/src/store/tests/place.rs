//! Where a test's database is: in a file of its own, or in a database of its own on the server that all tests share.

use std::sync::OnceLock;

use horizon_services::Postgres;

use crate::store::{Database, PostgresOptions, Store};

tokio::task_local! {
    /// The engine that a test is about; SQLite for those that are about both.
    pub(crate) static ENGINE: On;
}

/// An engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    Sqlite,
    Postgres,
}

/// A database that is taken away with this.
pub(crate) enum Place {
    Sqlite(tempfile::TempDir),
    Postgres(String),
}

/// Migrated once; the databases of tests are copies of it.
const TEMPLATE: &str = "horizon_template";
/// The role that owns the tables.
const OWNER: &str = "horizon_migrate";
/// The role that a running controller has, which is what the store has in tests.
const RUNNING: &str = "horizon_run";

/// The server, with roles and a template.
pub(crate) fn server() -> &'static Postgres {
    static READY: OnceLock<()> = OnceLock::new();
    let server = Postgres::shared().unwrap();
    READY.get_or_init(|| {
        server.role(OWNER, "").unwrap();
        server.role(RUNNING, "").unwrap();
        server
            .psql(
                "create role horizon_backup; create role horizon_reader; create role horizon_reader_default",
            )
            .unwrap();
        server.psql(&format!("create database {TEMPLATE} owner {OWNER}")).unwrap();
        let owner = PostgresOptions::parse(&server.role_url(OWNER, TEMPLATE)).unwrap();
        migrate(owner);
    });
    server
}

/// Migrates on a thread of its own: tests are asynchronous already.
pub(crate) fn migrate(database: PostgresOptions) {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let report = runtime.block_on(Store::migrate(database)).unwrap();
        assert_eq!(report.missing_roles, [""; 0]);
    };
    std::thread::spawn(run).join().unwrap();
}

impl Place {
    /// A new database on the engine of this test.
    pub(crate) fn new() -> Self {
        match ENGINE.try_with(|on| *on).unwrap_or(On::Sqlite) {
            On::Sqlite => Self::Sqlite(tempfile::tempdir().unwrap()),
            On::Postgres => {
                static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
                let name = format!("store_{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
                server().psql(&format!("create database {name} template {TEMPLATE} owner {OWNER}")).unwrap();
                Self::Postgres(name)
            }
        }
    }

    /// As a running controller opens it.
    pub(crate) fn database(&self) -> Database {
        match self {
            Self::Sqlite(dir) => Database::Sqlite(dir.path().join("horizon.db")),
            Self::Postgres(name) => self.role(RUNNING, name),
        }
    }

    /// As a migration opens it.
    pub(crate) fn owned(&self) -> Database {
        match self {
            Self::Sqlite(_) => self.database(),
            Self::Postgres(name) => self.role(OWNER, name),
        }
    }

    fn role(&self, role: &str, name: &str) -> Database {
        PostgresOptions::parse(&server().role_url(role, name)).unwrap().into()
    }

    /// Runs SQL that the store itself would not, with all rights.
    pub(crate) async fn admin(&self, sql: &'static str) {
        match self {
            Self::Sqlite(dir) => {
                let url = format!("sqlite://{}", dir.path().join("horizon.db").display());
                let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
                sqlx::query(sql).execute(&pool).await.unwrap();
                pool.close().await;
            }
            Self::Postgres(name) => drop(server().psql_in(name, sql).unwrap()),
        }
    }

    /// Whether bytes are anywhere in the database.
    pub(crate) fn holds(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Sqlite(dir) => std::fs::read_dir(dir.path()).unwrap().any(|file| {
                std::fs::read(file.unwrap().path()).unwrap().windows(bytes.len()).any(|w| w == bytes)
            }),
            Self::Postgres(name) => {
                let dump = server().tool("pg_dump", ["--data-only", "--inserts", name]).unwrap();
                dump.contains(&data_encoding::HEXLOWER.encode(bytes))
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Self::Postgres(name) = self {
            // Whatever still uses it is of this test, which is over.
            let _ = server().psql(&format!("drop database if exists {name} with (force)"));
        }
    }
}
