//! What differs between database engines: the types below, how a database is opened, and a few words of SQL. Everything
//! else in this module is one text for all of them.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt as _, path::Path, time::Duration};

use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

/// The engine.
pub(super) type Engine = sqlx::Sqlite;
/// One of its connections.
pub(super) type Connection = sqlx::SqliteConnection;
/// One of its rows.
pub(super) type Row = sqlx::sqlite::SqliteRow;
/// A set of its connections.
pub(super) type Pool = SqlitePool;
/// A transaction.
pub(super) type Transaction = sqlx::Transaction<'static, Engine>;

/// How a writing transaction starts: with the lock that it needs, so that it never fails half way for want of it.
pub(super) const BEGIN_WRITE: &str = "BEGIN IMMEDIATE";

/// The most values bound to one statement.
pub(super) const MAX_BINDS: usize = 30_000;

const OWNER_ONLY: u32 = 0o600;
/// How long a connection waits for another's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that read at the same time.
const READERS: u32 = 4;

/// The words that migrations leave open.
pub(super) const WORDS: [(&str, &str); 2] =
    [("{bytes}", "BLOB"), ("{serial}", "INTEGER PRIMARY KEY AUTOINCREMENT")];

/// The names of all tables that migrations made.
#[cfg(test)]
pub(super) const TABLES: &str =
    "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name";

/// Opens the database file, the only writer first. Commits wait for the disk (`synchronous = FULL`): what was
/// acknowledged survives the end of the process and of the power.
/// Only its owner reads the file, from its first moment on; the engine gives its journals the mode of the file.
pub(super) async fn open(path: &Path) -> Result<(Pool, Pool), sqlx::Error> {
    OpenOptions::new().create(true).append(true).mode(OWNER_ONLY).open(path)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .statement_cache_capacity(200);
    let pool = |most: u32| {
        SqlitePoolOptions::new()
            .max_connections(most)
            .min_connections(0)
            .acquire_timeout(BUSY_TIMEOUT)
            .idle_timeout(Some(Duration::from_secs(300)))
    };
    let writer = pool(1).idle_timeout(None).max_lifetime(None).connect_with(options.clone()).await?;
    let readers = pool(READERS).connect_lazy_with(options.optimize_on_close(false, None));
    Ok((writer, readers))
}
