//! What clients report of their sessions, held against what their appliances report.

use horizon_controller_core::{Difference, TotalsOfBoth, compare_reports};
use horizon_model::{DeviceId, SessionId};
use jiff::Timestamp;

use super::{
    NewEvent, Severity, Source, Store, StoreError,
    dialect::query,
    event,
    row::{Columns as _, int, millis},
};

/// What a client counted of a session since its tunnel was started, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientReport {
    /// Which session.
    pub session: SessionId,
    /// What it sent.
    pub sent: u64,
    /// What it received.
    pub received: u64,
}

impl Store {
    /// Notes what the device of a live session counted. Returns how that contradicts its appliance, the first time that it
    /// does; an event says so too.
    pub async fn note_client_report(
        &self,
        device: DeviceId,
        report: &ClientReport,
        now: Timestamp,
    ) -> Result<Option<Difference>, StoreError> {
        let _timed = self.timed("note_client_report");
        let found = self.retried("note_client_report", || self.report_once(device, report, now)).await?;
        if found.is_some() {
            self.inner.metrics.security_event("session_reports_differ");
        }
        Ok(found)
    }

    async fn report_once(
        &self,
        device: DeviceId,
        report: &ClientReport,
        now: Timestamp,
    ) -> Result<Option<Difference>, StoreError> {
        let mut tx = self.begin().await?;
        let row = query(
            "SELECT * FROM connections WHERE connection_id = $1 AND device_id = $2 AND status = 'active' {lock}",
        )
        .bind(report.session.to_string())
        .bind(device.to_string())
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else { return Ok(None) };
        // A client that started anew counts from 0 again.
        let moved = |now: u64, last: u64| now.checked_sub(last).unwrap_or(now);
        let before = (row.count("client_sent")?, row.count("client_received")?);
        let sent = before.0.saturating_add(moved(report.sent, row.count("client_last_sent")?));
        let received = before.1.saturating_add(moved(report.received, row.count("client_last_received")?));
        let totals = TotalsOfBoth {
            client_sent: (before.0, sent),
            client_received: (before.1, received),
            server_sent: (row.count("total_sent_then")?, row.count("total_sent")?),
            server_received: (row.count("total_received_then")?, row.count("total_received")?),
        };
        let last = row.maybe_time("client_reported")?;
        let heard = last.is_some() && row.maybe_time("server_reported")? > last;
        let known = row.maybe_time("differs_since")?.is_some();
        let difference = last.and_then(|_| compare_reports(&totals, heard)).filter(|_| !known);
        query(
            "UPDATE connections SET client_sent = $1, client_received = $2, client_last_sent = $3, \
             client_last_received = $4, client_reported = $5, total_sent_then = total_sent, \
             total_received_then = total_received, differs_since = COALESCE(differs_since, $6) WHERE connection_id = $7",
        )
        .bind(int(sent))
        .bind(int(received))
        .bind(int(report.sent))
        .bind(int(report.received))
        .bind(millis(now))
        .bind(difference.map(|_| millis(now)))
        .bind(report.session.to_string())
        .execute(&mut *tx)
        .await?;
        if let Some(difference) = difference {
            let event = NewEvent {
                kind: "session_reports_differ",
                severity: Severity::High,
                source: Source::Session(report.session),
                address: None,
                description: format!("session {}: {}", report.session, difference.words()),
                data: serde_json::json!({
                    "clientSent": sent, "clientReceived": received,
                    "serverSent": totals.server_sent.1, "serverReceived": totals.server_received.1,
                }),
            };
            event::write(&mut tx, &event, now).await?;
        }
        tx.commit().await?;
        Ok(difference)
    }
}
