//! Security events: what somebody should look at.

use std::net::IpAddr;

use horizon_model::{DeviceId, ServerId, SessionId};
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::{
    Store, StoreError,
    dialect::{Connection, Row, query},
    row::{Columns as _, millis},
};

/// The longest description, in bytes.
const MAX_DESCRIPTION: usize = 1024;

/// How serious an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the words say it all")]
pub enum Severity {
    Info,
    Low,
    Medium,
    High,
    Critical,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A server or its appliance.
    Server(ServerId),
    /// A device.
    Device(DeviceId),
    /// A session.
    Session(SessionId),
    /// Another resource.
    Resource(Uuid),
    /// Somebody who has not said who they are.
    Unknown,
    /// The controller itself.
    System,
}

impl Source {
    fn component(self) -> &'static str {
        match self {
            Self::Server(_) => "server",
            Self::Device(_) | Self::Session(_) => "client",
            Self::Unknown => "broker",
            Self::Resource(_) | Self::System => "system",
        }
    }

    fn id(self) -> Option<String> {
        match self {
            Self::Server(id) => Some(id.to_string()),
            Self::Device(id) => Some(id.to_string()),
            Self::Session(id) => Some(id.to_string()),
            Self::Resource(id) => Some(id.to_string()),
            Self::Unknown | Self::System => None,
        }
    }
}

/// An event to be recorded.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// What happened, as one word for programs: `challenge_failed`.
    pub kind: &'static str,
    /// How serious.
    pub severity: Severity,
    /// About what.
    pub source: Source,
    /// From where.
    pub address: Option<IpAddr>,
    /// What happened, as a sentence.
    pub description: String,
    /// More, for programs.
    pub data: serde_json::Value,
}

/// A recorded event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SecurityEvent {
    /// Its number; later events have higher ones.
    pub id: i64,
    /// When.
    pub time: Timestamp,
    /// What happened, as one word.
    #[serde(rename = "type")]
    pub kind: String,
    /// `info`, `low`, `medium`, `high` or `critical`.
    pub severity: String,
    /// Whose side it is about: `broker`, `server`, `client` or `system`.
    pub component: String,
    /// The identifier of what it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_id: Option<String>,
    /// From where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_ip: Option<String>,
    /// What happened, as a sentence.
    pub description: String,
    /// More, for programs.
    pub data: serde_json::Value,
}

/// Which events are asked for.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Those about this identifier.
    pub source: Option<Uuid>,
    /// The most events; 0 means 100.
    pub limit: u32,
}

/// Records an event in the caller's transaction.
pub(super) async fn write(db: &mut Connection, event: &NewEvent, now: Timestamp) -> Result<(), StoreError> {
    let description: String = event.description.chars().take(MAX_DESCRIPTION).collect();
    query(
        "INSERT INTO security_events (timestamp, event_type, severity, component, source_id, source_ip, description, \
         raw_data) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(millis(now))
    .bind(event.kind)
    .bind(event.severity.as_str())
    .bind(event.source.component())
    .bind(event.source.id())
    .bind(event.address.map(|a| a.to_string()))
    .bind(description)
    .bind(event.data.to_string())
    .execute(&mut *db)
    .await?;
    Ok(())
}

impl Store {
    /// Records an event.
    pub async fn record_event(&self, event: &NewEvent, now: Timestamp) -> Result<(), StoreError> {
        self.retried("record_event", || async {
            let mut tx = self.begin().await?;
            write(&mut tx, event, now).await?;
            tx.commit().await
        })
        .await?;
        self.inner.metrics.security_event(event.kind);
        Ok(())
    }

    /// Recorded events, newest first.
    pub async fn list_security_events(&self, filter: &EventFilter) -> Result<Vec<SecurityEvent>, StoreError> {
        let limit = if filter.limit == 0 { 100 } else { filter.limit };
        let rows = query(
            "SELECT * FROM security_events WHERE $1 IS NULL OR source_id = $1 ORDER BY event_id DESC LIMIT $2",
        )
        .bind(filter.source.map(|id| id.to_string()))
        .bind(limit)
        .fetch_all(self.readers())
        .await?;
        rows.iter().map(read).collect()
    }
}

fn read(row: &Row) -> Result<SecurityEvent, StoreError> {
    Ok(SecurityEvent {
        id: row.int("event_id")?,
        time: row.time("timestamp")?,
        kind: row.text("event_type")?,
        severity: row.text("severity")?,
        component: row.text("component")?,
        source_id: row.maybe_text("source_id")?,
        source_ip: row.maybe_text("source_ip")?,
        description: row.text("description")?,
        data: row.json("raw_data")?,
    })
}
