//! How the parts of the system do, and reports about how it did.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Store, StoreError,
    dialect::{Connection, Row, query},
    event::{self, NewEvent, Severity, Source},
    row::{Columns as _, millis},
};

/// How a part does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceState {
    /// As it should.
    Operational,
    /// It is taken out of service on purpose.
    Maintenance,
    /// Not all of it.
    Degraded,
    /// Not at all.
    Outage,
}

impl ServiceState {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operational => "operational",
            Self::Maintenance => "maintenance",
            Self::Degraded => "degraded",
            Self::Outage => "outage",
        }
    }
}

/// What is seen of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceNote {
    /// Its name: `database`, `redis`, `replica/NAME`, …
    pub name: String,
    /// How it does.
    pub state: ServiceState,
    /// More, in words; empty when it does well.
    pub detail: String,
}

/// How a part does, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Its name.
    pub name: String,
    /// `operational`, `maintenance`, `degraded` or `outage`.
    pub state: String,
    /// Since when it is so.
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// When it was last looked at.
    #[schema(value_type = String)]
    pub checked: Timestamp,
    /// More, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// A report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Its number.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// `security`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// When it was made.
    #[schema(value_type = String)]
    pub time: Timestamp,
    /// What it says.
    pub content: String,
}

/// What happened within a time, as numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events by severity and kind, the most frequent first.
    pub events: Vec<(String, String, u64)>,
    /// Anomalies by detector.
    pub anomalies: Vec<(String, u64)>,
    /// Ranges that were blocked.
    pub blocked: u64,
    /// Flags that stand.
    pub flags: u64,
    /// Events of at least medium severity that nobody handled, of any time.
    pub unhandled: u64,
}

impl Store {
    /// Notes how parts do. A part that changes between well and not well is an event.
    pub async fn note_services(&self, notes: &[ServiceNote], now: Timestamp) -> Result<(), StoreError> {
        self.repeatable("note_services", || async {
            let mut tx = self.begin().await?;
            for note in notes {
                note_one(&mut tx, note, now).await?;
            }
            tx.commit().await
        })
        .await
    }

    /// Forgets the parts that were not looked at since a time: they are no more.
    pub async fn forget_services(&self, before: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        query("DELETE FROM service_status WHERE last_check < $1")
            .bind(millis(before))
            .execute(&mut *tx)
            .await?;
        tx.commit().await
    }

    /// The parts, by name.
    pub async fn list_services(&self) -> Result<Vec<Service>, StoreError> {
        let rows =
            query("SELECT * FROM service_status ORDER BY service_name").fetch_all(self.readers()).await?;
        rows.iter().map(read).collect()
    }

    /// What happened from one time to another.
    pub async fn summarise(&self, from: Timestamp, to: Timestamp) -> Result<Summary, StoreError> {
        let span = |statement: &'static str| query(statement).bind(millis(from)).bind(millis(to));
        let mut summary = Summary::default();
        let rows = span(
            "SELECT severity, event_type, COUNT(*) AS n FROM security_events WHERE timestamp >= $1 AND timestamp < $2 \
             GROUP BY severity, event_type ORDER BY n DESC, event_type LIMIT 100",
        )
        .fetch_all(self.readers())
        .await?;
        for row in &rows {
            summary.events.push((row.text("severity")?, row.text("event_type")?, row.count("n")?));
        }
        let rows = span(
            "SELECT anomaly_type, COUNT(*) AS n FROM anomaly_detection WHERE detection_time >= $1 \
             AND detection_time < $2 GROUP BY anomaly_type ORDER BY n DESC, anomaly_type",
        )
        .fetch_all(self.readers())
        .await?;
        for row in &rows {
            summary.anomalies.push((row.text("anomaly_type")?, row.count("n")?));
        }
        let row = span("SELECT COUNT(*) AS n FROM blocked_ips WHERE block_date >= $1 AND block_date < $2");
        summary.blocked = row.fetch_one(self.readers()).await?.count("n")?;
        let row = query("SELECT COUNT(*) AS n FROM flags WHERE cleared_at IS NULL");
        summary.flags = row.fetch_one(self.readers()).await?.count("n")?;
        let row = query(
            "SELECT COUNT(*) AS n FROM security_events WHERE handled_at IS NULL \
             AND severity IN ('medium', 'high', 'critical')",
        );
        summary.unhandled = row.fetch_one(self.readers()).await?.count("n")?;
        Ok(summary)
    }

    /// Keeps a report.
    pub async fn keep_report(
        &self,
        (name, kind): (&str, &str),
        (from, to): (Timestamp, Timestamp),
        content: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        query(
            "INSERT INTO reports (report_name, report_type, generation_time, period_start, period_end, content) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(name)
        .bind(kind)
        .bind(millis(now))
        .bind(millis(from))
        .bind(millis(to))
        .bind(content)
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }

    /// Reports, the newest first.
    pub async fn list_reports(&self, limit: u32) -> Result<Vec<Report>, StoreError> {
        self.page_reports(None, limit).await
    }

    /// A page of them: those before one, the newest first.
    pub async fn page_reports(&self, before: Option<i64>, limit: u32) -> Result<Vec<Report>, StoreError> {
        let rows = query("SELECT * FROM reports WHERE report_id < $1 ORDER BY report_id DESC LIMIT $2")
            .bind(before.unwrap_or(i64::MAX))
            .bind(limit)
            .fetch_all(self.readers())
            .await?;
        let report = |row: &Row| {
            Ok(Report {
                id: row.int("report_id")?,
                name: row.text("report_name")?,
                kind: row.text("report_type")?,
                time: row.time("generation_time")?,
                content: row.text("content")?,
            })
        };
        rows.iter().map(report).collect()
    }
}

async fn note_one(db: &mut Connection, note: &ServiceNote, now: Timestamp) -> Result<(), StoreError> {
    let row = query("SELECT status, since FROM service_status WHERE service_name = $1 {lock}")
        .bind(&note.name)
        .fetch_optional(&mut *db)
        .await?;
    let (mut since, mut before) = (now, None);
    if let Some(row) = row {
        let status = row.text("status")?;
        if status == note.state.as_str() {
            since = row.time("since")?;
        }
        before = Some(status);
    }
    let well = note.state == ServiceState::Operational;
    query(
        "INSERT INTO service_status (service_name, component, status, since, last_check, last_operational, \
         incident_details) VALUES ($1, 'system', $2, $3, $4, $5, $6) ON CONFLICT (service_name) DO UPDATE SET \
         status = excluded.status, since = excluded.since, last_check = excluded.last_check, \
         last_operational = COALESCE(excluded.last_operational, service_status.last_operational), \
         incident_details = excluded.incident_details",
    )
    .bind(&note.name)
    .bind(note.state.as_str())
    .bind(millis(since))
    .bind(millis(now))
    .bind(well.then(|| millis(now)))
    .bind((!note.detail.is_empty()).then(|| note.detail.clone()))
    .execute(&mut *db)
    .await?;
    let was_well = before.as_deref().is_none_or(|before| before == "operational");
    if well == was_well {
        return Ok(());
    }
    let (kind, severity) = match (well, note.state) {
        (true, _) => ("service_recovered", Severity::Info),
        (false, ServiceState::Maintenance) => ("service_maintenance", Severity::Info),
        (false, ServiceState::Outage) => ("service_outage", Severity::High),
        (false, _) => ("service_degraded", Severity::Medium),
    };
    let detail = if note.detail.is_empty() { String::new() } else { format!(": {}", note.detail) };
    let event = NewEvent {
        kind,
        severity,
        source: Source::System,
        address: None,
        description: format!("{} is {}{detail}", note.name, note.state.as_str()),
        data: serde_json::Value::Null,
    };
    event::write(db, &event, now).await
}

/// Forgets reports that are older than a time.
pub(super) async fn prune(db: &mut Connection, before: i64) -> Result<u64, StoreError> {
    let gone = query("DELETE FROM reports WHERE generation_time < $1").bind(before).execute(&mut *db).await?;
    Ok(gone.rows_affected())
}

fn read(row: &Row) -> Result<Service, StoreError> {
    Ok(Service {
        name: row.text("service_name")?,
        state: row.text("status")?,
        since: row.time("since")?,
        checked: row.time("last_check")?,
        detail: row.maybe_text("incident_details")?,
    })
}
