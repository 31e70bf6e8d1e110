//! The controller's own looks at live sessions: what both ends said, and what it came to.

use horizon_controller_core::live_check::{Answers, Said};
use horizon_model::{DeviceId, SessionId};
use jiff::Timestamp;

use super::{
    Store, StoreError,
    dialect::query,
    row::{Columns as _, millis},
};

/// What both ends of a session said since they were asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BothSaid {
    /// Whose it is.
    pub device: DeviceId,
    /// What its appliance said of it, if anything.
    pub appliance: Said,
    /// What its device said.
    pub device_said: Said,
    /// Whether the device ever said anything of the session: those of before do not.
    pub device_reports: bool,
}

impl Store {
    /// What both ends of a live session said since a time. `None` when it is not live any more.
    pub async fn said_since(
        &self,
        session: SessionId,
        since: Timestamp,
    ) -> Result<Option<BothSaid>, StoreError> {
        let row = query(
            "SELECT device_id, connected, server_reported, client_reported, client_absent FROM connections \
             WHERE connection_id = $1 AND status = 'active'",
        )
        .bind(session.to_string())
        .fetch_optional(self.readers())
        .await?;
        let Some(row) = row else { return Ok(None) };
        let since_then = |time: Option<Timestamp>| time.filter(|time| millis(*time) >= millis(since));
        let appliance = match since_then(row.maybe_time("server_reported")?) {
            Some(_) if row.flag("connected")? => Said::Connected,
            Some(_) => Said::Not,
            None => Said::Nothing,
        };
        let (reported, absent) = (row.maybe_time("client_reported")?, row.maybe_time("client_absent")?);
        let device_said = match (since_then(reported), since_then(absent)) {
            (None, None) => Said::Nothing,
            (reported, absent) if reported >= absent => Said::Connected,
            _ => Said::Not,
        };
        let device_reports = reported.is_some() || absent.is_some();
        Ok(Some(BothSaid { device: row.parsed("device_id")?, appliance, device_said, device_reports }))
    }

    /// Notes that the device of a live session says that no connection of its own carries it.
    pub async fn note_client_absent(
        &self,
        device: DeviceId,
        session: SessionId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.repeatable("note_client_absent", || async {
            let mut tx = self.begin().await?;
            query(
                "UPDATE connections SET client_absent = $1 WHERE connection_id = $2 AND device_id = $3 \
                 AND status = 'active'",
            )
            .bind(millis(now))
            .bind(session.to_string())
            .bind(device.to_string())
            .execute(&mut *tx)
            .await?;
            tx.commit().await
        })
        .await
    }

    /// Notes what a look at a session came to.
    pub async fn note_look(
        &self,
        session: SessionId,
        answers: Answers,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.repeatable("note_look", || async {
            let mut tx = self.begin().await?;
            query("UPDATE connections SET looked_date = $1, look_result = $2 WHERE connection_id = $3")
                .bind(millis(now))
                .bind(answers.as_str())
                .bind(session.to_string())
                .execute(&mut *tx)
                .await?;
            tx.commit().await
        })
        .await
    }
}
