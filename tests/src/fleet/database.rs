//! The database of the controller under test, read from outside: what it really holds.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use horizon_model::ServerId;
use horizon_services::Postgres;
use sqlx::{Connection as _, Row as _, SqliteConnection, sqlite::SqliteConnectOptions};

use super::Acknowledged;
use crate::bench::Usage;

/// Where a controller keeps what it acknowledges.
pub enum Database {
    /// In a file of its data directory.
    Sqlite(PathBuf),
    /// In a database of a server.
    Postgres {
        /// The server.
        server: Box<Postgres>,
        /// The database.
        name: String,
    },
}

impl Database {
    /// A word for titles.
    pub fn engine(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "SQLite",
            Self::Postgres { .. } => "Postgres",
        }
    }

    /// Rows of a query whose columns are texts and numbers, as texts.
    pub fn rows(&self, sql: &str) -> Result<Vec<Vec<String>>> {
        match self {
            Self::Sqlite(path) => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let options = SqliteConnectOptions::new().filename(path);
                    let mut connection = SqliteConnection::connect_with(&options).await?;
                    let rows =
                        sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).fetch_all(&mut connection).await?;
                    let text = |row: &sqlx::sqlite::SqliteRow, at: usize| {
                        row.try_get_unchecked::<String, _>(at).map_err(anyhow::Error::from)
                    };
                    rows.iter().map(|row| (0..row.len()).map(|at| text(row, at)).collect()).collect()
                })
            }
            Self::Postgres { server, name } => {
                let out = server.psql_in(name, sql)?;
                Ok(out.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect())
            }
        }
    }

    /// Whether commits of connections that are made from now on wait for the disk, as they must when anything is measured. Everything
    /// before is on the disk once they do again.
    pub(super) fn wait_for_disk(&self, wait: bool) -> Result<()> {
        if let Self::Postgres { name, .. } = self {
            let value = if wait { "on" } else { "off" };
            self.rows(&format!("ALTER DATABASE \"{name}\" SET synchronous_commit = {value}"))?;
            self.rows("CHECKPOINT")?;
        }
        Ok(())
    }

    /// The counter of the newest heartbeat of every server.
    pub fn counters(&self) -> Result<HashMap<ServerId, u64>> {
        let rows = self.rows(
            "SELECT CAST(server_id AS TEXT), CAST(heartbeat_counter AS TEXT) FROM servers \
             WHERE heartbeat_counter IS NOT NULL",
        )?;
        rows.iter()
            .map(|row| match &row[..] {
                [server, counter] => {
                    let server = server.parse().ok().context("a server id that cannot be read")?;
                    Ok((server, counter.parse()?))
                }
                _ => anyhow::bail!("a row of {} columns", row.len()),
            })
            .collect()
    }

    /// The heartbeats of the history, by server.
    pub fn history(&self) -> Result<HashMap<ServerId, Vec<Acknowledged>>> {
        let rows = self.rows(
            "SELECT CAST(server_id AS TEXT), CAST(counter AS TEXT), CAST(server_time AS TEXT) FROM heartbeats",
        )?;
        let mut history: HashMap<ServerId, Vec<Acknowledged>> = HashMap::new();
        for row in rows {
            let [server, counter, sent] = &row[..] else { anyhow::bail!("a row of {} columns", row.len()) };
            let server = server.parse().ok().context("a server id that cannot be read")?;
            let beat = Acknowledged { counter: counter.parse()?, sent: sent.parse()? };
            history.entry(server).or_default().push(beat);
        }
        Ok(history)
    }

    /// What the database's own processes take; `None` where the controller is the database.
    pub fn usage(&self) -> Result<Option<Usage>> {
        match self {
            Self::Sqlite(_) => Ok(None),
            Self::Postgres { server, .. } => {
                let postmaster = *server.pids()?.first().context("Postgres has no process")?;
                Usage::of(postmaster).map(Some)
            }
        }
    }

    /// How many bytes of write-ahead log were ever written; `None` where that is not told.
    pub fn log_bytes(&self) -> Result<Option<u64>> {
        match self {
            Self::Sqlite(_) => Ok(None),
            Self::Postgres { .. } => {
                let rows = self.rows("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")?;
                let bytes = rows.first().and_then(|row| row.first()).context("no position in the log")?;
                Ok(Some(bytes.parse()?))
            }
        }
    }
}
