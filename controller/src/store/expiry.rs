//! Warnings ahead of the end of keys, each raised once.

use horizon_controller_core::rotation::{Warning, warning};
use horizon_model::{DeviceId, KeyId};
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::{
    LeaderEpoch, NewEvent, Severity, Source, Store, StoreError,
    dialect::{Row, query},
    event,
    registration::fence,
    row::{Columns as _, millis},
};

/// The most warnings of one look; the others come with the next.
const MAX_WARNINGS: u32 = 256;

/// What a device's user should know about the key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyNewsFacts {
    /// The key.
    pub key: Uuid,
    /// Whether the key was replaced at once and has to be entered anew on the device, and why.
    pub replaced: Option<String>,
    /// Whether the key ended, and why.
    pub ended: Option<String>,
    /// When it ends.
    pub expires: Option<Timestamp>,
    /// When it is rotated, once that was announced.
    pub rotates: Option<Timestamp>,
}

struct Ending {
    table: &'static str,
    kind: &'static str,
    select: &'static str,
    update: &'static str,
}

/// Both kinds of keys.
const ENDINGS: [Ending; 2] = [
    Ending {
        table: "PersonalKey",
        kind: "key_expires_soon",
        select: "SELECT key_id AS uid, namespace, name, creation_date, expiration_date, expiry_warned FROM personal_keys \
                 WHERE deactivation_date IS NULL AND expiration_date > $1 AND (expiration_date <= $2 OR expiry_warned IS NOT NULL) \
                 ORDER BY expiration_date",
        update: "UPDATE personal_keys SET expiry_warned = $1 WHERE key_id = $2",
    },
    Ending {
        table: "RegistrationKey",
        kind: "registration_key_expires_soon",
        select: "SELECT key_uid AS uid, namespace, name, creation_date, expiration_date, expiry_warned FROM registration_keys \
                 WHERE used_date IS NULL AND revoked_date IS NULL AND expiration_date > $1 \
                 AND (expiration_date <= $2 OR expiry_warned IS NOT NULL) ORDER BY expiration_date",
        update: "UPDATE registration_keys SET expiry_warned = $1 WHERE key_uid = $2",
    },
];

/// The warning that is due for a key, unless it was given. A key that lives for little longer than a warning's span is not warned
/// of at its birth. `Err` when what was noted is to be forgotten: the key's end moved.
fn due(row: &Row, now: Timestamp) -> Result<Result<Option<Warning>, ()>, StoreError> {
    let (made, end) = (row.time("creation_date")?, row.time("expiration_date")?);
    let given =
        row.maybe_int("expiry_warned")?.and_then(|days| u32::try_from(days).ok()).and_then(Warning::of_days);
    let whole = end.duration_since(made);
    let sensible = |warning: &Warning| whole > SignedDuration::from_hours(48 * i64::from(warning.days()));
    Ok(match (warning(end, now).filter(sensible), given) {
        (None, Some(_)) => Err(()),
        (Some(now), Some(given)) if now < given => Err(()),
        (Some(now), given) if given.is_none_or(|given| given < now) => Ok(Some(now)),
        _ => Ok(None),
    })
}

impl Store {
    /// Raises the warnings that are due. Returns whose keys were warned of.
    pub async fn warn_of_expiry(
        &self,
        leader: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<Vec<Uuid>, StoreError> {
        let horizon = now.saturating_add(SignedDuration::from_hours(24 * 30)).unwrap_or(Timestamp::MAX);
        let mut warned = Vec::new();
        for ending in &ENDINGS {
            let rows = query(ending.select)
                .bind(millis(now))
                .bind(millis(horizon))
                .fetch_all(self.readers())
                .await?;
            for row in &rows {
                if warned.len() >= MAX_WARNINGS as usize {
                    return Ok(warned);
                }
                let (noted, raise) = match due(row, now)? {
                    Ok(None) => continue,
                    Ok(Some(warning)) => (Some(i64::from(warning.days())), Some(warning)),
                    Err(()) => (None, None),
                };
                let uid: Uuid = row.parsed("uid")?;
                let (name, end) = (
                    format!("{}/{}", row.text("namespace")?, row.text("name")?),
                    row.time("expiration_date")?,
                );
                self.repeatable("warn_of_expiry", || async {
                    let mut tx = self.begin().await?;
                    fence(&mut tx, leader).await?;
                    query(ending.update).bind(noted).bind(uid.to_string()).execute(&mut *tx).await?;
                    if let Some(warning) = raise {
                        let event = NewEvent {
                            kind: ending.kind,
                            severity: match warning {
                                Warning::Month => Severity::Info,
                                Warning::Week => Severity::Low,
                                Warning::Day => Severity::Medium,
                            },
                            source: Source::Resource(uid),
                            address: None,
                            description: format!(
                                "{} {name} ends at {end}, within {} days",
                                ending.table,
                                warning.days()
                            ),
                            data: serde_json::json!({ "days": warning.days(), "at": end.to_string() }),
                        };
                        event::write(&mut tx, &event, now).await?;
                    }
                    tx.commit().await
                })
                .await?;
                warned.push(uid);
            }
        }
        Ok(warned)
    }

    /// What the user of a device should know about its key.
    pub async fn key_news(&self, device: DeviceId, now: Timestamp) -> Result<KeyNewsFacts, StoreError> {
        let row = query(
            "SELECT k.key_id, k.deactivation_date, k.deactivation_reason, k.expiration_date, k.next_rotation_date, k.announced_date, \
             d.replaced_date, d.replaced_reason FROM devices d JOIN personal_keys k ON k.key_id = d.key_id WHERE d.device_id = $1",
        )
        .bind(device.to_string())
        .fetch_optional(self.readers())
        .await?;
        let Some(row) = row else { return Ok(KeyNewsFacts::default()) };
        let reason = |column| Ok::<_, StoreError>(row.maybe_text(column)?.unwrap_or_default());
        let expires = row.maybe_time("expiration_date")?;
        let ended = match (row.maybe_time("deactivation_date")?, expires) {
            (Some(_), _) => Some(reason("deactivation_reason")?),
            (None, Some(end)) if end <= now => Some(format!("its time was over at {end}")),
            _ => None,
        };
        let replaced = row.maybe_time("replaced_date")?.is_some();
        let (next, announced) = (row.maybe_time("next_rotation_date")?, row.maybe_time("announced_date")?);
        Ok(KeyNewsFacts {
            key: row.parsed::<KeyId>("key_id")?.0,
            replaced: if replaced { Some(reason("replaced_reason")?) } else { None },
            ended,
            expires,
            rotates: next.filter(|next| announced == Some(*next) && *next > now),
        })
    }
}
