//! Settings of the system as a whole, which the database keeps with the data they govern.

use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Store, StoreError,
    dialect::{Connection, query},
    renewal,
    row::{Columns as _, millis},
};

const EPOCH: &str = "epoch";
const FIRST_EPOCH: u64 = 1;
const KEYSET: &str = "keyset_version";

/// The value of a setting.
pub(super) async fn get<T: DeserializeOwned>(
    db: &mut Connection,
    name: &str,
) -> Result<Option<T>, StoreError> {
    let row = query("SELECT setting_value FROM system_settings WHERE setting_name = $1")
        .bind(name)
        .fetch_optional(&mut *db)
        .await?;
    row.map(|row| row.json("setting_value")).transpose()
}

/// Sets the value of a setting.
pub(super) async fn put<T: Serialize>(
    db: &mut Connection,
    name: &str,
    value: &T,
    now: Timestamp,
) -> Result<(), StoreError> {
    let text = serde_json::to_string(value).unwrap_or_default();
    query(
        "INSERT INTO system_settings (setting_name, setting_value, modified_date) VALUES ($1, $2, $3) \
         ON CONFLICT (setting_name) DO UPDATE SET setting_value = excluded.setting_value, \
         modified_date = excluded.modified_date",
    )
    .bind(name)
    .bind(text)
    .bind(millis(now))
    .execute(&mut *db)
    .await?;
    Ok(())
}

/// Starts the epoch of a new database.
pub(super) async fn begin(db: &mut Connection, now: Timestamp) -> Result<(), StoreError> {
    put(db, EPOCH, &FIRST_EPOCH, now).await
}

/// The epoch of appliances' states. A state of a higher epoch is taken whatever its generation.
pub(super) async fn epoch(db: &mut Connection) -> Result<u64, StoreError> {
    Ok(get(db, EPOCH).await?.unwrap_or(FIRST_EPOCH))
}

/// Raises that epoch, above any that a restore of the same copy gave before. Returns the new one.
pub(super) async fn raise_epoch(db: &mut Connection, now: Timestamp) -> Result<u64, StoreError> {
    let next = renewal::next_epoch(epoch(db).await?, now);
    put(db, EPOCH, &next, now).await?;
    Ok(next)
}

/// Notes the version of a KeySet that was made.
pub(super) async fn raise_keyset(
    db: &mut Connection,
    version: u64,
    now: Timestamp,
) -> Result<(), StoreError> {
    put(db, KEYSET, &version, now).await
}

impl Store {
    /// Notes the version of the KeySet in use. Returns the newest that was ever in use, so that a key directory that was
    /// rolled back shows.
    pub async fn note_keyset(&self, version: u64, now: Timestamp) -> Result<u64, StoreError> {
        self.repeatable("note_keyset", || async {
            let mut tx = self.begin().await?;
            tx.serialise(KEYSET).await?;
            let newest = get::<u64>(&mut tx, KEYSET).await?.unwrap_or(0);
            if version > newest {
                put(&mut tx, KEYSET, &version, now).await?;
            }
            tx.commit().await?;
            Ok(newest.max(version))
        })
        .await
    }
}
