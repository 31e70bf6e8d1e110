//! What is kept for a while only goes in small steps, so that nobody waits long for a row that goes.

use super::{
    Store, StoreError,
    dialect::{Engine, query},
    row::Columns as _,
};

/// How many rows go at once.
pub(super) const BATCH: i64 = 1000;
/// The most steps of one call: what is left goes with the next.
const MOST_STEPS: u32 = 200;

/// Ended sessions whose end is before a time.
const SESSIONS: [&str; 2] = [
    "DELETE FROM connection_metrics WHERE connection_id IN (SELECT connection_id FROM connections \
     WHERE connection_start < $1 AND connection_end < $1 ORDER BY connection_start LIMIT $2)",
    "DELETE FROM connections WHERE connection_id IN (SELECT connection_id FROM connections \
     WHERE connection_start < $1 AND connection_end < $1 ORDER BY connection_start LIMIT $2)",
];
/// From where people connected, before a time.
const ADDRESSES: [&str; 2] = [
    "UPDATE connections SET client_ip = '0.0.0.0' WHERE connection_id IN (SELECT connection_id FROM connections \
     WHERE connection_end < $1 AND client_ip <> '0.0.0.0' LIMIT $2)",
    "UPDATE security_events SET source_ip = NULL WHERE event_id IN (SELECT event_id FROM security_events \
     WHERE timestamp < $1 AND source_ip IS NOT NULL LIMIT $2)",
];

impl Store {
    /// Does one thing to the rows from before a time, until none is left. `sql` takes the time and how many at once.
    pub(super) async fn step_by_step(&self, sql: &'static str, before: i64) -> Result<u64, StoreError> {
        let mut done = 0;
        for _ in 0..MOST_STEPS {
            let mut tx = self.begin().await?;
            let rows = query(sql).bind(before).bind(BATCH).execute(&mut *tx).await?.rows_affected();
            tx.commit().await?;
            done += rows;
            if rows < BATCH.unsigned_abs() {
                break;
            }
        }
        Ok(done)
    }

    /// Removes sessions that ended before a time.
    pub(super) async fn forget_sessions(&self, before: i64) -> Result<u64, StoreError> {
        let mut done = 0;
        for _ in 0..MOST_STEPS {
            let mut tx = self.begin().await?;
            let rows = match tx.engine() {
                // A running controller may not remove sessions as it likes.
                Engine::Postgres => {
                    let row = query("SELECT horizon_forget_sessions($1, $2) AS n").bind(before).bind(BATCH);
                    row.fetch_one(&mut *tx).await?.count("n")?
                }
                Engine::Sqlite => {
                    let [metrics, sessions] = SESSIONS;
                    query(metrics).bind(before).bind(BATCH).execute(&mut *tx).await?;
                    query(sessions).bind(before).bind(BATCH).execute(&mut *tx).await?.rows_affected()
                }
            };
            tx.commit().await?;
            done += rows;
            if rows < BATCH.unsigned_abs() {
                break;
            }
        }
        Ok(done)
    }

    /// Forgets from where people connected before a time. Returns how many rows said so.
    pub(super) async fn forget_addresses(&self, before: i64) -> Result<u64, StoreError> {
        let mut done = 0;
        for sql in ADDRESSES {
            done += self.step_by_step(sql, before).await?;
        }
        Ok(done)
    }
}
