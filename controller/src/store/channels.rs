//! Which replica has the channel of a server's appliance. A lease is a number on the server's row: whoever takes the
//! channel moves it on, and what an earlier holder still writes changes nothing.

use horizon_model::{Incarnation, PublicKey, ServerId};
use jiff::Timestamp;

use super::{
    ChannelLease, ReplicaId, ServerRecord, Store, StoreError,
    dialect::{Builder, Connection, MAX_BINDS, Row, query},
    facts,
    replicas::{REPLICA_SILENT, age},
    row::Columns as _,
};

/// Who has a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelHolder {
    /// The number of its hold.
    pub lease: ChannelLease,
    /// Which replica.
    pub replica: ReplicaId,
    /// The start of the appliance's process it is with.
    pub incarnation: Incarnation,
    /// The key of the server's appliance.
    pub key: Option<PublicKey>,
    /// Whether the replica was heard of lately.
    pub replica_alive: bool,
}

/// A channel that a replica has, or had when it died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PresenceRow {
    /// Whose.
    pub server: ServerId,
    /// The number of the hold.
    pub lease: ChannelLease,
    /// Which replica has it; it may be dead.
    pub replica: ReplicaId,
    /// The start of the appliance's process.
    pub incarnation: Incarnation,
    /// Since when, by the clock of the replica that took it.
    pub since: Timestamp,
}

const PRESENCES: &str = "SELECT server_id, channel_lease, channel_replica, channel_incarnation, channel_since FROM servers \
     WHERE channel_replica IS NOT NULL";

impl Store {
    /// What is kept of a server, but for its capabilities, and who has its channel, in one look.
    pub async fn arrival(
        &self,
        server: ServerId,
    ) -> Result<Option<(ServerRecord, Option<ChannelHolder>)>, StoreError> {
        let row = query(
            "SELECT s.*, r.last_beat, {now} AS clock FROM servers s \
             LEFT JOIN replicas r ON r.replica_id = s.channel_replica WHERE s.server_id = $1",
        )
        .bind(server.to_string())
        .fetch_optional(self.readers())
        .await?;
        let Some(row) = row else { return Ok(None) };
        let held = row.maybe_text("channel_replica")?.is_some();
        let holder = if held { Some(read_holder(&row)?) } else { None };
        Ok(Some((facts::read_server(&row)?, holder)))
    }

    /// Who has a server's channel; `None` when nobody has it.
    pub async fn channel_of(&self, server: ServerId) -> Result<Option<ChannelHolder>, StoreError> {
        let row = query(
            "SELECT s.channel_lease, s.channel_replica, s.channel_incarnation, s.public_key, r.last_beat, {now} AS clock \
             FROM servers s LEFT JOIN replicas r ON r.replica_id = s.channel_replica \
             WHERE s.server_id = $1 AND s.channel_replica IS NOT NULL",
        )
        .bind(server.to_string())
        .fetch_optional(self.readers())
        .await?;
        row.map(|row| read_holder(&row)).transpose()
    }

    /// Gives channels back. Says of each whether nobody took it since that lease: also when it was given back before, as by
    /// an attempt of this whose commit was made but not acknowledged.
    pub async fn release_channels(
        &self,
        channels: &[(ServerId, ChannelLease)],
    ) -> Result<Vec<bool>, StoreError> {
        let _timed = self.timed("release_channels");
        // In one order, so that two that release many do not wait for each other in a circle.
        let mut order: Vec<usize> = (0..channels.len()).collect();
        order.sort_by_key(|i| channels.get(*i).map(|(server, _)| *server));
        self.repeatable("release_channels", || async {
            let mut released = vec![false; channels.len()];
            let mut tx = self.begin().await?;
            for i in &order {
                let (Some((server, lease)), Some(done)) = (channels.get(*i), released.get_mut(*i)) else { continue };
                let update = query(
                    "UPDATE servers SET channel_replica = NULL, channel_incarnation = NULL, channel_since = NULL \
                     WHERE server_id = $1 AND channel_lease = $2",
                );
                let update = update.bind(server.to_string()).bind(lease.0).execute(&mut *tx).await?;
                *done = update.rows_affected() > 0;
            }
            tx.commit().await?;
            Ok(released)
        })
        .await
    }

    /// Every channel that is held, by living replicas and by dead ones.
    pub async fn presences(&self) -> Result<Vec<PresenceRow>, StoreError> {
        let _timed = self.timed("presences");
        let rows = query(PRESENCES).fetch_all(self.readers()).await?;
        rows.iter().map(presence).collect()
    }

    /// The same of some servers.
    pub async fn presences_of(&self, servers: &[ServerId]) -> Result<Vec<PresenceRow>, StoreError> {
        let mut found = Vec::new();
        for chunk in servers.chunks(MAX_BINDS) {
            let mut select = Builder::new(PRESENCES);
            select.push(" AND server_id IN ").push_list(chunk.iter().map(ServerId::to_string));
            for row in &select.build().fetch_all(self.readers()).await? {
                found.push(presence(row)?);
            }
        }
        Ok(found)
    }
}

fn presence(row: &Row) -> Result<PresenceRow, StoreError> {
    Ok(PresenceRow {
        server: row.parsed("server_id")?,
        lease: ChannelLease(row.int("channel_lease")?),
        replica: row.parsed("channel_replica")?,
        incarnation: row.parsed("channel_incarnation")?,
        since: row.maybe_time("channel_since")?.unwrap_or_default(),
    })
}

fn read_holder(row: &Row) -> Result<ChannelHolder, StoreError> {
    let (clock, beat) = (row.int("clock")?, row.maybe_int("last_beat")?);
    Ok(ChannelHolder {
        lease: ChannelLease(row.int("channel_lease")?),
        replica: row.parsed("channel_replica")?,
        incarnation: row.parsed("channel_incarnation")?,
        key: row.maybe_bytes32("public_key")?.map(PublicKey),
        replica_alive: beat.is_some_and(|beat| age(clock, beat) < REPLICA_SILENT),
    })
}

/// Locks a server's row until the caller's transaction ends, and checks that the lease is the newest. Whether there is
/// such a server.
pub(super) async fn hold(
    db: &mut Connection,
    server: ServerId,
    lease: ChannelLease,
) -> Result<bool, StoreError> {
    let row = query("SELECT channel_lease FROM servers WHERE server_id = $1 {lock}")
        .bind(server.to_string())
        .fetch_optional(&mut *db)
        .await?;
    let Some(row) = row else { return Ok(false) };
    if row.int("channel_lease")? == lease.0 { Ok(true) } else { Err(StoreError::LostChannel) }
}

/// Whoever has the channel has it no longer: its lease is an old one from now on. Returns the number that ended it.
pub(super) async fn end(db: &mut Connection, server: ServerId) -> Result<ChannelLease, StoreError> {
    let row = query(
        "UPDATE servers SET channel_lease = channel_lease + 1, channel_replica = NULL, channel_incarnation = NULL, \
         channel_since = NULL WHERE server_id = $1 RETURNING channel_lease",
    )
    .bind(server.to_string())
    .fetch_one(&mut *db)
    .await?;
    Ok(ChannelLease(row.int("channel_lease")?))
}
