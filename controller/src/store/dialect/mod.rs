//! What differs between database engines: how a database is opened, its types behind one face, and a few words of SQL.
//! Everything else in this module is one text for all of them.

pub(super) mod catalog;
mod options;
mod postgres;
mod query;
mod sqlite;

use std::ops::{Deref, DerefMut};

use sqlx::{Postgres, Sqlite, postgres::PgRow, sqlite::SqliteRow};

pub use options::{Database, InvalidUrl, PostgresOptions};
pub(super) use query::{Builder, On, query};
use query::{Query, Value};

use super::StoreError;

/// The most values bound to one statement.
pub(super) const MAX_BINDS: usize = 30_000;

/// Opens a database: the pool that writes and the one that reads.
pub(super) async fn open(database: &Database) -> Result<(Pool, Pool), sqlx::Error> {
    match database {
        Database::Sqlite(path) => sqlite::open(path).await,
        Database::Postgres(options) => {
            let pool = postgres::open(options).await?;
            Ok((pool.clone(), pool))
        }
    }
}

/// Opens a database for migrations, which may take their time.
pub(super) async fn open_for_migration(database: &Database) -> Result<Pool, sqlx::Error> {
    match database {
        Database::Sqlite(path) => Ok(sqlite::open(path).await?.0),
        Database::Postgres(options) => postgres::open_for_migration(options).await,
    }
}

/// Opens a database that is there, to read a copy of it, which may take its time.
pub(super) async fn open_for_copy(database: &Database) -> Result<Pool, sqlx::Error> {
    match database {
        Database::Sqlite(path) => sqlite::open_for_copy(path).await,
        Database::Postgres(options) => postgres::open_for_copy(options).await,
    }
}

/// An empty database that is nowhere but in memory.
pub(super) async fn open_in_memory() -> Result<Pool, sqlx::Error> {
    sqlite::open_in_memory().await
}

/// The engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    /// The name for people and for files.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }

    /// The words that migrations leave open, and what they mean.
    pub(super) fn words(self) -> [(&'static str, &'static str); 2] {
        match self {
            Self::Sqlite => [("{bytes}", "BLOB"), ("{serial}", "INTEGER PRIMARY KEY AUTOINCREMENT")],
            Self::Postgres => {
                [("{bytes}", "BYTEA"), ("{serial}", "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY")]
            }
        }
    }

    /// The names of all tables that migrations made, without the partitions of others.
    #[cfg(test)]
    pub(super) fn tables(self) -> &'static str {
        match self {
            Self::Sqlite => {
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
            }
            Self::Postgres => {
                "SELECT CAST(relname AS TEXT) AS name FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition \
                 AND relnamespace = 'public'::regnamespace ORDER BY relname"
            }
        }
    }
}

/// A row.
pub(super) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl From<SqliteRow> for Row {
    fn from(row: SqliteRow) -> Self {
        Self::Sqlite(row)
    }
}

impl From<PgRow> for Row {
    fn from(row: PgRow) -> Self {
        Self::Postgres(row)
    }
}

/// A set of connections. A clone is the same set.
#[derive(Clone)]
pub(super) enum Pool {
    Sqlite(sqlx::SqlitePool),
    Postgres(sqlx::PgPool),
}

impl Pool {
    pub(super) fn engine(&self) -> Engine {
        match self {
            Self::Sqlite(_) => Engine::Sqlite,
            Self::Postgres(_) => Engine::Postgres,
        }
    }

    /// Starts a writing transaction: on SQLite with the lock that it needs, so that it never fails half way for want of
    /// it. On Postgres it sees what others commit while it runs (READ COMMITTED), and locks what it relies on.
    pub(super) async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        let connection = match self {
            Self::Sqlite(pool) => Connection::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await?),
            Self::Postgres(pool) => Connection::Postgres(pool.begin().await?),
        };
        Ok(Transaction(connection))
    }

    /// Starts a transaction that reads one state of the database, whatever others commit meanwhile.
    pub(super) async fn snapshot(&self) -> Result<Transaction, sqlx::Error> {
        let connection = match self {
            Self::Sqlite(pool) => Connection::Sqlite(pool.begin().await?),
            Self::Postgres(pool) => Connection::Postgres(
                pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?,
            ),
        };
        Ok(Transaction(connection))
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }

    /// How many connections are open, and how many of them nobody uses.
    pub(super) fn connections(&self) -> (usize, usize) {
        match self {
            Self::Sqlite(pool) => (pool.size() as usize, pool.num_idle()),
            Self::Postgres(pool) => (pool.size() as usize, pool.num_idle()),
        }
    }
}

/// A connection in a transaction.
pub(super) enum Connection {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

impl Connection {
    pub(super) fn engine(&self) -> Engine {
        match self {
            Self::Sqlite(_) => Engine::Sqlite,
            Self::Postgres(_) => Engine::Postgres,
        }
    }

    /// Waits until no other transaction that named the same thing goes on, and keeps others out until this one ends.
    /// For what no row stands for: the free addresses of a network, the sessions of a user.
    pub(super) async fn serialise(&mut self, what: &str) -> Result<(), sqlx::Error> {
        if self.engine() == Engine::Postgres {
            query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
                .bind(what)
                .execute(&mut *self)
                .await?;
        }
        Ok(())
    }

    /// Lets rows of this transaction refer to others that come later in it, where the engine can. Postgres cannot: there
    /// they must come in their order.
    pub(super) async fn refer_late(&mut self) -> Result<(), sqlx::Error> {
        if self.engine() == Engine::Sqlite {
            query("PRAGMA defer_foreign_keys = ON").execute(&mut *self).await?;
        }
        Ok(())
    }

    /// Runs statements that have no values and may be several.
    pub(super) async fn script(&mut self, sql: String) -> Result<(), sqlx::Error> {
        // A file of this program with words of this program filled in.
        let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
        match self {
            Self::Sqlite(tx) => sql.execute(&mut **tx).await.map(drop),
            Self::Postgres(tx) => sql.execute(&mut **tx).await.map(drop),
        }
    }
}

/// A transaction. Dropped without a commit it changes nothing.
pub(super) struct Transaction(Connection);

impl Transaction {
    /// Makes the changes durable. When this returns, they are.
    pub(super) async fn commit(self) -> Result<(), StoreError> {
        let done = match self.0 {
            Connection::Sqlite(tx) => tx.commit().await,
            Connection::Postgres(tx) => tx.commit().await,
        };
        done.map_err(|error| match error {
            sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::Tls(_) => StoreError::Unknown(error),
            other => other.into(),
        })
    }
}

impl Deref for Transaction {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.0
    }
}
