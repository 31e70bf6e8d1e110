//! Heartbeats: written in batches, acknowledged after the commit.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use horizon_model::{PublicKey, Secret, ServerId};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::{
    ChannelLease, Store, StoreError,
    dialect::{Builder, Connection, Engine, MAX_BINDS, Row, query},
    row::{Columns as _, int, millis},
    seal::{Place, Sealer},
};

/// The most beats of one transaction.
const MAX_BATCH: usize = 4096;
/// How many beats wait at most; more wait in their connections.
const QUEUE: usize = 8192;
/// How long a batch waits for more beats after its first. With the commit it stays below the time (25 ms) after which QUIC
/// acknowledges the beat's packet by itself: so it does that in the packet of the answer, and there is one packet less to send.
const GATHER: Duration = Duration::from_millis(15);
/// How long single beats are kept by default.
pub const RETENTION: SignedDuration = SignedDuration::from_hours(24);

/// A heartbeat that was authenticated.
#[derive(Debug)]
pub struct Beat {
    /// Whose.
    pub server: ServerId,
    /// The hold on its channel: a beat of one that was lost changes nothing.
    pub lease: ChannelLease,
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

/// What became of a beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeatOutcome {
    /// It is durable.
    Taken,
    /// Another appliance was registered for the server since.
    Replaced,
    /// The channel is no longer held by the beat's lease.
    LostChannel,
}

impl BeatOutcome {
    fn result(self) -> Result<(), StoreError> {
        match self {
            Self::Taken => Ok(()),
            Self::Replaced => Err(StoreError::Replaced),
            Self::LostChannel => Err(StoreError::LostChannel),
        }
    }
}

/// How heartbeats are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeartbeatOptions {
    /// Whether every single beat is kept for a while, or only what the newest says.
    pub history: bool,
}

impl Default for HeartbeatOptions {
    fn default() -> Self {
        Self { history: true }
    }
}

type Waiting = (Beat, oneshot::Sender<Result<(), StoreError>>);

/// The way heartbeats go to the database.
#[derive(Clone, Debug)]
pub struct Heartbeats {
    queue: mpsc::Sender<Waiting>,
}

impl Heartbeats {
    /// Starts the task that writes. It ends when the last clone is gone.
    pub fn start(store: Store) -> Self {
        Self::start_with(store, HeartbeatOptions::default())
    }

    /// The same, otherwise than by default.
    pub fn start_with(store: Store, options: HeartbeatOptions) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(write_batches(store, options, waiting));
        Self { queue }
    }

    /// Hands over a beat; returns when it is durable.
    pub async fn submit(&self, beat: Beat) -> Result<(), StoreError> {
        let (done, result) = oneshot::channel();
        self.queue.send((beat, done)).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }
}

async fn write_batches(store: Store, options: HeartbeatOptions, mut waiting: mpsc::Receiver<Waiting>) {
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
        match store.commit_beats(&beats, options).await {
            Ok(outcomes) => {
                for (reply, outcome) in replies.into_iter().zip(outcomes) {
                    // Whoever went away does not wait for the answer.
                    let _ = reply.send(outcome.result());
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
    /// Writes beats in one transaction: each moves its server's secret on, and joins the history. Says of each what became
    /// of it. Of several beats of one server the last counts.
    pub async fn commit_beats(
        &self,
        beats: &[Beat],
        options: HeartbeatOptions,
    ) -> Result<Vec<BeatOutcome>, StoreError> {
        let _timed = self.timed("commit_beats");
        // In one order, so that two that write many do not wait for each other in a circle.
        let newest: BTreeMap<ServerId, &Beat> = beats.iter().map(|beat| (beat.server, beat)).collect();
        self.repeatable("commit_beats", || async {
            let mut tx = self.begin().await?;
            let taken = match tx.engine() {
                Engine::Postgres => self.update_at_once(&mut tx, &newest).await?,
                Engine::Sqlite => self.update_each(&mut tx, &newest).await?,
            };
            let mut outcomes = Vec::with_capacity(beats.len());
            for beat in beats {
                let same = newest
                    .get(&beat.server)
                    .is_some_and(|last| (last.key, last.lease) == (beat.key, beat.lease));
                outcomes.push(match taken.contains(&beat.server) && same {
                    true => BeatOutcome::Taken,
                    false => why_not(&mut tx, beat).await?,
                });
            }
            if options.history {
                let kept = beats.iter().zip(&outcomes).filter(|(_, outcome)| **outcome == BeatOutcome::Taken);
                keep(&mut tx, kept.map(|(beat, _)| beat)).await?;
            }
            tx.commit().await?;
            Ok(outcomes)
        })
        .await
    }

    fn sealed(sealer: &Sealer, beat: &Beat) -> (Vec<u8>, Vec<u8>) {
        let seal = |place, secret| sealer.seal(place, beat.server.as_bytes(), secret).bytes;
        (seal(Place::Verification, &beat.secret), seal(Place::PreviousVerification, &beat.previous))
    }

    async fn update_at_once(
        &self,
        db: &mut Connection,
        beats: &BTreeMap<ServerId, &Beat>,
    ) -> Result<HashSet<ServerId>, StoreError> {
        let sealer = self.sealer();
        let (secrets, previous): (Vec<_>, Vec<_>) =
            beats.values().map(|beat| Self::sealed(&sealer, beat)).unzip();
        let rows = query(
            "UPDATE servers s SET last_heartbeat = b.received, heartbeat_counter = b.counter, \
             verification_secret = b.secret, previous_secret = b.previous, verification_key = $8, previous_key = $8 \
             FROM UNNEST($1::TEXT[], $2::BYTEA[], $3::BIGINT[], $4::BIGINT[], $5::BIGINT[], $6::BYTEA[], $7::BYTEA[]) \
             AS b(server_id, public_key, lease, received, counter, secret, previous) \
             WHERE s.server_id = b.server_id AND s.public_key = b.public_key AND s.channel_lease = b.lease \
             RETURNING s.server_id",
        )
        .bind(beats.keys().map(ServerId::to_string).collect::<Vec<_>>())
        .bind(beats.values().map(|beat| beat.key.0.to_vec()).collect::<Vec<_>>())
        .bind(beats.values().map(|beat| beat.lease.0).collect::<Vec<_>>())
        .bind(beats.values().map(|beat| millis(beat.received)).collect::<Vec<_>>())
        .bind(beats.values().map(|beat| int(beat.counter)).collect::<Vec<_>>())
        .bind(secrets)
        .bind(previous)
        .bind(sealer.sealing())
        .fetch_all(db)
        .await?;
        rows.iter().map(|row| row.parsed("server_id")).collect()
    }

    async fn update_each(
        &self,
        db: &mut Connection,
        beats: &BTreeMap<ServerId, &Beat>,
    ) -> Result<HashSet<ServerId>, StoreError> {
        let (mut taken, sealer) = (HashSet::new(), self.sealer());
        for beat in beats.values() {
            let (secret, previous) = Self::sealed(&sealer, beat);
            let done = query(
                "UPDATE servers SET last_heartbeat = $1, heartbeat_counter = $2, verification_secret = $3, \
                 previous_secret = $4, verification_key = $8, previous_key = $8 \
                 WHERE server_id = $5 AND public_key = $6 AND channel_lease = $7",
            )
            .bind(millis(beat.received))
            .bind(int(beat.counter))
            .bind(secret)
            .bind(previous)
            .bind(beat.server.to_string())
            .bind(&beat.key.0[..])
            .bind(beat.lease.0)
            .bind(sealer.sealing())
            .execute(&mut *db)
            .await?;
            if done.rows_affected() > 0 {
                taken.insert(beat.server);
            }
        }
        Ok(taken)
    }

    /// A server's newest beats, newest first.
    pub async fn list_beats(&self, server: ServerId, limit: u32) -> Result<Vec<BeatHistory>, StoreError> {
        let rows =
            query("SELECT * FROM heartbeats WHERE server_id = $1 ORDER BY received_time DESC, heartbeat_id DESC LIMIT $2")
                .bind(server.to_string())
                .bind(limit)
                .fetch_all(self.readers())
                .await?;
        rows.iter().map(read).collect()
    }

    /// A new verification secret for a server whose identity was approved since, until its appliance proved that it has
    /// it. `None` when no new one is due.
    pub(super) async fn reissue(
        &self,
        db: &mut Connection,
        server: ServerId,
    ) -> Result<Option<Secret>, StoreError> {
        let row =
            query("SELECT reissue_secret, verification_secret FROM servers WHERE server_id = $1 {lock}")
                .bind(server.to_string())
                .fetch_optional(&mut *db)
                .await?;
        let Some(row) = row else { return Ok(None) };
        if !row.flag("reissue_secret")? {
            return Ok(None);
        }
        let (secret, sealer, owner) = (Secret::new(super::seal::random()), self.sealer(), server.as_bytes());
        // Each column is a place of its own: what moves from one to the other is sealed anew.
        let before = sealer.open(Place::Verification, owner, &row.bytes("verification_secret")?)?;
        let before = sealer.seal(Place::PreviousVerification, owner, &before);
        let sealed = sealer.seal(Place::Verification, owner, &secret);
        query(
            "UPDATE servers SET previous_secret = $1, previous_key = $2, verification_secret = $3, verification_key = $4 \
             WHERE server_id = $5",
        )
            .bind(before.bytes)
            .bind(before.key)
            .bind(sealed.bytes)
            .bind(sealed.key)
            .bind(server.to_string())
            .execute(&mut *db)
            .await?;
        Ok(Some(secret))
    }
}

/// Why a beat changed nothing.
async fn why_not(db: &mut Connection, beat: &Beat) -> Result<BeatOutcome, StoreError> {
    let row = query("SELECT public_key FROM servers WHERE server_id = $1")
        .bind(beat.server.to_string())
        .fetch_optional(db)
        .await?;
    let key = row.map(|row| row.maybe_bytes32("public_key")).transpose()?.flatten();
    Ok(if key == Some(beat.key.0) { BeatOutcome::LostChannel } else { BeatOutcome::Replaced })
}

/// Adds beats to the history.
async fn keep(db: &mut Connection, beats: impl Iterator<Item = &Beat>) -> Result<(), StoreError> {
    const INTO: &str = "INSERT INTO heartbeats (server_id, received_time, server_time, counter, applied_generation, \
                        active_connections, system_metrics) ";
    let rows: Vec<_> = beats.map(|beat| (beat, metrics(beat))).collect();
    if rows.is_empty() {
        return Ok(());
    }
    if db.engine() == Engine::Postgres {
        let ints = |value: fn(&Beat) -> i64| rows.iter().map(|(beat, _)| value(beat)).collect::<Vec<_>>();
        let mut insert = Builder::new(INTO);
        insert.push(
            "SELECT * FROM UNNEST($1::TEXT[], $2::BIGINT[], $3::BIGINT[], $4::BIGINT[], $5::BIGINT[], \
                     $6::BIGINT[], $7::TEXT[])",
        );
        insert
            .build()
            .bind(rows.iter().map(|(beat, _)| beat.server.to_string()).collect::<Vec<_>>())
            .bind(ints(|beat| millis(beat.received)))
            .bind(ints(|beat| millis(beat.sent)))
            .bind(ints(|beat| int(beat.counter)))
            .bind(ints(|beat| int(beat.generation)))
            .bind(ints(|beat| i64::from(beat.active_sessions)))
            .bind(rows.into_iter().map(|(_, metrics)| metrics).collect::<Vec<_>>())
            .execute(db)
            .await?;
        return Ok(());
    }
    const COLUMNS: usize = 7;
    for chunk in rows.chunks(MAX_BINDS / COLUMNS) {
        let mut insert = Builder::new(INTO);
        insert.push_values(chunk, |row, (beat, metrics)| {
            row.push_bind(beat.server.to_string())
                .push_bind(millis(beat.received))
                .push_bind(millis(beat.sent))
                .push_bind(int(beat.counter))
                .push_bind(int(beat.generation))
                .push_bind(i64::from(beat.active_sessions))
                .push_bind(metrics);
        });
        insert.build().execute(&mut *db).await?;
    }
    Ok(())
}

/// Load and traffic as they are kept.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    uptime_seconds: u64,
    memory_bytes: u64,
    bytes_sent: u64,
    bytes_received: u64,
    load_percent: u32,
}

fn metrics(beat: &Beat) -> String {
    let m = &beat.metrics;
    let kept = Kept {
        uptime_seconds: m.uptime_seconds,
        memory_bytes: m.memory_bytes,
        bytes_sent: m.bytes_sent,
        bytes_received: m.bytes_received,
        load_percent: m.load_percent,
    };
    // Numbers can always be written.
    serde_json::to_string(&kept).unwrap_or_default()
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
