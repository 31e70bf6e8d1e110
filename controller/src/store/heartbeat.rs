//! Heartbeats: written in batches, acknowledged after the commit.

use std::time::Duration;

use horizon_model::{PublicKey, Secret, ServerId};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::json;
use sqlx::QueryBuilder;
use tokio::sync::{mpsc, oneshot};

use super::{
    Store, StoreError,
    dialect::{Engine, Row},
    row::{Columns as _, int, millis},
    seal::Place,
};

/// The most beats of one transaction.
const MAX_BATCH: usize = 512;
/// How many beats wait at most; more wait in their connections.
const QUEUE: usize = 4096;
/// How long a batch waits for more beats after its first.
const GATHER: Duration = Duration::from_millis(20);
/// How long single beats are kept by default.
pub const RETENTION: SignedDuration = SignedDuration::from_hours(24);

/// A heartbeat that was authenticated.
#[derive(Debug)]
pub struct Beat {
    /// Whose.
    pub server: ServerId,
    /// Its number since the appliance attached, from 1.
    pub counter: u64,
    /// When the appliance says it sent it.
    pub sent: Timestamp,
    /// When it came.
    pub received: Timestamp,
    /// The generation of the state that the appliance has applied.
    pub generation: u64,
    /// How many sessions it carries.
    pub active_sessions: u32,
    /// Load and traffic of the appliance.
    pub metrics: horizon_wire::proto::Metrics,
    /// The key of the appliance: a beat of one that was replaced since changes nothing.
    pub key: PublicKey,
    /// The verification secret from now on.
    pub secret: Secret,
    /// The secret that authenticated this beat, still accepted until the next.
    pub previous: Secret,
}

/// A kept heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BeatHistory {
    /// When it came.
    pub received: Timestamp,
    /// When it was sent, by the appliance's clock.
    pub sent: Timestamp,
    /// Its number since the appliance attached.
    pub counter: u64,
    /// The generation the appliance had applied.
    pub generation: u64,
    /// How many sessions it carried.
    pub active_sessions: u64,
    /// Load and traffic, as JSON.
    pub metrics: serde_json::Value,
}

/// How long challenges are kept.
const CHALLENGE_RETENTION: SignedDuration = SignedDuration::from_hours(30 * 24);
/// How long security events are kept.
const EVENT_RETENTION: SignedDuration = SignedDuration::from_hours(365 * 24);

type Waiting = (Beat, oneshot::Sender<Result<(), StoreError>>);

/// The way heartbeats go to the database.
#[derive(Clone, Debug)]
pub struct Heartbeats {
    queue: mpsc::Sender<Waiting>,
}

impl Heartbeats {
    /// Starts the task that writes. It ends when the last clone is gone.
    pub fn start(store: Store) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(write_batches(store, waiting));
        Self { queue }
    }

    /// Hands over a beat; returns when it is durable.
    pub async fn submit(&self, beat: Beat) -> Result<(), StoreError> {
        let (done, result) = oneshot::channel();
        self.queue.send((beat, done)).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }
}

async fn write_batches(store: Store, mut waiting: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, MAX_BATCH).await > 0 {
        let _ = tokio::time::timeout(GATHER, async {
            while batch.len() < MAX_BATCH {
                let room = MAX_BATCH - batch.len();
                if waiting.recv_many(&mut batch, room).await == 0 {
                    break;
                }
            }
        })
        .await;
        let (beats, replies): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
        store.inner.metrics.set_queue_depth("heartbeats", beats.len() + waiting.len());
        match store.commit_beats(&beats).await {
            Ok(taken) => {
                for (reply, taken) in replies.into_iter().zip(taken) {
                    // Whoever went away does not wait for the answer.
                    let _ = reply.send(if taken { Ok(()) } else { Err(StoreError::Replaced) });
                }
            }
            Err(error) => {
                let why = error.to_string();
                tracing::error!(beats = beats.len(), "heartbeats could not be written: {why}");
                for reply in replies {
                    let _ = reply.send(Err(StoreError::Database(sqlx::Error::Protocol(why.clone()))));
                }
            }
        }
    }
}

impl Store {
    /// Writes beats in one transaction: each moves its server's secret on, and joins the history. Says of each whether it was
    /// taken: not when another appliance was registered for the server since.
    pub async fn commit_beats(&self, beats: &[Beat]) -> Result<Vec<bool>, StoreError> {
        const COLUMNS: usize = 7;
        let _timed = self.timed("commit_beats");
        let mut tx = self.begin().await?;
        let mut taken = Vec::with_capacity(beats.len());
        for beat in beats {
            let seal = |secret| self.sealer().seal(Place::Verification, beat.server.as_bytes(), secret);
            let done = sqlx::query(
                "UPDATE servers SET last_heartbeat = $1, heartbeat_counter = $2, verification_secret = $3, \
                 previous_secret = $4 WHERE server_id = $5 AND public_key = $6",
            )
            .bind(millis(beat.received))
            .bind(int(beat.counter))
            .bind(seal(&beat.secret))
            .bind(seal(&beat.previous))
            .bind(beat.server.to_string())
            .bind(&beat.key.0[..])
            .execute(&mut *tx)
            .await?;
            taken.push(done.rows_affected() > 0);
        }
        let kept: Vec<&Beat> =
            beats.iter().zip(&taken).filter(|(_, taken)| **taken).map(|(beat, _)| beat).collect();
        for chunk in kept.chunks(super::dialect::MAX_BINDS / COLUMNS) {
            let mut insert = QueryBuilder::<Engine>::new(
                "INSERT INTO heartbeats (server_id, received_time, server_time, counter, applied_generation, \
                 active_connections, system_metrics) ",
            );
            insert.push_values(chunk, |mut row, beat| {
                let m = &beat.metrics;
                let metrics = json!({
                    "uptimeSeconds": m.uptime_seconds, "memoryBytes": m.memory_bytes, "bytesSent": m.bytes_sent,
                    "bytesReceived": m.bytes_received, "loadPercent": m.load_percent,
                });
                row.push_bind(beat.server.to_string())
                    .push_bind(millis(beat.received))
                    .push_bind(millis(beat.sent))
                    .push_bind(int(beat.counter))
                    .push_bind(int(beat.generation))
                    .push_bind(i64::from(beat.active_sessions))
                    .push_bind(metrics.to_string());
            });
            insert.build().execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(taken)
    }

    /// Forgets single beats that came before a time. Returns how many.
    pub async fn prune_beats(&self, before: Timestamp) -> Result<u64, StoreError> {
        let mut tx = self.begin().await?;
        let done = sqlx::query("DELETE FROM heartbeats WHERE received_time < $1")
            .bind(millis(before))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }

    /// Forgets answered challenges and security events that are old.
    pub async fn prune_history(&self, now: Timestamp) -> Result<(), StoreError> {
        let before = |retention: SignedDuration| millis(now.checked_sub(retention).unwrap_or(Timestamp::MIN));
        let mut tx = self.begin().await?;
        sqlx::query("DELETE FROM verification_challenges WHERE challenge_time < $1")
            .bind(before(CHALLENGE_RETENTION))
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM security_events WHERE timestamp < $1")
            .bind(before(EVENT_RETENTION))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// A server's newest beats, newest first.
    pub async fn list_beats(&self, server: ServerId, limit: u32) -> Result<Vec<BeatHistory>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM heartbeats WHERE server_id = $1 ORDER BY heartbeat_id DESC LIMIT $2")
                .bind(server.to_string())
                .bind(limit)
                .fetch_all(self.readers())
                .await?;
        rows.iter().map(read).collect()
    }

    /// The verification secrets of a server: the one in force and the one before. `None` when it is not registered.
    pub async fn server_secrets(
        &self,
        server: ServerId,
    ) -> Result<Option<(Secret, Option<Secret>)>, StoreError> {
        let row =
            sqlx::query("SELECT verification_secret, previous_secret FROM servers WHERE server_id = $1")
                .bind(server.to_string())
                .fetch_optional(self.readers())
                .await?;
        let Some(row) = row else { return Ok(None) };
        let open = |sealed: Option<Vec<u8>>| {
            sealed.map(|s| self.sealer().open(Place::Verification, server.as_bytes(), &s)).transpose()
        };
        let current = open(row.maybe_bytes("verification_secret")?)?;
        let previous = open(row.maybe_bytes("previous_secret")?)?;
        Ok(current.map(|current| (current, previous)))
    }

    /// A new verification secret for a server whose identity was approved since, until its appliance proved that it has
    /// it. `None` when no new one is due.
    pub async fn reissue_secret(&self, server: ServerId) -> Result<Option<Secret>, StoreError> {
        let mut tx = self.begin().await?;
        let row = sqlx::query("SELECT reissue_secret FROM servers WHERE server_id = $1")
            .bind(server.to_string())
            .fetch_optional(&mut *tx)
            .await?;
        if !row.map(|row| row.flag("reissue_secret")).transpose()?.unwrap_or(false) {
            return Ok(None);
        }
        let secret = Secret::new(super::seal::random());
        sqlx::query("UPDATE servers SET previous_secret = verification_secret, verification_secret = $1 WHERE server_id = $2")
            .bind(self.sealer().seal(Place::Verification, server.as_bytes(), &secret))
            .bind(server.to_string())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(Some(secret))
    }
}

fn read(row: &Row) -> Result<BeatHistory, StoreError> {
    Ok(BeatHistory {
        received: row.time("received_time")?,
        sent: row.time("server_time")?,
        counter: row.count("counter")?,
        generation: row.count("applied_generation")?,
        active_sessions: row.count("active_connections")?,
        metrics: row.json("system_metrics")?,
    })
}
