//! Upkeep: what is old goes, and there is room for what comes. One replica does it, the leader.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{
    Store, StoreError, admin_idempotency, admin_key, admin_session, anomaly, audit_chain, block,
    dialect::{Engine, query},
    notification, replicas,
    row::{Columns as _, millis},
    service,
};

/// For how long things are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Single heartbeats.
    pub beats: SignedDuration,
    /// What sessions moved, minute by minute.
    pub metrics: SignedDuration,
    /// The audit trail. Postgres keeps it for 90 days at least, whoever asks.
    pub audit: SignedDuration,
    /// Answered challenges.
    pub challenges: SignedDuration,
    /// Security events, and what else is about them.
    pub events: SignedDuration,
    /// Sessions that ended. Postgres keeps them for a day at least, whoever asks.
    pub sessions: SignedDuration,
    /// From where people connected: the addresses of ended sessions and of events.
    pub addresses: SignedDuration,
    /// Replicas that went without a word.
    pub replicas: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        const DAY: i64 = 24;
        Self {
            beats: super::BEAT_RETENTION,
            metrics: SignedDuration::from_hours(30 * DAY),
            audit: SignedDuration::from_hours(400 * DAY),
            challenges: SignedDuration::from_hours(30 * DAY),
            events: SignedDuration::from_hours(365 * DAY),
            sessions: SignedDuration::from_hours(365 * DAY),
            addresses: SignedDuration::from_hours(90 * DAY),
            replicas: Duration::from_secs(600),
        }
    }
}

/// What upkeep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Maintained {
    /// Partitions that were made for what comes.
    pub made: u64,
    /// Partitions that were dropped with all that was in them.
    pub dropped: u64,
    /// Rows that were deleted one by one.
    pub deleted: u64,
    /// Rows that do not say any more from where somebody connected.
    pub forgotten: u64,
}

/// The tables that are cut by time on Postgres, and how what is old goes on SQLite.
const BY_TIME: [(&str, &str); 3] = [
    (
        "heartbeats",
        "DELETE FROM heartbeats WHERE rowid IN (SELECT rowid FROM heartbeats WHERE received_time < $1 LIMIT $2)",
    ),
    (
        "connection_metrics",
        "DELETE FROM connection_metrics WHERE rowid IN (SELECT rowid FROM connection_metrics WHERE minute < $1 LIMIT $2)",
    ),
    (
        "audit_logs",
        "DELETE FROM audit_logs WHERE rowid IN (SELECT rowid FROM audit_logs WHERE timestamp < $1 LIMIT $2)",
    ),
];
const CHALLENGES: &str = "DELETE FROM verification_challenges WHERE challenge_id IN \
                          (SELECT challenge_id FROM verification_challenges WHERE challenge_time < $1 LIMIT $2)";
const EVENTS: &str = "DELETE FROM security_events WHERE event_id IN \
                      (SELECT event_id FROM security_events WHERE timestamp < $1 LIMIT $2)";

impl Store {
    /// Makes partitions ahead, drops those whose time is over, and deletes what is old elsewhere.
    pub async fn maintain(&self, now: Timestamp, retention: &Retention) -> Result<Maintained, StoreError> {
        let _timed = self.timed("maintain");
        let before = |keep: SignedDuration| millis(now.checked_sub(keep).unwrap_or(Timestamp::MIN));
        let mut done = Maintained::default();
        if self.readers().engine() == Engine::Postgres {
            let mut tx = self.begin().await?;
            let row = query("SELECT horizon_make_partitions() AS n").fetch_one(&mut *tx).await?;
            done.made = row.count("n")?;
            tx.commit().await?;
        }
        // Each in a transaction of its own: dropping a partition waits for those who read it.
        let keep = [retention.beats, retention.metrics, retention.audit];
        for ((table, delete), keep) in BY_TIME.into_iter().zip(keep) {
            let mut tx = self.begin().await?;
            let mut before = before(keep);
            if table == "audit_logs" {
                // Whole months go, and the chain says so.
                let month = before.div_euclid(audit_chain::MONTH);
                before = month.saturating_mul(audit_chain::MONTH);
                audit_chain::record_drop(&mut tx, month, now).await?;
            }
            let engine = tx.engine();
            if engine == Engine::Postgres {
                let row = query("SELECT horizon_drop_partitions($1, $2) AS n").bind(table).bind(before);
                done.dropped += row.fetch_one(&mut *tx).await?.count("n")?;
            }
            tx.commit().await?;
            if engine == Engine::Sqlite {
                done.deleted += self.step_by_step(delete, before).await?;
            }
        }
        done.deleted += self.step_by_step(CHALLENGES, before(retention.challenges)).await?;
        done.deleted += self.step_by_step(EVENTS, before(retention.events)).await?;
        done.deleted += self.forget_sessions(before(retention.sessions)).await?;
        done.forgotten += self.forget_addresses(before(retention.addresses)).await?;
        let mut tx = self.begin().await?;
        done.deleted += replicas::forget_silent(&mut tx, retention.replicas).await?;
        let old = before(retention.events);
        done.deleted += anomaly::prune(&mut tx, now, old).await?;
        done.deleted += block::prune(&mut tx, now, old).await?;
        done.deleted += notification::prune(&mut tx, old).await?;
        done.deleted += service::prune(&mut tx, old).await?;
        done.deleted += admin_session::forget_old(&mut tx, now, before(retention.events)).await?;
        done.deleted += admin_key::forget_old(&mut tx, now).await?;
        done.deleted += admin_idempotency::forget_old(&mut tx, now).await?;
        tx.commit().await?;
        Ok(done)
    }
}
