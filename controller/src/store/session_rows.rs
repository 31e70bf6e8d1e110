//! Reading sessions, and what appliances report about them.

use std::{collections::BTreeSet, net::IpAddr};

use horizon_controller_core::{DeviceStanding, DeviceTraits, SessionFacts};
use horizon_model::{
    DeviceId, NetworkId, PublicKey, Secret, ServerId, SessionConflict, SessionId, SessionKind,
};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    KeyStanding, SessionStatus, Store, StoreError,
    device::{called, key_standing, standing},
    dialect::{Builder, Row, query},
    row::{Columns as _, millis},
    seal::Place,
};

/// A live session.
#[derive(Clone, Debug)]
pub struct SessionRow {
    /// Which.
    pub id: SessionId,
    /// Its server.
    pub server: ServerId,
    /// Its device.
    pub device: DeviceId,
    /// The device's key.
    pub device_key: PublicKey,
    /// The device's name.
    pub device_name: String,
    /// Its user.
    pub user: Uuid,
    /// Requested or active.
    pub status: SessionStatus,
    /// What speaks against its device itself.
    pub own_standing: DeviceStanding,
    /// What policies may ask of its device.
    pub traits: DeviceTraits,
    /// Where the personal key of its device stands.
    pub key_standing: KeyStanding,
    /// Where the device was seen that asked for it.
    pub client: IpAddr,
    /// The addresses it holds, network by network.
    pub addresses: Vec<(NetworkId, Vec<IpAddr>)>,
    /// Authenticates the first packet's connection id.
    pub secret: Secret,
    /// When it was asked for.
    pub started: Timestamp,
    /// When its appliance took it in.
    pub activated: Option<Timestamp>,
    /// Whether its appliance last reported a connection.
    pub connected: bool,
    /// When its appliance last reported one.
    pub last_connected: Option<Timestamp>,
}

impl SessionRow {
    /// What decisions need to know of it.
    pub fn facts(&self) -> SessionFacts {
        SessionFacts {
            id: self.id,
            kind: SessionKind::Access,
            peer_key: self.device_key,
            secret: self.secret.clone(),
            addresses: self.addresses.clone(),
        }
    }

    /// What speaks against its device at a time.
    pub fn standing(&self, now: Timestamp) -> DeviceStanding {
        standing(self.own_standing, self.key_standing, now)
    }
}

/// A session as lists show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionView {
    /// Which.
    #[schema(value_type = String)]
    pub id: SessionId,
    /// The user's namespace.
    pub namespace: String,
    /// Who.
    pub user: String,
    /// From which device.
    pub device: String,
    /// That device's id.
    #[schema(value_type = String)]
    pub device_id: DeviceId,
    /// On which server.
    pub server: String,
    /// Where the device was seen that asked for it, until that is forgotten.
    #[schema(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_address: Option<IpAddr>,
    /// `requested`, `active`, `terminated`, `failed`, `timeout` or `interrupted`.
    pub status: String,
    /// `vpn`, `lan_emulation` or `both`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The addresses it holds.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// When it was asked for.
    #[schema(value_type = String)]
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ended_at: Option<Timestamp>,
    /// Why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether a connection carries it, as last reported.
    pub connected: bool,
    /// Bytes toward the client.
    pub bytes_sent: u64,
    /// Bytes from the client.
    pub bytes_received: u64,
    /// The round-trip time in microseconds; 0 when unknown.
    pub rtt_micros: u64,
}

const LIVE: &str = "SELECT c.*, d.public_key, d.device_name, d.given_name, d.platform, d.revoked_date, d.replaced_date, \
     d.status AS device_status, k.deactivation_date, \
     k.expiration_date, s.name AS server_name FROM connections c JOIN devices d ON d.device_id = c.device_id \
     JOIN personal_keys k ON k.key_id = d.key_id JOIN servers s ON s.server_id = c.server_id WHERE c.status IN ('requested', 'active') ";

/// Sessions as lists show them.
pub(super) const VIEW: &str = "SELECT c.*, d.device_name, d.given_name, s.name AS server_name, k.namespace, k.user_name FROM connections c \
             JOIN devices d ON d.device_id = c.device_id JOIN servers s ON s.server_id = c.server_id \
             JOIN personal_keys k ON k.key_id = c.key_id ";

impl Store {
    /// The live sessions of a server, oldest first.
    pub async fn sessions_of_server(&self, server: ServerId) -> Result<Vec<SessionRow>, StoreError> {
        let mut query = Builder::new(LIVE);
        query.push("AND c.server_id = ").push_bind(server.to_string()).push(" ORDER BY c.connection_id");
        let rows = query.build().fetch_all(self.readers()).await?;
        rows.iter().map(|row| self.read_session(row)).collect()
    }

    /// A session, if it is live.
    pub async fn live_session(&self, session: SessionId) -> Result<Option<SessionRow>, StoreError> {
        let mut query = Builder::new(LIVE);
        query.push("AND c.connection_id = ").push_bind(session.to_string());
        let row = query.build().fetch_optional(self.readers()).await?;
        row.map(|row| self.read_session(&row)).transpose()
    }

    /// The live access session of a user, with what another device's user is asked about it.
    pub async fn session_of_user(
        &self,
        user: Uuid,
    ) -> Result<Option<(SessionConflict, SessionRow)>, StoreError> {
        let mut query = Builder::new(LIVE);
        query.push("AND c.kind = 'access' AND c.user_uid = ").push_bind(user.to_string());
        let Some(row) = query.build().fetch_optional(self.readers()).await? else { return Ok(None) };
        let session = self.read_session(&row)?;
        let conflict = SessionConflict {
            session: session.id,
            device_name: session.device_name.clone(),
            server_name: row.text("server_name")?,
            since: session.started,
        };
        Ok(Some((conflict, session)))
    }

    /// The servers that have live sessions of any of these users or devices.
    pub async fn servers_with_sessions(
        &self,
        users: &[Uuid],
        devices: &[DeviceId],
    ) -> Result<Vec<ServerId>, StoreError> {
        let mut servers = BTreeSet::new();
        for (column, id) in users
            .iter()
            .map(|id| ("user_uid", id.to_string()))
            .chain(devices.iter().map(|id| ("device_id", id.to_string())))
        {
            let mut query = Builder::new(
                "SELECT DISTINCT server_id FROM connections WHERE status IN ('requested', 'active') AND ",
            );
            query.push(column).push(" = ").push_bind(id);
            for row in &query.build().fetch_all(self.readers()).await? {
                servers.insert(row.parsed("server_id")?);
            }
        }
        Ok(servers.into_iter().collect())
    }

    /// Every server that has live sessions.
    pub async fn all_servers_with_sessions(&self) -> Result<Vec<ServerId>, StoreError> {
        let rows =
            query("SELECT DISTINCT server_id FROM connections WHERE status IN ('requested', 'active')")
                .fetch_all(self.readers())
                .await?;
        rows.iter().map(|row| row.parsed("server_id")).collect()
    }

    /// How many sessions are live.
    pub async fn count_sessions(&self) -> Result<u32, StoreError> {
        let row = query("SELECT COUNT(*) AS n FROM connections WHERE status IN ('requested', 'active')")
            .fetch_one(self.readers())
            .await?;
        Ok(u32::try_from(row.count("n")?).unwrap_or(u32::MAX))
    }

    /// Every live session with its user and its server.
    pub async fn live_sessions(&self) -> Result<Vec<(SessionId, Uuid, ServerId)>, StoreError> {
        let rows = query(
            "SELECT connection_id, user_uid, server_id FROM connections WHERE status IN ('requested', 'active')",
        )
        .fetch_all(self.readers())
        .await?;
        rows.iter()
            .map(|row| Ok((row.parsed("connection_id")?, row.parsed("user_uid")?, row.parsed("server_id")?)))
            .collect()
    }

    /// Why and when an ended session ended; `None` while it is live or unknown.
    pub async fn session_end(&self, session: SessionId) -> Result<Option<String>, StoreError> {
        let row = query(
            "SELECT termination_reason FROM connections WHERE connection_id = $1 AND connection_end IS NOT NULL",
        )
        .bind(session.to_string())
        .fetch_optional(self.readers())
        .await?;
        row.map(|row| Ok(row.maybe_text("termination_reason")?.unwrap_or_default())).transpose()
    }

    /// Live sessions that were asked for from a range of addresses.
    pub async fn sessions_from(&self, range: ipnet::IpNet) -> Result<Vec<SessionId>, StoreError> {
        let rows =
            query("SELECT connection_id, client_ip FROM connections WHERE status IN ('requested', 'active')")
                .fetch_all(self.readers())
                .await?;
        let mut found = Vec::new();
        for row in &rows {
            let address: std::net::IpAddr = row.parsed("client_ip")?;
            if range.contains(&address.to_canonical()) {
                found.push(row.parsed("connection_id")?);
            }
        }
        Ok(found)
    }

    /// Live sessions that nobody used since a time: no connection carries them, and none did since.
    pub async fn idle_sessions(&self, since: Timestamp) -> Result<Vec<SessionRow>, StoreError> {
        let mut query = Builder::new(LIVE);
        query.push(
            "AND c.status = 'active' AND NOT c.connected AND COALESCE(c.last_connected, c.activated_date) < ",
        );
        query.push_bind(millis(since));
        let rows = query.build().fetch_all(self.readers()).await?;
        rows.iter().map(|row| self.read_session(row)).collect()
    }

    /// Sessions that their appliance said to be connected and of which it has said nothing since a time.
    pub async fn silent_sessions(&self, since: Timestamp) -> Result<Vec<SessionRow>, StoreError> {
        let mut query = Builder::new(LIVE);
        query.push(
            "AND c.status = 'active' AND c.connected AND COALESCE(c.server_reported, c.activated_date) < ",
        );
        query.push_bind(millis(since));
        let rows = query.build().fetch_all(self.readers()).await?;
        rows.iter().map(|row| self.read_session(row)).collect()
    }

    /// Sessions that were asked for before a time and have not been taken in since: nobody waits for them any more.
    pub async fn stale_requests(&self, before: Timestamp) -> Result<Vec<SessionRow>, StoreError> {
        let mut query = Builder::new(LIVE);
        query.push("AND c.status = 'requested' AND c.connection_start < ").push_bind(millis(before));
        let rows = query.build().fetch_all(self.readers()).await?;
        rows.iter().map(|row| self.read_session(row)).collect()
    }

    /// Sessions, live ones first, then the newest first.
    pub async fn list_sessions(&self, limit: u32) -> Result<Vec<SessionView>, StoreError> {
        let mut query = Builder::new(VIEW);
        query.push("ORDER BY CASE WHEN c.status IN ('requested', 'active') THEN 0 ELSE 1 END, c.connection_id DESC LIMIT ").push_bind(limit);
        let rows = query.build().fetch_all(self.readers()).await?;
        rows.iter().map(view).collect()
    }

    /// The sessions of a device, the newest first.
    pub async fn sessions_of_device(
        &self,
        device: DeviceId,
        limit: u32,
    ) -> Result<Vec<SessionView>, StoreError> {
        let rows = query(
            "SELECT c.*, d.device_name, d.given_name, s.name AS server_name, k.namespace, k.user_name FROM connections c \
             JOIN devices d ON d.device_id = c.device_id JOIN servers s ON s.server_id = c.server_id \
             JOIN personal_keys k ON k.key_id = c.key_id WHERE c.device_id = $1 ORDER BY c.connection_id DESC LIMIT $2",
        )
        .bind(device.to_string())
        .bind(limit)
        .fetch_all(self.readers())
        .await?;
        rows.iter().map(view).collect()
    }

    fn read_session(&self, row: &Row) -> Result<SessionRow, StoreError> {
        let id: SessionId = row.parsed("connection_id")?;
        let active = row.text("status")? == SessionStatus::Active.as_str();
        Ok(SessionRow {
            id,
            server: row.parsed("server_id")?,
            device: row.parsed("device_id")?,
            device_key: row
                .maybe_bytes32("public_key")?
                .map(PublicKey)
                .ok_or(StoreError::Corrupt { column: "public_key", why: "is missing".into() })?,
            device_name: called(row)?,
            user: row.parsed("user_uid")?,
            status: if active { SessionStatus::Active } else { SessionStatus::Requested },
            own_standing: match row.text("device_status")?.as_str() {
                _ if row.maybe_time("revoked_date")?.is_some() => DeviceStanding::Revoked,
                "blocked" => DeviceStanding::Blocked,
                "inactive" => DeviceStanding::Forgotten,
                _ => DeviceStanding::Good,
            },
            traits: DeviceTraits {
                id: row.parsed("device_id")?,
                platform: row.text("platform")?,
                suspicious: row.text("device_status")? == "suspicious",
            },
            key_standing: key_standing(row)?,
            client: row.parsed("client_ip")?,
            addresses: row.json("allocated_resources")?,
            secret: self.sealer().open(Place::Session, id.as_bytes(), &row.bytes("secret")?)?,
            started: row.time("connection_start")?,
            activated: row.maybe_time("activated_date")?,
            connected: row.flag("connected")?,
            last_connected: row.maybe_time("last_connected")?,
        })
    }
}

/// From where the client connected, unless that was forgotten.
fn located(row: &Row) -> Result<Option<IpAddr>, StoreError> {
    Ok(row.maybe_parsed("client_ip")?.filter(|address: &IpAddr| !address.is_unspecified()))
}

pub(super) fn view(row: &Row) -> Result<SessionView, StoreError> {
    let addresses: Vec<(NetworkId, Vec<IpAddr>)> = row.json("allocated_resources")?;
    Ok(SessionView {
        id: row.parsed("connection_id")?,
        namespace: row.text("namespace")?,
        user: row.text("user_name")?,
        device: called(row)?,
        device_id: row.parsed("device_id")?,
        server: row.text("server_name")?,
        client_address: located(row)?,
        status: row.text("status")?,
        kind: row.text("connection_type")?,
        addresses: addresses.into_iter().flat_map(|(_, list)| list).collect(),
        started_at: row.time("connection_start")?,
        ended_at: row.maybe_time("connection_end")?,
        reason: row.maybe_text("termination_reason")?,
        connected: row.flag("connected")?,
        bytes_sent: row.count("bytes_sent")?,
        bytes_received: row.count("bytes_received")?,
        rtt_micros: row.count("rtt_micros")?,
    })
}
