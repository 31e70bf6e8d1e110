//! What appliances report about sessions: which they admit, and what went through them.

use std::collections::HashSet;

use horizon_model::{ServerId, SessionId, SessionUsage};
use jiff::Timestamp;
use serde::Serialize;

use super::{
    ChannelLease, EndReason, Ended, EndedBy, SessionStatus, Store, StoreError, channels,
    dialect::{Connection, query},
    row::{Columns as _, int, millis},
    session,
};

/// A minute, in milliseconds.
const MINUTE: i64 = 60_000;

/// What a report changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many of the reported sessions are live and the server's.
    pub known: usize,
    /// How many are not.
    pub unknown: usize,
    /// How many of these were never granted to the server.
    pub ungranted: usize,
    /// How many of these are said to be connected, although the server confirmed their end before.
    pub after_end: usize,
    /// How many sessions that are connected moved fewer bytes than was reported before by the same process.
    pub decreased: usize,
}

/// What a session moved in a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionMinute {
    /// When the minute began.
    pub minute: Timestamp,
    /// Bytes toward the client.
    pub bytes_sent: u64,
    /// Bytes from the client.
    pub bytes_received: u64,
    /// The longest round-trip time that was reported in it, in microseconds; 0 when unknown.
    pub rtt_micros: u64,
}

/// What an applied state means for sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionsApplied {
    /// Sessions that became active.
    pub activated: Vec<SessionId>,
    /// Sessions that the appliance does not take in.
    pub failed: Vec<Ended>,
    /// Whether the appliance has let sessions go.
    pub released: bool,
}

impl Store {
    /// Notes what an appliance reports about its sessions. Those that are not its own are left alone.
    pub async fn note_usage(
        &self,
        server: ServerId,
        lease: ChannelLease,
        usage: &[SessionUsage],
        now: Timestamp,
    ) -> Result<Usage, StoreError> {
        if usage.is_empty() {
            return Ok(Usage::default());
        }
        let _timed = self.timed("note_usage");
        self.repeatable("note_usage", || async {
            let mut noted = Usage::default();
            let mut tx = self.begin().await?;
            if !channels::hold(&mut tx, server, lease).await? {
                return Ok(Usage { unknown: usage.len(), ..Usage::default() });
            }
            for session in usage {
                match note(&mut tx, server, session, now).await? {
                    Some(decreased) => {
                        noted.known += 1;
                        noted.decreased += usize::from(decreased);
                    }
                    None => {
                        noted.unknown += 1;
                        judge_unknown(&mut tx, server, session, &mut noted).await?;
                    }
                }
            }
            tx.commit().await?;
            Ok(noted)
        })
        .await
    }

    /// What a session moved, the newest minute first.
    pub async fn session_minutes(
        &self,
        session: SessionId,
        limit: u32,
    ) -> Result<Vec<SessionMinute>, StoreError> {
        let rows =
            query("SELECT * FROM connection_metrics WHERE connection_id = $1 ORDER BY minute DESC LIMIT $2")
                .bind(session.to_string())
                .bind(limit)
                .fetch_all(self.readers())
                .await?;
        rows.iter()
            .map(|row| {
                Ok(SessionMinute {
                    minute: row.time("minute")?,
                    bytes_sent: row.count("bytes_sent")?,
                    bytes_received: row.count("bytes_received")?,
                    rtt_micros: row.count("rtt_micros")?,
                })
            })
            .collect()
    }

    /// Notes what it means for a server's sessions that its appliance applied a state: those that were asked for and that it
    /// holds are active, or have failed for the reason it gives; those that have ended and that it no longer holds are
    /// released.
    pub async fn note_sessions_applied(
        &self,
        server: ServerId,
        lease: ChannelLease,
        held: &HashSet<SessionId>,
        refused: &[(SessionId, String)],
        now: Timestamp,
    ) -> Result<SessionsApplied, StoreError> {
        let _timed = self.timed("note_sessions_applied");
        // Mostly there is nothing to note, which takes no transaction.
        let open = query(
            "SELECT connection_id, status FROM connections WHERE server_id = $1 AND released_date IS NULL",
        )
        .bind(server.to_string())
        .fetch_all(self.readers())
        .await?;
        let mut news = false;
        for row in &open {
            let held = held.contains(&row.parsed("connection_id")?);
            news |= match row.text("status")?.as_str() {
                "requested" => held,
                "active" => false,
                _ => !held,
            };
        }
        if !news {
            return Ok(SessionsApplied::default());
        }
        let applied = self
            .retried("note_sessions_applied", || self.apply_sessions(server, lease, held, refused, now))
            .await?;
        for _ in &applied.failed {
            self.inner.metrics.session_ended(SessionStatus::Failed.as_str());
        }
        Ok(applied)
    }

    async fn apply_sessions(
        &self,
        server: ServerId,
        lease: ChannelLease,
        held: &HashSet<SessionId>,
        refused: &[(SessionId, String)],
        now: Timestamp,
    ) -> Result<SessionsApplied, StoreError> {
        let mut applied = SessionsApplied::default();
        let mut tx = self.begin().await?;
        if !channels::hold(&mut tx, server, lease).await? {
            return Ok(applied);
        }
        let rows = query(
            "SELECT connection_id FROM connections WHERE server_id = $1 AND status = 'requested' ORDER BY connection_id",
        )
        .bind(server.to_string())
        .fetch_all(&mut *tx)
        .await?;
        for row in &rows {
            let id: SessionId = row.parsed("connection_id")?;
            if !held.contains(&id) {
                continue;
            }
            if let Some((_, why)) = refused.iter().find(|(session, _)| *session == id) {
                let reason =
                    EndReason { status: SessionStatus::Failed, by: EndedBy::Server, reason: why.clone() };
                applied.failed.extend(session::end(&mut tx, id, &reason, now).await?);
            } else if session::activate(&mut tx, id, now).await? {
                applied.activated.push(id);
            }
        }
        applied.released = release(&mut tx, server, held, now).await?;
        if applied.released || !applied.activated.is_empty() || !applied.failed.is_empty() {
            tx.commit().await?;
        }
        Ok(applied)
    }

    /// Whether a session has ended and its appliance has confirmed that it admits it no more.
    pub async fn session_released(&self, session: SessionId) -> Result<bool, StoreError> {
        let row = query(
            "SELECT connection_id FROM connections WHERE connection_id = $1 AND released_date IS NOT NULL",
        )
        .bind(session.to_string())
        .fetch_optional(self.readers())
        .await?;
        Ok(row.is_some())
    }
}

/// Ended sessions that the appliance holds no longer are released. Whether there were any.
async fn release(
    db: &mut Connection,
    server: ServerId,
    held: &HashSet<SessionId>,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let rows = query(
        "SELECT connection_id FROM connections WHERE server_id = $1 AND released_date IS NULL \
         AND status NOT IN ('requested', 'active')",
    )
    .bind(server.to_string())
    .fetch_all(&mut *db)
    .await?;
    let mut any = false;
    for row in &rows {
        if !held.contains(&row.parsed("connection_id")?) {
            query("UPDATE connections SET released_date = $1 WHERE connection_id = $2")
                .bind(millis(now))
                .bind(row.text("connection_id")?)
                .execute(&mut *db)
                .await?;
            any = true;
        }
    }
    Ok(any)
}

/// Judges a report about a session that is not live.
async fn judge_unknown(
    db: &mut Connection,
    server: ServerId,
    usage: &SessionUsage,
    noted: &mut Usage,
) -> Result<(), StoreError> {
    let row = query("SELECT released_date FROM connections WHERE connection_id = $1 AND server_id = $2")
        .bind(usage.session.to_string())
        .bind(server.to_string())
        .fetch_optional(&mut *db)
        .await?;
    match row {
        None => noted.ungranted += 1,
        Some(row) if usage.connected && row.maybe_time("released_date")?.is_some() => noted.after_end += 1,
        Some(_) => {}
    }
    Ok(())
}

/// Notes one report about a session that is live and the server's; `None` for others. Whether the bytes became fewer although
/// the process that carries the session is the same: one that started anew has no session connected before it says so.
async fn note(
    db: &mut Connection,
    server: ServerId,
    usage: &SessionUsage,
    now: Timestamp,
) -> Result<Option<bool>, StoreError> {
    let row = query(
        "SELECT bytes_sent, bytes_received, connected FROM connections WHERE connection_id = $1 AND server_id = $2 \
         AND status IN ('requested', 'active') {lock}",
    )
    .bind(usage.session.to_string())
    .bind(server.to_string())
    .fetch_optional(&mut *db)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let before = (row.count("bytes_sent")?, row.count("bytes_received")?);
    // An appliance that started anew counts from 0 again.
    let moved = |now: u64, before: u64| int(now.checked_sub(before).unwrap_or(now));
    let sent = moved(usage.bytes_sent, before.0);
    let received = moved(usage.bytes_received, before.1);
    query(
        "UPDATE connections SET connected = $1, last_connected = CASE WHEN $1 OR connected THEN $2 \
         ELSE last_connected END, bytes_sent = $3, bytes_received = $4, rtt_micros = $5, server_reported = $2, \
         total_sent = total_sent + $6, total_received = total_received + $7 WHERE connection_id = $8",
    )
    .bind(usage.connected)
    .bind(millis(now))
    .bind(int(usage.bytes_sent))
    .bind(int(usage.bytes_received))
    .bind(int(usage.rtt_micros))
    .bind(sent)
    .bind(received)
    .bind(usage.session.to_string())
    .execute(&mut *db)
    .await?;
    let fewer = usage.bytes_sent < before.0 || usage.bytes_received < before.1;
    let decreased = fewer && usage.connected && row.flag("connected")?;
    if (sent, received) != (0, 0) {
        query(
            "INSERT INTO connection_metrics (connection_id, minute, bytes_sent, bytes_received, rtt_micros) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (connection_id, minute) DO UPDATE SET \
             bytes_sent = connection_metrics.bytes_sent + excluded.bytes_sent, \
             bytes_received = connection_metrics.bytes_received + excluded.bytes_received, \
             rtt_micros = CASE WHEN excluded.rtt_micros > connection_metrics.rtt_micros THEN excluded.rtt_micros \
             ELSE connection_metrics.rtt_micros END",
        )
        .bind(usage.session.to_string())
        .bind(millis(now).div_euclid(MINUTE) * MINUTE)
        .bind(sent)
        .bind(received)
        .bind(int(usage.rtt_micros))
        .execute(&mut *db)
        .await?;
    }
    Ok(Some(decreased))
}
