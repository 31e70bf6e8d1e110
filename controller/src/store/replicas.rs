//! The controllers that share this database, and the devices whose channels they have.

use std::time::Duration;

use horizon_model::DeviceId;
use jiff::Timestamp;
use serde_json::json;

use super::{
    ReplicaId, Store, StoreError,
    dialect::{Builder, Connection, MAX_BINDS, Row, query},
    row::Columns as _,
    settings,
};

/// A replica that has not been heard of for so long is taken for dead, by the database's clock.
pub const REPLICA_SILENT: Duration = Duration::from_secs(5);
/// The most replicas that are listed.
const MAX_REPLICAS: u32 = 1000;

/// Under which name it is noted where what is declared is read.
const PLACE: &str = "leader.source";

/// What a replica says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaInfo {
    /// Its name.
    pub name: String,
    /// Where appliances and clients reach it, as `HOST:PORT`.
    pub addresses: Vec<String>,
    /// Whether it sends them elsewhere, because it is about to end.
    pub draining: bool,
    /// Its version.
    pub version: String,
}

/// A replica, as the others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRow {
    /// Which.
    pub replica: ReplicaId,
    /// What it says of itself.
    pub info: ReplicaInfo,
    /// How long ago it was last heard of, by the database's clock.
    pub age: Duration,
}

impl ReplicaRow {
    /// Whether it was heard of lately.
    pub fn alive(&self) -> bool {
        self.age < REPLICA_SILENT
    }
}

/// What came of a replica's word where it reads what is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Declaration {
    /// It is read where it was read before, or this is the first replica ever.
    AsBefore,
    /// It was read elsewhere before, and nobody who lives reads it there.
    Moved,
    /// A replica that lives reads it elsewhere.
    Refused {
        /// The name of that replica.
        other: String,
    },
}

impl Store {
    /// Notes that a replica is there, and what it says of itself.
    pub async fn replica_beat(&self, replica: ReplicaId, info: &ReplicaInfo) -> Result<(), StoreError> {
        self.repeatable("replica_beat", || async {
            let mut tx = self.begin().await?;
            beat(&mut tx, replica, info).await?;
            tx.commit().await
        })
        .await
    }

    /// Notes where a replica reads what is declared, and, with `info`, that it is there. Nothing is noted while another
    /// that lives reads it elsewhere. Of several that start at once, one comes after the other.
    pub async fn declare(
        &self,
        place: &str,
        replica: ReplicaId,
        info: Option<&ReplicaInfo>,
        now: Timestamp,
    ) -> Result<Declaration, StoreError> {
        self.repeatable("declare", || async {
            let mut tx = self.begin().await?;
            tx.serialise(PLACE).await?;
            let before: Option<String> = settings::get(&mut tx, PLACE).await?;
            let moved = before.as_deref().is_some_and(|before| before != place);
            if moved {
                let rows = query("SELECT replicas.*, {now} AS clock FROM replicas ORDER BY started LIMIT $1")
                    .bind(MAX_REPLICAS)
                    .fetch_all(&mut *tx)
                    .await?;
                for row in &rows {
                    let row = read(row)?;
                    if row.alive() && row.replica != replica {
                        return Ok(Declaration::Refused { other: row.info.name });
                    }
                }
            }
            if before.as_deref() != Some(place) {
                settings::put(&mut tx, PLACE, &place, now).await?;
            }
            if let Some(info) = info {
                beat(&mut tx, replica, info).await?;
            }
            tx.commit().await?;
            Ok(match moved {
                true => Declaration::Moved,
                false => Declaration::AsBefore,
            })
        })
        .await
    }

    /// Every replica that is there or was until lately, the longest-lived first.
    pub async fn replicas(&self) -> Result<Vec<ReplicaRow>, StoreError> {
        let rows =
            query("SELECT replicas.*, {now} AS clock FROM replicas ORDER BY started, replica_id LIMIT $1")
                .bind(MAX_REPLICAS)
                .fetch_all(self.readers())
                .await?;
        rows.iter().map(read).collect()
    }

    /// Forgets a replica that ends. What it still held is free for others.
    pub async fn remove_replica(&self, replica: ReplicaId) -> Result<(), StoreError> {
        self.repeatable("remove_replica", || async {
            let mut tx = self.begin().await?;
            query("DELETE FROM replicas WHERE replica_id = $1")
                .bind(replica.to_string())
                .execute(&mut *tx)
                .await?;
            tx.commit().await
        })
        .await
    }

    /// Notes which devices have their channel with a replica, and which no longer; `whole` when it has no others.
    pub async fn put_device_channels(
        &self,
        replica: ReplicaId,
        whole: bool,
        online: &[DeviceId],
        offline: &[DeviceId],
    ) -> Result<(), StoreError> {
        let _timed = self.timed("put_device_channels");
        self.repeatable("put_device_channels", || async {
            let mut tx = self.begin().await?;
            if whole {
                query("DELETE FROM device_channels WHERE replica_id = $1")
                    .bind(replica.to_string())
                    .execute(&mut *tx)
                    .await?;
            }
            for chunk in offline.chunks(MAX_BINDS - 1) {
                let mut delete = Builder::new("DELETE FROM device_channels WHERE replica_id = ");
                delete.push_bind(replica.to_string()).push(" AND device_id IN ");
                delete.push_list(chunk.iter().map(DeviceId::to_string));
                delete.build().execute(&mut *tx).await?;
            }
            // One that is not known, or no longer, has no channels.
            let known = query("SELECT replica_id FROM replicas WHERE replica_id = $1 {share}")
                .bind(replica.to_string())
                .fetch_optional(&mut *tx)
                .await?
                .is_some();
            for chunk in online.chunks(MAX_BINDS / 2).filter(|_| known) {
                let mut insert = Builder::new("INSERT INTO device_channels (device_id, replica_id) ");
                insert.push_values(chunk, |row, device| {
                    row.push_bind(device.to_string()).push_bind(replica.to_string());
                });
                insert.push(" ON CONFLICT (device_id, replica_id) DO NOTHING");
                insert.build().execute(&mut *tx).await?;
            }
            tx.commit().await
        })
        .await
    }

    /// Every device that has a channel, with the replica that has it.
    pub async fn device_channels(&self) -> Result<Vec<(DeviceId, ReplicaId)>, StoreError> {
        let rows =
            query("SELECT device_id, replica_id FROM device_channels").fetch_all(self.readers()).await?;
        rows.iter().map(channel).collect()
    }

    /// The same for some devices.
    pub async fn device_channels_of(
        &self,
        devices: &[DeviceId],
    ) -> Result<Vec<(DeviceId, ReplicaId)>, StoreError> {
        let mut found = Vec::new();
        for chunk in devices.chunks(MAX_BINDS) {
            let mut select =
                Builder::new("SELECT device_id, replica_id FROM device_channels WHERE device_id IN ");
            select.push_list(chunk.iter().map(DeviceId::to_string));
            for row in &select.build().fetch_all(self.readers()).await? {
                found.push(channel(row)?);
            }
        }
        Ok(found)
    }
}

fn channel(row: &Row) -> Result<(DeviceId, ReplicaId), StoreError> {
    Ok((row.parsed("device_id")?, row.parsed("replica_id")?))
}

async fn beat(db: &mut Connection, replica: ReplicaId, info: &ReplicaInfo) -> Result<(), StoreError> {
    query(
        "INSERT INTO replicas (replica_id, name, addresses, draining, version, started, last_beat) \
         VALUES ($1, $2, $3, $4, $5, {now}, {now}) ON CONFLICT (replica_id) DO UPDATE SET \
         name = excluded.name, addresses = excluded.addresses, draining = excluded.draining, \
         version = excluded.version, last_beat = excluded.last_beat",
    )
    .bind(replica.to_string())
    .bind(&info.name)
    .bind(json!(info.addresses).to_string())
    .bind(info.draining)
    .bind(&info.version)
    .execute(db)
    .await?;
    Ok(())
}

/// How long ago a time of the database's clock was. A clock that was set back makes it now.
pub(super) fn age(clock: i64, then: i64) -> Duration {
    Duration::from_millis(u64::try_from(clock.saturating_sub(then)).unwrap_or(0))
}

fn read(row: &Row) -> Result<ReplicaRow, StoreError> {
    Ok(ReplicaRow {
        replica: row.parsed("replica_id")?,
        info: ReplicaInfo {
            name: row.text("name")?,
            addresses: row.json("addresses")?,
            draining: row.flag("draining")?,
            version: row.text("version")?,
        },
        age: age(row.int("clock")?, row.int("last_beat")?),
    })
}

/// Forgets replicas that have been silent for a while. Returns how many.
pub(super) async fn forget_silent(db: &mut Connection, silent: Duration) -> Result<u64, StoreError> {
    let silent = i64::try_from(silent.as_millis()).unwrap_or(i64::MAX / 2);
    let done =
        query("DELETE FROM replicas WHERE last_beat < {now} - $1").bind(silent).execute(&mut *db).await?;
    Ok(done.rows_affected())
}
