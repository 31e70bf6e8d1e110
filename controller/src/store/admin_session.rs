//! Sessions of administrators: how long they last, what ends them, and the token that renews them.

use std::{collections::BTreeSet, fmt, net::IpAddr, str::FromStr};

use horizon_controller_core::account::{AccountPolicy, Permission};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Actor, AdminId, NewEvent, Severity, Source, Store, StoreError,
    admin::TARGET,
    admin_role,
    audit::{self, Record},
    dialect::{Connection, Row, query},
    event,
    row::{Columns as _, millis},
    seal::{Place, Sealer, random},
};
use crate::account::sha256;

/// How exactly it is known when a session was last used.
const ACTIVITY: SignedDuration = SignedDuration::from_secs(30);
/// The longest user agent that is kept, in characters.
const MAX_AGENT: usize = 200;

/// One session of an administrator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AdminSessionId(pub Uuid);

impl fmt::Display for AdminSessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for AdminSessionId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// Where somebody signs in from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The address.
    pub address: IpAddr,
    /// What the program calls itself.
    pub agent: String,
    /// The country of the address, if it is known.
    pub country: Option<String>,
}

impl Caller {
    /// A caller. What a user agent has that does not print, or is too much of it, is left out.
    pub fn new(address: IpAddr, agent: &str, country: Option<String>) -> Self {
        let agent = agent.chars().filter(|c| !c.is_control()).take(MAX_AGENT).collect();
        Self { address: address.to_canonical(), agent, country }
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogoutReason {
    /// Its owner ended it.
    UserInitiated,
    /// Its time was over.
    Expired,
    /// Another administrator ended it, or what it hung on changed.
    AdminTerminated,
    /// It was replaced by another, or its token was used twice.
    SecurityPolicy,
    /// Somebody else seems to use it.
    HijackingSuspected,
}

impl LogoutReason {
    fn as_str(self) -> &'static str {
        match self {
            Self::UserInitiated => "user_initiated",
            Self::Expired => "expired",
            Self::AdminTerminated => "admin_terminated",
            Self::SecurityPolicy => "security_policy",
            Self::HijackingSuspected => "session_hijacking_suspected",
        }
    }
}

/// A session as lists show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdminSessionView {
    /// The session.
    #[schema(value_type = String)]
    pub id: AdminSessionId,
    /// Whose.
    pub username: String,
    /// When it began.
    #[schema(value_type = String)]
    pub login_at: Timestamp,
    /// When it was last used, to half a minute.
    #[schema(value_type = String)]
    pub last_activity: Timestamp,
    /// When it ends in any case.
    #[schema(value_type = String)]
    pub expires_at: Timestamp,
    /// From where.
    pub address: String,
    /// With what program.
    pub agent: String,
    /// From which country, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub country: Option<String>,
}

/// What must be done before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Duty {
    /// The password is to be changed.
    ChangePassword,
    /// One-time codes are to be set up.
    EnrolTotp,
}

/// Who is signed in, as it is now.
#[derive(Clone, Debug)]
pub struct SignedIn {
    /// The session.
    pub session: AdminSessionId,
    /// The account.
    pub admin: AdminId,
    /// Its name.
    pub username: String,
    /// What it may do.
    pub permissions: BTreeSet<Permission>,
    /// What must be done first.
    pub duties: Vec<Duty>,
}

/// A session that was just begun, with what renews it.
#[derive(Clone, Debug)]
pub struct Begun {
    /// Who is signed in.
    pub who: SignedIn,
    /// The secret half of the token that renews it.
    pub secret: horizon_model::Secret,
    /// When the session ends in any case.
    pub expires: Timestamp,
}

/// A place in a list of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminSessionPlace {
    /// When the session began, in milliseconds since the Unix epoch.
    pub login: i64,
    /// The session.
    pub session: AdminSessionId,
}

impl fmt::Display for AdminSessionPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.login, self.session)
    }
}

impl std::str::FromStr for AdminSessionPlace {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let (login, session) = text.split_once(' ').ok_or(NoPlace)?;
        let session = AdminSessionId(session.parse().map_err(|_| NoPlace)?);
        Ok(Self { login: login.parse().map_err(|_| NoPlace)?, session })
    }
}

/// A text that is no place in a list of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("this is no place in a list of sessions")]
pub struct NoPlace;

/// Why somebody is not signed in.
#[derive(Debug, Error)]
pub enum SessionRefused {
    /// There is no such session, or it has ended.
    #[error("the session has ended: sign in again")]
    Ended,
    /// The token that is to renew it is none of its, or there never was such a session. It looks like a session that has ended.
    #[error("the session has ended: sign in again")]
    Wrong,
    /// Somebody else seems to use it.
    #[error("the session is used from elsewhere: sign in again")]
    Suspicious,
    /// The account may not sign in any more.
    #[error("the account is suspended")]
    Suspended,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for SessionRefused {
    fn from(e: sqlx::Error) -> Self {
        Self::Store(e.into())
    }
}

fn later(now: Timestamp, by: std::time::Duration) -> Timestamp {
    now.checked_add(by).unwrap_or(Timestamp::MAX)
}

const FIND: &str = "SELECT s.*, a.username, a.status, a.require_password_change, a.mfa_enabled, a.mfa_confirmed \
     FROM admin_sessions s JOIN admins a ON a.admin_id = s.admin_id WHERE s.session_id = $1";

impl Store {
    /// Who is signed in by a session, asked of the database each time: what was ended anywhere is dead everywhere. A session
    /// that comes from another country, or another program, ends.
    pub async fn signed_in(
        &self,
        session: AdminSessionId,
        caller: &Caller,
        policy: &AccountPolicy,
        now: Timestamp,
    ) -> Result<SignedIn, SessionRefused> {
        let mut tx = self.readers().snapshot().await?;
        let row = query(FIND).bind(session.to_string()).fetch_optional(&mut *tx).await?;
        let row = row.ok_or(SessionRefused::Ended)?;
        let who = standing(&mut tx, &row, policy, now).await?;
        drop(tx);
        if suspicious(&row, caller)? {
            self.end_suspicious(&who, caller, now).await?;
            return Err(SessionRefused::Suspicious);
        }
        if row.time("last_activity")? < now.checked_sub(ACTIVITY).unwrap_or(now) {
            self.repeatable("touch_admin_session", || async {
                let mut tx = self.begin().await?;
                query("UPDATE admin_sessions SET last_activity = $2 WHERE session_id = $1 AND active")
                    .bind(session.to_string())
                    .bind(millis(now))
                    .execute(&mut *tx)
                    .await?;
                tx.commit().await
            })
            .await?;
        }
        Ok(who)
    }

    async fn end_suspicious(
        &self,
        who: &SignedIn,
        caller: &Caller,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let event = NewEvent {
            kind: "admin_session_hijacking_suspected",
            severity: Severity::High,
            source: Source::System,
            address: Some(caller.address),
            description: format!(
                "a session of the administrator '{}' was used from another country or program and was ended",
                who.username
            ),
            data: serde_json::json!({ "session": who.session, "agent": caller.agent, "country": caller.country }),
        };
        self.retried("end_admin_session", || async {
            let mut tx = self.begin().await?;
            if end(&mut tx, who.session, LogoutReason::HijackingSuspected, now).await? {
                event::write(&mut tx, &event, now).await?;
            }
            tx.commit().await
        })
        .await?;
        self.inner.metrics.security_event(event.kind);
        Ok(())
    }

    /// Renews a session: another token takes the place of the one that is shown. One that was replaced before is in two
    /// hands, so the session ends.
    pub async fn renew_admin_session(
        &self,
        session: AdminSessionId,
        secret: &horizon_model::Secret,
        caller: &Caller,
        policy: &AccountPolicy,
        now: Timestamp,
    ) -> Result<Begun, SessionRefused> {
        self.retried("renew_admin_session", || self.renew_once(session, secret, caller, policy, now)).await
    }

    async fn renew_once(
        &self,
        session: AdminSessionId,
        secret: &horizon_model::Secret,
        caller: &Caller,
        policy: &AccountPolicy,
        now: Timestamp,
    ) -> Result<Begun, SessionRefused> {
        let mut tx = self.begin().await?;
        let lock = query("SELECT session_id FROM admin_sessions WHERE session_id = $1 {lock}");
        lock.bind(session.to_string()).fetch_optional(&mut *tx).await?.ok_or(SessionRefused::Wrong)?;
        let row = query(FIND).bind(session.to_string()).fetch_one(&mut *tx).await?;
        let (shown, sealer, owner) = (sha256(secret.expose()), self.sealer(), session.0);
        let is = |known: Option<Vec<u8>>, place| {
            let is = |known: Vec<u8>| sealer.is_digest(place, owner.as_bytes(), &known, &shown);
            Ok::<_, StoreError>(known.map(is).transpose()?.unwrap_or(false))
        };
        if is(row.maybe_bytes("previous_token")?, Place::PreviousToken)? && row.flag("active")? {
            end(&mut tx, session, LogoutReason::SecurityPolicy, now).await?;
            let event = NewEvent {
                kind: "admin_token_reused",
                severity: Severity::High,
                source: Source::System,
                address: Some(caller.address),
                description: format!(
                    "a refresh token of the administrator '{}' was used twice: the session was ended",
                    row.text("username")?
                ),
                data: serde_json::json!({ "session": session }),
            };
            event::write(&mut tx, &event, now).await?;
            tx.commit().await?;
            self.inner.metrics.security_event(event.kind);
            return Err(SessionRefused::Ended);
        }
        if !is(row.maybe_bytes("session_token")?, Place::SessionToken)? {
            return Err(SessionRefused::Wrong);
        }
        let who = standing(&mut tx, &row, policy, now).await?;
        if suspicious(&row, caller)? {
            drop(tx);
            self.end_suspicious(&who, caller, now).await?;
            return Err(SessionRefused::Suspicious);
        }
        let secret = horizon_model::Secret::new(random());
        // Each column is a place of its own: what moves from one to the other is sealed anew.
        let before = sealer.seal_bytes(Place::PreviousToken, owner.as_bytes(), &shown);
        let sealed = sealer.seal_bytes(Place::SessionToken, owner.as_bytes(), &sha256(secret.expose()));
        query(
            "UPDATE admin_sessions SET previous_token = $4, previous_token_key = $5, session_token = $2, session_token_key = $6, \
             last_activity = $3 WHERE session_id = $1",
        )
        .bind(session.to_string())
        .bind(sealed.bytes)
        .bind(millis(now))
        .bind(before.bytes)
        .bind(before.key)
        .bind(sealed.key)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Begun { who, secret, expires: row.time("expiry_time")? })
    }

    /// Ends a session. Of several that try, one gets the answer that it did. `owner` is whose it must be.
    pub async fn end_admin_session(
        &self,
        session: AdminSessionId,
        owner: Option<AdminId>,
        reason: LogoutReason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.retried("end_admin_session", || async {
            let mut tx = self.begin().await?;
            let row = query(FIND).bind(session.to_string()).fetch_optional(&mut *tx).await?;
            let Some(row) = row else { return Ok(false) };
            let of: AdminId = row.parsed("admin_id")?;
            if owner.is_some_and(|owner| owner != of) || !end(&mut tx, session, reason, now).await? {
                return Ok(false);
            }
            let record = Record::new("sign_out", TARGET, of, row.text("username")?)
                .notes(format!("session {session}: {}", reason.as_str()));
            audit::write(&mut tx, actor, now, &[record]).await?;
            tx.commit().await?;
            Ok(true)
        })
        .await
    }

    /// The sessions that go on, of one account or of all, the newest first; those after a place in that order.
    pub async fn list_admin_sessions(
        &self,
        of: Option<AdminId>,
        after: Option<AdminSessionPlace>,
        policy: &AccountPolicy,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<AdminSessionView>, StoreError> {
        let before = |by| now.checked_sub(by).unwrap_or(Timestamp::MIN);
        let rows = query(
            "SELECT s.*, a.username FROM admin_sessions s JOIN admins a ON a.admin_id = s.admin_id \
             WHERE s.active AND s.expiry_time > $1 AND s.last_activity > $2 AND s.login_time > $3 \
             AND ($4 IS NULL OR s.admin_id = $4) \
             AND ($5 IS NULL OR s.login_time < $5 OR (s.login_time = $5 AND s.session_id > $6)) \
             ORDER BY s.login_time DESC, s.session_id LIMIT $7",
        )
        .bind(millis(now))
        .bind(millis(before(policy.idle)))
        .bind(millis(before(policy.absolute)))
        .bind(of.map(|id| id.to_string()))
        .bind(after.map(|place| place.login))
        .bind(after.map(|place| place.session.to_string()))
        .bind(limit)
        .fetch_all(self.readers())
        .await?;
        rows.iter().map(view).collect()
    }
}

fn view(row: &Row) -> Result<AdminSessionView, StoreError> {
    Ok(AdminSessionView {
        id: row.parsed("session_id")?,
        username: row.text("username")?,
        login_at: row.time("login_time")?,
        last_activity: row.time("last_activity")?,
        expires_at: row.time("expiry_time")?,
        address: row.text("ip_address")?,
        agent: row.text("user_agent")?,
        country: row.maybe_text("country")?,
    })
}

/// Whether a session seems to be in other hands than those that began it.
fn suspicious(row: &Row, caller: &Caller) -> Result<bool, StoreError> {
    let country = row.maybe_text("country")?;
    let moved = country.zip(caller.country.as_ref()).is_some_and(|(then, now)| then != *now);
    Ok(moved || row.text("user_agent")? != caller.agent)
}

async fn standing(
    db: &mut Connection,
    row: &Row,
    policy: &AccountPolicy,
    now: Timestamp,
) -> Result<SignedIn, SessionRefused> {
    // A policy that became shorter holds for what was begun under a longer one.
    let idle = later(row.time("last_activity")?, policy.idle) <= now;
    let over = row.time("expiry_time")?.min(later(row.time("login_time")?, policy.absolute)) <= now;
    if !row.flag("active")? || over || idle {
        return Err(SessionRefused::Ended);
    }
    // Who is locked out may not sign in anew; what is signed in is theirs.
    if !matches!(row.text("status")?.as_str(), "active" | "locked") {
        return Err(SessionRefused::Suspended);
    }
    let admin: AdminId = row.parsed("admin_id")?;
    Ok(SignedIn {
        session: row.parsed("session_id")?,
        admin,
        username: row.text("username")?,
        permissions: admin_role::permissions_of(db, admin).await?,
        duties: duties(row, policy)?,
    })
}

/// What the owner of an account must do first.
pub(super) fn duties(row: &Row, policy: &AccountPolicy) -> Result<Vec<Duty>, StoreError> {
    let mut duties = Vec::new();
    if row.flag("require_password_change")? {
        duties.push(Duty::ChangePassword);
    }
    if policy.require_totp && row.flag("mfa_enabled")? && row.maybe_int("mfa_confirmed")?.is_none() {
        duties.push(Duty::EnrolTotp);
    }
    Ok(duties)
}

/// Begins a session, in the caller's transaction. `row` is the account.
pub(super) async fn begin(
    db: &mut Connection,
    sealer: &Sealer,
    row: &Row,
    caller: &Caller,
    policy: &AccountPolicy,
    now: Timestamp,
) -> Result<Begun, StoreError> {
    let admin: AdminId = row.parsed("admin_id")?;
    let (session, secret) = (AdminSessionId(Uuid::new_v4()), horizon_model::Secret::new(random()));
    let expires = later(now, policy.absolute);
    let open = query(
        "SELECT session_id FROM admin_sessions WHERE admin_id = $1 AND active ORDER BY last_activity DESC",
    )
    .bind(admin.to_string())
    .fetch_all(&mut *db)
    .await?;
    for old in open.iter().skip(policy.sessions.saturating_sub(1)) {
        end(db, old.parsed("session_id")?, LogoutReason::SecurityPolicy, now).await?;
    }
    let sealed = sealer.seal_bytes(Place::SessionToken, session.0.as_bytes(), &sha256(secret.expose()));
    query(
        "INSERT INTO admin_sessions (session_id, admin_id, login_time, expiry_time, last_activity, ip_address, \
         user_agent, country, session_token, session_token_key) VALUES ($1, $2, $3, $4, $3, $5, $6, $7, $8, $9)",
    )
    .bind(session.to_string())
    .bind(admin.to_string())
    .bind(millis(now))
    .bind(millis(expires))
    .bind(caller.address.to_string())
    .bind(&caller.agent)
    .bind(&caller.country)
    .bind(sealed.bytes)
    .bind(sealed.key)
    .execute(&mut *db)
    .await?;
    let who = SignedIn {
        session,
        admin,
        username: row.text("username")?,
        permissions: admin_role::permissions_of(db, admin).await?,
        duties: duties(row, policy)?,
    };
    Ok(Begun { who, secret, expires })
}

/// Ends a session, in the caller's transaction. Says whether it did.
pub(super) async fn end(
    db: &mut Connection,
    session: AdminSessionId,
    reason: LogoutReason,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let done = query(
        "UPDATE admin_sessions SET active = FALSE, logout_time = $2, logout_reason = $3 WHERE session_id = $1 AND active",
    )
    .bind(session.to_string())
    .bind(millis(now))
    .bind(reason.as_str())
    .execute(&mut *db)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Ends every session of an account but one, in the caller's transaction. Returns those that ended.
pub(super) async fn end_all(
    db: &mut Connection,
    admin: AdminId,
    but: Option<AdminSessionId>,
    reason: LogoutReason,
    now: Timestamp,
) -> Result<Vec<AdminSessionId>, StoreError> {
    let rows = query("SELECT session_id FROM admin_sessions WHERE admin_id = $1 AND active {lock}")
        .bind(admin.to_string())
        .fetch_all(&mut *db)
        .await?;
    let mut ended = Vec::new();
    for row in rows {
        let session: AdminSessionId = row.parsed("session_id")?;
        if Some(session) != but && end(db, session, reason, now).await? {
            ended.push(session);
        }
    }
    Ok(ended)
}

/// Ends sessions whose time is over and forgets those that ended long ago, in the caller's transaction.
pub(super) async fn forget_old(db: &mut Connection, now: Timestamp, keep: i64) -> Result<u64, StoreError> {
    query(
        "UPDATE admin_sessions SET active = FALSE, logout_time = $1, logout_reason = 'expired' \
         WHERE active AND expiry_time <= $1",
    )
    .bind(millis(now))
    .execute(&mut *db)
    .await?;
    let done =
        query("DELETE FROM admin_sessions WHERE logout_time < $1").bind(keep).execute(&mut *db).await?;
    Ok(done.rows_affected())
}
