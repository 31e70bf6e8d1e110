//! Facts for statuses and grants: what is known about servers, keys and users beyond their resources. What is not there is
//! what nothing is known about.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use horizon_controller_core::{
    ServerStanding,
    status::{DecisionFacts, DeviceFacts, PersonalKeyFacts, RegistrationKeyFacts, ServerFacts, UserFacts},
};
use horizon_crds::Name;
use horizon_model::{
    Capability, Digest, EntryProblem, IdentityChange, Incarnation, NetworkId, PublicKey, ServerId,
};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    DeviceView, Store, StoreError,
    dialect::{Builder, Connection, MAX_BINDS, Row, query},
    registration,
    row::Columns as _,
};

/// Everything that is kept of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerRecord {
    /// Which.
    pub server: ServerId,
    /// Its namespace.
    pub namespace: Name,
    /// Its name.
    pub name: Name,
    /// When its appliance registered.
    pub registered_at: Option<Timestamp>,
    /// Its appliance's key.
    pub public_key: Option<PublicKey>,
    /// Its appliance's host name.
    pub hostname: Option<String>,
    /// The version of its appliance's software.
    pub version: Option<String>,
    /// Where its appliance is seen.
    pub public_address: Option<IpAddr>,
    /// Where its appliance says that clients reach the tunnel.
    pub addresses: Vec<SocketAddr>,
    /// Why the tunnel cannot be reached from the controller, in words, as far as that was seen.
    pub unreachable: Option<String>,
    /// What its appliance can do.
    pub capabilities: Vec<Capability>,
    /// The last durable heartbeat.
    pub last_heartbeat: Option<Timestamp>,
    /// The last right answer to a challenge.
    pub last_verified: Option<Timestamp>,
    /// Whether the last challenge was answered rightly; `None` before the first.
    pub verified: Option<bool>,
    /// Whether an approval is needed before new sessions.
    pub requires_verification: bool,
    /// Why.
    pub verification_reason: Option<String>,
    /// The digest of the approved identity.
    pub identity_digest: Option<[u8; 32]>,
    /// The digest that waits for an approval.
    pub pending_digest: Option<[u8; 32]>,
    /// What differs between the two.
    pub identity_changes: Vec<IdentityChange>,
    /// How far its machine is from the approved one, in points.
    pub identity_drift: u64,
    /// Where its public address is, in words.
    pub location: Option<String>,
    /// The start of the appliance's process that attached last.
    pub incarnation: Option<Incarnation>,
    /// The generation of the newest state made for it; 0 before the first.
    pub state_generation: u64,
    /// The digest of that state.
    pub state_digest: Option<Digest>,
    /// The generation it applied.
    pub applied_generation: u64,
    /// The digest of what it applied.
    pub applied_digest: Option<Digest>,
    /// Entries that are not in force.
    pub problems: Vec<EntryProblem>,
    /// When it ended.
    pub decommissioned_at: Option<Timestamp>,
    /// Why.
    pub decommission_reason: Option<String>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// Whether it was revoked as compromised.
    pub compromised: bool,
}

impl ServerRecord {
    /// Its right to serve.
    pub fn standing(&self) -> ServerStanding {
        standing(
            self.registered_at.is_some(),
            self.revoked_at.is_some() || self.decommissioned_at.is_some(),
            self.requires_verification,
        )
    }
}

fn standing(registered: bool, revoked: bool, quarantined: bool) -> ServerStanding {
    match (revoked, registered, quarantined) {
        (true, _, _) => ServerStanding::Revoked,
        (false, false, _) => ServerStanding::Unregistered,
        (false, true, true) => ServerStanding::Quarantined,
        (false, true, false) => ServerStanding::Good,
    }
}

/// A server's right to serve, which stays as it is until the caller's transaction ends. `None` when there is no such server.
pub(super) async fn standing_of(
    db: &mut Connection,
    server: ServerId,
) -> Result<Option<ServerStanding>, StoreError> {
    let row = query(
        "SELECT registration_date, decommission_date, revoked_date, requires_verification FROM servers \
         WHERE server_id = $1 {lock}",
    )
    .bind(server.to_string())
    .fetch_optional(&mut *db)
    .await?;
    row.map(|row| read_standing(&row)).transpose()
}

pub(super) fn read_standing(row: &Row) -> Result<ServerStanding, StoreError> {
    let ended = row.maybe_time("decommission_date")?.is_some() || row.maybe_time("revoked_date")?.is_some();
    Ok(standing(row.maybe_time("registration_date")?.is_some(), ended, row.flag("requires_verification")?))
}

impl Store {
    /// Everything that is kept of a server.
    pub async fn server(&self, server: ServerId) -> Result<Option<ServerRecord>, StoreError> {
        let row = query("SELECT * FROM servers WHERE server_id = $1")
            .bind(server.to_string())
            .fetch_optional(self.readers())
            .await?;
        let Some(row) = row else { return Ok(None) };
        let mut record = read_server(&row)?;
        let rows = query("SELECT capability_type FROM server_capabilities WHERE server_id = $1 AND enabled")
            .bind(server.to_string())
            .fetch_all(self.readers())
            .await?;
        for row in &rows {
            record.capabilities.extend(read_capability(row)?);
        }
        record.capabilities.sort();
        Ok(Some(record))
    }

    /// What the statuses of these servers say beyond their resources, as [`Store::server_facts`]. One that cannot be read is an
    /// error of its own; one that there is not is left out.
    pub async fn facts_of_servers(
        &self,
        servers: &[ServerId],
    ) -> Result<HashMap<ServerId, Result<ServerFacts, StoreError>>, StoreError> {
        let mut facts = HashMap::new();
        for chunk in servers.chunks(MAX_BINDS) {
            let mut select = Builder::new(
                "SELECT server_id, capability_type FROM server_capabilities WHERE enabled AND server_id IN ",
            );
            select.push_list(chunk.iter().map(ServerId::to_string));
            let mut capabilities: HashMap<ServerId, Vec<Capability>> = HashMap::new();
            for row in select.build().fetch_all(self.readers()).await? {
                capabilities.entry(row.parsed("server_id")?).or_default().extend(read_capability(&row)?);
            }
            let mut select = Builder::new("SELECT * FROM servers WHERE server_id IN ");
            select.push_list(chunk.iter().map(ServerId::to_string));
            for row in select.build().fetch_all(self.readers()).await? {
                let server = row.parsed("server_id")?;
                let mut capabilities = capabilities.remove(&server).unwrap_or_default();
                capabilities.sort();
                facts.insert(
                    server,
                    read_server(&row).map(|r| server_facts(ServerRecord { capabilities, ..r })),
                );
            }
        }
        Ok(facts)
    }

    /// What a server's status says beyond its resource. Presence is the live layer's to add.
    pub async fn server_facts(&self, server: ServerId) -> Result<ServerFacts, StoreError> {
        Ok(self.server(server).await?.map(server_facts).unwrap_or_default())
    }

    /// What is known about a `RegistrationKey`.
    pub async fn registration_key_facts(&self, uid: Uuid) -> Result<RegistrationKeyFacts, StoreError> {
        let row = query("SELECT * FROM registration_keys WHERE key_uid = $1")
            .bind(uid.to_string())
            .fetch_optional(self.readers())
            .await?;
        let Some(row) = row else { return Ok(RegistrationKeyFacts::default()) };
        Ok(RegistrationKeyFacts {
            expires_at: row.maybe_time("expiration_date")?,
            used_at: row.maybe_time("used_date")?,
            used_by: row.maybe_bytes32("used_by_public_key")?.map(PublicKey),
            revoked_at: row.maybe_time("revoked_date")?,
            secret_file: registration::secret_file(&row)?,
        })
    }

    /// What is known about a `PersonalKey`.
    pub async fn personal_key_facts(&self, uid: Uuid) -> Result<PersonalKeyFacts, StoreError> {
        let row = query("SELECT * FROM personal_keys WHERE key_id = $1")
            .bind(uid.to_string())
            .fetch_optional(self.readers())
            .await?;
        let Some(row) = row else { return Ok(PersonalKeyFacts::default()) };
        let mut facts = read_personal(&row)?;
        (facts.rotations, facts.overlap_end, facts.unconfirmed) = self.rotation_facts(uid).await?;
        facts.devices = self.devices_of("key_id", uid).await?.into_iter().map(device_facts).collect();
        Ok(facts)
    }

    /// What is known about a `User`.
    pub async fn user_facts(&self, user: Uuid) -> Result<UserFacts, StoreError> {
        let rows = query(
            "SELECT * FROM personal_keys WHERE user_uid = $1 ORDER BY creation_date DESC, key_id LIMIT 32",
        )
        .bind(user.to_string())
        .fetch_all(self.readers())
        .await?;
        let keys = rows
            .iter()
            .map(|row| Ok((row.parsed("name")?, read_personal(row)?)))
            .collect::<Result<_, StoreError>>()?;
        let devices = self.devices_of("user_uid", user).await?.into_iter().map(device_facts).collect();
        Ok(UserFacts { keys, devices })
    }

    /// What became of an `Approval`, a `Revocation` or a `DeviceDecision`.
    pub async fn decision_facts(&self, uid: Uuid) -> Result<DecisionFacts, StoreError> {
        let rows = query(
            "SELECT a.effective_at, s.name FROM approvals a JOIN servers s ON s.server_id = a.server_id \
             WHERE a.approval_uid = $1 UNION ALL \
             SELECT r.effective_at, s.name FROM revocations r LEFT JOIN servers s ON s.server_id = r.target_id \
             WHERE r.revocation_uid = $1 UNION ALL \
             SELECT d.effective_at, NULL AS name FROM device_decisions d WHERE d.decision_uid = $1",
        )
        .bind(uid.to_string())
        .fetch_all(self.readers())
        .await?;
        let mut facts = DecisionFacts::default();
        for row in &rows {
            facts.effective_at = row.maybe_time("effective_at")?;
            facts.applied_servers.extend(row.maybe_parsed("name")?.filter(|_| facts.effective_at.is_some()));
        }
        Ok(facts)
    }

    /// How many addresses of a virtual network live sessions hold.
    pub async fn addresses_in_use(&self, network: NetworkId) -> Result<u32, StoreError> {
        let row = query(
            "SELECT COUNT(*) AS n FROM address_leases l WHERE l.scope = $1 AND EXISTS (SELECT 1 FROM connections c \
             WHERE c.device_id = l.device_id AND c.status IN ('requested', 'active'))",
        )
        .bind(format!("network/{network}"))
        .fetch_one(self.readers())
        .await?;
        Ok(u32::try_from(row.count("n")?).unwrap_or(u32::MAX))
    }
}

fn server_facts(record: ServerRecord) -> ServerFacts {
    ServerFacts {
        registered_at: record.registered_at,
        capabilities: record.capabilities,
        public_address: record.public_address,
        version: record.version,
        verified: record.verified,
        requires_verification: record.requires_verification,
        verification_reason: record.verification_reason,
        identity_digest: record.identity_digest,
        pending_digest: record.pending_digest,
        identity_changes: record.identity_changes,
        identity_drift: record.identity_drift,
        location: record.location,
        presence: None,
        state_generation: record.state_generation,
        applied_generation: record.applied_generation,
        behind_since: None,
        problems: record.problems,
        unreachable: record.unreachable,
        revoked_at: record.revoked_at,
        compromised: record.compromised,
    }
}

/// A capability, if this release knows it.
fn read_capability(row: &Row) -> Result<Option<Capability>, StoreError> {
    let name = row.text("capability_type")?;
    Ok(Capability::ALL.into_iter().find(|c| c.as_str() == name))
}

fn device_facts(view: DeviceView) -> DeviceFacts {
    DeviceFacts {
        id: view.id,
        name: view.name,
        platform: view.platform,
        enrolled_at: view.enrolled_at,
        revoked: view.status == "blocked",
    }
}

pub(super) fn read_server(row: &Row) -> Result<ServerRecord, StoreError> {
    Ok(ServerRecord {
        server: row.parsed("server_id")?,
        namespace: row.parsed("namespace")?,
        name: row.parsed("name")?,
        registered_at: row.maybe_time("registration_date")?,
        public_key: row.maybe_bytes32("public_key")?.map(PublicKey),
        hostname: row.maybe_text("hostname")?,
        version: row.maybe_text("version")?,
        public_address: row.maybe_parsed("public_ip")?,
        addresses: row.json("addresses")?,
        unreachable: row.maybe_text("unreachable")?,
        capabilities: Vec::new(),
        last_heartbeat: row.maybe_time("last_heartbeat")?,
        last_verified: row.maybe_time("last_verified")?,
        verified: row.maybe_flag("verified")?,
        requires_verification: row.flag("requires_verification")?,
        verification_reason: row.maybe_text("verification_reason")?,
        identity_digest: row.maybe_bytes32("identity_digest")?,
        pending_digest: row.maybe_bytes32("pending_digest")?,
        identity_changes: row.json("identity_changes")?,
        identity_drift: row.count("identity_drift")?,
        location: row.maybe_text("location")?,
        incarnation: row.maybe_parsed("incarnation")?,
        state_generation: row.count("state_generation")?,
        state_digest: row.maybe_bytes32("state_digest")?.map(Digest),
        applied_generation: row.count("applied_generation")?,
        applied_digest: row.maybe_bytes32("applied_digest")?.map(Digest),
        problems: row.json("problems")?,
        decommissioned_at: row.maybe_time("decommission_date")?,
        decommission_reason: row.maybe_text("decommission_reason")?,
        revoked_at: row.maybe_time("revoked_date")?,
        compromised: row.flag("compromised")?,
    })
}

fn read_personal(row: &Row) -> Result<PersonalKeyFacts, StoreError> {
    Ok(PersonalKeyFacts {
        activated_at: row.maybe_time("activation_date")?,
        expires_at: row.maybe_time("expiration_date")?,
        deactivated_at: row.maybe_time("deactivation_date")?,
        deactivation_reason: row.maybe_text("deactivation_reason")?,
        compromised: row.text("status")? == "compromised",
        devices: Vec::new(),
        secret_file: registration::secret_file(row)?,
        last_rotation: row.maybe_time("last_rotation_date")?,
        manual_rotation_required: row.flag("manual_rotation_required")?,
        ..PersonalKeyFacts::default()
    })
}
