//! Settings that follow a user. What they say is sealed under a key that only the user's devices have; here are sealed bytes,
//! versions, and that key wrapped for each device.

use horizon_model::{DeviceId, PublicKey};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    Store, StoreError,
    dialect::{Connection, Row, query},
    row::{Columns as _, millis},
};

/// The settings' key for one device, as another one wrapped it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedKey {
    /// For which device.
    pub device: DeviceId,
    /// Which key.
    pub key_id: [u8; 16],
    /// The wrapped key.
    pub wrapped: Vec<u8>,
}

/// A device of the user, as those that wrap the key for it need to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsDevice {
    /// Which.
    pub id: DeviceId,
    /// Its name.
    pub name: String,
    /// Its own key.
    pub key: PublicKey,
    /// What is wrapped to, and the signature of its own key over it.
    pub wrapping: Option<(Vec<u8>, Vec<u8>)>,
    /// The settings' key that is wrapped for it.
    pub key_id: Option<Vec<u8>>,
}

/// The settings of a user, as one device sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsView {
    /// 0 when there are none.
    pub version: u64,
    /// The sealed settings.
    pub content: Vec<u8>,
    /// Their key, for the device that asks.
    pub key: Option<WrappedKey>,
    /// The user's devices.
    pub devices: Vec<SettingsDevice>,
}

impl Store {
    /// The settings of a user, for one of their devices.
    pub async fn user_settings(&self, user: Uuid, device: DeviceId) -> Result<SettingsView, StoreError> {
        let row = query("SELECT version, content FROM user_settings WHERE user_uid = $1")
            .bind(user.to_string())
            .fetch_optional(self.readers())
            .await?;
        let (version, content) = match row {
            Some(row) => (row.count("version")?, row.bytes("content")?),
            None => (0, Vec::new()),
        };
        let key = query("SELECT * FROM user_settings_keys WHERE device_id = $1 AND user_uid = $2")
            .bind(device.to_string())
            .bind(user.to_string())
            .fetch_optional(self.readers())
            .await?;
        let rows = query(
            "SELECT d.*, s.key_id AS settings_key FROM devices d \
             LEFT JOIN user_settings_keys s ON s.device_id = d.device_id \
             WHERE d.user_uid = $1 AND d.status = 'active' ORDER BY d.device_id LIMIT 100",
        )
        .bind(user.to_string())
        .fetch_all(self.readers())
        .await?;
        Ok(SettingsView {
            version,
            content,
            key: key.as_ref().map(wrapped).transpose()?,
            devices: rows.iter().map(settings_device).collect::<Result<_, _>>()?,
        })
    }

    /// Replaces the settings of a user, if they are still of the version that the change was made from: the last to write wins,
    /// and knows what it wins over. Whether they were.
    pub async fn put_user_settings(
        &self,
        user: Uuid,
        device: DeviceId,
        base: u64,
        content: &[u8],
        keys: &[WrappedKey],
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let _timed = self.timed("put_user_settings");
        self.retried("put_user_settings", || async {
            let mut tx = self.begin().await?;
            tx.serialise(&format!("settings of {user}")).await?;
            let row = query("SELECT version FROM user_settings WHERE user_uid = $1")
                .bind(user.to_string())
                .fetch_optional(&mut *tx)
                .await?;
            let held = row.map(|row| row.count("version")).transpose()?.unwrap_or(0);
            let writer = query(
                "SELECT device_id FROM devices WHERE device_id = $1 AND user_uid = $2 AND status IN ('active', 'suspicious') \
                 AND revoked_date IS NULL",
            )
            .bind(device.to_string())
            .bind(user.to_string())
            .fetch_optional(&mut *tx)
            .await?;
            // One that was blocked a moment ago writes nothing any more.
            if held != base || writer.is_none() {
                return Ok(false);
            }
            let version = i64::try_from(held + 1).unwrap_or(i64::MAX);
            query(
                "INSERT INTO user_settings (user_uid, version, content, device_id, modified_date) \
                 VALUES ($1, $2, $3, $4, $5) ON CONFLICT (user_uid) DO UPDATE SET version = excluded.version, \
                 content = excluded.content, device_id = excluded.device_id, modified_date = excluded.modified_date",
            )
            .bind(user.to_string())
            .bind(version)
            .bind(content)
            .bind(device.to_string())
            .bind(millis(now))
            .execute(&mut *tx)
            .await?;
            for key in keys {
                wrap(&mut tx, user, device, key, now).await?;
            }
            tx.commit().await?;
            Ok(true)
        })
        .await
    }

    /// Keeps the settings' key, wrapped for devices of the same user. Those of others are left alone.
    pub async fn wrap_settings_keys(
        &self,
        user: Uuid,
        by: DeviceId,
        keys: &[WrappedKey],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.repeatable("wrap_settings_keys", || async {
            let mut tx = self.begin().await?;
            for key in keys {
                wrap(&mut tx, user, by, key, now).await?;
            }
            tx.commit().await
        })
        .await
    }
}

async fn wrap(
    db: &mut Connection,
    user: Uuid,
    by: DeviceId,
    key: &WrappedKey,
    now: Timestamp,
) -> Result<(), StoreError> {
    query(
        "INSERT INTO user_settings_keys (device_id, user_uid, key_id, wrapped, wrapped_by, modified_date) \
         SELECT d.device_id, d.user_uid, $3, $4, $5, $6 FROM devices d \
         WHERE d.device_id = $1 AND d.user_uid = $2 AND d.status = 'active' AND EXISTS (SELECT 1 FROM devices b \
         WHERE b.device_id = $5 AND b.user_uid = $2 AND b.status IN ('active', 'suspicious') AND b.revoked_date IS NULL) \
         ON CONFLICT (device_id) DO UPDATE SET key_id = excluded.key_id, wrapped = excluded.wrapped, \
         wrapped_by = excluded.wrapped_by, modified_date = excluded.modified_date",
    )
    .bind(key.device.to_string())
    .bind(user.to_string())
    .bind(&key.key_id[..])
    .bind(&key.wrapped[..])
    .bind(by.to_string())
    .bind(millis(now))
    .execute(&mut *db)
    .await?;
    Ok(())
}

fn wrapped(row: &Row) -> Result<WrappedKey, StoreError> {
    let key_id = row.bytes("key_id")?;
    Ok(WrappedKey {
        device: row.parsed("device_id")?,
        key_id: key_id
            .try_into()
            .map_err(|_| StoreError::Corrupt { column: "key_id", why: "it has another length".into() })?,
        wrapped: row.bytes("wrapped")?,
    })
}

fn settings_device(row: &Row) -> Result<SettingsDevice, StoreError> {
    let wrapping = row.maybe_bytes("wrapping_key")?.zip(row.maybe_bytes("wrapping_signature")?);
    Ok(SettingsDevice {
        id: row.parsed("device_id")?,
        name: super::device::called(row)?,
        key: row
            .maybe_bytes32("public_key")?
            .map(PublicKey)
            .ok_or(StoreError::Corrupt { column: "public_key", why: "is missing".into() })?,
        wrapping,
        key_id: row.maybe_bytes("settings_key")?,
    })
}
