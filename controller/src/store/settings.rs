//! Settings of the system as a whole, which the database keeps with the data they govern.

use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    SealError, Store, StoreError,
    dialect::{Connection, query},
    row::{Columns as _, millis},
    seal::Sealer,
};

const EPOCH: &str = "epoch";
const FIRST_EPOCH: u64 = 1;
const ENVELOPE: &str = "envelope_check";
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

/// Ties a new database to its envelope key and starts its epoch, and refuses another key for an existing one.
pub(super) async fn bind_envelope(db: &mut Connection, sealer: &Sealer) -> Result<(), StoreError> {
    db.serialise(ENVELOPE).await?;
    match get::<Vec<u8>>(db, ENVELOPE).await? {
        Some(check) if check == sealer.check() => Ok(()),
        Some(_) => Err(SealError.into()),
        None => {
            put(db, EPOCH, &FIRST_EPOCH, Timestamp::now()).await?;
            put(db, ENVELOPE, &sealer.check(), Timestamp::now()).await
        }
    }
}

/// The epoch of appliances' states. A state of a higher epoch is taken whatever its generation.
pub(super) async fn epoch(db: &mut Connection) -> Result<u64, StoreError> {
    Ok(get(db, EPOCH).await?.unwrap_or(FIRST_EPOCH))
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
