//! The versions of a personal key as rows: read into a [`Life`] under the lock of the key's row, and written as it decided.

use horizon_controller_core::rotation::{Life, Version, VersionState};
use horizon_model::KeyId;
use jiff::Timestamp;

use super::{
    StoreError,
    dialect::{Connection, Row, query},
    row::{Columns as _, millis},
};

/// A version that was made: its identifier, and the hash and salt of its secret, where that was made too.
pub(super) type NewVersion<'a> = (KeyId, Option<(&'a [u8], &'a [u8])>);

/// A version as the rows have it.
pub(super) struct VersionRow {
    pub(super) id: KeyId,
    pub(super) version: Version,
}

/// A key with its versions, locked.
pub(super) struct Locked {
    pub(super) key: KeyId,
    pub(super) name: String,
    rows: Vec<VersionRow>,
    pub(super) life: Life,
    /// Whether its versions have rows of their own.
    recorded: bool,
}

impl Locked {
    /// Locks a key. `None` when there is none, or it has ended.
    pub(super) async fn take(
        db: &mut Connection,
        key: KeyId,
        now: Timestamp,
    ) -> Result<Option<Self>, StoreError> {
        let row = query("SELECT * FROM personal_keys WHERE key_id = $1 {lock}")
            .bind(key.to_string())
            .fetch_optional(&mut *db)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let expired = row.maybe_time("expiration_date")?.is_some_and(|at| at <= now);
        if expired || row.maybe_time("deactivation_date")?.is_some() {
            return Ok(None);
        }
        let name = format!("{}/{}", row.text("namespace")?, row.text("name")?);
        let manual = row.flag("manual_rotation_required")?;
        let rows = versions(db, key).await?;
        let recorded = Life::of(rows.iter().map(|row| row.version).collect(), manual);
        let used = row.maybe_time("activation_date")?.is_some();
        Ok(Some(match recorded {
            Some(life) => Self { key, name, rows, life, recorded: true },
            None => {
                let life = Life::first(used);
                let rows = vec![VersionRow { id: key, version: life.newest() }];
                Self { key, name, rows, life, recorded: false }
            }
        }))
    }

    /// The identifier of a version.
    pub(super) fn id(&self, number: u32) -> Option<KeyId> {
        self.rows.iter().find(|row| row.version.number == number).map(|row| row.id)
    }

    /// Writes what changed. `new` is the identifier and the hash of a version that was made.
    pub(super) async fn write(
        &mut self,
        db: &mut Connection,
        new: Option<NewVersion<'_>>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if !self.recorded {
            // The first version keeps the key's identifier and hash, so that strings given out before are still known.
            query(
                "INSERT INTO personal_key_versions (version_id, key_id, number, key_hash, key_salt, status, creation_date) \
                 SELECT key_id, key_id, 1, key_hash, key_salt, $1, creation_date FROM personal_keys WHERE key_id = $2",
            )
            .bind(self.rows[0].version.state.as_str())
            .bind(self.key.to_string())
            .execute(&mut *db)
            .await?;
            self.recorded = true;
        }
        for version in self.life.versions() {
            match self.rows.iter_mut().find(|row| row.version.number == version.number) {
                Some(row) if row.version == *version => {}
                Some(row) => {
                    row.version = *version;
                    query(
                        "UPDATE personal_key_versions SET status = $1, overlap_end = $2, ended_date = $3 \
                         WHERE version_id = $4",
                    )
                    .bind(version.state.as_str())
                    .bind(version.overlap_end.map(millis))
                    .bind(version.ended.map(millis))
                    .bind(row.id.to_string())
                    .execute(&mut *db)
                    .await?;
                }
                None => {
                    let Some((id, hash)) = new else { continue };
                    query(
                        "INSERT INTO personal_key_versions (version_id, key_id, number, key_hash, key_salt, status, \
                         creation_date) VALUES ($1, $2, $3, $4, $5, $6, $7)",
                    )
                    .bind(id.to_string())
                    .bind(self.key.to_string())
                    .bind(i64::from(version.number))
                    .bind(hash.map(|(hash, _)| hash.to_vec()))
                    .bind(hash.map(|(_, salt)| salt.to_vec()))
                    .bind(version.state.as_str())
                    .bind(millis(now))
                    .execute(&mut *db)
                    .await?;
                    self.rows.push(VersionRow { id, version: *version });
                }
            }
        }
        let status = match (self.life.rotating(), self.life.newest().state) {
            (Some(_), _) => "rotating",
            (None, VersionState::Pending) => "pending",
            (None, _) => "active",
        };
        query(
            "UPDATE personal_keys SET status = $1, manual_rotation_required = $2 \
             WHERE key_id = $3 AND deactivation_date IS NULL",
        )
        .bind(status)
        .bind(self.life.manual_rotation_required())
        .bind(self.key.to_string())
        .execute(&mut *db)
        .await?;
        Ok(())
    }
}

async fn versions(db: &mut Connection, key: KeyId) -> Result<Vec<VersionRow>, StoreError> {
    let rows = query("SELECT * FROM personal_key_versions WHERE key_id = $1 ORDER BY number")
        .bind(key.to_string())
        .fetch_all(&mut *db)
        .await?;
    rows.iter().map(read_version).collect()
}

pub(super) fn read_version(row: &Row) -> Result<VersionRow, StoreError> {
    let status = row.text("status")?;
    let state = VersionState::parse(&status).ok_or(StoreError::Corrupt {
        column: "status",
        why: format!("no version has the status '{status}'"),
    })?;
    let number = u32::try_from(row.int("number")?);
    let number = number.map_err(|e| StoreError::Corrupt { column: "number", why: e.to_string() })?;
    Ok(VersionRow {
        id: row.parsed("version_id")?,
        version: Version {
            number,
            state,
            overlap_end: row.maybe_time("overlap_end")?,
            ended: row.maybe_time("ended_date")?,
        },
    })
}

/// Whether a version of a locked key is accepted; the caller holds the lock of the key's row. `Err` says when it ended.
pub(super) async fn check_version(
    db: &mut Connection,
    version: KeyId,
    now: Timestamp,
) -> Result<Result<(), Timestamp>, StoreError> {
    let row = query("SELECT * FROM personal_key_versions WHERE version_id = $1")
        .bind(version.to_string())
        .fetch_optional(&mut *db)
        .await?;
    let Some(row) = row else { return Ok(Ok(())) };
    let version = read_version(&row)?.version;
    let ended = || version.ended.or(version.overlap_end).unwrap_or(now);
    Ok(if version.works(now) { Ok(()) } else { Err(ended()) })
}

/// A device was enrolled with a version.
pub(super) async fn used(
    db: &mut Connection,
    key: KeyId,
    version: KeyId,
    now: Timestamp,
) -> Result<(), StoreError> {
    let Some(mut locked) = Locked::take(db, key, now).await? else { return Ok(()) };
    if !locked.recorded {
        return Ok(());
    }
    if let Some(number) = locked.rows.iter().find(|row| row.id == version).map(|row| row.version.number) {
        locked.life.used(number);
        locked.write(db, None, now).await?;
    }
    Ok(())
}

/// The version of a key that replaced another and waits to be entered, and whether its secret was made. `None` for a key that
/// was never replaced, and for one that is in use.
pub(super) async fn awaiting_secret(
    db: &mut Connection,
    key: KeyId,
) -> Result<Option<(KeyId, bool)>, StoreError> {
    let row = query(
        "SELECT version_id, status, key_hash FROM personal_key_versions WHERE key_id = $1 ORDER BY number DESC LIMIT 1",
    )
    .bind(key.to_string())
    .fetch_optional(&mut *db)
    .await?;
    let waits = |row: &Row| Ok::<_, StoreError>(row.text("status")? == VersionState::Pending.as_str());
    match row {
        Some(row) if waits(&row)? && !being_rotated(db, key).await? => {
            Ok(Some((row.parsed("version_id")?, row.maybe_bytes("key_hash")?.is_some())))
        }
        _ => Ok(None),
    }
}

/// Whether a version of a key works beside its successor, which devices take by themselves.
async fn being_rotated(db: &mut Connection, key: KeyId) -> Result<bool, StoreError> {
    let row = query("SELECT version_id FROM personal_key_versions WHERE key_id = $1 AND status = 'rotating'")
        .bind(key.to_string())
        .fetch_optional(&mut *db)
        .await?;
    Ok(row.is_some())
}

/// Keeps the hash of a secret that was just made: of a version that replaced another, or of the key itself.
pub(super) async fn put_hash(
    db: &mut Connection,
    key: KeyId,
    version: KeyId,
    (hash, salt): (&[u8], &[u8]),
) -> Result<(), StoreError> {
    let put = query("UPDATE personal_key_versions SET key_hash = $1, key_salt = $2 WHERE version_id = $3")
        .bind(hash)
        .bind(salt)
        .bind(version.to_string())
        .execute(&mut *db)
        .await?;
    if put.rows_affected() == 0 {
        query("UPDATE personal_keys SET key_hash = $1, key_salt = $2 WHERE key_id = $3")
            .bind(hash)
            .bind(salt)
            .bind(key.to_string())
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}
