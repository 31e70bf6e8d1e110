//! The KeySets and how far each rotation of their keys is. A step is one transaction: the KeySet it made, its private key
//! (sealed), how far the rotation is, its history, event and audit row. Whoever follows takes it from here.

use horizon_crds::{RotationTarget, RotationType};
use horizon_model::{PublicKey, Secret};
use horizon_wire::rotation::{KeyClass, Reached, Step};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::{
    Actor, LeaderEpoch, NewEvent, ReplicaId, Severity, Source, Store, StoreError,
    audit::{self, Record},
    dialect::{Connection, Row, query},
    event,
    registration::fence,
    rotation_history::{self, Rotated},
    row::{Columns as _, int, millis},
    seal::Place,
    settings,
};

/// The most KeySets that are read at once.
const MAX_READ: i64 = 4096;

/// A KeySet as the database has it.
#[derive(Clone, Debug)]
pub struct StoredKeySet {
    /// Its number.
    pub version: u64,
    /// The encoded `SignedKeySet`.
    pub signed: Vec<u8>,
    /// The name and the private half of the key that came with it, while it is needed.
    pub key: Option<(String, Secret)>,
}

/// The key that a KeySet brings in.
#[derive(Clone, Debug)]
pub struct FreshKey<'a> {
    /// The name of its file.
    pub name: String,
    /// Its public half.
    pub public: PublicKey,
    /// Its private half.
    pub secret: &'a Secret,
}

/// A KeySet to be added.
#[derive(Clone, Debug)]
pub struct NewKeySet<'a> {
    /// Its number, which must be the next.
    pub version: u64,
    /// The encoded `SignedKeySet`.
    pub signed: Vec<u8>,
    /// The key that it brings in.
    pub key: Option<FreshKey<'a>>,
    /// The keys whose private halves are needed from then on.
    pub needed: Vec<PublicKey>,
    /// What it is a step of.
    pub rotation: &'a KeySetRotation,
    /// Which step.
    pub step: Step,
}

/// A rotation of a class that begins.
#[derive(Clone, Debug)]
pub struct NewKeySetRotation<'a> {
    /// Of what.
    pub class: KeyClass,
    /// How.
    pub kind: RotationType,
    /// Why.
    pub reason: &'a str,
    /// Who asked for it.
    pub by: &'a str,
    /// The `KeyRotation`.
    pub run: Option<Uuid>,
    /// The `RotationPolicy`.
    pub policy: Option<Uuid>,
    /// For how long the old key stays.
    pub overlap: SignedDuration,
}

/// A rotation of a class of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySetRotation {
    /// Its number.
    pub id: i64,
    /// Of what.
    pub class: KeyClass,
    /// How.
    pub kind: String,
    /// Why.
    pub reason: String,
    /// Who asked for it.
    pub by: String,
    /// The `KeyRotation`.
    pub run: Option<Uuid>,
    /// The `RotationPolicy`.
    pub policy: Option<Uuid>,
    /// For how long the old key stays.
    pub overlap: SignedDuration,
    /// How far it is; `None` when it is over.
    pub reached: Option<Reached>,
}

impl KeySetRotation {
    /// Whether the old key is dropped at once.
    pub fn emergency(&self) -> bool {
        self.kind != RotationType::Scheduled.as_str()
    }
}

/// How many of a kind hold a KeySet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeySetHolders {
    /// `replica`, `appliance` or `device`.
    pub role: String,
    /// The version.
    pub version: u64,
    /// How many are connected that hold it.
    pub peers: u64,
}

impl Store {
    /// Notes KeySets that are in the files and not in the database, and gives the newest version that it has. One that differs
    /// from what it has under the number is an error.
    pub async fn note_keysets(&self, chain: &[Vec<u8>], now: Timestamp) -> Result<u64, StoreError> {
        self.repeatable("note_keysets", || async {
            let mut tx = self.begin().await?;
            tx.serialise("keysets").await?;
            let rows =
                query("SELECT version, signed FROM keysets ORDER BY version").fetch_all(&mut *tx).await?;
            let mut newest = 0;
            for row in &rows {
                newest = row.count("version")?;
                let known = usize::try_from(newest).ok().and_then(|v| chain.get(v.checked_sub(1)?));
                if known.is_some_and(|known| row.bytes("signed").ok().as_ref() != Some(known)) {
                    return Err(StoreError::OtherKeySet(newest));
                }
            }
            for (version, signed) in (1_u64..).zip(chain).filter(|(version, _)| *version > newest) {
                query("INSERT INTO keysets (version, signed, made_date) VALUES ($1, $2, $3)")
                    .bind(int(version))
                    .bind(&signed[..])
                    .bind(millis(now))
                    .execute(&mut *tx)
                    .await?;
            }
            tx.commit().await?;
            Ok(newest.max(u64::try_from(chain.len()).unwrap_or(u64::MAX)))
        })
        .await
    }

    /// The KeySets after a version, in their order.
    pub async fn keysets_after(&self, version: u64) -> Result<Vec<StoredKeySet>, StoreError> {
        let rows = query("SELECT * FROM keysets WHERE version > $1 ORDER BY version LIMIT $2")
            .bind(int(version))
            .bind(MAX_READ)
            .fetch_all(self.readers())
            .await?;
        rows.iter()
            .map(|row| {
                let version = row.count("version")?;
                let key = match (row.maybe_text("key_name")?, row.maybe_bytes("key_sealed")?) {
                    (Some(name), Some(sealed)) => {
                        Some((name, self.sealer().open(Place::KeySet, &owner(version), &sealed)?))
                    }
                    _ => None,
                };
                Ok(StoredKeySet { version, signed: row.bytes("signed")?, key })
            })
            .collect()
    }

    /// Adds the next KeySet, which is a step of a rotation. `false` when it is not the next any more, or the rotation is over.
    pub async fn append_keyset(
        &self,
        new: &NewKeySet<'_>,
        leader: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.retried("append_keyset", || async {
            let mut tx = self.begin().await?;
            fence(&mut tx, leader).await?;
            tx.serialise("keysets").await?;
            let newest =
                query("SELECT COALESCE(MAX(version), 0) AS newest FROM keysets").fetch_one(&mut *tx).await?;
            if newest.count("newest")? + 1 != new.version {
                return Ok(false);
            }
            let sealed = new
                .key
                .as_ref()
                .map(|key| self.sealer().seal(Place::KeySet, &owner(new.version), key.secret));
            query(
                "INSERT INTO keysets (version, signed, key_name, key_public, key_sealed, made_date, sealing_key) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
            )
            .bind(int(new.version))
            .bind(&new.signed[..])
            .bind(new.key.as_ref().map(|key| key.name.clone()))
            .bind(new.key.as_ref().map(|key| key.public.0.to_vec()))
            .bind(sealed.as_ref().map(|sealed| sealed.bytes.clone()))
            .bind(millis(now))
            .bind(sealed.as_ref().map(|sealed| sealed.key))
            .execute(&mut *tx)
            .await?;
            wipe(&mut tx, &new.needed).await?;
            if !record(&mut tx, new, now).await? {
                return Ok(false);
            }
            settings::raise_keyset(&mut tx, new.version, now).await?;
            tx.commit().await?;
            Ok(true)
        })
        .await
    }

    /// Begins a rotation. `None` when one of the class is under way that is not overtaken: only an emergency overtakes.
    pub async fn begin_keyset_rotation(
        &self,
        new: &NewKeySetRotation<'_>,
        leader: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<Option<i64>, StoreError> {
        self.retried("begin_keyset_rotation", || async {
            let mut tx = self.begin().await?;
            fence(&mut tx, leader).await?;
            let class = new.class.as_str();
            if new.kind != RotationType::Scheduled {
                query(
                    "UPDATE keyset_rotations SET phase = 'overtaken', phase_date = $1, ended_date = $1 \
                     WHERE class = $2 AND ended_date IS NULL AND rotation_type = 'scheduled'",
                )
                .bind(millis(now))
                .bind(class)
                .execute(&mut *tx)
                .await?;
            }
            let row = query(
                "INSERT INTO keyset_rotations (class, rotation_type, reason, requested_by, requested_date, run_uid, \
                 policy_uid, overlap, phase, phase_date) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'requested', $5) \
                 ON CONFLICT (class) WHERE ended_date IS NULL DO NOTHING RETURNING rotation_id",
            )
            .bind(class)
            .bind(new.kind.as_str())
            .bind(new.reason)
            .bind(new.by)
            .bind(millis(now))
            .bind(new.run.map(|uid| uid.to_string()))
            .bind(new.policy.map(|uid| uid.to_string()))
            .bind(i64::try_from(new.overlap.as_millis()).unwrap_or(i64::MAX))
            .fetch_optional(&mut *tx)
            .await?;
            tx.commit().await?;
            row.map(|row| row.int("rotation_id")).transpose()
        })
        .await
    }

    /// Ends a rotation for which nothing is left to be done.
    pub async fn end_keyset_rotation(
        &self,
        id: i64,
        leader: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.repeatable("end_keyset_rotation", || async {
            let mut tx = self.begin().await?;
            fence(&mut tx, leader).await?;
            set_phase(&mut tx, id, "done", now).await?;
            tx.commit().await
        })
        .await
    }

    /// The rotations that are not over, and those of runs.
    pub async fn keyset_rotations(&self, run: Option<Uuid>) -> Result<Vec<KeySetRotation>, StoreError> {
        let rows = match run {
            Some(run) => query("SELECT * FROM keyset_rotations WHERE run_uid = $1 ORDER BY rotation_id")
                .bind(run.to_string()),
            None => query("SELECT * FROM keyset_rotations WHERE ended_date IS NULL ORDER BY rotation_id"),
        };
        rows.fetch_all(self.readers()).await?.iter().map(read).collect()
    }

    /// Notes how many peers of this replica hold which KeySet.
    pub async fn put_keyset_holders(
        &self,
        replica: ReplicaId,
        holders: &[KeySetHolders],
    ) -> Result<(), StoreError> {
        self.repeatable("put_keyset_holders", || async {
            let mut tx = self.begin().await?;
            query("DELETE FROM keyset_holders WHERE replica_id = $1")
                .bind(replica.to_string())
                .execute(&mut *tx)
                .await?;
            for row in holders {
                query(
                    "INSERT INTO keyset_holders (replica_id, role, version, peers) VALUES ($1, $2, $3, $4)",
                )
                .bind(replica.to_string())
                .bind(&row.role)
                .bind(int(row.version))
                .bind(int(row.peers))
                .execute(&mut *tx)
                .await?;
            }
            tx.commit().await
        })
        .await
    }

    /// How many hold which KeySet, at this replica and all others that are there; at all that ever said so, if none is named.
    pub async fn keyset_holders(&self, own: Option<ReplicaId>) -> Result<Vec<KeySetHolders>, StoreError> {
        let rows = query(
            "SELECT role, version, CAST(SUM(peers) AS BIGINT) AS peers FROM keyset_holders \
             WHERE $1 IS NULL OR replica_id = $1 OR replica_id IN (SELECT replica_id FROM replicas) GROUP BY role, version ORDER BY role, version",
        )
        .bind(own.map(|own| own.to_string()))
        .fetch_all(self.readers())
        .await?;
        let read = |row: &Row| {
            Ok(KeySetHolders {
                role: row.text("role")?,
                version: row.count("version")?,
                peers: row.count("peers")?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// Forgets what replicas said that are gone.
    pub async fn forget_keyset_holders(&self, own: ReplicaId) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        query(
            "DELETE FROM keyset_holders WHERE replica_id <> $1 \
             AND replica_id NOT IN (SELECT replica_id FROM replicas)",
        )
        .bind(own.to_string())
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }
}

fn owner(version: u64) -> [u8; 16] {
    u128::from(version).to_be_bytes()
}

/// Wipes the private halves that are not needed any more.
async fn wipe(db: &mut Connection, needed: &[PublicKey]) -> Result<(), StoreError> {
    let rows = query("SELECT version, key_public FROM keysets WHERE key_sealed IS NOT NULL")
        .fetch_all(&mut *db)
        .await?;
    for row in &rows {
        let public = row.maybe_bytes32("key_public")?.map(PublicKey);
        if !public.is_some_and(|public| needed.contains(&public)) {
            query("UPDATE keysets SET key_sealed = NULL, sealing_key = NULL WHERE version = $1")
                .bind(row.int("version")?)
                .execute(&mut *db)
                .await?;
        }
    }
    Ok(())
}

async fn set_phase(
    db: &mut Connection,
    id: i64,
    phase: &'static str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let ended = matches!(phase, "done" | "overtaken").then(|| millis(now));
    let done = query(
        "UPDATE keyset_rotations SET phase = $1, phase_date = $2, ended_date = $3 \
         WHERE rotation_id = $4 AND ended_date IS NULL",
    )
    .bind(phase)
    .bind(millis(now))
    .bind(ended)
    .bind(id)
    .execute(&mut *db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// What a step leaves behind besides the KeySet. `false` when its rotation is over.
async fn record(db: &mut Connection, new: &NewKeySet<'_>, now: Timestamp) -> Result<bool, StoreError> {
    let rotation = new.rotation;
    let class = rotation.class.as_str();
    let (phase, kind, severity, what) = match new.step {
        Step::Publish if rotation.class == KeyClass::Root => {
            ("done", "controller_key_used", Severity::Info, "a new root signs from now on")
        }
        Step::Publish => ("published", "controller_key_published", Severity::Info, "a new key is published"),
        Step::Use => ("in_use", "controller_key_used", Severity::Info, "the new key is used from now on"),
        Step::Retire if rotation.reached == Some(Reached::Requested) => (
            "requested",
            "controller_key_retired",
            Severity::Info,
            "the key before it is not trusted any more",
        ),
        Step::Retire => {
            ("done", "controller_key_retired", Severity::Info, "the key before it is not trusted any more")
        }
        Step::Replace => (
            "done",
            "controller_key_replaced",
            Severity::High,
            "the key was replaced at once and the old one revoked",
        ),
    };
    if !set_phase(db, rotation.id, phase, now).await? {
        return Ok(false);
    }
    let event = NewEvent {
        kind,
        severity,
        source: Source::System,
        address: None,
        description: format!(
            "{class} key of the organisation: {what} (KeySet {}): {}",
            new.version, rotation.reason
        ),
        data: json!({ "class": class, "keyset": new.version, "reason": rotation.reason, "by": rotation.by }),
    };
    event::write(db, &event, now).await?;
    let record = Record::new("rotate", "KeySet", new.version, class)
        .notes(format!("{what}; asked for by {}: {}", rotation.by, rotation.reason));
    audit::write(db, &Actor::System("keys"), now, &[record]).await?;
    if let Some(key) = &new.key {
        let completed = phase == "done";
        let kind = match &rotation.kind[..] {
            "manual" => RotationType::Manual,
            "emergency" => RotationType::Emergency,
            "compromised" => RotationType::Compromised,
            _ => RotationType::Scheduled,
        };
        let rotated = Rotated {
            target: RotationTarget::ControllerKeys,
            key: class,
            previous: None,
            new: Some(key.public.to_string()),
            kind,
            by: rotation.by.clone(),
            reason: &rotation.reason,
            run: rotation.run,
            policy: rotation.policy,
            overlap_end: now.checked_add(rotation.overlap).ok().filter(|_| !completed),
            completed,
        };
        rotation_history::write(db, &rotated, now).await?;
    } else if phase == "done" {
        query(
            "UPDATE key_rotation_history SET completed_date = $1 WHERE target = 'controllerKeys' AND key_id = $2 \
             AND completed_date IS NULL",
        )
        .bind(millis(now))
        .bind(class)
        .execute(&mut *db)
        .await?;
    }
    Ok(true)
}

fn read(row: &Row) -> Result<KeySetRotation, StoreError> {
    let since = row.int("phase_date")?;
    let reached = match &row.text("phase")?[..] {
        "requested" => Some(Reached::Requested),
        "published" => Some(Reached::Published(since)),
        "in_use" => Some(Reached::InUse(since)),
        _ => None,
    };
    Ok(KeySetRotation {
        id: row.int("rotation_id")?,
        class: row.parsed("class")?,
        kind: row.text("rotation_type")?,
        reason: row.text("reason")?,
        by: row.text("requested_by")?,
        run: row.maybe_parsed("run_uid")?,
        policy: row.maybe_parsed("policy_uid")?,
        overlap: SignedDuration::from_millis(row.int("overlap")?),
        reached,
    })
}
