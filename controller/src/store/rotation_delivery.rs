//! Keys on their way to devices, and when each key is next rotated.

use std::collections::HashMap;

use horizon_controller_core::rotation::VersionState;
use horizon_model::{DeviceId, KeyId, PublicKey, TaggedSecret};
use horizon_tls::hpke;
use horizon_wire::handing;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    LeaderEpoch, NewEvent, Severity, Source, Store, StoreError,
    dialect::query,
    event,
    registration::fence,
    rotation_versions::{VersionRow, read_version},
    row::{Columns as _, int, millis},
    seal::random,
};

/// A device that can be sealed to.
pub(super) struct Receiver {
    pub(super) device: DeviceId,
    pub(super) wrapping: [u8; 32],
}

/// Where each key stands that may be rotated on schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyDates {
    /// When its first device was enrolled.
    pub activated: Timestamp,
    /// When it was last rotated.
    pub last_rotation: Option<Timestamp>,
    /// The next date, as it was noted last.
    pub next: Option<Timestamp>,
    /// The next date that was announced last.
    pub announced: Option<Timestamp>,
    /// Whether a rotation is under way.
    pub rotating: bool,
}

impl Store {
    /// The personal keys that are in use and may be rotated on schedule: not those that wait to be entered.
    pub async fn key_dates(&self, now: Timestamp) -> Result<HashMap<Uuid, KeyDates>, StoreError> {
        let rows = query(
            "SELECT key_id, activation_date, last_rotation_date, next_rotation_date, announced_date, status FROM personal_keys \
             WHERE deactivation_date IS NULL AND activation_date IS NOT NULL AND NOT manual_rotation_required \
             AND (expiration_date IS NULL OR expiration_date > $1)",
        )
        .bind(millis(now))
        .fetch_all(self.readers())
        .await?;
        rows.iter()
            .map(|row| {
                let dates = KeyDates {
                    activated: row.time("activation_date")?,
                    last_rotation: row.maybe_time("last_rotation_date")?,
                    next: row.maybe_time("next_rotation_date")?,
                    announced: row.maybe_time("announced_date")?,
                    rotating: row.text("status")? == "rotating",
                };
                Ok((row.parsed("key_id")?, dates))
            })
            .collect()
    }

    /// Notes when a key is next rotated, and announces it when `announce` says so: an event, and what its devices are told.
    pub async fn note_next_rotation(
        &self,
        key: KeyId,
        next: Timestamp,
        announce: bool,
        leader: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.repeatable("note_next_rotation", || async {
            let mut tx = self.begin().await?;
            fence(&mut tx, leader).await?;
            query("UPDATE personal_keys SET next_rotation_date = $1 WHERE key_id = $2")
                .bind(millis(next))
                .bind(key.to_string())
                .execute(&mut *tx)
                .await?;
            if announce {
                query("UPDATE personal_keys SET announced_date = $1 WHERE key_id = $2")
                    .bind(millis(next))
                    .bind(key.to_string())
                    .execute(&mut *tx)
                    .await?;
                let event = NewEvent {
                    kind: "key_rotation_announced",
                    severity: Severity::Info,
                    source: Source::Resource(key.0),
                    address: None,
                    description: format!(
                        "the personal key is rotated at {next}; its devices take the new one by themselves"
                    ),
                    data: serde_json::json!({ "at": int(u64::try_from(millis(next)).unwrap_or_default()) }),
                };
                event::write(&mut tx, &event, now).await?;
            }
            tx.commit().await
        })
        .await
    }

    /// Keeps what a device signed to be sealed to. Returns whether it is its signature.
    pub async fn set_wrapping_key(
        &self,
        device: DeviceId,
        public_key: PublicKey,
        wrapping: &[u8; 32],
        signature: &[u8],
    ) -> Result<bool, StoreError> {
        if !handing::verify_wrapping_key(&public_key, wrapping, signature) {
            return Ok(false);
        }
        let known = query("SELECT wrapping_key FROM devices WHERE device_id = $1")
            .bind(device.to_string())
            .fetch_optional(self.readers())
            .await?;
        if known.map(|row| row.maybe_bytes32("wrapping_key")).transpose()?.flatten() == Some(*wrapping) {
            return Ok(true);
        }
        self.repeatable("set_wrapping_key", || async {
            let mut tx = self.begin().await?;
            query("UPDATE devices SET wrapping_key = $1, wrapping_signature = $2 WHERE device_id = $3")
                .bind(&wrapping[..])
                .bind(signature)
                .bind(device.to_string())
                .execute(&mut *tx)
                .await?;
            tx.commit().await
        })
        .await?;
        Ok(true)
    }

    /// The devices of a key that a new version can be sealed to. A wrapping key that its device did not sign is none: whoever
    /// alters the database gets no key.
    pub(super) async fn receivers_of(&self, key: KeyId) -> Result<Vec<Receiver>, StoreError> {
        let rows = query(
            "SELECT device_id, public_key, wrapping_key, wrapping_signature FROM devices WHERE key_id = $1 \
             AND status IN ('active', 'suspicious') AND replaced_date IS NULL ORDER BY device_id",
        )
        .bind(key.to_string())
        .fetch_all(self.readers())
        .await?;
        let mut found = Vec::new();
        for row in &rows {
            let (Some(wrapping), Some(signature)) =
                (row.maybe_bytes32("wrapping_key")?, row.maybe_bytes("wrapping_signature")?)
            else {
                continue;
            };
            let device: DeviceId = row.parsed("device_id")?;
            let Some(owner) = row.maybe_bytes32("public_key")?.map(PublicKey) else { continue };
            if handing::verify_wrapping_key(&owner, &wrapping, &signature) {
                found.push(Receiver { device, wrapping });
            } else {
                tracing::error!(%device, "the database holds a wrapping key that its device did not sign: no key is sealed to it");
            }
        }
        Ok(found)
    }

    /// A version on its way to a device, with when the one before ends at the latest. One that is doubted gets it with `doubted`
    /// alone: a copy of a device's key is not to become a personal key by waiting for its rotation.
    pub async fn delivery_for(
        &self,
        device: DeviceId,
        doubted: bool,
        now: Timestamp,
    ) -> Result<Option<(KeyId, hpke::Sealed, Option<Timestamp>)>, StoreError> {
        let row = query(
            "SELECT y.version_id, y.encapsulated, y.ciphertext, (SELECT MAX(o.overlap_end) FROM personal_key_versions o \
             WHERE o.key_id = v.key_id AND o.status = 'rotating') AS old_end FROM key_deliveries y \
             JOIN devices d ON d.device_id = y.device_id JOIN personal_key_versions v ON v.version_id = y.version_id \
             JOIN personal_keys k ON k.key_id = v.key_id WHERE y.device_id = $1 AND y.ciphertext IS NOT NULL \
             AND d.status IN ('active', $3) AND d.replaced_date IS NULL AND d.key_id = v.key_id \
             AND k.deactivation_date IS NULL AND (k.expiration_date IS NULL OR k.expiration_date > $2) \
             AND v.ended_date IS NULL ORDER BY v.number DESC LIMIT 1",
        )
        .bind(device.to_string())
        .bind(millis(now))
        .bind(if doubted { "suspicious" } else { "active" })
        .fetch_optional(self.readers())
        .await?;
        let Some(row) = row else { return Ok(None) };
        let (Some(encapsulated), Some(ciphertext)) =
            (row.maybe_bytes("encapsulated")?, row.maybe_bytes("ciphertext")?)
        else {
            return Ok(None);
        };
        let sealed = hpke::Sealed { encapsulated, ciphertext };
        Ok(Some((row.parsed("version_id")?, sealed, row.maybe_time("old_end")?)))
    }

    /// Notes that a version was given to a device.
    pub async fn note_delivered(
        &self,
        device: DeviceId,
        version: KeyId,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.repeatable("note_delivered", || async {
            let mut tx = self.begin().await?;
            query(
                "UPDATE key_deliveries SET delivered_date = COALESCE(delivered_date, $1) \
                 WHERE device_id = $2 AND version_id = $3",
            )
            .bind(millis(now))
            .bind(device.to_string())
            .bind(version.to_string())
            .execute(&mut *tx)
            .await?;
            tx.commit().await
        })
        .await
    }

    /// The keys that old versions still work of, with the devices that have not confirmed: for statuses.
    pub(super) async fn rotation_facts(
        &self,
        key: Uuid,
    ) -> Result<(u32, Option<Timestamp>, Vec<DeviceId>), StoreError> {
        let rows = query("SELECT * FROM personal_key_versions WHERE key_id = $1 ORDER BY number")
            .bind(key.to_string())
            .fetch_all(self.readers())
            .await?;
        let versions: Vec<VersionRow> = rows.iter().map(read_version).collect::<Result<_, _>>()?;
        let rotating = versions.iter().find(|row| row.version.state == VersionState::Rotating);
        let overlap_end = rotating.and_then(|row| row.version.overlap_end);
        let mut missing = Vec::new();
        if let (Some(_), Some(newest)) = (rotating, versions.last()) {
            let rows = query(
                "SELECT y.device_id FROM key_deliveries y JOIN devices d ON d.device_id = y.device_id WHERE y.version_id = $1 \
                 AND y.confirmed_date IS NULL AND d.status IN ('active', 'suspicious') ORDER BY y.device_id LIMIT 100",
            )
            .bind(newest.id.to_string())
            .fetch_all(self.readers())
            .await?;
            missing = rows.iter().map(|row| row.parsed("device_id")).collect::<Result<_, _>>()?;
        }
        let rotations = u32::try_from(versions.len().saturating_sub(1)).unwrap_or(u32::MAX);
        Ok((rotations, overlap_end, missing))
    }

    /// The hash of a secret with a fresh salt.
    pub(super) async fn hashed(&self, secret: TaggedSecret) -> Result<([u8; 32], Vec<u8>), StoreError> {
        let salt: [u8; super::personal::SALT_BYTES] = random();
        Ok((self.hash(secret, salt.to_vec()).await?, salt.to_vec()))
    }
}
