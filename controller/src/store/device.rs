//! Devices: enrolled once with a personal key, known by their own key from then on.

use horizon_controller_core::{DeviceStanding, DeviceTraits};
use horizon_crds::{Name, Resource, UserSpec};
use horizon_model::{DeviceId, DeviceInfo, KeyId, PublicKey, TaggedSecret};
use jiff::Timestamp;
use serde::Serialize;
use thiserror::Error;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Actor, Store, StoreError,
    audit::{self, Record},
    changed,
    dialect::{Builder, Connection, Row, query},
    document, revocation, rotation_versions,
    row::{Columns as _, millis},
};

/// A device that is enrolled.
#[derive(Clone, Debug)]
pub struct Enrolled {
    /// The device.
    pub device: DeviceId,
    /// Its user.
    pub user: Uuid,
    /// The user's namespace.
    pub namespace: Name,
    /// The user's name.
    pub user_name: Name,
    /// The personal key, whichever version of it was presented.
    pub key: KeyId,
    /// Whether this was the first time.
    pub fresh: bool,
}

/// Why a device was not enrolled. All but `Unknown` and `Store` are told only to the holder of the right secret.
#[derive(Debug, Error)]
pub enum EnrolError {
    /// No such key, or another secret.
    #[error("the personal key is not known")]
    Unknown,
    /// The key was deactivated.
    #[error("the personal key was deactivated: {0}")]
    KeyRevoked(String),
    /// This version of the key has ended: another replaced it.
    #[error("the personal key was replaced by a newer one: {0}")]
    KeyReplaced(String),
    /// The key's time is over.
    #[error("the personal key expired at {0}")]
    KeyExpired(Timestamp),
    /// The key's user is not declared, or no longer.
    #[error("the user '{0}' of the personal key does not exist")]
    NoUser(String),
    /// The key's user is locked out.
    #[error("the user '{user}' is suspended{}", if .reason.is_empty() { String::new() } else { format!(": {}", .reason) })]
    Suspended {
        /// Who.
        user: Name,
        /// Why.
        reason: String,
    },
    /// The device was revoked.
    #[error("this device was revoked: {0}")]
    DeviceRevoked(String),
    /// The device is blocked.
    #[error("this device is blocked: {0}")]
    DeviceBlocked(String),
    /// The user has as many devices as they may.
    #[error("the user '{user}' has {limit} devices enrolled, which is the limit")]
    TooMany {
        /// Who.
        user: Name,
        /// How many are allowed.
        limit: u8,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for EnrolError {
    fn from(e: sqlx::Error) -> Self {
        Self::Store(e.into())
    }
}

/// What is known about an enrolled device and the key that enrolled it.
#[derive(Clone, Debug)]
pub struct DeviceRecord {
    /// The device.
    pub id: DeviceId,
    /// Its own key.
    pub public_key: PublicKey,
    /// The personal key that enrolled it.
    pub key: KeyId,
    /// Its user.
    pub user: Uuid,
    /// The user's namespace.
    pub namespace: Name,
    /// The user's name.
    pub user_name: Name,
    /// The name its user knows it by.
    pub name: String,
    /// What speaks against the device itself.
    pub own_standing: DeviceStanding,
    /// Why it is refused or doubted, where it is.
    pub reason: String,
    /// What policies may ask of it.
    pub traits: DeviceTraits,
    /// Where its personal key stands.
    pub key_standing: KeyStanding,
}

/// Where a personal key stands, for the devices that it enrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyStanding {
    /// Whether it was deactivated or revoked.
    pub deactivated: bool,
    /// When its time is over.
    pub expires: Option<Timestamp>,
    /// Whether it was replaced at once, and not entered anew on the device.
    pub replaced: bool,
}

impl DeviceRecord {
    /// What speaks against the device at a time.
    pub fn standing(&self, now: Timestamp) -> DeviceStanding {
        standing(self.own_standing, self.key_standing, now)
    }
}

pub(super) fn standing(own: DeviceStanding, key: KeyStanding, now: Timestamp) -> DeviceStanding {
    if own != DeviceStanding::Good {
        own
    } else if key.deactivated {
        DeviceStanding::KeyRevoked
    } else if key.expires.is_some_and(|at| at <= now) {
        DeviceStanding::KeyExpired
    } else if key.replaced {
        DeviceStanding::KeyReplaced
    } else {
        DeviceStanding::Good
    }
}

/// A device as lists show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceView {
    /// The device.
    #[schema(value_type = String)]
    pub id: DeviceId,
    /// The name its user knows it by.
    pub name: String,
    /// The user's namespace.
    pub namespace: String,
    /// The user's name.
    pub user: String,
    /// The name of the personal key that enrolled it.
    pub key: String,
    /// The operating system.
    pub platform: String,
    /// Its release.
    pub os_version: String,
    /// The version of the client.
    pub app_version: String,
    /// `active`, `inactive`, `suspicious` or `blocked`.
    pub status: String,
    /// When it was enrolled.
    #[schema(value_type = String)]
    pub enrolled_at: Timestamp,
    /// When it was last here.
    #[schema(value_type = String)]
    pub last_seen: Timestamp,
    /// Why it is blocked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_reason: Option<String>,
    /// Whether that is final.
    pub revoked: bool,
    /// Why it is suspicious.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspicious_reason: Option<String>,
    /// The fingerprint of its machine.
    pub fingerprint: String,
    /// The fingerprint of the machine it was last seen on, where that is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_fingerprint: Option<String>,
}

impl DeviceView {
    /// Its name as a part of the name of a record: letters, digits and dashes.
    pub fn name_part(&self) -> String {
        let part: String = self
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .take(24)
            .collect();
        part.trim_matches('-').to_owned()
    }
}

pub(super) const VIEW: &str = "SELECT d.*, k.name AS key_name, k.namespace AS namespace, k.user_name AS user_name \
     FROM devices d JOIN personal_keys k ON k.key_id = d.key_id ";

impl Store {
    /// Enrols a device with a personal key. The same device with a key of the same user is the same device again; with a
    /// key of another user it is a new one, and the old one is history.
    pub async fn enrol_device(
        &self,
        key: KeyId,
        secret: &TaggedSecret,
        public_key: PublicKey,
        info: &DeviceInfo,
        now: Timestamp,
    ) -> Result<Enrolled, EnrolError> {
        let _timed = self.timed("enrol_device");
        let version = key;
        let key = self.proves(version, secret).await?.ok_or(EnrolError::Unknown)?;
        self.retried("enrol_device", || self.enrol_once(key, version, public_key, info, now)).await
    }

    async fn enrol_once(
        &self,
        key: KeyId,
        version: KeyId,
        public_key: PublicKey,
        info: &DeviceInfo,
        now: Timestamp,
    ) -> Result<Enrolled, EnrolError> {
        let mut tx = self.begin().await?;
        let row = query("SELECT * FROM personal_keys WHERE key_id = $1 {lock}")
            .bind(key.to_string())
            .fetch_one(&mut *tx)
            .await?;
        if row.maybe_time("deactivation_date")?.is_some() {
            return Err(EnrolError::KeyRevoked(row.maybe_text("deactivation_reason")?.unwrap_or_default()));
        }
        if let Some(at) = row.maybe_time("expiration_date")?.filter(|at| *at <= now) {
            return Err(EnrolError::KeyExpired(at));
        }
        if let Err(at) = rotation_versions::check_version(&mut tx, version, now).await? {
            return Err(EnrolError::KeyReplaced(format!("it ended at {at}")));
        }
        let user: Option<Uuid> = row.maybe_parsed("user_uid")?;
        let user = user.ok_or(EnrolError::NoUser(row.text("user_name")?))?;
        let (namespace, user_name): (Name, Name) = (row.parsed("namespace")?, row.parsed("user_name")?);
        let limit = check_user(&mut tx, user, &user_name).await?;
        // Nobody else enrols for the user meanwhile: their devices are counted.
        tx.serialise(&format!("devices of {user}")).await?;

        let known = query("SELECT * FROM devices WHERE public_key = $1 AND status <> 'inactive'")
            .bind(&public_key.0[..])
            .fetch_optional(&mut *tx)
            .await?;
        let mut same = None;
        if let Some(row) = known {
            let why = row.maybe_text("blocked_reason")?.unwrap_or_default();
            match own_standing(&row)? {
                DeviceStanding::Revoked => return Err(EnrolError::DeviceRevoked(why)),
                DeviceStanding::Blocked => return Err(EnrolError::DeviceBlocked(why)),
                _ => {}
            }
            let device: DeviceId = row.parsed("device_id")?;
            if row.parsed::<Uuid>("user_uid")? == user {
                same = Some(device);
            } else {
                retire(&mut tx, device).await?;
            }
        }
        let (device, fresh) = match same {
            Some(device) => {
                update(&mut tx, device, key, info, now).await?;
                (device, false)
            }
            None => {
                let devices =
                    query("SELECT COUNT(*) AS n FROM devices WHERE user_uid = $1 AND status IN ('active', 'suspicious')")
                        .bind(user.to_string())
                        .fetch_one(&mut *tx)
                        .await?
                        .count("n")?;
                if devices >= u64::from(limit) {
                    return Err(EnrolError::TooMany { user: user_name, limit });
                }
                let device = DeviceId(Uuid::now_v7());
                insert(&mut tx, device, key, user, public_key, info, now).await?;
                let record = Record::new("enrol", "Device", device, &info.name)
                    .notes(format!("for user {namespace}/{user_name}"));
                audit::write(&mut tx, &Actor::Device(device), now, &[record]).await?;
                (device, true)
            }
        };
        query(
            "UPDATE personal_keys SET status = 'active', activation_date = COALESCE(activation_date, $1) \
             WHERE key_id = $2 AND status = 'pending'",
        )
        .bind(millis(now))
        .bind(key.to_string())
        .execute(&mut *tx)
        .await?;
        rotation_versions::used(&mut tx, key, version, now).await?;
        tx.commit().await?;
        Ok(Enrolled { device, user, namespace, user_name, key, fresh })
    }

    /// The device of a key. Those that were replaced are not found.
    pub async fn device_by_key(&self, public_key: PublicKey) -> Result<Option<DeviceRecord>, StoreError> {
        let row = query(
            "SELECT d.*, k.namespace, k.user_name, k.deactivation_date, k.expiration_date FROM devices d \
             JOIN personal_keys k ON k.key_id = d.key_id WHERE d.public_key = $1 AND d.status <> 'inactive'",
        )
        .bind(&public_key.0[..])
        .fetch_optional(self.readers())
        .await?;
        row.map(|row| {
            Ok(DeviceRecord {
                id: row.parsed("device_id")?,
                public_key,
                key: row.parsed("key_id")?,
                user: row.parsed("user_uid")?,
                namespace: row.parsed("namespace")?,
                user_name: row.parsed("user_name")?,
                name: called(&row)?,
                own_standing: own_standing(&row)?,
                reason: match row.maybe_text("blocked_reason")? {
                    Some(why) => why,
                    None => row.maybe_text("suspicious_reason")?.unwrap_or_default(),
                },
                traits: traits(&row)?,
                key_standing: key_standing(&row)?,
            })
        })
        .transpose()
    }

    /// Whether a key is that of a device or an appliance, whatever became of it.
    pub async fn knows_key(&self, public_key: PublicKey) -> Result<bool, StoreError> {
        let row = query(
            "SELECT public_key FROM devices WHERE public_key = $1 AND status <> 'inactive' \
             UNION ALL SELECT public_key FROM servers WHERE public_key = $1 LIMIT 1",
        )
        .bind(&public_key.0[..])
        .fetch_optional(self.readers())
        .await?;
        Ok(row.is_some())
    }

    /// Notes that a device was here.
    pub async fn touch_device(&self, device: DeviceId, now: Timestamp) -> Result<(), StoreError> {
        self.repeatable("touch_device", || async {
            let mut tx = self.begin().await?;
            query("UPDATE devices SET last_seen = $1 WHERE device_id = $2")
                .bind(millis(now))
                .bind(device.to_string())
                .execute(&mut *tx)
                .await?;
            tx.commit().await
        })
        .await
    }

    /// Devices, the newest first.
    pub async fn list_devices(&self, limit: u32) -> Result<Vec<DeviceView>, StoreError> {
        let mut query = Builder::new(VIEW);
        query.push("ORDER BY d.first_seen DESC, d.device_id LIMIT ").push_bind(limit);
        let rows = query.build().fetch_all(self.readers()).await?;
        rows.iter().map(view).collect()
    }

    /// One device, whatever became of it.
    pub async fn device(&self, device: DeviceId) -> Result<Option<DeviceView>, StoreError> {
        let mut query = Builder::new(VIEW);
        query.push("WHERE d.device_id = ").push_bind(device.to_string());
        let row = query.build().fetch_optional(self.readers()).await?;
        row.as_ref().map(view).transpose()
    }

    /// The devices of a user, the newest first.
    pub(super) async fn devices_of(
        &self,
        column: &'static str,
        id: Uuid,
    ) -> Result<Vec<DeviceView>, StoreError> {
        let mut query = Builder::new(VIEW);
        query.push("WHERE d.").push(column).push(" = ").push_bind(id.to_string());
        query.push(" AND d.status <> 'inactive' ORDER BY d.first_seen DESC, d.device_id LIMIT 100");
        let rows = query.build().fetch_all(self.readers()).await?;
        rows.iter().map(view).collect()
    }
}

/// What speaks against a device itself.
pub(super) fn own_standing(row: &Row) -> Result<DeviceStanding, StoreError> {
    Ok(match row.text("status")?.as_str() {
        _ if row.maybe_time("revoked_date")?.is_some() => DeviceStanding::Revoked,
        "blocked" => DeviceStanding::Blocked,
        "inactive" => DeviceStanding::Forgotten,
        _ => DeviceStanding::Good,
    })
}

/// What policies may ask of a device.
pub(super) fn traits(row: &Row) -> Result<DeviceTraits, StoreError> {
    Ok(DeviceTraits {
        id: row.parsed("device_id")?,
        platform: row.text("platform")?,
        suspicious: row.text("status")? == "suspicious",
    })
}

/// The name of a device: the one an administrator gave it, or its own.
pub(super) fn called(row: &Row) -> Result<String, StoreError> {
    match row.maybe_text("given_name")? {
        Some(name) => Ok(name),
        None => row.text("device_name"),
    }
}

pub(super) fn key_standing(row: &Row) -> Result<KeyStanding, StoreError> {
    Ok(KeyStanding {
        deactivated: row.maybe_time("deactivation_date")?.is_some(),
        expires: row.maybe_time("expiration_date")?,
        replaced: row.maybe_time("replaced_date")?.is_some(),
    })
}

/// How many devices a user may have, if they may have any.
async fn check_user(db: &mut Connection, user: Uuid, name: &Name) -> Result<u8, EnrolError> {
    let person = person(db, user).await?.ok_or_else(|| EnrolError::NoUser(name.to_string()))?;
    if person.suspended {
        return Err(EnrolError::Suspended {
            user: name.clone(),
            reason: person.suspension_reason.to_string(),
        });
    }
    Ok(person.device_limit)
}

/// What is declared of a user who exists. It stays so until the caller's transaction ends.
pub(super) async fn person(db: &mut Connection, user: Uuid) -> Result<Option<UserSpec>, StoreError> {
    let row = query("SELECT document FROM resources WHERE uid = $1 AND deleted_at IS NULL {share}")
        .bind(user.to_string())
        .fetch_optional(&mut *db)
        .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(match document::read(&row.text("document")?)? {
        Resource::User(document) => Some(document.spec),
        _ => None,
    })
}

pub(super) async fn retire(db: &mut Connection, device: DeviceId) -> Result<(), StoreError> {
    query(
        "UPDATE devices SET status = 'inactive', blocked_date = NULL WHERE device_id = $1 AND revoked_date IS NULL",
    )
        .bind(device.to_string())
        .execute(&mut *db)
        .await?;
    // Its sessions are of a device that is no more.
    for server in revocation::servers_of_device(db, &device.to_string()).await? {
        changed::touch(db, &server.to_string()).await?;
    }
    Ok(())
}

async fn update(
    db: &mut Connection,
    device: DeviceId,
    key: KeyId,
    info: &DeviceInfo,
    now: Timestamp,
) -> Result<(), StoreError> {
    query(
        "UPDATE devices SET key_id = $1, device_name = $2, platform = $3, os_version = $4, app_version = $5, \
         hardware_fingerprint = $6, other_fingerprint = NULL, last_seen = $7, replaced_date = NULL, replaced_reason = NULL \
         WHERE device_id = $8",
    )
    .bind(key.to_string())
    .bind(&info.name)
    .bind(&info.platform)
    .bind(&info.os_version)
    .bind(&info.app_version)
    .bind(&info.hardware_fingerprint)
    .bind(millis(now))
    .bind(device.to_string())
    .execute(&mut *db)
    .await?;
    Ok(())
}

async fn insert(
    db: &mut Connection,
    device: DeviceId,
    key: KeyId,
    user: Uuid,
    public_key: PublicKey,
    info: &DeviceInfo,
    now: Timestamp,
) -> Result<(), StoreError> {
    query(
        "INSERT INTO devices (device_id, key_id, user_uid, public_key, hardware_fingerprint, device_name, platform, \
         os_version, app_version, first_seen, last_seen) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10)",
    )
    .bind(device.to_string())
    .bind(key.to_string())
    .bind(user.to_string())
    .bind(&public_key.0[..])
    .bind(&info.hardware_fingerprint)
    .bind(&info.name)
    .bind(&info.platform)
    .bind(&info.os_version)
    .bind(&info.app_version)
    .bind(millis(now))
    .execute(&mut *db)
    .await?;
    Ok(())
}

pub(super) fn view(row: &Row) -> Result<DeviceView, StoreError> {
    Ok(DeviceView {
        id: row.parsed("device_id")?,
        name: called(row)?,
        namespace: row.text("namespace")?,
        user: row.text("user_name")?,
        key: row.text("key_name")?,
        platform: row.text("platform")?,
        os_version: row.text("os_version")?,
        app_version: row.text("app_version")?,
        status: row.text("status")?,
        enrolled_at: row.time("first_seen")?,
        last_seen: row.time("last_seen")?,
        blocked_reason: row.maybe_text("blocked_reason")?,
        revoked: row.maybe_time("revoked_date")?.is_some(),
        suspicious_reason: row.maybe_text("suspicious_reason")?,
        fingerprint: row.text("hardware_fingerprint")?,
        other_fingerprint: row.maybe_text("other_fingerprint")?,
    })
}
