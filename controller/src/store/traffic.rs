//! What detection asks of sessions: how long one lasted, and what users and servers moved.

use horizon_crds::Name;
use horizon_model::{ServerId, SessionId};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    Store, StoreError,
    dialect::{Row, query},
    row::{Columns as _, millis},
};

/// How long a session lasted, and whose it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionLength {
    /// The user.
    pub user: Uuid,
    /// Their namespace.
    pub namespace: Name,
    /// Their name.
    pub user_name: Name,
    /// From its beginning to its end.
    pub seconds: u64,
}

/// What somebody moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved<Id> {
    /// Who.
    pub id: Id,
    /// Their namespace.
    pub namespace: Name,
    /// Their name.
    pub name: Name,
    /// In both directions together.
    pub bytes: u64,
}

impl Store {
    /// How long a session lasted that has ended after its appliance took it in; `None` of any other.
    pub async fn session_length(&self, session: SessionId) -> Result<Option<SessionLength>, StoreError> {
        let row = query(
            "SELECT c.user_uid, c.connection_end - c.activated_date AS lasted, r.namespace, r.name FROM connections c \
             JOIN resources r ON r.uid = c.user_uid WHERE c.connection_id = $1 AND c.connection_end IS NOT NULL \
             AND c.activated_date IS NOT NULL",
        )
        .bind(session.to_string())
        .fetch_optional(self.readers())
        .await?;
        let read = |row: Row| {
            Ok(SessionLength {
                user: row.parsed("user_uid")?,
                namespace: row.parsed("namespace")?,
                user_name: row.parsed("name")?,
                seconds: u64::try_from(row.int("lasted")? / 1000).unwrap_or(0),
            })
        };
        row.map(read).transpose()
    }

    /// What each user and each server moved from one minute to another, as far as sessions moved anything.
    pub async fn moved(
        &self,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<(Vec<Moved<Uuid>>, Vec<Moved<ServerId>>), StoreError> {
        let users = query(
            "SELECT c.user_uid AS id, r.namespace, r.name, CAST(SUM(m.bytes_sent + m.bytes_received) AS BIGINT) AS bytes \
             FROM connection_metrics m JOIN connections c ON c.connection_id = m.connection_id \
             JOIN resources r ON r.uid = c.user_uid WHERE m.minute >= $1 AND m.minute < $2 \
             GROUP BY c.user_uid, r.namespace, r.name",
        )
        .bind(millis(from))
        .bind(millis(to))
        .fetch_all(self.readers())
        .await?;
        let servers = query(
            "SELECT c.server_id AS id, s.namespace, s.name, CAST(SUM(m.bytes_sent + m.bytes_received) AS BIGINT) AS bytes \
             FROM connection_metrics m JOIN connections c ON c.connection_id = m.connection_id \
             JOIN servers s ON s.server_id = c.server_id WHERE m.minute >= $1 AND m.minute < $2 \
             GROUP BY c.server_id, s.namespace, s.name",
        )
        .bind(millis(from))
        .bind(millis(to))
        .fetch_all(self.readers())
        .await?;
        Ok((
            users.iter().map(moved).collect::<Result<_, _>>()?,
            servers.iter().map(moved).collect::<Result<_, _>>()?,
        ))
    }
}

fn moved<Id: std::str::FromStr<Err: std::fmt::Display>>(row: &Row) -> Result<Moved<Id>, StoreError> {
    Ok(Moved {
        id: row.parsed("id")?,
        namespace: row.parsed("namespace")?,
        name: row.parsed("name")?,
        bytes: row.count("bytes")?,
    })
}
