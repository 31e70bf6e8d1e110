//! Which servers changed: what a sweep reads to heal lost hints.
//!
//! Every transaction that changes what a server's state is made of (sessions, standing, approvals) writes its own place
//! in a sequence to the server's row. On Postgres that is the number of the transaction: a sweep asks for rows at or above
//! its cursor, and the next cursor is the oldest transaction that had not ended when the sweep looked. So a change
//! that commits late is still above the cursor, however long it took, and no clock is involved. On SQLite, which
//! has one writer, it is a counter.

use horizon_model::ServerId;

use super::{
    Cursor, Store, StoreError,
    dialect::{Connection, Engine, query},
    row::Columns as _,
};

const SWEEP_SQLITE: &str = "SELECT c.value + 1 AS next, s.server_id FROM counters c \
     LEFT JOIN servers s ON s.changed >= $1 WHERE c.name = 'changed'";

/// A cursor that this database never gave, as after a backup was restored, starts over at what is going on.
const SWEEP_POSTGRES: &str = "WITH clock AS MATERIALIZED (SELECT \
     CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS TEXT) AS BIGINT) AS oldest, \
     CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS TEXT) AS BIGINT) AS beyond) \
     SELECT clock.oldest AS next, s.server_id FROM clock \
     LEFT JOIN servers s ON s.changed >= LEAST($1, clock.oldest) AND s.changed < clock.beyond";

impl Store {
    /// The servers whose states may have become others since a cursor, and the next cursor. None is missed; one may be
    /// named twice. Without a cursor: no servers, and the cursor of now.
    pub async fn servers_changed(
        &self,
        cursor: Option<Cursor>,
    ) -> Result<(Vec<ServerId>, Cursor), StoreError> {
        let _timed = self.timed("servers_changed");
        let sweep = match self.readers().engine() {
            Engine::Sqlite => SWEEP_SQLITE,
            Engine::Postgres => SWEEP_POSTGRES,
        };
        let from = cursor.map_or(i64::MAX, |cursor| cursor.0);
        let rows = query(sweep).bind(from).fetch_all(self.readers()).await?;
        let mut servers = Vec::new();
        let mut next = 0;
        for row in &rows {
            next = row.int("next")?;
            servers.extend(row.maybe_parsed("server_id")?.map(ServerId));
        }
        if cursor.is_none() {
            servers.clear();
        }
        Ok((servers, Cursor(next)))
    }
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
