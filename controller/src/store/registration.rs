//! Registration of appliances: one-time secrets, and the one transaction that makes an appliance a server.

use std::net::IpAddr;

use horizon_crds::{KindName, Name};
use horizon_model::{Capability, Factor, PublicKey, Secret, ServerId};
use jiff::Timestamp;
use thiserror::Error;
use uuid::Uuid;

use super::{
    Actor, ChannelLease, LeaderEpoch, NewEvent, Severity, Source, Store, StoreError,
    audit::{self, Record},
    changed, channels,
    dialect::{Builder, Connection, Row, Transaction, query},
    effects, event, factors, identity, leadership, resources,
    row::{Columns as _, millis},
    seal::{Place, random},
};

/// Why no secret was issued.
#[derive(Debug, Error)]
pub enum IssueError {
    /// There is no such key.
    #[error("there is no such key")]
    Unknown,
    /// A secret is shown once.
    #[error("the secret of this key was already issued, and is shown once: make a new key")]
    AlreadyIssued,
    /// The key was used, revoked or has expired.
    #[error("the key can no longer be used: make a new key")]
    Ended,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// In the place of the file of a secret that was made to be delivered, as long as it is not known that it was.
pub(super) const UNDELIVERED: &str = "";

/// The file that a key's secret was delivered to.
pub(super) fn secret_file(row: &Row) -> Result<Option<String>, StoreError> {
    Ok(row.maybe_text("secret_file")?.filter(|file| file != UNDELIVERED))
}

/// Lets nobody but the leader go on, where one is named.
pub(super) async fn fence(db: &mut Connection, leader: Option<LeaderEpoch>) -> Result<(), StoreError> {
    match leader {
        Some(epoch) if !leadership::leads(db, epoch).await? => Err(StoreError::Fenced),
        _ => Ok(()),
    }
}

/// What an appliance says when it registers.
#[derive(Clone, Debug)]
pub struct RegisterRequest {
    /// The name of the `RegistrationKey`, as the token gives it.
    pub key_name: String,
    /// The secret of the token.
    pub secret: Secret,
    /// The key the appliance proved in TLS.
    pub public_key: PublicKey,
    /// Its host name.
    pub hostname: String,
    /// The version of its software.
    pub version: String,
    /// What it can do.
    pub capabilities: Vec<Capability>,
    /// What tells it from other machines.
    pub factors: Vec<Factor>,
    /// Where it is seen.
    pub address: IpAddr,
}

/// What a registered appliance is told.
#[derive(Clone, Debug)]
pub struct RegisteredServer {
    /// The server it is.
    pub server: ServerId,
    /// The server's namespace.
    pub namespace: Name,
    /// The server's name.
    pub name: Name,
    /// The verification secret in force.
    pub secret: Secret,
    /// Whether this was the first time.
    pub fresh: bool,
    /// The number that ended the channel of the appliance before, when this was the first time.
    pub ended: Option<ChannelLease>,
}

/// Why an appliance was not registered. All but `Unknown` and `Store` are told only to the holder of the right secret.
#[derive(Debug, Error)]
pub enum RegisterError {
    /// No such token.
    #[error("the registration token is not known")]
    Unknown,
    /// Its time is over.
    #[error("the registration token expired at {0}")]
    Expired(Timestamp),
    /// It was revoked.
    #[error("the registration token was revoked: {0}")]
    Revoked(String),
    /// Another appliance used it.
    #[error("the registration token was used at {0} by an appliance with another key")]
    Used(Timestamp),
    /// Its server is not declared, or no longer.
    #[error("the server '{0}' of the registration token does not exist")]
    NoServer(String),
    /// Its server has ended.
    #[error("the server '{0}' is decommissioned")]
    Ended(String),
    /// The server waits for an approval, after which its appliance gets a new secret by itself.
    #[error("the server '{0}' waits for an approval of its identity")]
    Quarantined(String),
    /// The server was registered anew with another token since.
    #[error("the server '{0}' has been registered with another key since")]
    Superseded(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for RegisterError {
    fn from(e: sqlx::Error) -> Self {
        Self::Store(e.into())
    }
}

impl Store {
    /// Makes the secret of a registration key, once. Only a keyed hash of it is kept, and its digest sealed.
    pub async fn issue_registration_secret(&self, key: Uuid, now: Timestamp) -> Result<Secret, IssueError> {
        self.retried("issue_registration_secret", || self.issue_once(key, None, now)).await
    }

    /// The same for a leader that delivers the secret. One that was made to be delivered, and that no note says where it is
    /// ([`note_secret_file`](Self::note_secret_file)), is replaced: nobody was told of it.
    pub async fn registration_secret_to_deliver(
        &self,
        key: Uuid,
        leader: LeaderEpoch,
        now: Timestamp,
    ) -> Result<Secret, IssueError> {
        self.retried("issue_registration_secret", || self.issue_once(key, Some(leader), now)).await
    }

    async fn issue_once(
        &self,
        key: Uuid,
        deliverer: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<Secret, IssueError> {
        let mut tx = self.begin().await?;
        fence(&mut tx, deliverer).await?;
        let row = query("SELECT * FROM registration_keys WHERE key_uid = $1 {lock}")
            .bind(key.to_string())
            .fetch_optional(&mut *tx)
            .await
            .map_err(StoreError::from)?
            .ok_or(IssueError::Unknown)?;
        let undelivered = row.maybe_text("secret_file")?.is_some_and(|file| file == UNDELIVERED);
        if row.maybe_bytes("secret_hash")?.is_some() && !(deliverer.is_some() && undelivered) {
            return Err(IssueError::AlreadyIssued);
        }
        let ended = row.maybe_time("revoked_date")?.is_some()
            || row.maybe_time("used_date")?.is_some()
            || row.time("expiration_date")? <= now;
        if ended {
            return Err(IssueError::Ended);
        }
        let secret = Secret::new(random());
        let (digest, sealer) = (hash(&secret), self.sealer());
        let kept = sealer.seal_bytes(Place::Registration, key.as_bytes(), &digest);
        let hash = sealer.lookup(Place::Registration, &digest);
        query(
            "UPDATE registration_keys SET secret_hash = $1, secret_file = $2, lookup_key = $4, secret_digest = $5, digest_key = $6 \
             WHERE key_uid = $3",
        )
            .bind(hash.as_ref().map_or(digest.to_vec(), |hash| hash.bytes.clone()))
            .bind(deliverer.map(|_| UNDELIVERED))
            .bind(key.to_string())
            .bind(hash.as_ref().map(|hash| hash.key))
            .bind(hash.as_ref().map(|_| kept.bytes))
            .bind(hash.as_ref().map(|_| kept.key))
            .execute(&mut *tx)
            .await
            .map_err(StoreError::from)?;
        let name = format!("{}/{}", row.text("namespace")?, row.text("name")?);
        let record = Record::new("issue_secret", KindName::RegistrationKey.as_str(), key, name);
        audit::write(&mut tx, &Actor::System("registration"), now, &[record]).await?;
        tx.commit().await?;
        Ok(secret)
    }

    /// Notes the file that a key's secret was delivered to, for a `RegistrationKey` or a `PersonalKey`; `None` when it was
    /// taken away. With a leader's epoch that is no longer in force nothing changes: [`StoreError::Fenced`].
    pub async fn note_secret_file(
        &self,
        key: Uuid,
        file: Option<&str>,
        leader: Option<LeaderEpoch>,
    ) -> Result<(), StoreError> {
        self.repeatable("note_secret_file", || async {
            let mut tx = self.begin().await?;
            fence(&mut tx, leader).await?;
            for update in [
                "UPDATE registration_keys SET secret_file = $1 WHERE key_uid = $2",
                "UPDATE personal_keys SET secret_file = $1 WHERE key_id = $2",
            ] {
                query(update).bind(file).bind(key.to_string()).execute(&mut *tx).await?;
            }
            tx.commit().await
        })
        .await
    }

    /// Registers an appliance: the token is bound to the first key that uses it. The same key with the same token gets the
    /// same answer again, with the verification secret in force.
    pub async fn register_server(
        &self,
        request: &RegisterRequest,
        now: Timestamp,
    ) -> Result<RegisteredServer, RegisterError> {
        let _timed = self.timed("register_server");
        let done = self.retried("register_server", || self.register_once(request, now)).await;
        // What is looked up may be hashed under a key that this replica does not know yet.
        if matches!(done, Err(RegisterError::Unknown)) && self.refresh_data_keys().await? {
            return self.retried("register_server", || self.register_once(request, now)).await;
        }
        done
    }

    async fn register_once(
        &self,
        request: &RegisterRequest,
        now: Timestamp,
    ) -> Result<RegisteredServer, RegisterError> {
        let mut tx = self.begin().await?;
        let mut find = Builder::new("SELECT * FROM registration_keys WHERE secret_hash IN ");
        find.push_list(self.sealer().lookups(Place::Registration, &hash(&request.secret))).push(" {lock}");
        let row = find.build().fetch_optional(&mut *tx).await?.ok_or(RegisterError::Unknown)?;
        if row.text("name")? != request.key_name {
            return Err(RegisterError::Unknown);
        }
        let key_uid: Uuid = row.parsed("key_uid")?;
        if let Some(used) = row.maybe_time("used_date")? {
            let server: ServerId = row.parsed("used_by_server_id")?;
            if row.maybe_bytes32("used_by_public_key")? == Some(request.public_key.0) {
                let answer = self.registered(&mut tx, server, request, None).await?;
                let name = format!("{}/{}", answer.namespace, answer.name);
                repeated(&mut tx, server, &name, request, now).await?;
                let record = Record::new("register_again", KindName::Server.as_str(), server, name)
                    .notes(format!("from {}", request.address));
                audit::write(&mut tx, &Actor::Appliance(server), now, &[record]).await?;
                tx.commit().await?;
                return Ok(answer);
            }
            let event = NewEvent {
                kind: "registration_token_reused",
                severity: Severity::High,
                source: Source::Server(server),
                address: Some(request.address),
                description: format!(
                    "the registration token '{}' was presented again by another appliance ({})",
                    request.key_name, request.hostname
                ),
                data: serde_json::json!({ "publicKey": request.public_key.to_string() }),
            };
            event::write(&mut tx, &event, now).await?;
            tx.commit().await?;
            self.inner.metrics.security_event(event.kind);
            return Err(RegisterError::Used(used));
        }
        if row.maybe_time("revoked_date")?.is_some() {
            return Err(RegisterError::Revoked(row.maybe_text("revocation_reason")?.unwrap_or_default()));
        }
        let expires = row.time("expiration_date")?;
        if expires <= now {
            return Err(RegisterError::Expired(expires));
        }
        let (namespace, server_name): (Name, String) = (row.parsed("namespace")?, row.text("server_name")?);
        let server = resources::uid_of(&mut tx, KindName::Server, &namespace, &server_name)
            .await?
            .map(ServerId)
            .ok_or_else(|| RegisterError::NoServer(server_name.clone()))?;
        if ended(&mut tx, server).await? {
            return Err(RegisterError::Ended(server_name));
        }
        self.bind(&mut tx, key_uid, server, request, now).await?;
        let ended = channels::end(&mut tx, server).await?;
        changed::touch(&mut tx, &server.to_string()).await?;
        let answer = self.registered(&mut tx, server, request, Some(ended)).await?;
        let record =
            Record::new("register", KindName::Server.as_str(), server, format!("{namespace}/{server_name}"))
                .notes(format!("appliance {} with key {}", request.hostname, request.public_key));
        audit::write(&mut tx, &Actor::Appliance(server), now, &[record]).await?;
        tx.commit().await?;
        Ok(answer)
    }

    /// The registration key that a server's appliance used last.
    pub async fn registration_key_of(&self, server: ServerId) -> Result<Option<Uuid>, StoreError> {
        let row = query(
            "SELECT key_uid FROM registration_keys WHERE used_by_server_id = $1 ORDER BY used_date DESC LIMIT 1",
        )
        .bind(server.to_string())
        .fetch_optional(self.readers())
        .await?;
        row.map(|row| row.parsed("key_uid")).transpose()
    }

    async fn bind(
        &self,
        tx: &mut Transaction,
        key: Uuid,
        server: ServerId,
        request: &RegisterRequest,
        now: Timestamp,
    ) -> Result<(), RegisterError> {
        query(
            "UPDATE registration_keys SET used_date = $1, used_by_server_id = $2, used_by_public_key = $3 \
             WHERE key_uid = $4 AND used_date IS NULL",
        )
        .bind(millis(now))
        .bind(server.to_string())
        .bind(&request.public_key.0[..])
        .bind(key.to_string())
        .execute(&mut **tx)
        .await?;
        let secret = self.sealer().seal(Place::Verification, server.as_bytes(), &Secret::new(random()));
        let digest = identity::digest(&request.factors);
        query(
            "UPDATE servers SET registration_date = $1, public_key = $2, verification_secret = $3, \
             previous_secret = NULL, hostname = $4, version = $5, public_ip = $6, identity_digest = $7, \
             pending_digest = NULL, identity_changes = '[]', identity_drift = 0, challenges_v2 = FALSE, doubted_incarnation = NULL, \
             location = $9, requires_verification = FALSE, verification_reason = NULL, \
             verified = NULL, incarnation = NULL, applied_epoch = 0, applied_generation = 0, applied_digest = NULL, \
             problems = '[]', addresses = '[]', unreachable = NULL, reissue_secret = FALSE, \
             state_generation = 0, state_digest = NULL, verification_key = $10, previous_key = NULL WHERE server_id = $8",
        )
        .bind(millis(now))
        .bind(&request.public_key.0[..])
        .bind(secret.bytes)
        .bind(&request.hostname)
        .bind(&request.version)
        .bind(request.address.to_string())
        .bind(&digest[..])
        .bind(server.to_string())
        .bind(identity::location(&request.factors))
        .bind(secret.key)
        .execute(&mut **tx)
        .await?;
        effects::refresh_server(tx, &server.to_string()).await?;
        write_capabilities(tx, server, &request.capabilities, now).await?;
        factors::start(tx, server, &request.factors, now).await?;
        Ok(())
    }

    async fn registered(
        &self,
        tx: &mut Transaction,
        server: ServerId,
        request: &RegisterRequest,
        ended: Option<ChannelLease>,
    ) -> Result<RegisteredServer, RegisterError> {
        let row = query("SELECT * FROM servers WHERE server_id = $1")
            .bind(server.to_string())
            .fetch_one(&mut **tx)
            .await?;
        let name: Name = row.parsed("name")?;
        if row.maybe_time("decommission_date")?.is_some() || row.maybe_time("revoked_date")?.is_some() {
            return Err(RegisterError::Ended(name.to_string()));
        }
        if row.maybe_bytes32("public_key")? != Some(request.public_key.0) {
            return Err(RegisterError::Superseded(name.to_string()));
        }
        if row.flag("requires_verification")? {
            return Err(RegisterError::Quarantined(name.to_string()));
        }
        let secret = self
            .sealer()
            .open(Place::Verification, server.as_bytes(), &row.bytes("verification_secret")?)
            .map_err(StoreError::from)?;
        let namespace = row.parsed("namespace")?;
        Ok(RegisteredServer { server, namespace, name, secret, fresh: ended.is_some(), ended })
    }
}

/// An appliance that lost its answer asks again soon. One that has been heard since has no need to: whoever has a copy of its disk,
/// and the token from a shell's history, would be given the secret that has moved on, and show by nothing else.
async fn repeated(
    db: &mut Connection,
    server: ServerId,
    name: &str,
    request: &RegisterRequest,
    now: Timestamp,
) -> Result<(), StoreError> {
    let row = query("SELECT last_heartbeat FROM servers WHERE server_id = $1")
        .bind(server.to_string())
        .fetch_one(&mut *db)
        .await?;
    if row.maybe_time("last_heartbeat")?.is_none() {
        return Ok(());
    }
    let event = NewEvent {
        kind: "registration_repeated",
        severity: Severity::Medium,
        source: Source::Server(server),
        address: Some(request.address),
        description: format!(
            "an appliance ({}) with the key of server {name} registered again with its token, and was given the secret in force: \
             if nobody did that, its disk was copied",
            request.hostname
        ),
        data: serde_json::Value::Null,
    };
    event::write(db, &event, now).await
}

fn hash(secret: &Secret) -> [u8; 32] {
    horizon_wire::key::sha256(secret.expose()).0
}

async fn ended(db: &mut Connection, server: ServerId) -> Result<bool, StoreError> {
    let row = query("SELECT decommission_date, revoked_date FROM servers WHERE server_id = $1 {lock}")
        .bind(server.to_string())
        .fetch_one(&mut *db)
        .await?;
    Ok(row.maybe_time("decommission_date")?.is_some() || row.maybe_time("revoked_date")?.is_some())
}

/// Writes what an appliance says it can do.
pub(super) async fn write_capabilities(
    db: &mut Connection,
    server: ServerId,
    capabilities: &[Capability],
    now: Timestamp,
) -> Result<(), StoreError> {
    for capability in Capability::ALL {
        let enabled = capabilities.contains(&capability);
        // What was never reported needs no row that says so.
        let write = if enabled {
            query(
                "INSERT INTO server_capabilities (server_id, capability_type, added_date, last_updated, enabled) \
                 VALUES ($1, $2, $3, $3, TRUE) ON CONFLICT (server_id, capability_type) \
                 DO UPDATE SET enabled = TRUE, last_updated = excluded.last_updated \
                 WHERE server_capabilities.enabled = FALSE",
            )
        } else {
            query(
                "UPDATE server_capabilities SET enabled = FALSE, last_updated = $3 \
                 WHERE server_id = $1 AND capability_type = $2 AND enabled",
            )
        };
        write.bind(server.to_string()).bind(capability.as_str()).bind(millis(now)).execute(&mut *db).await?;
    }
    Ok(())
}
