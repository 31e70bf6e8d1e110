//! Records page by page, for those who look through all of them. What is asked for is bound, never part of a statement's text.

use horizon_model::{DeviceId, PublicKey, SessionId};

use super::{
    AuditEntry, DeviceRecord, DeviceView, SecurityEvent, SessionView, Store, StoreError, audit, device,
    dialect::{Builder, query},
    event,
    row::Columns as _,
    session_rows,
};

/// Which rows of the audit trail are asked for.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// Those before this one.
    pub before: Option<i64>,
    /// Those of an action.
    pub action: Option<String>,
    /// Those of an actor, by name.
    pub actor: Option<String>,
    /// Those about a kind of target.
    pub target_type: Option<String>,
    /// Those about a target, by its identifier.
    pub target_id: Option<String>,
}

/// Which events are asked for.
#[derive(Clone, Debug, Default)]
pub struct EventPage {
    /// Those before this one.
    pub before: Option<i64>,
    /// Those of a kind.
    pub kind: Option<String>,
    /// Those of a severity.
    pub severity: Option<String>,
    /// Those about something, by its identifier.
    pub source: Option<String>,
}

/// Which sessions are asked for.
#[derive(Clone, Debug, Default)]
pub struct SessionPage {
    /// Those before this one.
    pub before: Option<SessionId>,
    /// Those of a status.
    pub status: Option<String>,
    /// Those of a user, by name.
    pub user: Option<String>,
    /// Those on a server, by name.
    pub server: Option<String>,
}

/// Which devices are asked for.
#[derive(Clone, Debug, Default)]
pub struct DevicePage {
    /// Those before this one.
    pub before: Option<DeviceId>,
    /// Those of a status.
    pub status: Option<String>,
    /// Those of a user, by name.
    pub user: Option<String>,
}

/// Adds what is asked for to a statement that has a condition already.
fn narrow(query: &mut Builder, wishes: &[(&'static str, &Option<String>)]) {
    for (condition, wish) in wishes {
        if let Some(wish) = wish {
            query.push(condition).push_bind(wish);
        }
    }
}

impl Store {
    /// A page of the audit trail, newest first.
    pub async fn page_audit(&self, page: &AuditFilter, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        let mut query = Builder::new("SELECT * FROM audit_logs WHERE log_id < ");
        query.push_bind(page.before.unwrap_or(i64::MAX));
        let AuditFilter { action, actor, target_type, target_id, .. } = page;
        narrow(
            &mut query,
            &[
                (" AND action = ", action),
                (" AND actor_name = ", actor),
                (" AND target_type = ", target_type),
                (" AND target_id = ", target_id),
            ],
        );
        query.push(" ORDER BY log_id DESC LIMIT ").push_bind(limit);
        let rows = query.build().fetch_all(self.readers()).await?;
        rows.iter().map(audit::read).collect()
    }

    /// A page of security events, newest first.
    pub async fn page_events(&self, page: &EventPage, limit: u32) -> Result<Vec<SecurityEvent>, StoreError> {
        let mut query = Builder::new("SELECT * FROM security_events WHERE event_id < ");
        query.push_bind(page.before.unwrap_or(i64::MAX));
        let EventPage { kind, severity, source, .. } = page;
        narrow(
            &mut query,
            &[(" AND event_type = ", kind), (" AND severity = ", severity), (" AND source_id = ", source)],
        );
        query.push(" ORDER BY event_id DESC LIMIT ").push_bind(limit);
        let rows = query.build().fetch_all(self.readers()).await?;
        rows.iter().map(event::read).collect()
    }

    /// The rows of the audit trail after one, oldest first.
    pub async fn audit_after(&self, after: i64, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
        let rows = query("SELECT * FROM audit_logs WHERE log_id > $1 ORDER BY log_id LIMIT $2")
            .bind(after)
            .bind(limit)
            .fetch_all(self.readers())
            .await?;
        rows.iter().map(audit::read).collect()
    }

    /// The security events after one, oldest first.
    pub async fn events_after(&self, after: i64, limit: u32) -> Result<Vec<SecurityEvent>, StoreError> {
        let rows = query("SELECT * FROM security_events WHERE event_id > $1 ORDER BY event_id LIMIT $2")
            .bind(after)
            .bind(limit)
            .fetch_all(self.readers())
            .await?;
        rows.iter().map(event::read).collect()
    }

    /// The numbers of the newest security event and of the newest row of the audit trail; 0 where there is none.
    pub async fn newest_records(&self) -> Result<(i64, i64), StoreError> {
        let row = query(
            "SELECT (SELECT MAX(event_id) FROM security_events) AS event, (SELECT MAX(log_id) FROM audit_logs) AS audit",
        )
        .fetch_one(self.readers())
        .await?;
        Ok((row.maybe_int("event")?.unwrap_or(0), row.maybe_int("audit")?.unwrap_or(0)))
    }

    /// A page of sessions, newest first.
    pub async fn page_sessions(
        &self,
        page: &SessionPage,
        limit: u32,
    ) -> Result<Vec<SessionView>, StoreError> {
        let mut query = Builder::new(session_rows::VIEW);
        // The identifiers are in the order of time.
        query
            .push("WHERE c.connection_id < ")
            .push_bind(page.before.map_or("g".to_owned(), |id| id.to_string()));
        let SessionPage { status, user, server, .. } = page;
        narrow(
            &mut query,
            &[(" AND c.status = ", status), (" AND k.user_name = ", user), (" AND s.name = ", server)],
        );
        query.push(" ORDER BY c.connection_id DESC LIMIT ").push_bind(limit);
        let rows = query.build().fetch_all(self.readers()).await?;
        rows.iter().map(session_rows::view).collect()
    }

    /// A page of devices, newest first.
    pub async fn page_devices(&self, page: &DevicePage, limit: u32) -> Result<Vec<DeviceView>, StoreError> {
        let mut query = Builder::new(device::VIEW);
        query.push("WHERE d.device_id < ").push_bind(page.before.map_or("g".to_owned(), |id| id.to_string()));
        let DevicePage { status, user, .. } = page;
        narrow(&mut query, &[(" AND d.status = ", status), (" AND k.user_name = ", user)]);
        query.push(" ORDER BY d.device_id DESC LIMIT ").push_bind(limit);
        let rows = query.build().fetch_all(self.readers()).await?;
        rows.iter().map(device::view).collect()
    }

    /// A device. Those that were replaced are not found.
    pub async fn device_by_id(&self, id: DeviceId) -> Result<Option<DeviceRecord>, StoreError> {
        let row = query("SELECT public_key FROM devices WHERE device_id = $1 AND status <> 'inactive'")
            .bind(id.to_string())
            .fetch_optional(self.readers())
            .await?;
        let key = row.map(|row| row.maybe_bytes32("public_key")).transpose()?.flatten();
        match key {
            Some(key) => Ok(self.device_by_key(PublicKey(key)).await?.filter(|record| record.id == id)),
            None => Ok(None),
        }
    }
}
