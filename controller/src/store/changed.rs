//! Which servers changed: what a sweep reads to heal lost hints.
//!
//! Every transaction that changes what a server's state is made of (sessions, standing, approvals) leaves its mark on the
//! server's row. On Postgres that is its number, and a cursor is the snapshot of a sweep, which tells which transactions
//! had ended when it looked: the next sweep finds the rows whose mark is of one that had not. So a change that commits
//! late is found however long it took, each is found once, and no clock is involved. On SQLite, which has one writer, the
//! mark is a counter.

use horizon_model::ServerId;

use super::{
    Cursor, Store, StoreError,
    dialect::{Connection, Engine, Row, query},
    ids::Position,
    row::Columns as _,
};

impl Store {
    /// The servers whose states may have become others since a cursor, and the next cursor. None is missed. Without a
    /// cursor: no servers, and the cursor of now.
    pub async fn servers_changed(
        &self,
        cursor: Option<&Cursor>,
    ) -> Result<(Vec<ServerId>, Cursor), StoreError> {
        let _timed = self.timed("servers_changed");
        match self.readers().engine() {
            Engine::Sqlite => self.counted(cursor).await,
            Engine::Postgres => self.committed(cursor).await,
        }
    }

    async fn counted(&self, cursor: Option<&Cursor>) -> Result<(Vec<ServerId>, Cursor), StoreError> {
        let from = match cursor {
            Some(Cursor(Position::Counter(from))) => *from,
            _ => i64::MAX,
        };
        let rows = query(
            "SELECT c.value AS next, s.server_id FROM counters c LEFT JOIN servers s ON s.changed > $1 \
             WHERE c.name = 'changed'",
        )
        .bind(from)
        .fetch_all(self.readers())
        .await?;
        let next = rows.first().ok_or(sqlx::Error::RowNotFound)?.int("next")?;
        Ok((servers(&rows)?, Cursor(Position::Counter(next))))
    }

    async fn committed(&self, cursor: Option<&Cursor>) -> Result<(Vec<ServerId>, Cursor), StoreError> {
        let rows = match cursor {
            // The mark of a transaction that is yet to come is of this database's life before a backup was restored.
            Some(Cursor(Position::Snapshot(seen))) => query(
                "SELECT CAST(pg_current_snapshot() AS TEXT) AS next, s.server_id FROM (VALUES (1)) AS one \
                 LEFT JOIN servers s \
                 ON s.changed >= CAST(CAST(pg_snapshot_xmin(CAST($1 AS pg_snapshot)) AS TEXT) AS BIGINT) \
                 AND s.changed < CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS TEXT) AS BIGINT) \
                 AND NOT pg_visible_in_snapshot(CAST(CAST(s.changed AS TEXT) AS xid8), CAST($1 AS pg_snapshot))",
            )
            .bind(seen),
            _ => query("SELECT CAST(pg_current_snapshot() AS TEXT) AS next, CAST(NULL AS TEXT) AS server_id"),
        };
        let rows = rows.fetch_all(self.readers()).await?;
        let next = rows.first().ok_or(sqlx::Error::RowNotFound)?.text("next")?;
        Ok((servers(&rows)?, Cursor(Position::Snapshot(next))))
    }
}

fn servers(rows: &[Row]) -> Result<Vec<ServerId>, StoreError> {
    let named = rows.iter().map(|row| Ok(row.maybe_parsed("server_id")?.map(ServerId)));
    named.filter_map(Result::transpose).collect()
}

/// Notes that what a server's state is made of changes in this transaction.
pub(super) async fn touch(db: &mut Connection, server: &str) -> Result<(), StoreError> {
    if db.engine() == Engine::Sqlite {
        query("UPDATE counters SET value = value + 1 WHERE name = 'changed'").execute(&mut *db).await?;
    }
    query("UPDATE servers SET changed = {change} WHERE server_id = $1")
        .bind(server)
        .execute(&mut *db)
        .await?;
    Ok(())
}
