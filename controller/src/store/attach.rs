//! The attachment of an appliance in one transaction: thousands attach at once when a replica ends.

use std::{collections::BTreeSet, net::IpAddr};

use horizon_controller_core::ServerStanding;
use horizon_model::{Capability, Digest, Factor, Incarnation, PublicKey, Secret, ServerId};
use jiff::Timestamp;
use serde_json::json;

use super::{
    AppliedState, ChannelLease, ReplicaId, StateNumber, Store, StoreError, channels,
    dialect::{Connection, Row, query},
    factors, facts, registration,
    row::{Columns as _, int, millis},
    seal::Place,
    settings,
};

/// An appliance that attaches to a replica.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Whose appliance it is.
    pub server: ServerId,
    /// The replica.
    pub replica: ReplicaId,
    /// Which start of its process.
    pub incarnation: Incarnation,
    /// Whose hold on the channel it ends; `None` when nobody holds it.
    pub expected: Option<ChannelLease>,
    /// The key that it proved.
    pub key: PublicKey,
    /// Where it is seen.
    pub address: IpAddr,
    /// The version of its software.
    pub version: String,
    /// What it can do.
    pub capabilities: Vec<Capability>,
    /// The state that it has.
    pub held: AppliedState,
}

/// An appliance that is attached.
#[derive(Clone, Debug)]
pub struct AttachedServer {
    /// The replica's hold on its channel.
    pub lease: ChannelLease,
    /// The verification secret in force.
    pub secret: Secret,
    /// The one before.
    pub previous: Option<Secret>,
    /// Whether the secret in force is a new one, which it must be told.
    pub reissued: bool,
    /// What its machine was like when it last told.
    pub factors: Vec<Factor>,
    /// The number and the digest of the newest state that was made for it.
    pub state: Option<(StateNumber, Digest)>,
    /// Whether it may serve.
    pub standing: ServerStanding,
    /// Whether its appliance said before that it answers every type of challenge.
    pub challenges_v2: bool,
}

impl Store {
    /// Takes the channel of a server for a replica, and notes who attached with what: from the holder whose lease is
    /// `expected`, or, without one, if nobody holds it. `None` when another took the channel meanwhile, or another appliance
    /// was registered. Of several that try, one gets it.
    pub async fn attach(
        &self,
        attachment: &Attachment,
        now: Timestamp,
    ) -> Result<Option<AttachedServer>, StoreError> {
        let _timed = self.timed("attach");
        self.retried("attach", || self.attach_once(attachment, now)).await
    }

    async fn attach_once(
        &self,
        attachment: &Attachment,
        now: Timestamp,
    ) -> Result<Option<AttachedServer>, StoreError> {
        let server = attachment.server;
        let mut tx = self.begin().await?;
        disconnect(&mut tx, server, attachment.incarnation, now).await?;
        let Some(row) = take(&mut tx, attachment, now).await? else { return Ok(None) };
        let known = query("SELECT capability_type FROM server_capabilities WHERE server_id = $1 AND enabled")
            .bind(server.to_string())
            .fetch_all(&mut *tx)
            .await?;
        let known =
            known.iter().map(|row| row.text("capability_type")).collect::<Result<BTreeSet<_>, _>>()?;
        if known != attachment.capabilities.iter().map(|c| c.as_str().to_owned()).collect() {
            registration::write_capabilities(&mut tx, server, &attachment.capabilities, now).await?;
        }
        let factors = factors::current(&mut tx, server).await?;
        let epoch = settings::epoch(&mut tx).await?;
        let open = |column, place| {
            let sealed = row.maybe_bytes(column)?;
            let open = |sealed: Vec<u8>| self.sealer().open(place, server.as_bytes(), &sealed);
            Ok::<_, StoreError>(sealed.map(open).transpose()?)
        };
        let reissued = if row.flag("reissue_secret")? { self.reissue(&mut tx, server).await? } else { None };
        let in_force = open("verification_secret", Place::Verification)?
            .ok_or(StoreError::Corrupt { column: "verification_secret", why: "is missing".into() })?;
        let attached = AttachedServer {
            lease: ChannelLease(row.int("channel_lease")?),
            reissued: reissued.is_some(),
            previous: if reissued.is_some() {
                Some(in_force.clone())
            } else {
                open("previous_secret", Place::PreviousVerification)?
            },
            secret: reissued.unwrap_or(in_force),
            factors,
            state: state(&row, epoch)?,
            standing: facts::read_standing(&row)?,
            challenges_v2: row.flag("challenges_v2")?,
        };
        tx.commit().await?;
        Ok(Some(attached))
    }

    /// Remembers that a server's appliance answers every type of challenge.
    pub async fn note_challenges(&self, server: ServerId, lease: ChannelLease) -> Result<(), StoreError> {
        self.note_of_channel(
            "note_challenges",
            server,
            lease,
            "UPDATE servers SET challenges_v2 = TRUE WHERE server_id = $1",
            None,
        )
        .await
    }

    /// Notes that a server's appliance is seen elsewhere.
    pub async fn note_public_address(
        &self,
        server: ServerId,
        lease: ChannelLease,
        address: IpAddr,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE servers SET public_ip = $2 WHERE server_id = $1";
        self.note_of_channel("note_public_address", server, lease, sql, Some(address.to_string())).await
    }

    async fn note_of_channel(
        &self,
        what: &'static str,
        server: ServerId,
        lease: ChannelLease,
        sql: &'static str,
        value: Option<String>,
    ) -> Result<(), StoreError> {
        self.repeatable(what, || async {
            let mut tx = self.begin().await?;
            if channels::hold(&mut tx, server, lease).await? {
                let update = query(sql).bind(server.to_string());
                match &value {
                    Some(value) => update.bind(value.as_str()).execute(&mut *tx).await?,
                    None => update.execute(&mut *tx).await?,
                };
            }
            tx.commit().await
        })
        .await
    }

    /// Whether a new secret waits for a server's appliance, which it gets when it next attaches.
    pub async fn secret_is_due(&self, server: ServerId) -> Result<bool, StoreError> {
        let row = query("SELECT reissue_secret FROM servers WHERE server_id = $1")
            .bind(server.to_string())
            .fetch_optional(self.readers())
            .await?;
        row.map_or(Ok(false), |row| row.flag("reissue_secret"))
    }

    /// As [`Self::server_standing`], with whether a new secret waits for the appliance: both are asked for with every change.
    pub async fn server_standing_and_secret(
        &self,
        server: ServerId,
    ) -> Result<Option<(ServerStanding, bool)>, StoreError> {
        let row = query(
            "SELECT registration_date, decommission_date, revoked_date, requires_verification, reissue_secret \
             FROM servers WHERE server_id = $1",
        )
        .bind(server.to_string())
        .fetch_optional(self.readers())
        .await?;
        row.map(|row| Ok((facts::read_standing(&row)?, row.flag("reissue_secret")?))).transpose()
    }

    /// A server's right to serve; `None` when there is no such server.
    pub async fn server_standing(&self, server: ServerId) -> Result<Option<ServerStanding>, StoreError> {
        let row = query(
            "SELECT registration_date, decommission_date, revoked_date, requires_verification FROM servers \
             WHERE server_id = $1",
        )
        .bind(server.to_string())
        .fetch_optional(self.readers())
        .await?;
        row.map(|row| facts::read_standing(&row)).transpose()
    }
}

fn state(row: &Row, epoch: u64) -> Result<Option<(StateNumber, Digest)>, StoreError> {
    let number = StateNumber { epoch, generation: row.count("state_generation")? };
    Ok(row.maybe_bytes32("state_digest")?.map(|digest| (number, Digest(digest))))
}

/// A process that started since carries no connections until it reports them.
async fn disconnect(
    db: &mut Connection,
    server: ServerId,
    incarnation: Incarnation,
    now: Timestamp,
) -> Result<(), StoreError> {
    query(
        "UPDATE connections SET connected = FALSE, last_connected = $1 WHERE server_id = $2 AND connected \
         AND status IN ('requested', 'active') \
         AND EXISTS (SELECT 1 FROM servers s WHERE s.server_id = $2 AND COALESCE(s.incarnation, '') <> $3)",
    )
    .bind(millis(now))
    .bind(server.to_string())
    .bind(incarnation.to_string())
    .execute(db)
    .await?;
    Ok(())
}

async fn take(
    db: &mut Connection,
    attachment: &Attachment,
    now: Timestamp,
) -> Result<Option<Row>, StoreError> {
    let held = &attachment.held;
    let row = query(
        "UPDATE servers SET channel_lease = channel_lease + 1, channel_replica = $1, channel_incarnation = $2, \
         channel_since = $3, public_ip = $4, version = $5, incarnation = $2, heartbeat_counter = 0, applied_epoch = $6, \
         applied_generation = $7, applied_digest = $8, problems = $9, addresses = $10 \
         WHERE server_id = $11 AND public_key = $12 AND CASE WHEN $13 THEN channel_replica IS NULL \
         ELSE channel_lease = $14 END RETURNING *",
    )
    .bind(attachment.replica.to_string())
    .bind(attachment.incarnation.to_string())
    .bind(millis(now))
    .bind(attachment.address.to_string())
    .bind(&attachment.version)
    .bind(int(held.epoch))
    .bind(int(held.generation))
    .bind(held.digest.map(|digest| digest.0.to_vec()))
    .bind(json!(held.problems).to_string())
    .bind(json!(held.addresses).to_string())
    .bind(attachment.server.to_string())
    .bind(&attachment.key.0[..])
    .bind(attachment.expected.is_none())
    .bind(attachment.expected.map_or(0, |lease| lease.0))
    .fetch_optional(db)
    .await?;
    Ok(row)
}
