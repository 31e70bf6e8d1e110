//! Beginning, confirming and ending rotations of personal keys, and replacing keys at once. A
//! [`Life`](horizon_controller_core::rotation::Life) decides each step; it is written in the same transaction.

use horizon_controller_core::rotation::{BeginError, Change, Ending};
use horizon_crds::{KindName, RotationTarget, RotationType, TimeSpan};
use horizon_model::{DeviceId, KeyId, ServerId};
use horizon_tls::hpke;
use horizon_wire::{handing, key::sha256};
use jiff::Timestamp;
use thiserror::Error;
use uuid::Uuid;

use super::{
    Actor, LeaderEpoch, NewEvent, Severity, Source, Store, StoreError,
    audit::{self, Record},
    dialect::{Connection, query},
    event,
    registration::fence,
    revocation,
    rotation_delivery::Receiver,
    rotation_history::{self, Rotated},
    rotation_versions::Locked,
    row::{Columns as _, millis},
    seal::random,
};

/// A rotation whose old key goes on for a while.
#[derive(Clone, Copy, Debug)]
pub struct Scheduled<'a> {
    /// For how long at most.
    pub overlap: TimeSpan,
    /// Until when the key as a whole works from now on; `None` leaves that as it is.
    pub expires: Option<Timestamp>,
    /// Why.
    pub reason: &'a str,
    /// The policy that asks for it.
    pub policy: Option<Uuid>,
    /// The `KeyRotation` that asks for it.
    pub run: Option<Uuid>,
    /// By whom it was asked for.
    pub by: &'a str,
}

/// A scheduled rotation that began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// The new version.
    pub version: KeyId,
    /// The devices it was sealed to.
    pub devices: Vec<DeviceId>,
    /// When the old version ends at the latest.
    pub overlap_end: Timestamp,
}

/// Why a scheduled rotation did not begin.
#[derive(Debug, Error)]
pub enum RotateError {
    /// There is no such key, or it has ended.
    #[error("the key has ended, or there is none")]
    Ended,
    /// It is not its time.
    #[error(transparent)]
    Life(#[from] BeginError),
    /// Nobody could be given the new key.
    #[error(
        "none of the key's devices can take a new key: their clients are too old, or have not connected since they were updated"
    )]
    NoReceiver,
    /// The devices changed meanwhile.
    #[error("the devices of the key changed meanwhile")]
    Changed,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for RotateError {
    fn from(e: sqlx::Error) -> Self {
        Self::Store(e.into())
    }
}

/// What a device did with a confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmed {
    /// It was the first of the device for this version. Tells whether the old version ended by it.
    Now {
        /// The key, whose status reads differently.
        key: KeyId,
        /// Whether the old version ended.
        ended: bool,
    },
    /// It was confirmed before.
    Before,
    /// There is nothing like that to confirm, or the proof is wrong.
    Refused,
}

/// A key that was replaced at once.
#[derive(Clone, Debug)]
pub(super) struct Replacement<'a> {
    pub(super) kind: RotationType,
    pub(super) reason: &'a str,
    pub(super) run: Option<Uuid>,
    pub(super) actor: &'a Actor,
}

/// Replaces a key at once, whatever it is doing. Returns the servers with sessions that end by it; `None` when the key has ended.
pub(super) async fn replace(
    db: &mut Connection,
    key: KeyId,
    replacement: &Replacement<'_>,
    now: Timestamp,
) -> Result<Option<Vec<ServerId>>, StoreError> {
    let Some(mut locked) = Locked::take(db, key, now).await? else { return Ok(None) };
    let Replacement { kind, reason, run, actor } = replacement;
    let ending = if *kind == RotationType::Compromised { Ending::Compromised } else { Ending::Deactivated };
    let previous = locked.id(locked.life.newest().number);
    locked.life.replace(ending, now);
    let new = KeyId(Uuid::now_v7());
    locked.write(db, Some((new, None)), now).await?;
    // The new secret is made by whoever delivers it.
    query("UPDATE personal_keys SET secret_file = NULL, last_rotation_date = $1 WHERE key_id = $2")
        .bind(millis(now))
        .bind(key.to_string())
        .execute(&mut *db)
        .await?;
    query(
        "UPDATE devices SET replaced_date = $1, replaced_reason = $2 WHERE key_id = $3 AND status <> 'inactive' \
         AND replaced_date IS NULL",
    )
    .bind(millis(now))
    .bind(*reason)
    .bind(key.to_string())
    .execute(&mut *db)
    .await?;
    wipe_deliveries(db, key).await?;
    // Strings and codes that were given out before are in the same wrong hands: with one of them the new secret could be had.
    query("UPDATE key_handovers SET ended_date = $1 WHERE key_id = $2 AND ended_date IS NULL")
        .bind(millis(now))
        .bind(key.to_string())
        .execute(&mut *db)
        .await?;
    rotation_history::end_open(db, key, now).await?;
    let rotated = Rotated {
        target: RotationTarget::PersonalKeys,
        key: &key.to_string(),
        previous: previous.map(|id| id.to_string()),
        new: Some(new.to_string()),
        kind: *kind,
        by: actor.name(),
        reason,
        run: *run,
        policy: None,
        overlap_end: None,
        completed: true,
    };
    rotation_history::write(db, &rotated, now).await?;
    let record = Record::new("rotate", KindName::PersonalKey.as_str(), key, &locked.name)
        .notes(format!("{}: {reason}", kind.as_str()));
    audit::write(db, actor, now, &[record]).await?;
    let severity = match kind {
        RotationType::Compromised => Severity::Critical,
        RotationType::Emergency => Severity::High,
        _ => Severity::Medium,
    };
    let event = NewEvent {
        kind: "key_replaced",
        severity,
        source: Source::Resource(key.0),
        address: None,
        description: format!(
            "PersonalKey {} was replaced at once ({}): {reason}; its user has to enter the new key",
            locked.name,
            kind.as_str()
        ),
        data: serde_json::json!({ "type": kind.as_str() }),
    };
    event::write(db, &event, now).await?;
    Ok(Some(revocation::servers_of_key(db, &key.to_string()).await?))
}

async fn wipe_deliveries(db: &mut Connection, key: KeyId) -> Result<(), StoreError> {
    query(
        "UPDATE key_deliveries SET encapsulated = NULL, ciphertext = NULL WHERE ciphertext IS NOT NULL AND version_id IN \
         (SELECT version_id FROM personal_key_versions WHERE key_id = $1)",
    )
    .bind(key.to_string())
    .execute(&mut *db)
    .await?;
    Ok(())
}

/// How many devices that may take the newest version of a key have it, and how many have not.
async fn receivers(db: &mut Connection, version: KeyId) -> Result<(u64, u64), StoreError> {
    let row = query(
        "SELECT COUNT(*) AS n, COUNT(y.confirmed_date) AS confirmed FROM key_deliveries y \
         JOIN devices d ON d.device_id = y.device_id WHERE y.version_id = $1 AND d.status IN ('active', 'suspicious')",
    )
    .bind(version.to_string())
    .fetch_one(&mut *db)
    .await?;
    let (all, confirmed) = (row.count("n")?, row.count("confirmed")?);
    Ok((confirmed, all.saturating_sub(confirmed)))
}

/// Ends the old version of a key if it is time. Returns whether it ended.
async fn settle(db: &mut Connection, locked: &mut Locked, now: Timestamp) -> Result<bool, StoreError> {
    let Some(newest) = locked.id(locked.life.newest().number) else { return Ok(false) };
    let (confirmed, missing) = receivers(db, newest).await?;
    let before = locked.life.clone();
    let change = locked.life.settle(confirmed > 0, confirmed > 0 && missing == 0, now);
    if locked.life != before {
        locked.write(db, None, now).await?;
    }
    if change == Change::None {
        return Ok(false);
    }
    rotation_history::complete(db, newest, missing, now).await?;
    let late = change == Change::OverlapOver && missing > 0;
    let event = NewEvent {
        kind: if late { "key_rotation_unconfirmed" } else { "key_rotated" },
        severity: if late { Severity::Low } else { Severity::Info },
        source: Source::Resource(locked.key.0),
        address: None,
        description: match change {
            Change::OverlapOver => format!(
                "the old version of PersonalKey {} ended with its overlap; {missing} devices have not confirmed the new one \
                 and get it when they connect",
                locked.name
            ),
            _ => {
                format!("every device has the new version of PersonalKey {}; the old one ended", locked.name)
            }
        },
        data: serde_json::json!({ "confirmed": confirmed, "missing": missing }),
    };
    event::write(db, &event, now).await?;
    Ok(true)
}

impl Store {
    /// Begins a scheduled rotation: makes the new version, seals it to every device that can take it, and forgets it. Nothing
    /// that works stops working.
    pub async fn rotate_personal_key(
        &self,
        key: KeyId,
        wish: &Scheduled<'_>,
        leader: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<Begun, RotateError> {
        let receivers = self.receivers_of(key).await?;
        if receivers.is_empty() {
            return Err(RotateError::NoReceiver);
        }
        let version = KeyId(Uuid::now_v7());
        let secret = self.sealer().tagged(version, &random());
        let (hash, salt) = self.hashed(secret.clone()).await?;
        let mut sealed = Vec::new();
        for Receiver { device, wrapping } in receivers {
            let place = handing::place(device, version);
            match hpke::seal(&wrapping, handing::KEY_INFO, &place, secret.expose()) {
                Ok(box_) => {
                    sealed.push((device, box_, sha256(&handing::proof(&secret, device, version)).0));
                }
                Err(error) => tracing::warn!(%device, %error, "a device cannot be given the new key"),
            }
        }
        drop(secret);
        if sealed.is_empty() {
            return Err(RotateError::NoReceiver);
        }
        self.retried("rotate_personal_key", || {
            self.begin_rotation(key, version, (&hash, &salt), &sealed, wish, leader, now)
        })
        .await
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "what was made outside of the transaction, which may be repeated"
    )]
    async fn begin_rotation(
        &self,
        key: KeyId,
        version: KeyId,
        hash: (&[u8], &[u8]),
        sealed: &[(DeviceId, hpke::Sealed, [u8; 32])],
        wish: &Scheduled<'_>,
        leader: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<Begun, RotateError> {
        let mut tx = self.begin().await?;
        fence(&mut tx, leader).await?;
        let mut locked = Locked::take(&mut tx, key, now).await?.ok_or(RotateError::Ended)?;
        let previous = locked.id(locked.life.newest().number);
        locked.life.begin(wish.overlap.get(), now)?;
        let overlap_end = locked.life.rotating().and_then(|old| old.overlap_end).unwrap_or(now);
        locked.write(&mut tx, Some((version, Some(hash))), now).await?;
        // What is still on its way is the version before, which nobody needs any more who takes this one.
        wipe_deliveries(&mut tx, key).await?;
        for (device, sealed, proof) in sealed {
            query(
                "INSERT INTO key_deliveries (device_id, version_id, encapsulated, ciphertext, proof_digest, made_date) \
                 VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .bind(device.to_string())
            .bind(version.to_string())
            .bind(&sealed.encapsulated[..])
            .bind(&sealed.ciphertext[..])
            .bind(&proof[..])
            .bind(millis(now))
            .execute(&mut *tx)
            .await?;
        }
        query(
            "UPDATE personal_keys SET last_rotation_date = $1, next_rotation_date = NULL, \
             expiration_date = COALESCE($2, expiration_date) WHERE key_id = $3",
        )
        .bind(millis(now))
        .bind(wish.expires.map(millis))
        .bind(key.to_string())
        .execute(&mut *tx)
        .await?;
        let rotated = Rotated {
            target: RotationTarget::PersonalKeys,
            key: &key.to_string(),
            previous: previous.map(|id| id.to_string()),
            new: Some(version.to_string()),
            kind: RotationType::Scheduled,
            by: wish.by.to_owned(),
            reason: wish.reason,
            run: wish.run,
            policy: wish.policy,
            overlap_end: Some(overlap_end),
            completed: false,
        };
        rotation_history::write(&mut tx, &rotated, now).await?;
        let record = Record::new("rotate", KindName::PersonalKey.as_str(), key, &locked.name)
            .notes(format!("scheduled: {}", wish.reason));
        audit::write(&mut tx, &Actor::System("rotation"), now, &[record]).await?;
        let event = NewEvent {
            kind: "key_rotation_begun",
            severity: Severity::Info,
            source: Source::Resource(key.0),
            address: None,
            description: format!(
                "PersonalKey {} has a new version for {} devices; the old one works until {overlap_end} at the latest",
                locked.name,
                sealed.len()
            ),
            data: serde_json::Value::Null,
        };
        event::write(&mut tx, &event, now).await?;
        tx.commit().await?;
        Ok(Begun { version, devices: sealed.iter().map(|(device, ..)| *device).collect(), overlap_end })
    }

    /// A device has taken a version, which it proves.
    pub async fn confirm_key(
        &self,
        device: DeviceId,
        version: KeyId,
        proof: &[u8],
        now: Timestamp,
    ) -> Result<Confirmed, StoreError> {
        self.retried("confirm_key", || self.confirm_once(device, version, proof, now)).await
    }

    async fn confirm_once(
        &self,
        device: DeviceId,
        version: KeyId,
        proof: &[u8],
        now: Timestamp,
    ) -> Result<Confirmed, StoreError> {
        let mut tx = self.begin().await?;
        let row = query("SELECT key_id FROM personal_key_versions WHERE version_id = $1")
            .bind(version.to_string())
            .fetch_optional(&mut *tx)
            .await?;
        let Some(row) = row else { return Ok(Confirmed::Refused) };
        let key: KeyId = row.parsed("key_id")?;
        let Some(mut locked) = Locked::take(&mut tx, key, now).await? else { return Ok(Confirmed::Refused) };
        let row = query(
            "SELECT y.proof_digest, y.confirmed_date, y.ciphertext FROM key_deliveries y JOIN devices d ON d.device_id = y.device_id \
             WHERE y.device_id = $1 AND y.version_id = $2 AND d.status IN ('active', 'suspicious') AND d.replaced_date IS NULL",
        )
        .bind(device.to_string())
        .bind(version.to_string())
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else { return Ok(Confirmed::Refused) };
        if !horizon_wire::heartbeat::equal(&row.bytes("proof_digest")?, &sha256(proof).0) {
            return Ok(Confirmed::Refused);
        }
        if row.maybe_time("confirmed_date")?.is_some() {
            return Ok(Confirmed::Before);
        }
        // One that was withdrawn meanwhile, because the key was replaced or rotated again, is not taken any more.
        if row.maybe_bytes("ciphertext")?.is_none() {
            return Ok(Confirmed::Refused);
        }
        query(
            "UPDATE key_deliveries SET confirmed_date = $1, encapsulated = NULL, ciphertext = NULL \
             WHERE device_id = $2 AND version_id = $3",
        )
        .bind(millis(now))
        .bind(device.to_string())
        .bind(version.to_string())
        .execute(&mut *tx)
        .await?;
        let record = Record::new("confirm_key", KindName::PersonalKey.as_str(), key, &locked.name);
        audit::write(&mut tx, &Actor::Device(device), now, &[record]).await?;
        let ended = settle(&mut tx, &mut locked, now).await?;
        tx.commit().await?;
        Ok(Confirmed::Now { key, ended })
    }

    /// Ends the old versions whose overlap is over, or whose receivers all have confirmed. Returns their keys.
    pub async fn settle_rotations(
        &self,
        leader: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<Vec<KeyId>, StoreError> {
        // The versions of a key that has ended are left as they are: it may be brought back.
        let rows = query(
            "SELECT DISTINCT v.key_id FROM personal_key_versions v JOIN personal_keys k ON k.key_id = v.key_id \
             WHERE v.status = 'rotating' AND k.deactivation_date IS NULL ORDER BY v.key_id",
        )
        .fetch_all(self.readers())
        .await?;
        let mut ended = Vec::new();
        for row in &rows {
            let key: KeyId = row.parsed("key_id")?;
            let over = self.retried("settle_rotations", || async {
                let mut tx = self.begin().await?;
                fence(&mut tx, leader).await?;
                let Some(mut locked) = Locked::take(&mut tx, key, now).await? else {
                    return Ok::<_, StoreError>(false);
                };
                let over = settle(&mut tx, &mut locked, now).await?;
                tx.commit().await?;
                Ok(over)
            });
            if over.await? {
                ended.push(key);
            }
        }
        Ok(ended)
    }
}
