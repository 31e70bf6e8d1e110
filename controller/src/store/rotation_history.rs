//! What was rotated when, by whom and why. One row for each key of each rotation; a row is completed once.

use std::collections::BTreeMap;

use horizon_crds::{RotationTarget, RotationType};
use horizon_model::KeyId;
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::{
    Store, StoreError,
    dialect::{Connection, query},
    row::{Columns as _, int, millis},
};

/// A key that was rotated.
#[derive(Clone, Debug)]
pub struct Rotated<'a> {
    /// The class.
    pub target: RotationTarget,
    /// Whose: a personal key's or a server's identifier, or what a key of the controller is for.
    pub key: &'a str,
    /// The old key.
    pub previous: Option<String>,
    /// The new one.
    pub new: Option<String>,
    /// How.
    pub kind: RotationType,
    /// Who asked for it.
    pub by: String,
    /// Why.
    pub reason: &'a str,
    /// The `KeyRotation`.
    pub run: Option<Uuid>,
    /// The `RotationPolicy`.
    pub policy: Option<Uuid>,
    /// When the old key ends at the latest.
    pub overlap_end: Option<Timestamp>,
    /// Whether the old key has ended.
    pub completed: bool,
}

/// A row of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RotationView {
    /// Its number; later rows have higher ones.
    pub id: i64,
    /// When.
    pub time: Timestamp,
    /// The class.
    pub target: String,
    /// Whose key.
    pub key: String,
    /// The old key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// The new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<String>,
    /// `scheduled`, `manual`, `emergency` or `compromised`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Who asked for it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When the old key ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// How many had not confirmed the new key then.
    pub unconfirmed: u64,
}

/// Writes a row down, in the transaction of the rotation.
pub(super) async fn write(
    db: &mut Connection,
    rotated: &Rotated<'_>,
    now: Timestamp,
) -> Result<(), StoreError> {
    query(
        "INSERT INTO key_rotation_history (target, key_id, previous_key_id, new_key_id, rotation_type, rotation_date, overlap_end, \
         completed_date, initiated_by, reason, run_uid, policy_uid) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(rotated.target.as_str())
    .bind(rotated.key)
    .bind(&rotated.previous)
    .bind(&rotated.new)
    .bind(rotated.kind.as_str())
    .bind(millis(now))
    .bind(rotated.overlap_end.map(millis))
    .bind(rotated.completed.then(|| millis(now)))
    .bind(&rotated.by)
    .bind(rotated.reason)
    .bind(rotated.run.map(|uid| uid.to_string()))
    .bind(rotated.policy.map(|uid| uid.to_string()))
    .execute(&mut *db)
    .await?;
    Ok(())
}

/// The old key of the rotation that made a version has ended.
pub(super) async fn complete(
    db: &mut Connection,
    new: KeyId,
    unconfirmed: u64,
    now: Timestamp,
) -> Result<(), StoreError> {
    query(
        "UPDATE key_rotation_history SET completed_date = $1, unconfirmed = $2 \
         WHERE new_key_id = $3 AND target = 'personalKeys' AND completed_date IS NULL",
    )
    .bind(millis(now))
    .bind(int(unconfirmed))
    .bind(new.to_string())
    .execute(&mut *db)
    .await?;
    Ok(())
}

/// What was under way for a personal key is over: it was replaced.
pub(super) async fn end_open(db: &mut Connection, key: KeyId, now: Timestamp) -> Result<(), StoreError> {
    query(
        "UPDATE key_rotation_history SET completed_date = $1 \
         WHERE key_id = $2 AND target = 'personalKeys' AND completed_date IS NULL",
    )
    .bind(millis(now))
    .bind(key.to_string())
    .execute(&mut *db)
    .await?;
    Ok(())
}

impl Store {
    /// When the keys of a class were last rotated, by whose they are.
    pub async fn last_rotations(
        &self,
        target: RotationTarget,
    ) -> Result<BTreeMap<String, Timestamp>, StoreError> {
        let rows = query("SELECT key_id, MAX(rotation_date) AS latest FROM key_rotation_history WHERE target = $1 GROUP BY key_id")
            .bind(target.as_str())
            .fetch_all(self.readers())
            .await?;
        rows.iter().map(|row| Ok((row.text("key_id")?, row.time("latest")?))).collect()
    }

    /// The newest rotations of a key, or of the secret of a server.
    pub async fn list_rotations(
        &self,
        target: RotationTarget,
        key: &str,
        limit: u32,
    ) -> Result<Vec<RotationView>, StoreError> {
        let sql = "SELECT * FROM key_rotation_history WHERE target = $1 AND key_id = $2 \
                   ORDER BY rotation_date DESC, rotation_id DESC LIMIT $3";
        let rows = query(sql).bind(target.as_str()).bind(key).bind(limit).fetch_all(self.readers()).await?;
        rows.iter()
            .map(|row| {
                Ok(RotationView {
                    id: row.int("rotation_id")?,
                    time: row.time("rotation_date")?,
                    target: row.text("target")?,
                    key: row.text("key_id")?,
                    previous: row.maybe_text("previous_key_id")?,
                    new: row.maybe_text("new_key_id")?,
                    kind: row.text("rotation_type")?,
                    by: row.text("initiated_by")?,
                    reason: row.text("reason")?,
                    completed_at: row.maybe_time("completed_date")?,
                    unconfirmed: row.count("unconfirmed")?,
                })
            })
            .collect()
    }
}
