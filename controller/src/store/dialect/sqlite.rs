//! SQLite: one file, one connection that writes, several that read.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt as _, path::Path, time::Duration};

use sqlx::{
    ConnectOptions as _,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::Pool;

const OWNER_ONLY: u32 = 0o600;
/// How long a connection waits for another's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that read at the same time.
const READERS: u32 = 4;
/// How long a connection that nobody uses stays open.
const IDLE: Duration = Duration::from_secs(300);
/// Statements that a connection keeps prepared.
const STATEMENTS: usize = 200;

/// Makes an empty database in memory, which ends with its one connection.
pub(super) async fn open_in_memory() -> Result<Pool, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .in_memory(true)
        .pragma("temp_store", "MEMORY")
        .foreign_keys(true)
        .disable_statement_logging();
    let pool = SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
    Ok(Pool::Sqlite(pool.connect_with(options).await?))
}

/// Opens the file of a database that others may use meanwhile, and writes nothing.
pub(super) async fn open_for_copy(path: &Path) -> Result<Pool, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("query_only", "true")
        .disable_statement_logging();
    let pool = SqlitePoolOptions::new().max_connections(1).acquire_timeout(BUSY_TIMEOUT);
    Ok(Pool::Sqlite(pool.connect_with(options).await?))
}

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
        .statement_cache_capacity(STATEMENTS)
        // Operations are measured; their texts are long, and nobody's to read.
        .disable_statement_logging();
    let pool = |most: u32| {
        SqlitePoolOptions::new()
            .max_connections(most)
            .min_connections(0)
            .acquire_timeout(BUSY_TIMEOUT)
            .idle_timeout(Some(IDLE))
    };
    let writer = pool(1).idle_timeout(None).max_lifetime(None).connect_with(options.clone()).await?;
    let readers = pool(READERS).connect_lazy_with(options.optimize_on_close(false, None));
    Ok((Pool::Sqlite(writer), Pool::Sqlite(readers)))
}
