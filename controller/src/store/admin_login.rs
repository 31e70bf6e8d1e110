//! Signing in: passwords, one-time codes, and what is locked when somebody guesses.

use std::time::Duration;

use argon2::{Algorithm, Argon2, Params, Version};
use horizon_controller_core::account::{AccountPolicy, PasswordIssue, after_failure, check_password};
use horizon_model::Secret;
use jiff::Timestamp;
use thiserror::Error;
use tokio::time::{Instant, sleep_until};
use zeroize::Zeroizing;

use super::{
    Actor, AdminId, AdminSessionId, Begun, Caller, NewEvent, Severity, SignedIn, Source, Store, StoreError,
    admin::TARGET,
    admin_session::{self, LogoutReason},
    audit::{self, Record},
    dialect::{Connection, Row, query},
    event,
    personal::{LANES, MEMORY_KIB, PASSES},
    row::{Columns as _, millis},
    seal::{Place, Sealer, random},
};
use crate::account::{
    recovery_digest,
    totp::{self, Verdict},
};

/// When a refusal is answered, counted from when it was asked: later than any of them is known on a machine that is not busy.
const REFUSAL: Duration = Duration::from_millis(500);
/// The longest password that is looked at, in bytes.
const MAX_PASSWORD_BYTES: usize = 1024;

/// What somebody shows to sign in.
#[derive(Clone)]
pub struct Credentials {
    /// The name of the account.
    pub username: String,
    /// The password.
    pub password: Zeroizing<String>,
    /// The one-time code, or a recovery code.
    pub code: Option<Zeroizing<String>>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials(of {:?})", self.username)
    }
}

/// Why somebody may not sign in. All but `Refused` and `Store` are told only to who knows the password.
#[derive(Debug, Error)]
pub enum LoginError {
    /// There is no such account, or the password or the code is wrong, or the account is locked.
    #[error("the name, the password or the code is wrong, or the account is locked for a while")]
    Refused,
    /// A code is needed as well.
    #[error("a one-time code is needed as well")]
    CodeNeeded,
    /// The account was suspended.
    #[error("the account is suspended: {0}")]
    Suspended(String),
    /// The one-time password was not used in time.
    #[error("the one-time password was not used in time: have it reset")]
    PasswordExpired,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for LoginError {
    fn from(e: sqlx::Error) -> Self {
        Self::Store(e.into())
    }
}

/// Why one's own account was not changed.
#[derive(Debug, Error)]
pub enum OwnError {
    /// The password or the code is wrong, or the account is locked.
    #[error("the password or the code is wrong, or the account is locked for a while")]
    Refused,
    /// The new password will not do.
    #[error(transparent)]
    Password(#[from] PasswordIssue),
    /// It is the one that is to be changed.
    #[error("the new password is the old one")]
    Same,
    /// One-time codes are set up already.
    #[error("one-time codes are set up already: an administrator can reset them")]
    AlreadyEnrolled,
    /// They are not being set up.
    #[error("no one-time codes are being set up: begin with POST /v1/admin/totp")]
    NotBegun,
    /// The session has ended.
    #[error("the session has ended: sign in again")]
    Ended,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for OwnError {
    fn from(e: sqlx::Error) -> Self {
        Self::Store(e.into())
    }
}

/// One-time codes that are set up, with the codes that replace them once each.
pub type RecoveryDigests = Vec<[u8; 32]>;

impl Store {
    /// Argon2id of a password (RFC 9106), off the async threads and one at a time: floods of logins wait for each other and
    /// for nobody else.
    pub(super) async fn hash_password(
        &self,
        password: &Zeroizing<String>,
        salt: Vec<u8>,
    ) -> Result<[u8; 32], StoreError> {
        let permit = self.inner.passwords.place().await?;
        let password = password.clone();
        let hashed = tokio::task::spawn_blocking(move || {
            // Held by the work itself: whoever asked may have gone.
            let _permit = permit;
            let params = Params::new(MEMORY_KIB, PASSES, LANES, None).expect("the parameters are constants");
            let mut out = [0; 32];
            let end = password.floor_char_boundary(MAX_PASSWORD_BYTES);
            Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                .hash_password_into(password[..end].as_bytes(), &salt, &mut out)
                .map(|()| out)
        });
        match hashed.await {
            Ok(Ok(hash)) => Ok(hash),
            Ok(Err(e)) => Err(StoreError::Corrupt { column: "password_salt", why: e.to_string() }),
            Err(_) => Err(StoreError::Closed),
        }
    }

    /// Signs somebody in. An unknown name takes as long as a known one.
    pub async fn sign_in(
        &self,
        given: &Credentials,
        caller: &Caller,
        policy: &AccountPolicy,
        now: Timestamp,
    ) -> Result<Begun, LoginError> {
        let _timed = self.timed("sign_in");
        let begun = Instant::now();
        let answer = self.try_sign_in(given, caller, policy, now).await;
        if matches!(answer, Err(LoginError::Refused)) {
            // Of a known name a failure is written down, of others nothing is: the answer must not tell how long that took.
            sleep_until(begun + REFUSAL).await;
        }
        answer
    }

    async fn try_sign_in(
        &self,
        given: &Credentials,
        caller: &Caller,
        policy: &AccountPolicy,
        now: Timestamp,
    ) -> Result<Begun, LoginError> {
        let row = query("SELECT password_salt FROM admins WHERE username = $1")
            .bind(&given.username)
            .fetch_optional(self.readers())
            .await?;
        let salt = row.map(|row| row.bytes("password_salt")).transpose()?.unwrap_or_else(|| vec![0; 16]);
        let hash = self.hash_password(&given.password, salt.clone()).await?;
        self.retried("sign_in", || self.sign_in_once(given, (&salt, &hash), caller, policy, now)).await
    }

    async fn sign_in_once(
        &self,
        given: &Credentials,
        (salt, hash): (&[u8], &[u8; 32]),
        caller: &Caller,
        policy: &AccountPolicy,
        now: Timestamp,
    ) -> Result<Begun, LoginError> {
        let mut tx = self.begin().await?;
        let row = query("SELECT * FROM admins WHERE username = $1 {lock}")
            .bind(&given.username)
            .fetch_optional(&mut *tx)
            .await?
            .ok_or(LoginError::Refused)?;
        let admin: AdminId = row.parsed("admin_id")?;
        if is_locked(&row, now)? {
            // Even the right password opens nothing now, and nobody learns that it is.
            return Err(LoginError::Refused);
        }
        let right = self.is_password(&row, (salt, hash))?;
        if !right {
            failed(&mut tx, &row, "the password was wrong", caller, policy, now).await?;
            tx.commit().await?;
            return Err(LoginError::Refused);
        }
        if matches!(row.text("status")?.as_str(), "suspended" | "inactive") {
            // Such an account is not locked; who guessed too often learns nothing of it any more.
            if row.count("failed_login_attempts")? >= u64::from(policy.threshold) {
                return Err(LoginError::Refused);
            }
            return Err(LoginError::Suspended(row.maybe_text("suspension_reason")?.unwrap_or_default()));
        }
        if row.flag("require_password_change")?
            && row.maybe_time("password_expiry")?.is_some_and(|at| at <= now)
        {
            return Err(LoginError::PasswordExpired);
        }
        if row.maybe_int("mfa_confirmed")?.is_some() {
            let Some(code) = &given.code else { return Err(LoginError::CodeNeeded) };
            if let Err(why) = self.second_factor(&mut tx, &row, code, now).await? {
                failed(&mut tx, &row, why, caller, policy, now).await?;
                tx.commit().await?;
                return Err(LoginError::Refused);
            }
        }
        query(
            "UPDATE admins SET failed_login_attempts = 0, lockouts = 0, lockout_until = NULL, status = 'active', \
             last_login = $2 WHERE admin_id = $1",
        )
        .bind(admin.to_string())
        .bind(millis(now))
        .execute(&mut *tx)
        .await?;
        let begun = admin_session::begin(&mut tx, &self.sealer(), &row, caller, policy, now).await?;
        let record = Record::new("sign_in", TARGET, admin, &given.username)
            .notes(format!("session {}", begun.who.session));
        audit::write(&mut tx, &Actor::account(&given.username, caller), now, &[record]).await?;
        tx.commit().await?;
        Ok(begun)
    }

    /// Whether a password, hashed with a salt, is that of an account.
    fn is_password(&self, row: &Row, (salt, hash): (&[u8], &[u8; 32])) -> Result<bool, StoreError> {
        let admin: AdminId = row.parsed("admin_id")?;
        let sealed = row.bytes("password_hash")?;
        let same = self.sealer().is_digest(Place::Password, admin.0.as_bytes(), &sealed, hash)?;
        Ok(same && row.bytes("password_salt")? == salt)
    }

    /// Whether a code is one of the authenticator that was not used before, or a recovery code, which is used up.
    async fn second_factor(
        &self,
        db: &mut Connection,
        row: &Row,
        code: &Zeroizing<String>,
        now: Timestamp,
    ) -> Result<Result<(), &'static str>, StoreError> {
        let admin: AdminId = row.parsed("admin_id")?;
        let sealed = row.maybe_bytes("mfa_secret")?.unwrap_or_default();
        let secret = self.sealer().open(Place::Totp, admin.0.as_bytes(), &sealed)?;
        match totp::check(&secret, code, row.int("mfa_last_step")?, now) {
            Verdict::Right(step) => {
                query("UPDATE admins SET mfa_last_step = $2 WHERE admin_id = $1")
                    .bind(admin.to_string())
                    .bind(step)
                    .execute(&mut *db)
                    .await?;
                return Ok(Ok(()));
            }
            Verdict::Replayed => return Ok(Err("the one-time code was used before")),
            Verdict::Wrong => {}
        }
        let digest = recovery_digest(code);
        let codes = query(
            "SELECT code_hash FROM admin_recovery_codes WHERE admin_id = $1 AND used_date IS NULL {lock}",
        )
        .bind(admin.to_string())
        .fetch_all(&mut *db)
        .await?;
        let (sealer, mut found) = (self.sealer(), None);
        for row in &codes {
            let sealed = row.bytes("code_hash")?;
            if sealer.is_digest(Place::RecoveryCode, admin.0.as_bytes(), &sealed, &digest)? {
                found = Some(sealed);
            }
        }
        let Some(sealed) = found else { return Ok(Err("the one-time code was wrong")) };
        query("UPDATE admin_recovery_codes SET used_date = $3 WHERE admin_id = $1 AND code_hash = $2")
            .bind(admin.to_string())
            .bind(sealed)
            .bind(millis(now))
            .execute(&mut *db)
            .await?;
        Ok(Ok(()))
    }

    /// Changes one's own password. Every session of the account ends, and another begins for who did it.
    pub async fn change_own_password(
        &self,
        who: &SignedIn,
        old: &Zeroizing<String>,
        new: &Zeroizing<String>,
        (caller, policy): (&Caller, &AccountPolicy),
        now: Timestamp,
    ) -> Result<(Begun, Vec<AdminSessionId>), OwnError> {
        check_password(new, &who.username)?;
        let row = query("SELECT password_salt, lockout_until FROM admins WHERE admin_id = $1")
            .bind(who.admin.to_string())
            .fetch_optional(self.readers())
            .await?
            .ok_or(OwnError::Ended)?;
        // A stolen session is no place to guess the password: what locks signing in locks this, before anything is computed.
        if is_locked(&row, now)? {
            return Err(OwnError::Refused);
        }
        let salt = row.bytes("password_salt")?;
        let shown = self.hash_password(old, salt.clone()).await?;
        let same = self.hash_password(new, salt.clone()).await? == shown;
        let hashed = self.new_password(new).await?;
        self.retried("change_own_password", || async {
            let mut tx = self.begin().await?;
            let row = locked(&mut tx, who).await?;
            // Many at once are no more tries than one after the other.
            if is_locked(&row, now)? {
                return Err(OwnError::Refused);
            }
            let right = self.is_password(&row, (&salt, &shown))?;
            if !right {
                failed(&mut tx, &row, "the password was wrong", caller, policy, now).await?;
                tx.commit().await?;
                return Err(OwnError::Refused);
            }
            if same {
                return Err(OwnError::Same);
            }
            let sealed = self.sealer().seal_bytes(Place::Password, who.admin.0.as_bytes(), &hashed.hash);
            query(
                "UPDATE admins SET password_hash = $2, password_salt = $3, last_password_change = $4, \
                 require_password_change = FALSE, password_expiry = NULL, failed_login_attempts = 0, password_key = $5 \
                 WHERE admin_id = $1",
            )
            .bind(who.admin.to_string())
            .bind(sealed.bytes)
            .bind(&hashed.salt[..])
            .bind(millis(now))
            .bind(sealed.key)
            .execute(&mut *tx)
            .await?;
            let record = Record::new("change_password", TARGET, who.admin, &who.username);
            audit::write(&mut tx, &Actor::account(&who.username, caller), now, &[record]).await?;
            let again = begin_anew(&mut tx, &self.sealer(), who, (caller, policy), now).await?;
            tx.commit().await?;
            Ok(again)
        })
        .await
    }

    /// Begins to set up one-time codes: the secret counts once a code of it is shown.
    pub async fn begin_totp(&self, who: &SignedIn) -> Result<Secret, OwnError> {
        let secret = Secret::new(random());
        self.retried("begin_totp", || async {
            let mut tx = self.begin().await?;
            let row = locked(&mut tx, who).await?;
            if row.maybe_int("mfa_confirmed")?.is_some() {
                return Err(OwnError::AlreadyEnrolled);
            }
            let sealed = self.sealer().seal(Place::Totp, who.admin.0.as_bytes(), &secret);
            query("UPDATE admins SET mfa_secret = $2, mfa_key = $3, mfa_last_step = 0 WHERE admin_id = $1")
                .bind(who.admin.to_string())
                .bind(sealed.bytes)
                .bind(sealed.key)
                .execute(&mut *tx)
                .await?;
            Ok(tx.commit().await?)
        })
        .await?;
        Ok(secret)
    }

    /// Sets up one-time codes, once a code shows that the authenticator has the secret. `recovery` are the digests of the
    /// codes that replace it once each.
    pub async fn confirm_totp(
        &self,
        who: &SignedIn,
        code: &Zeroizing<String>,
        recovery: &RecoveryDigests,
        (caller, policy): (&Caller, &AccountPolicy),
        now: Timestamp,
    ) -> Result<(Begun, Vec<AdminSessionId>), OwnError> {
        self.retried("confirm_totp", || async {
            let mut tx = self.begin().await?;
            let row = locked(&mut tx, who).await?;
            if row.maybe_int("mfa_confirmed")?.is_some() {
                return Err(OwnError::AlreadyEnrolled);
            }
            let sealed = row.maybe_bytes("mfa_secret")?.ok_or(OwnError::NotBegun)?;
            let secret =
                self.sealer().open(Place::Totp, who.admin.0.as_bytes(), &sealed).map_err(StoreError::from)?;
            let Verdict::Right(step) = totp::check(&secret, code, row.int("mfa_last_step")?, now) else {
                failed(&mut tx, &row, "the one-time code was wrong", caller, policy, now).await?;
                tx.commit().await?;
                return Err(OwnError::Refused);
            };
            query("UPDATE admins SET mfa_confirmed = $2, mfa_last_step = $3 WHERE admin_id = $1")
                .bind(who.admin.to_string())
                .bind(millis(now))
                .bind(step)
                .execute(&mut *tx)
                .await?;
            query("DELETE FROM admin_recovery_codes WHERE admin_id = $1")
                .bind(who.admin.to_string())
                .execute(&mut *tx)
                .await?;
            for digest in recovery {
                let sealed = self.sealer().seal_bytes(Place::RecoveryCode, who.admin.0.as_bytes(), digest);
                query("INSERT INTO admin_recovery_codes (admin_id, code_hash, code_key) VALUES ($1, $2, $3)")
                    .bind(who.admin.to_string())
                    .bind(sealed.bytes)
                    .bind(sealed.key)
                    .execute(&mut *tx)
                    .await?;
            }
            let record = Record::new("enrol_totp", TARGET, who.admin, &who.username);
            audit::write(&mut tx, &Actor::account(&who.username, caller), now, &[record]).await?;
            let again = begin_anew(&mut tx, &self.sealer(), who, (caller, policy), now).await?;
            tx.commit().await?;
            Ok(again)
        })
        .await
    }

    /// How many recovery codes an account has left.
    pub async fn recovery_codes_left(&self, admin: AdminId) -> Result<u64, StoreError> {
        let row =
            query("SELECT COUNT(*) AS n FROM admin_recovery_codes WHERE admin_id = $1 AND used_date IS NULL")
                .bind(admin.to_string())
                .fetch_one(self.readers())
                .await?;
        row.count("n")
    }
}

/// Whether too many failures keep an account locked, whoever asks.
fn is_locked(row: &Row, now: Timestamp) -> Result<bool, StoreError> {
    Ok(row.maybe_time("lockout_until")?.is_some_and(|until| until > now))
}

/// The account of who is signed in, whose session must still go on.
async fn locked(db: &mut Connection, who: &SignedIn) -> Result<Row, OwnError> {
    let row = query("SELECT * FROM admins WHERE admin_id = $1 {lock}").bind(who.admin.to_string());
    let row = row.fetch_optional(&mut *db).await?.ok_or(OwnError::Ended)?;
    let session = query("SELECT session_id FROM admin_sessions WHERE session_id = $1 AND active")
        .bind(who.session.to_string())
        .fetch_optional(&mut *db)
        .await?;
    session.map(|_| row).ok_or(OwnError::Ended)
}

/// Another session in the place of all that there are: what was known of the one before is worth nothing any more.
async fn begin_anew(
    db: &mut Connection,
    sealer: &Sealer,
    who: &SignedIn,
    (caller, policy): (&Caller, &AccountPolicy),
    now: Timestamp,
) -> Result<(Begun, Vec<AdminSessionId>), StoreError> {
    let ended = admin_session::end_all(db, who.admin, None, LogoutReason::SecurityPolicy, now).await?;
    let row = query("SELECT * FROM admins WHERE admin_id = $1")
        .bind(who.admin.to_string())
        .fetch_one(&mut *db)
        .await?;
    Ok((admin_session::begin(db, sealer, &row, caller, policy, now).await?, ended))
}

/// Counts a failure to sign in, in the caller's transaction; one too many locks the account.
async fn failed(
    db: &mut Connection,
    row: &Row,
    why: &'static str,
    caller: &Caller,
    policy: &AccountPolicy,
    now: Timestamp,
) -> Result<(), StoreError> {
    let admin: AdminId = row.parsed("admin_id")?;
    let count = |column| Ok::<_, StoreError>(u32::try_from(row.count(column)?).unwrap_or(u32::MAX));
    let (failures, lockouts) = (count("failed_login_attempts")?.saturating_add(1), count("lockouts")?);
    let may_lock = matches!(row.text("status")?.as_str(), "active" | "locked");
    let locked = after_failure(policy, failures, lockouts).filter(|_| may_lock);
    match locked {
        Some(length) => query(
            "UPDATE admins SET failed_login_attempts = 0, lockouts = lockouts + 1, lockout_until = $2, \
                 status = 'locked' WHERE admin_id = $1",
        )
        .bind(admin.to_string())
        .bind(millis(now.checked_add(length).unwrap_or(Timestamp::MAX))),
        None => query("UPDATE admins SET failed_login_attempts = $2 WHERE admin_id = $1")
            .bind(admin.to_string())
            .bind(failures),
    }
    .execute(&mut *db)
    .await?;
    let (kind, severity) = match locked {
        Some(_) => ("admin_locked_out", Severity::High),
        None => ("admin_login_failed", Severity::Low),
    };
    let name = row.text("username")?;
    let event = NewEvent {
        kind,
        severity,
        source: Source::System,
        address: Some(caller.address),
        description: format!("somebody failed to sign in as the administrator '{name}': {why}"),
        data: serde_json::json!({ "username": name, "failures": failures, "agent": caller.agent }),
    };
    event::write(db, &event, now).await
}
