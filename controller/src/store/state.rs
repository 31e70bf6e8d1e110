//! The numbers of appliances' states, and what appliances say they applied.

use std::net::SocketAddr;

use horizon_model::{Digest, EntryProblem, ServerId};
use serde_json::json;

use super::{
    ChannelLease, Revision, Store, StoreError, channels,
    dialect::{Connection, query},
    row::{Columns as _, int},
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

/// What became of a state that was to be numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateNumbering {
    /// It has this number.
    Numbered(StateNumber),
    /// There is no such server.
    NoServer,
    /// A state made from a newer version of the resources, this one, has a number already: make it anew from that.
    Stale(Revision),
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
    /// A state that differs gets none if it was made from a version of the resources (`revision`) before that of the newest.
    pub async fn number_state(
        &self,
        server: ServerId,
        lease: ChannelLease,
        digest: Digest,
        revision: Revision,
    ) -> Result<StateNumbering, StoreError> {
        let _timed = self.timed("number_state");
        self.repeatable("number_state", || async {
            let mut tx = self.begin().await?;
            if !channels::hold(&mut tx, server, lease).await? {
                return Ok(StateNumbering::NoServer);
            }
            let epoch = settings::epoch(&mut tx).await?;
            let row = query(
                "SELECT state_generation, state_digest, state_revision, applied_epoch, applied_generation FROM servers \
                 WHERE server_id = $1",
            )
            .bind(server.to_string())
            .fetch_one(&mut *tx)
            .await?;
            let (generation, made_from) = (row.count("state_generation")?, Revision(row.int("state_revision")?));
            let applied = if row.count("applied_epoch")? == epoch { row.count("applied_generation")? } else { 0 };
            let same = row.maybe_bytes32("state_digest")? == Some(digest.0);
            if same && generation >= applied {
                return Ok(StateNumbering::Numbered(StateNumber { epoch, generation }));
            }
            if !same && made_from > revision {
                return Ok(StateNumbering::Stale(made_from));
            }
            let generation = generation.max(applied).saturating_add(1);
            query(
                "UPDATE servers SET state_generation = $1, state_digest = $2, state_revision = $3 WHERE server_id = $4",
            )
            .bind(int(generation))
            .bind(&digest.0[..])
            .bind(made_from.max(revision).0)
            .bind(server.to_string())
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok(StateNumbering::Numbered(StateNumber { epoch, generation }))
        })
        .await
    }

    /// Notes what an appliance applied. Returns whether anything differs from what was noted.
    pub async fn note_applied(
        &self,
        server: ServerId,
        lease: ChannelLease,
        applied: &AppliedState,
    ) -> Result<bool, StoreError> {
        let _timed = self.timed("note_applied");
        self.retried("note_applied", || async {
            let mut tx = self.begin().await?;
            let news = channels::hold(&mut tx, server, lease).await?
                && write_applied(&mut tx, server, applied).await?;
            if news {
                tx.commit().await?;
            }
            Ok(news)
        })
        .await
    }

    /// Notes in words why an appliance's tunnel port cannot be reached from the controller; `None` when it can. Returns
    /// whether that is news.
    pub async fn note_unreachable(
        &self,
        server: ServerId,
        lease: ChannelLease,
        why: Option<&str>,
    ) -> Result<bool, StoreError> {
        self.retried("note_unreachable", || async {
            let mut tx = self.begin().await?;
            if !channels::hold(&mut tx, server, lease).await? {
                return Ok(false);
            }
            let done = query(
                "UPDATE servers SET unreachable = $1 WHERE server_id = $2 \
                 AND COALESCE(unreachable, '') <> COALESCE($1, '')",
            )
            .bind(why)
            .bind(server.to_string())
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok(done.rows_affected() > 0)
        })
        .await
    }
}

/// Notes what was applied, if that is news.
async fn write_applied(
    db: &mut Connection,
    server: ServerId,
    applied: &AppliedState,
) -> Result<bool, StoreError> {
    let problems = json!(applied.problems).to_string();
    let addresses = json!(applied.addresses).to_string();
    let row = query(
        "SELECT applied_epoch, applied_generation, applied_digest, problems, addresses FROM servers WHERE server_id = $1",
    )
    .bind(server.to_string())
    .fetch_one(&mut *db)
    .await?;
    let same = row.count("applied_epoch")? == applied.epoch
        && row.count("applied_generation")? == applied.generation
        && row.maybe_bytes32("applied_digest")? == applied.digest.map(|d| d.0)
        && row.text("problems")? == problems
        && row.text("addresses")? == addresses;
    if same {
        return Ok(false);
    }
    query(
        "UPDATE servers SET applied_epoch = $1, applied_generation = $2, applied_digest = $3, problems = $4, \
         addresses = $5 WHERE server_id = $6",
    )
    .bind(int(applied.epoch))
    .bind(int(applied.generation))
    .bind(applied.digest.map(|d| d.0.to_vec()))
    .bind(problems)
    .bind(addresses)
    .bind(server.to_string())
    .execute(&mut *db)
    .await?;
    Ok(true)
}
