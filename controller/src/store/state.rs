//! The numbers of appliances' states, and what appliances say they applied.

use std::net::{IpAddr, SocketAddr};

use horizon_model::{Digest, EntryProblem, Incarnation, ServerId};
use jiff::Timestamp;
use serde_json::json;

use super::{
    Store, StoreError,
    row::{Columns as _, int, millis},
    settings,
};

/// The number of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateNumber {
    /// Raised when a backup was restored.
    pub epoch: u64,
    /// Raised with every change.
    pub generation: u64,
}

/// What an appliance says it applied.
#[derive(Clone, Debug)]
pub struct AppliedState {
    /// The epoch of the state it holds.
    pub epoch: u64,
    /// The generation it applied; 0 before the first.
    pub generation: u64,
    /// The digest of that state.
    pub digest: Option<Digest>,
    /// Entries that are not in force.
    pub problems: Vec<EntryProblem>,
    /// Where clients can reach the tunnel, best first.
    pub addresses: Vec<SocketAddr>,
}

impl Store {
    /// The number of a server's state with this digest: the one in force, or the next if the digest is another. The next is
    /// above what the appliance says it applied, so that it takes states also from a controller whose backup was restored.
    /// `None` when there is no such server.
    pub async fn number_state(
        &self,
        server: ServerId,
        digest: Digest,
    ) -> Result<Option<StateNumber>, StoreError> {
        let _timed = self.timed("number_state");
        let mut tx = self.begin().await?;
        let epoch = settings::epoch(&mut tx).await?;
        let row = sqlx::query(
            "SELECT state_generation, state_digest, applied_epoch, applied_generation FROM servers WHERE server_id = $1",
        )
        .bind(server.to_string())
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let generation = row.count("state_generation")?;
        let applied = if row.count("applied_epoch")? == epoch { row.count("applied_generation")? } else { 0 };
        if row.maybe_bytes32("state_digest")? == Some(digest.0) && generation >= applied {
            return Ok(Some(StateNumber { epoch, generation }));
        }
        let generation = generation.max(applied).saturating_add(1);
        sqlx::query("UPDATE servers SET state_generation = $1, state_digest = $2 WHERE server_id = $3")
            .bind(int(generation))
            .bind(&digest.0[..])
            .bind(server.to_string())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(Some(StateNumber { epoch, generation }))
    }

    /// Notes what an appliance applied. Returns whether anything differs from what was noted.
    pub async fn note_applied(&self, server: ServerId, applied: &AppliedState) -> Result<bool, StoreError> {
        let _timed = self.timed("note_applied");
        let problems = json!(applied.problems).to_string();
        let addresses = json!(applied.addresses).to_string();
        let mut tx = self.begin().await?;
        let row = sqlx::query(
            "SELECT applied_epoch, applied_generation, applied_digest, problems, addresses FROM servers \
             WHERE server_id = $1",
        )
        .bind(server.to_string())
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else { return Ok(false) };
        let same = row.count("applied_epoch")? == applied.epoch
            && row.count("applied_generation")? == applied.generation
            && row.maybe_bytes32("applied_digest")? == applied.digest.map(|d| d.0)
            && row.text("problems")? == problems
            && row.text("addresses")? == addresses;
        if same {
            return Ok(false);
        }
        sqlx::query(
            "UPDATE servers SET applied_epoch = $1, applied_generation = $2, applied_digest = $3, problems = $4, \
             addresses = $5 WHERE server_id = $6",
        )
        .bind(int(applied.epoch))
        .bind(int(applied.generation))
        .bind(applied.digest.map(|d| d.0.to_vec()))
        .bind(problems)
        .bind(addresses)
        .bind(server.to_string())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Notes in words why an appliance's tunnel port cannot be reached from the controller; `None` when it can. Returns
    /// whether that is news.
    pub async fn note_unreachable(&self, server: ServerId, why: Option<&str>) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let done = sqlx::query(
            "UPDATE servers SET unreachable = $1 WHERE server_id = $2 AND COALESCE(unreachable, '') <> COALESCE($1, '')",
        )
        .bind(why)
        .bind(server.to_string())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(done.rows_affected() > 0)
    }

    /// Notes that a server's appliance attached: where it is seen, its version, and which start of its process it is. A
    /// process that started since carries no connections until it reports them.
    pub async fn note_attached(
        &self,
        server: ServerId,
        address: IpAddr,
        version: &str,
        incarnation: Incarnation,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        sqlx::query(
            "UPDATE connections SET connected = FALSE, last_connected = $1 WHERE server_id = $2 AND connected \
             AND EXISTS (SELECT 1 FROM servers s WHERE s.server_id = $2 AND COALESCE(s.incarnation, '') <> $3)",
        )
        .bind(millis(now))
        .bind(server.to_string())
        .bind(incarnation.to_string())
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "UPDATE servers SET public_ip = $1, version = $2, incarnation = $3, heartbeat_counter = 0 \
             WHERE server_id = $4",
        )
        .bind(address.to_string())
        .bind(version)
        .bind(incarnation.to_string())
        .bind(server.to_string())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }
}
