//! Sessions: asked for, active, ended. The database itself sees to it that a user has one access session at most.

use std::net::IpAddr;

use horizon_controller_core::{Denial, DeviceStanding, Grant, ServerStanding};
use horizon_model::{DeviceId, NetworkId, Secret, ServerId, SessionConflict, SessionId};
use jiff::Timestamp;
use serde_json::json;
use thiserror::Error;
use uuid::Uuid;

use super::{
    DeviceRecord, NewEvent, SessionRow, Severity, Source, Store, StoreError, address, changed,
    device::{called, key_standing, own_standing, person, standing},
    dialect::{Connection, query},
    event, facts,
    row::{Columns as _, millis},
    seal::{Place, random},
};

/// Where a session is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionStatus {
    /// It was granted; its appliance has not taken it in yet.
    Requested,
    /// Its appliance admits it.
    Active,
    /// It was ended.
    Terminated,
    /// Its appliance did not take it in.
    Failed,
    /// Nobody used it for too long.
    Timeout,
    /// It was ended without the word of its appliance, which could not be reached.
    Interrupted,
}

impl SessionStatus {
    /// The name the database uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Active => "active",
            Self::Terminated => "terminated",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Who ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the words say it all")]
pub enum EndedBy {
    Client,
    Server,
    Broker,
    Admin,
}

impl EndedBy {
    fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Broker => "broker",
            Self::Admin => "admin",
        }
    }
}

/// How and why a session ends.
#[derive(Clone, Debug)]
pub struct EndReason {
    /// The status it has from then on: one that is not live.
    pub status: SessionStatus,
    /// Who ends it.
    pub by: EndedBy,
    /// Why, as a sentence for its user.
    pub reason: String,
}

impl EndReason {
    /// A session that the controller ends.
    pub fn broker(reason: impl Into<String>) -> Self {
        Self { status: SessionStatus::Terminated, by: EndedBy::Broker, reason: reason.into() }
    }
}

/// A session that was ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub session: SessionId,
    /// Its server.
    pub server: ServerId,
    /// Its device.
    pub device: DeviceId,
    /// Why.
    pub reason: String,
}

/// A session that is asked for.
#[derive(Clone, Debug)]
pub struct NewSession<'a> {
    /// By which device.
    pub device: &'a DeviceRecord,
    /// On which server, and with what.
    pub grant: &'a Grant,
    /// Where the device is seen.
    pub client: IpAddr,
}

/// What became of a request.
#[derive(Debug)]
pub enum SessionOutcome {
    /// It is granted, once its appliance has taken it in.
    Requested {
        /// The session.
        session: Box<SessionRow>,
        /// The session of the same device that it replaces.
        replaced: Option<Ended>,
    },
    /// Another device of the user has a live session.
    Conflict {
        /// What its user is asked about.
        conflict: SessionConflict,
        /// The server it is on.
        server: ServerId,
    },
    /// A session of another device of the user has ended, and its appliance has not confirmed yet that it admits it no more.
    Unreleased {
        /// That session, as a conflict would name it.
        conflict: SessionConflict,
        /// The server it was on.
        server: ServerId,
    },
}

/// Why no session was granted.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The device may not, since just now.
    #[error("the device may no longer connect")]
    Device(DeviceStanding),
    /// The user may not, since just now.
    #[error(transparent)]
    User(Denial),
    /// The server may not, since just now.
    #[error("the server takes no new sessions")]
    Server(ServerStanding),
    /// The server carries as many sessions as it may.
    #[error("the server carries {0} sessions, which is its limit")]
    Full(u16),
    /// A network has no address left.
    #[error("no address is left in {0}")]
    NoAddress(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for SessionError {
    fn from(e: sqlx::Error) -> Self {
        Self::Store(e.into())
    }
}

impl Store {
    /// Records a session that policy allows, in one transaction that looks again at everything that may have been revoked
    /// since: its addresses, its secret and the user's one lease. A live session of the same device is replaced.
    pub async fn request_session(
        &self,
        request: &NewSession<'_>,
        now: Timestamp,
    ) -> Result<SessionOutcome, SessionError> {
        let _timed = self.timed("request_session");
        self.retried("request_session", || self.request_once(request, now)).await
    }

    async fn request_once(
        &self,
        request: &NewSession<'_>,
        now: Timestamp,
    ) -> Result<SessionOutcome, SessionError> {
        let (device, server) = (request.device, request.grant.server);
        let mut tx = self.begin().await?;
        // Of several requests for one user, one comes first and the others see it.
        tx.serialise(&format!("sessions of {}", device.user)).await?;
        recheck(&mut tx, device, server, now).await?;
        let mut replaced = None;
        if let Some(live) = live_of_user(&mut tx, device.user).await? {
            if live.device == device.id {
                let reason = EndReason {
                    status: SessionStatus::Terminated,
                    by: EndedBy::Client,
                    reason: "the device connected again".into(),
                };
                replaced = end(&mut tx, live.conflict.session, &reason, now).await?;
            } else {
                return Ok(SessionOutcome::Conflict { conflict: live.conflict, server: live.server });
            }
        }
        if let Some((conflict, server)) = unreleased(&mut tx, device).await? {
            return Ok(SessionOutcome::Unreleased { conflict, server });
        }
        let sessions = query(
            "SELECT COUNT(*) AS n FROM connections WHERE server_id = $1 AND status IN ('requested', 'active')",
        )
        .bind(server.to_string())
        .fetch_one(&mut *tx)
        .await?
        .count("n")?;
        if sessions >= u64::from(request.grant.max_sessions) {
            return Err(SessionError::Full(request.grant.max_sessions));
        }
        let mut addresses: Vec<(NetworkId, Vec<IpAddr>)> = Vec::new();
        for network in &request.grant.networks {
            let held = address::lease(&mut tx, server, network, device.id, now).await?;
            let held = held.ok_or_else(|| SessionError::NoAddress(network_name(&network.name)))?;
            addresses.push((network.id, held));
        }
        let (id, secret) = (SessionId(Uuid::now_v7()), Secret::new(random()));
        let access = addresses.iter().any(|(network, _)| *network == NetworkId::ACCESS);
        let kind = match (access, addresses.len() > usize::from(access)) {
            (true, true) => "both",
            (true, false) => "vpn",
            (false, _) => "lan_emulation",
        };
        let sealed = self.sealer().seal(Place::Session, id.as_bytes(), &secret);
        query(
            "INSERT INTO connections (connection_id, kind, server_id, device_id, key_id, user_uid, status, \
             connection_type, connection_start, client_ip, allocated_resources, secret, secret_key) \
             VALUES ($1, 'access', $2, $3, $4, $5, 'requested', $6, $7, $8, $9, $10, $11)",
        )
        .bind(id.to_string())
        .bind(server.to_string())
        .bind(device.id.to_string())
        .bind(device.key.to_string())
        .bind(device.user.to_string())
        .bind(kind)
        .bind(millis(now))
        .bind(request.client.to_string())
        .bind(json!(addresses).to_string())
        .bind(sealed.bytes)
        .bind(sealed.key)
        .execute(&mut *tx)
        .await?;
        changed::touch(&mut tx, &server.to_string()).await?;
        tx.commit().await?;
        let session = Box::new(SessionRow {
            id,
            server,
            device: device.id,
            device_key: device.public_key,
            device_name: device.name.clone(),
            user: device.user,
            status: SessionStatus::Requested,
            own_standing: device.own_standing,
            traits: device.traits.clone(),
            key_standing: device.key_standing,
            client: request.client,
            addresses,
            secret,
            started: now,
            activated: None,
            connected: false,
            last_connected: None,
        });
        Ok(SessionOutcome::Requested { session, replaced })
    }

    /// Ends a session if it is live. Of several that try, one gets the answer that it did.
    pub async fn end_session(
        &self,
        session: SessionId,
        reason: &EndReason,
        now: Timestamp,
    ) -> Result<Option<Ended>, StoreError> {
        let _timed = self.timed("end_session");
        let ended = self
            .retried("end_session", || async {
                let mut tx = self.begin().await?;
                let ended = end(&mut tx, session, reason, now).await?;
                tx.commit().await?;
                Ok::<_, StoreError>(ended)
            })
            .await?;
        if ended.is_some() {
            self.inner.metrics.session_ended(reason.status.as_str());
        }
        Ok(ended)
    }
}

impl Store {
    /// Ends a session without the word of its appliance, which may still admit it, and records that as an event. The same of
    /// one that has ended and was not released. Whether it changed anything.
    pub async fn end_unconfirmed(
        &self,
        session: SessionId,
        reason: &str,
        now: Timestamp,
    ) -> Result<Option<Ended>, StoreError> {
        let _timed = self.timed("end_unconfirmed");
        let ended = self
            .retried("end_unconfirmed", || async {
                let mut tx = self.begin().await?;
                let row = query(
                    "UPDATE connections SET status = 'interrupted', connection_end = COALESCE(connection_end, $1), \
                     termination_reason = $2, initiated_by = COALESCE(initiated_by, 'client'), connected = FALSE \
                     WHERE connection_id = $3 AND released_date IS NULL AND status <> 'interrupted' \
                     RETURNING server_id, device_id",
                )
                .bind(millis(now))
                .bind(reason)
                .bind(session.to_string())
                .fetch_optional(&mut *tx)
                .await?;
                let Some(row) = row else { return Ok::<_, StoreError>(None) };
                let server: ServerId = row.parsed("server_id")?;
                changed::touch(&mut tx, &server.to_string()).await?;
                let event = NewEvent {
                    kind: "unconfirmed_takeover",
                    severity: Severity::Medium,
                    source: Source::Session(session),
                    address: None,
                    description: format!("session {session} ended without the word of its appliance: {reason}"),
                    data: serde_json::json!({ "server": server.to_string() }),
                };
                event::write(&mut tx, &event, now).await?;
                tx.commit().await?;
                Ok(Some(Ended { session, server, device: row.parsed("device_id")?, reason: reason.to_owned() }))
            })
            .await?;
        if ended.is_some() {
            self.inner.metrics.security_event("unconfirmed_takeover");
            self.inner.metrics.session_ended(SessionStatus::Interrupted.as_str());
        }
        Ok(ended)
    }
}

/// The newest session of another device of the user that has ended and that its appliance may still admit.
async fn unreleased(
    db: &mut Connection,
    device: &DeviceRecord,
) -> Result<Option<(SessionConflict, ServerId)>, StoreError> {
    let row = query(
        "SELECT c.connection_id, c.connection_start, c.server_id, d.device_name, d.given_name, s.name FROM connections c \
         JOIN devices d ON d.device_id = c.device_id JOIN servers s ON s.server_id = c.server_id \
         WHERE c.user_uid = $1 AND c.device_id <> $2 AND c.kind = 'access' AND c.released_date IS NULL \
         AND c.status NOT IN ('requested', 'active', 'interrupted') ORDER BY c.connection_id DESC LIMIT 1",
    )
    .bind(device.user.to_string())
    .bind(device.id.to_string())
    .fetch_optional(&mut *db)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let conflict = SessionConflict {
        session: row.parsed("connection_id")?,
        device_name: called(&row)?,
        server_name: row.text("name")?,
        since: row.time("connection_start")?,
    };
    Ok(Some((conflict, row.parsed("server_id")?)))
}

fn network_name(name: &str) -> String {
    if name.is_empty() { "the access network".into() } else { format!("the network '{name}'") }
}

struct Live {
    conflict: SessionConflict,
    server: ServerId,
    device: DeviceId,
}

async fn live_of_user(db: &mut Connection, user: Uuid) -> Result<Option<Live>, StoreError> {
    let row = query(
        "SELECT c.connection_id, c.connection_start, c.device_id, c.server_id, d.device_name, d.given_name, s.name FROM connections c \
         JOIN devices d ON d.device_id = c.device_id JOIN servers s ON s.server_id = c.server_id \
         WHERE c.user_uid = $1 AND c.kind = 'access' AND c.status IN ('requested', 'active')",
    )
    .bind(user.to_string())
    .fetch_optional(&mut *db)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Live {
        conflict: SessionConflict {
            session: row.parsed("connection_id")?,
            device_name: called(&row)?,
            server_name: row.text("name")?,
            since: row.time("connection_start")?,
        },
        server: row.parsed("server_id")?,
        device: row.parsed("device_id")?,
    }))
}

/// Looks again, inside the transaction, at what may have been revoked since policy was asked.
async fn recheck(
    db: &mut Connection,
    device: &DeviceRecord,
    server: ServerId,
    now: Timestamp,
) -> Result<(), SessionError> {
    // What a replica knows of the user may be older than the database.
    match person(db, device.user).await? {
        Some(person) if person.suspended => {
            let reason = person.suspension_reason.to_string();
            return Err(SessionError::User(Denial::Suspended { user: device.user_name.clone(), reason }));
        }
        Some(_) => {}
        None => return Err(SessionError::User(Denial::UserGone)),
    }
    let row = query(
        "SELECT d.status, d.revoked_date, d.replaced_date, k.deactivation_date, k.expiration_date FROM devices d \
         JOIN personal_keys k ON k.key_id = d.key_id WHERE d.device_id = $1 {share}",
    )
    .bind(device.id.to_string())
    .fetch_optional(&mut *db)
    .await?
    .ok_or(SessionError::Device(DeviceStanding::Revoked))?;
    match standing(own_standing(&row)?, key_standing(&row)?, now) {
        DeviceStanding::Good if row.text("status")? == "suspicious" && !device.traits.suspicious => {
            return Err(SessionError::Device(DeviceStanding::Suspicious));
        }
        DeviceStanding::Good => {}
        other => return Err(SessionError::Device(other)),
    }
    match facts::standing_of(db, server).await? {
        Some(ServerStanding::Good) => Ok(()),
        other => Err(SessionError::Server(other.unwrap_or(ServerStanding::Unregistered))),
    }
}

/// The session's appliance admits it. Whether it was only requested before.
pub(super) async fn activate(
    db: &mut Connection,
    session: SessionId,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let done = query(
        "UPDATE connections SET status = 'active', activated_date = $1 \
         WHERE connection_id = $2 AND status = 'requested'",
    )
    .bind(millis(now))
    .bind(session.to_string())
    .execute(&mut *db)
    .await?;
    Ok(done.rows_affected() > 0)
}

pub(super) async fn end(
    db: &mut Connection,
    session: SessionId,
    reason: &EndReason,
    now: Timestamp,
) -> Result<Option<Ended>, StoreError> {
    let row = query(
        "UPDATE connections SET status = $1, connection_end = $2, termination_reason = $3, initiated_by = $4, \
         connected = FALSE WHERE connection_id = $5 AND status IN ('requested', 'active') \
         RETURNING server_id, device_id",
    )
    .bind(reason.status.as_str())
    .bind(millis(now))
    .bind(&reason.reason)
    .bind(reason.by.as_str())
    .bind(session.to_string())
    .fetch_optional(&mut *db)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let server: ServerId = row.parsed("server_id")?;
    changed::touch(db, &server.to_string()).await?;
    Ok(Some(Ended { session, server, device: row.parsed("device_id")?, reason: reason.reason.clone() }))
}
