//! Security events: what somebody should look at.

use std::net::IpAddr;

use horizon_model::{DeviceId, ServerId, SessionId};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Actor, Store, StoreError,
    audit::{self, Record},
    dialect::{Builder, Connection, Row, query},
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecurityEvent {
    /// Its number; later events have higher ones.
    pub id: i64,
    /// When.
    #[schema(value_type = String)]
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
    #[schema(value_type = Object)]
    pub data: serde_json::Value,
    /// When somebody handled it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub handled_at: Option<Timestamp>,
    /// Who.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handled_by: Option<String>,
    /// What they noted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
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

    /// Notes that somebody handled an event, and how. Returns the event, if there is one.
    pub async fn handle_event(
        &self,
        id: i64,
        notes: &str,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Option<SecurityEvent>, StoreError> {
        self.repeatable("handle_event", || async {
            let mut tx = self.begin().await?;
            let done = query(
                "UPDATE security_events SET handled_at = $1, handled_by = $2, resolution_notes = $3 WHERE event_id = $4",
            )
            .bind(millis(now))
            .bind(actor.name())
            .bind(notes)
            .bind(id)
            .execute(&mut *tx)
            .await?;
            if done.rows_affected() == 0 {
                return Ok(None);
            }
            let row = query("SELECT * FROM security_events WHERE event_id = $1")
                .bind(id)
                .fetch_one(&mut *tx)
                .await?;
            let event = read(&row)?;
            let record = Record::new("handle_event", "SecurityEvent", id, &event.kind).notes(notes);
            audit::write(&mut tx, actor, now, &[record]).await?;
            tx.commit().await?;
            Ok(Some(event))
        })
        .await
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

/// Events that nobody was told of, the oldest first. They stay so until the transaction ends.
pub(super) async fn unnoticed(db: &mut Connection, limit: u32) -> Result<Vec<SecurityEvent>, StoreError> {
    let rows = query("SELECT * FROM security_events WHERE noticed = FALSE ORDER BY event_id LIMIT $1 {lock}")
        .bind(limit)
        .fetch_all(&mut *db)
        .await?;
    rows.iter().map(read).collect()
}

/// Notes that administrators were told of events, or need not be.
pub(super) async fn note_noticed(db: &mut Connection, events: &[SecurityEvent]) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    let mut update = Builder::new("UPDATE security_events SET noticed = TRUE WHERE event_id IN ");
    update.push_list(events.iter().map(|event| event.id));
    update.build().execute(&mut *db).await?;
    Ok(())
}

pub(super) fn read(row: &Row) -> Result<SecurityEvent, StoreError> {
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
        handled_at: row.maybe_time("handled_at")?,
        handled_by: row.maybe_text("handled_by")?,
        notes: row.maybe_text("resolution_notes")?,
    })
}
