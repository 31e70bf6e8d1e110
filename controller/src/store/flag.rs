//! Flags: servers and users that somebody should look at. Nothing is refused for a flag.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Actor, Store, StoreError,
    anomaly::Subject,
    audit::{self, Record},
    dialect::{Connection, Row, query},
    row::{Columns as _, millis},
};

/// A flag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Flag {
    /// Its number.
    pub id: i64,
    /// `server` or `user`.
    pub subject_type: String,
    /// The identifier of what is flagged.
    pub subject_id: String,
    /// Its name.
    pub subject: String,
    /// Why.
    pub reason: String,
    /// Since when.
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// By whom: a person, or a detector.
    pub by: String,
    /// When it was cleared.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub cleared_at: Option<Timestamp>,
    /// By whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cleared_by: Option<String>,
    /// What was found out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
}

/// Flags a subject in the caller's transaction. Returns whether it was not flagged before.
pub(super) async fn write(
    db: &mut Connection,
    subject: &Subject,
    reason: &str,
    actor: &Actor,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let done = query(
        "INSERT INTO flags (subject_type, subject_id, subject_name, reason, flagged_at, flagged_by) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (subject_type, subject_id) WHERE cleared_at IS NULL DO NOTHING",
    )
    .bind(subject.kind.as_str())
    .bind(&subject.id)
    .bind(&subject.name)
    .bind(reason)
    .bind(millis(now))
    .bind(actor.name())
    .execute(&mut *db)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    let record = Record::new("flag", subject.kind.resource(), &subject.id, &subject.name).notes(reason);
    audit::write(db, actor, now, &[record]).await?;
    Ok(true)
}

impl Store {
    /// Flags a server or a user as suspicious. Returns whether it was not before.
    pub async fn flag(
        &self,
        subject: &Subject,
        reason: &str,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.retried("flag", || async {
            let mut tx = self.begin().await?;
            let fresh = write(&mut tx, subject, reason, actor, now).await?;
            tx.commit().await?;
            Ok(fresh)
        })
        .await
    }

    /// Takes a flag away. Returns whether there was one.
    pub async fn clear_flag(
        &self,
        subject: &Subject,
        notes: &str,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.repeatable("clear_flag", || async {
            let mut tx = self.begin().await?;
            let done = query(
                "UPDATE flags SET cleared_at = $1, cleared_by = $2, notes = $3 \
                 WHERE subject_type = $4 AND subject_id = $5 AND cleared_at IS NULL",
            )
            .bind(millis(now))
            .bind(actor.name())
            .bind(notes)
            .bind(subject.kind.as_str())
            .bind(&subject.id)
            .execute(&mut *tx)
            .await?;
            if done.rows_affected() == 0 {
                return Ok(false);
            }
            let record =
                Record::new("clear_flag", subject.kind.resource(), &subject.id, &subject.name).notes(notes);
            audit::write(&mut tx, actor, now, &[record]).await?;
            tx.commit().await?;
            Ok(true)
        })
        .await
    }

    /// Flags, the newest first; those that stand before those that were cleared.
    pub async fn list_flags(&self, limit: u32) -> Result<Vec<Flag>, StoreError> {
        let rows = query(
            "SELECT * FROM flags ORDER BY CASE WHEN cleared_at IS NULL THEN 0 ELSE 1 END, flag_id DESC LIMIT $1",
        )
        .bind(limit)
        .fetch_all(self.readers())
        .await?;
        rows.iter().map(read).collect()
    }

    /// A page of flags, whether they stand or not: those before one, the newest first.
    pub async fn page_flags(&self, before: Option<i64>, limit: u32) -> Result<Vec<Flag>, StoreError> {
        let rows = query("SELECT * FROM flags WHERE flag_id < $1 ORDER BY flag_id DESC LIMIT $2")
            .bind(before.unwrap_or(i64::MAX))
            .bind(limit)
            .fetch_all(self.readers())
            .await?;
        rows.iter().map(read).collect()
    }
}

fn read(row: &Row) -> Result<Flag, StoreError> {
    Ok(Flag {
        id: row.int("flag_id")?,
        subject_type: row.text("subject_type")?,
        subject_id: row.text("subject_id")?,
        subject: row.text("subject_name")?,
        reason: row.text("reason")?,
        since: row.time("flagged_at")?,
        by: row.text("flagged_by")?,
        cleared_at: row.maybe_time("cleared_at")?,
        cleared_by: row.maybe_text("cleared_by")?,
        notes: row.maybe_text("notes")?,
    })
}
