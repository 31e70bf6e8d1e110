//! Accounts of administrators: making, changing, suspending and unlocking them.

use std::{collections::BTreeSet, fmt, str::FromStr};

use horizon_controller_core::account::{PasswordIssue, check_password};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{
    Actor, Store, StoreError,
    admin_role::{self, manages_admins},
    admin_session::{self, AdminSessionId, LogoutReason},
    audit::{self, Record},
    dialect::{Builder, Connection, Row, query},
    row::{Columns as _, millis},
    seal::{Place, Sealer, random},
};

/// The kind of target that the audit trail names.
pub(super) const TARGET: &str = "Admin";
/// The longest name, e-mail address and full name, in characters.
const MAX_NAME: usize = 64;
const MAX_EMAIL: usize = 254;
const MAX_FULL_NAME: usize = 128;
/// The longest reason of a suspension, in characters.
const MAX_REASON: usize = 512;
/// The most roles of an account.
const MAX_ROLES: usize = 16;

/// One account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AdminId(pub Uuid);

impl fmt::Display for AdminId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for AdminId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// An account as lists show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdminView {
    /// The account.
    #[schema(value_type = String)]
    pub id: AdminId,
    /// The name to sign in with.
    pub username: String,
    /// Where to reach them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// What they are called.
    pub full_name: String,
    /// `active`, `locked`, `suspended` or `inactive`.
    pub status: String,
    /// Why it is suspended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspension_reason: Option<String>,
    /// Until when it is locked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub locked_until: Option<Timestamp>,
    /// What it may do.
    pub roles: Vec<String>,
    /// Whether a one-time code is asked for.
    pub totp: bool,
    /// Whether the password must be changed before anything else.
    pub must_change_password: bool,
    /// When it last signed in.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub last_login: Option<Timestamp>,
    /// When it was made.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// One more with every change by an administrator, for `If-Match`.
    pub version: i64,
}

/// An account to be made.
#[derive(Clone, Debug)]
pub struct NewAdmin {
    /// The name to sign in with: lower-case letters, digits and `.-_`, starting with a letter.
    pub username: String,
    /// Where to reach them.
    pub email: Option<String>,
    /// What they are called.
    pub full_name: String,
    /// What they may do.
    pub roles: BTreeSet<String>,
    /// The password to sign in with at first, which is to be changed then.
    pub password: OneTimePassword,
}

/// A password that is to be changed with its first use.
#[derive(Clone)]
pub struct OneTimePassword {
    /// The password.
    pub text: Zeroizing<String>,
    /// Until when it can be used.
    pub until: Timestamp,
}

impl fmt::Debug for OneTimePassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OneTimePassword(until {})", self.until)
    }
}

/// A change to an account by an administrator.
#[derive(Clone, Debug)]
pub enum AdminChange {
    /// Other particulars.
    Profile {
        /// Where to reach them.
        email: Option<String>,
        /// What they are called.
        full_name: String,
    },
    /// Other roles.
    Roles(BTreeSet<String>),
    /// It may no longer sign in, and its sessions end.
    Suspend(String),
    /// It may sign in again.
    Activate,
    /// Failed attempts are forgiven.
    Unlock,
    /// A password that is to be changed with its first use; its sessions end.
    ResetPassword(OneTimePassword),
    /// One-time codes are to be set up anew; its sessions end.
    ResetTotp,
}

impl AdminChange {
    fn action(&self) -> &'static str {
        match self {
            Self::Profile { .. } => "update",
            Self::Roles(_) => "set_roles",
            Self::Suspend(_) => "suspend",
            Self::Activate => "activate",
            Self::Unlock => "unlock",
            Self::ResetPassword(_) => "reset_password",
            Self::ResetTotp => "reset_totp",
        }
    }

    /// Whether what was signed in before is signed out by it.
    fn ends_sessions(&self) -> bool {
        matches!(self, Self::Suspend(_) | Self::ResetPassword(_) | Self::ResetTotp)
    }
}

/// Which account is meant.
#[derive(Clone, Debug)]
pub enum WhichAdmin {
    /// By identifier.
    Id(AdminId),
    /// By name.
    Name(String),
}

/// Why an account was not made or changed.
#[derive(Debug, Error)]
pub enum AdminError {
    /// There is none.
    #[error("there is no such account")]
    Unknown,
    /// The name or the e-mail address is taken.
    #[error("there is an account with this name or e-mail address already")]
    Exists,
    /// There is no such role.
    #[error("there is no role '{0}'")]
    NoRole(String),
    /// Nobody else could manage accounts then.
    #[error("nobody else could manage accounts then: give another active account the role first")]
    LastOne,
    /// Somebody else changed it meanwhile.
    #[error("the account was changed meanwhile: it has version {0} now")]
    Changed(i64),
    /// The password will not do.
    #[error(transparent)]
    Password(#[from] PasswordIssue),
    /// A field is not what it should be.
    #[error("{0}")]
    Invalid(&'static str),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for AdminError {
    fn from(e: sqlx::Error) -> Self {
        Self::Store(e.into())
    }
}

fn check_name(name: &str) -> Result<(), AdminError> {
    let good = name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b));
    let why = "a name has up to 64 lower-case letters, digits and '.-_', and starts with a letter";
    if good { Ok(()) } else { Err(AdminError::Invalid(why)) }
}

fn check_profile(email: Option<&str>, full_name: &str) -> Result<(), AdminError> {
    let printable = |text: &str| !text.chars().any(char::is_control);
    if let Some(email) = email {
        let parts = email.split_once('@').is_some_and(|(local, host)| !local.is_empty() && host.len() > 2);
        let plain = email.len() <= MAX_EMAIL && !email.contains(char::is_whitespace) && printable(email);
        if !parts || !plain || email.matches('@').count() != 1 {
            return Err(AdminError::Invalid("the e-mail address is none: write name@host"));
        }
    }
    if full_name.chars().count() > MAX_FULL_NAME || !printable(full_name) {
        return Err(AdminError::Invalid(
            "the full name has more than 128 characters, or some that do not print",
        ));
    }
    Ok(())
}

/// A password as it is kept.
pub(super) struct Hashed {
    pub(super) hash: [u8; 32],
    pub(super) salt: [u8; 16],
}

impl Store {
    /// Hashes a password that is new.
    pub(super) async fn new_password(&self, password: &Zeroizing<String>) -> Result<Hashed, StoreError> {
        let salt: [u8; 16] = random();
        let hash = self.hash_password(password, salt.to_vec()).await?;
        Ok(Hashed { hash, salt })
    }

    /// Makes an account, which has to change its password first.
    pub async fn create_admin(
        &self,
        new: &NewAdmin,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<AdminView, AdminError> {
        check_name(&new.username)?;
        check_profile(new.email.as_deref(), &new.full_name)?;
        check_password(&new.password.text, &new.username)?;
        let hashed = self.new_password(&new.password.text).await?;
        let id = AdminId(Uuid::now_v7());
        self.retried("create_admin", || self.create_once(id, new, &hashed, actor, now)).await
    }

    async fn create_once(
        &self,
        id: AdminId,
        new: &NewAdmin,
        hashed: &Hashed,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<AdminView, AdminError> {
        let mut tx = self.begin().await?;
        tx.serialise("admins").await?;
        let taken = query("SELECT admin_id FROM admins WHERE username = $1 OR email = $2")
            .bind(&new.username)
            .bind(&new.email)
            .fetch_optional(&mut *tx)
            .await?;
        if taken.is_some() {
            return Err(AdminError::Exists);
        }
        let sealed = self.sealer().seal_bytes(Place::Password, id.0.as_bytes(), &hashed.hash);
        query(
            "INSERT INTO admins (admin_id, username, email, full_name, password_hash, password_salt, created_date, \
             created_by, last_password_change, require_password_change, password_expiry, password_key) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $7, TRUE, $9, $10)",
        )
        .bind(id.to_string())
        .bind(&new.username)
        .bind(&new.email)
        .bind(&new.full_name)
        .bind(sealed.bytes)
        .bind(&hashed.salt[..])
        .bind(millis(now))
        .bind(actor.name())
        .bind(millis(new.password.until))
        .bind(sealed.key)
        .execute(&mut *tx)
        .await?;
        set_roles(&mut tx, id, &new.roles, now).await?;
        let made = view_of(&mut tx, id).await?;
        let mut record = Record::new("create", TARGET, id, &new.username);
        record.new = json(&made);
        audit::write(&mut tx, actor, now, &[record]).await?;
        tx.commit().await?;
        Ok(made)
    }

    /// Changes an account. `expected` is the version that is to be changed, if one was looked at. Returns the account and
    /// the sessions that ended.
    pub async fn change_admin(
        &self,
        which: &WhichAdmin,
        change: &AdminChange,
        expected: Option<i64>,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(AdminView, Vec<AdminSessionId>), AdminError> {
        let hashed = match change {
            AdminChange::ResetPassword(password) => Some(self.new_password(&password.text).await?),
            _ => None,
        };
        self.retried("change_admin", || {
            self.change_once(which, change, (expected, hashed.as_ref()), actor, now)
        })
        .await
    }

    async fn change_once(
        &self,
        which: &WhichAdmin,
        change: &AdminChange,
        (expected, hashed): (Option<i64>, Option<&Hashed>),
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(AdminView, Vec<AdminSessionId>), AdminError> {
        let mut tx = self.begin().await?;
        // Whoever counts those that remain is alone.
        tx.serialise("admins").await?;
        let find = match which {
            WhichAdmin::Id(id) => {
                query("SELECT admin_id FROM admins WHERE admin_id = $1 {lock}").bind(id.to_string())
            }
            WhichAdmin::Name(name) => {
                query("SELECT admin_id FROM admins WHERE username = $1 {lock}").bind(name)
            }
        };
        let row = find.fetch_optional(&mut *tx).await?.ok_or(AdminError::Unknown)?;
        let id: AdminId = row.parsed("admin_id")?;
        let before = view_of(&mut tx, id).await?;
        if expected.is_some_and(|expected| expected != before.version) {
            return Err(AdminError::Changed(before.version));
        }
        write_change(&mut tx, &self.sealer(), &before, change, hashed, now).await?;
        query("UPDATE admins SET version = version + 1 WHERE admin_id = $1")
            .bind(id.to_string())
            .execute(&mut *tx)
            .await?;
        if !manages_admins(&mut tx).await? {
            return Err(AdminError::LastOne);
        }
        let ended = match change.ends_sessions() {
            true => admin_session::end_all(&mut tx, id, None, LogoutReason::AdminTerminated, now).await?,
            false => Vec::new(),
        };
        let after = view_of(&mut tx, id).await?;
        let mut record = Record::new(change.action(), TARGET, id, &before.username);
        (record.previous, record.new) = (json(&before), json(&after));
        audit::write(&mut tx, actor, now, &[record]).await?;
        tx.commit().await?;
        Ok((after, ended))
    }

    /// Accounts by name, from the one after `after` on.
    pub async fn list_admins(&self, after: Option<&str>, limit: u32) -> Result<Vec<AdminView>, StoreError> {
        let mut tx = self.readers().snapshot().await?;
        let rows = query("SELECT * FROM admins WHERE username > $1 ORDER BY username LIMIT $2")
            .bind(after.unwrap_or_default())
            .bind(limit)
            .fetch_all(&mut *tx)
            .await?;
        let mut views: Vec<AdminView> = rows.iter().map(view).collect::<Result<_, _>>()?;
        if views.is_empty() {
            return Ok(views);
        }
        let mut roles = Builder::new("SELECT admin_id, role_name FROM user_roles WHERE admin_id IN ");
        roles.push_list(views.iter().map(|view| view.id.to_string())).push(" ORDER BY role_name");
        for row in roles.build().fetch_all(&mut *tx).await? {
            let id: AdminId = row.parsed("admin_id")?;
            if let Some(view) = views.iter_mut().find(|view| view.id == id) {
                view.roles.push(row.text("role_name")?);
            }
        }
        Ok(views)
    }

    /// An account.
    pub async fn admin(&self, id: AdminId) -> Result<Option<AdminView>, StoreError> {
        let mut tx = self.readers().snapshot().await?;
        match view_of(&mut tx, id).await {
            Ok(view) => Ok(Some(view)),
            Err(AdminError::Store(error)) => Err(error),
            Err(_) => Ok(None),
        }
    }
}

async fn write_change(
    db: &mut Connection,
    sealer: &Sealer,
    before: &AdminView,
    change: &AdminChange,
    hashed: Option<&Hashed>,
    now: Timestamp,
) -> Result<(), AdminError> {
    let update = match change {
        AdminChange::Profile { email, full_name } => {
            check_profile(email.as_deref(), full_name)?;
            let taken = query("SELECT admin_id FROM admins WHERE email = $1 AND admin_id <> $2")
                .bind(email)
                .bind(before.id.to_string())
                .fetch_optional(&mut *db)
                .await?;
            if taken.is_some() {
                return Err(AdminError::Exists);
            }
            query("UPDATE admins SET email = $2, full_name = $3 WHERE admin_id = $1")
                .bind(before.id.to_string())
                .bind(email)
                .bind(full_name)
        }
        AdminChange::Roles(roles) => return set_roles(db, before.id, roles, now).await,
        AdminChange::Suspend(reason) => {
            if reason.is_empty() || reason.chars().count() > MAX_REASON || reason.chars().any(char::is_control) {
                return Err(AdminError::Invalid("a suspension needs a reason, of up to 512 characters that print"));
            }
            query(
                "UPDATE admins SET status = 'suspended', suspension_reason = $2, lockout_until = NULL WHERE admin_id = $1",
            )
            .bind(before.id.to_string())
            .bind(reason)
        }
        AdminChange::Activate => query(
            "UPDATE admins SET status = 'active', suspension_reason = NULL, lockout_until = NULL, \
             failed_login_attempts = 0, lockouts = 0 WHERE admin_id = $1",
        )
        .bind(before.id.to_string()),
        AdminChange::Unlock => query(
            "UPDATE admins SET status = CASE WHEN status = 'locked' THEN 'active' ELSE status END, lockout_until = NULL, \
             failed_login_attempts = 0, lockouts = 0 WHERE admin_id = $1",
        )
        .bind(before.id.to_string()),
        AdminChange::ResetPassword(password) => {
            check_password(&password.text, &before.username)?;
            let hashed = hashed.ok_or(AdminError::Invalid("the password was not hashed"))?;
            let sealed = sealer.seal_bytes(Place::Password, before.id.0.as_bytes(), &hashed.hash);
            query(
                "UPDATE admins SET password_hash = $2, password_salt = $3, last_password_change = $4, \
                 require_password_change = TRUE, password_expiry = $5, password_key = $6 WHERE admin_id = $1",
            )
            .bind(before.id.to_string())
            .bind(sealed.bytes)
            .bind(&hashed.salt[..])
            .bind(millis(now))
            .bind(millis(password.until))
            .bind(sealed.key)
        }
        AdminChange::ResetTotp => {
            query("DELETE FROM admin_recovery_codes WHERE admin_id = $1")
                .bind(before.id.to_string())
                .execute(&mut *db)
                .await?;
            query(
                "UPDATE admins SET mfa_secret = NULL, mfa_key = NULL, mfa_confirmed = NULL, mfa_last_step = 0 WHERE admin_id = $1",
            )
            .bind(before.id.to_string())
        }
    };
    update.execute(&mut *db).await?;
    Ok(())
}

async fn set_roles(
    db: &mut Connection,
    id: AdminId,
    roles: &BTreeSet<String>,
    now: Timestamp,
) -> Result<(), AdminError> {
    if roles.is_empty() || roles.len() > MAX_ROLES {
        return Err(AdminError::Invalid("an account has 1 to 16 roles"));
    }
    query("DELETE FROM user_roles WHERE admin_id = $1").bind(id.to_string()).execute(&mut *db).await?;
    for role in roles {
        if !admin_role::exists(db, role).await? {
            return Err(AdminError::NoRole(role.chars().take(MAX_NAME).collect()));
        }
        query("INSERT INTO user_roles (admin_id, role_name, created_date) VALUES ($1, $2, $3)")
            .bind(id.to_string())
            .bind(role)
            .bind(millis(now))
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

pub(super) fn json(value: &impl Serialize) -> Option<String> {
    serde_json::to_string(value).ok()
}

/// An account as it is in the caller's transaction.
pub(super) async fn view_of(db: &mut Connection, id: AdminId) -> Result<AdminView, AdminError> {
    let row = query("SELECT * FROM admins WHERE admin_id = $1")
        .bind(id.to_string())
        .fetch_optional(&mut *db)
        .await?;
    let mut found = view(&row.ok_or(AdminError::Unknown)?)?;
    let roles = query("SELECT role_name FROM user_roles WHERE admin_id = $1 ORDER BY role_name")
        .bind(id.to_string())
        .fetch_all(&mut *db)
        .await?;
    found.roles = roles.iter().map(|row| row.text("role_name")).collect::<Result<_, _>>()?;
    Ok(found)
}

fn view(row: &Row) -> Result<AdminView, StoreError> {
    Ok(AdminView {
        id: row.parsed("admin_id")?,
        username: row.text("username")?,
        email: row.maybe_text("email")?,
        full_name: row.text("full_name")?,
        status: row.text("status")?,
        suspension_reason: row.maybe_text("suspension_reason")?,
        locked_until: row.maybe_time("lockout_until")?,
        roles: Vec::new(),
        totp: row.maybe_int("mfa_confirmed")?.is_some(),
        must_change_password: row.flag("require_password_change")?,
        last_login: row.maybe_time("last_login")?,
        created_at: row.time("created_date")?,
        created_by: row.text("created_by")?,
        version: row.int("version")?,
    })
}
