//! Blocked addresses: by whom, why, until when, and how often they were turned away since.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Actor, Store, StoreError,
    audit::{self, Record},
    dialect::{Connection, Row, query},
    row::{Columns as _, int, millis},
};

/// The most ranges that are blocked at a time without anybody asking; administrators may block beyond.
const MOST_AUTOMATIC: u64 = 10_000;
/// The most ranges that are read.
const MOST_READ: u32 = 20_000;

/// How an address is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the words say it all")]
pub enum BlockSeverity {
    Temporary,
    Suspicious,
    Malicious,
    Persistent,
}

impl BlockSeverity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Temporary => "temporary",
            Self::Suspicious => "suspicious",
            Self::Malicious => "malicious",
            Self::Persistent => "persistent",
        }
    }
}

/// What led to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockSource {
    /// Somebody's word.
    Manual,
    /// A number of failures that the policy names.
    Threshold,
}

impl BlockSource {
    fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Threshold => "threshold",
        }
    }
}

/// A range to be blocked.
#[derive(Clone, Debug)]
pub struct NewBlock {
    /// The range; of one address, a prefix of its full length.
    pub range: IpNet,
    /// Why.
    pub reason: String,
    /// How it is judged.
    pub severity: BlockSeverity,
    /// What led to it.
    pub source: BlockSource,
    /// Until when; `None` until it is lifted.
    pub until: Option<Timestamp>,
}

/// A blocked range, or one that was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    /// Its number.
    pub id: i64,
    /// The range.
    #[schema(value_type = String)]
    pub range: IpNet,
    /// Why.
    pub reason: String,
    /// `temporary`, `suspicious`, `malicious` or `persistent`.
    pub severity: String,
    /// `manual` or `threshold`.
    pub source: String,
    /// Since when.
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// Until when.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub until: Option<Timestamp>,
    /// By whom.
    pub by: String,
    /// How many connections were turned away.
    pub hits: u64,
    /// When it was lifted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub lifted_at: Option<Timestamp>,
    /// By whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifted_by: Option<String>,
}

/// Blocks a range in the caller's transaction. One that is blocked stays so until the later of the two times. Returns
/// whether it is blocked: without anybody asking not beyond [`MOST_AUTOMATIC`].
pub(super) async fn write(
    db: &mut Connection,
    block: &NewBlock,
    actor: &Actor,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let range = block.range.trunc().to_string();
    db.serialise("blocked addresses").await?;
    let standing = query("SELECT * FROM blocked_ips WHERE ip_range = $1 AND lifted_date IS NULL {lock}")
        .bind(&range)
        .fetch_optional(&mut *db)
        .await?;
    let mut until = block.until;
    if let Some(row) = standing {
        let known = row.maybe_time("expiration_date")?;
        let over = known.is_some_and(|at| at <= now);
        if !over {
            until = match (known, until) {
                (Some(a), Some(b)) => Some(a.max(b)),
                _ => None,
            };
            // What an administrator said of it is not overwritten by a number of failures.
            let keeps = row.text("block_source")? == "manual" && block.source != BlockSource::Manual;
            let own = |column: &'static str, new: &str| -> Result<String, StoreError> {
                if keeps { row.text(column) } else { Ok(new.to_owned()) }
            };
            query(
                "UPDATE blocked_ips SET expiration_date = $1, reason = $2, severity = $3, block_source = $4, \
                 blocked_by = $5 WHERE block_id = $6",
            )
            .bind(until.map(millis))
            .bind(own("reason", &block.reason)?)
            .bind(own("severity", block.severity.as_str())?)
            .bind(own("block_source", block.source.as_str())?)
            .bind(own("blocked_by", &actor.name())?)
            .bind(row.int("block_id")?)
            .execute(&mut *db)
            .await?;
            return audited(db, "block", &range, block, actor, now).await.map(|()| true);
        }
        lift(db, row.int("block_id")?, "system", known.unwrap_or(now)).await?;
    }
    if block.source != BlockSource::Manual {
        let standing = query("SELECT COUNT(*) AS n FROM blocked_ips WHERE lifted_date IS NULL")
            .fetch_one(&mut *db)
            .await?
            .count("n")?;
        if standing >= MOST_AUTOMATIC {
            return Ok(false);
        }
    }
    query(
        "INSERT INTO blocked_ips (ip_range, reason, severity, block_source, block_date, expiration_date, blocked_by) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(&range)
    .bind(&block.reason)
    .bind(block.severity.as_str())
    .bind(block.source.as_str())
    .bind(millis(now))
    .bind(until.map(millis))
    .bind(actor.name())
    .execute(&mut *db)
    .await?;
    audited(db, "block", &range, block, actor, now).await.map(|()| true)
}

async fn audited(
    db: &mut Connection,
    action: &'static str,
    range: &str,
    block: &NewBlock,
    actor: &Actor,
    now: Timestamp,
) -> Result<(), StoreError> {
    let until = block.until.map_or_else(|| "until it is lifted".to_owned(), |until| format!("until {until}"));
    let record = Record::new(action, "Address", range, range).notes(format!("{} ({until})", block.reason));
    audit::write(db, actor, now, &[record]).await
}

async fn lift(db: &mut Connection, id: i64, by: &str, at: Timestamp) -> Result<(), StoreError> {
    query(
        "UPDATE blocked_ips SET lifted_date = $1, lifted_by = $2 WHERE block_id = $3 AND lifted_date IS NULL",
    )
    .bind(millis(at))
    .bind(by)
    .bind(id)
    .execute(&mut *db)
    .await?;
    Ok(())
}

/// Whether somebody who proved who they are is at an address: a registered appliance, or a device with a session.
pub(super) async fn is_known(db: &mut Connection, address: IpAddr) -> Result<bool, StoreError> {
    let address = address.to_canonical().to_string();
    let row = query(
        "SELECT (SELECT COUNT(*) FROM servers WHERE public_ip = $1 AND registration_date IS NOT NULL \
         AND revoked_date IS NULL) + (SELECT COUNT(*) FROM connections WHERE client_ip = $1 \
         AND status IN ('requested', 'active')) AS n",
    )
    .bind(address)
    .fetch_one(&mut *db)
    .await?;
    Ok(row.count("n")? > 0)
}

impl Store {
    /// Blocks a range by somebody's word.
    pub async fn block_range(
        &self,
        block: &NewBlock,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.retried("block_range", || async {
            let mut tx = self.begin().await?;
            write(&mut tx, block, actor, now).await?;
            tx.commit().await
        })
        .await
    }

    /// Lifts the block of a range. Returns whether it was blocked.
    pub async fn unblock_range(
        &self,
        range: IpNet,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.repeatable("unblock_range", || async {
            let mut tx = self.begin().await?;
            let text = range.trunc().to_string();
            let row =
                query("SELECT block_id FROM blocked_ips WHERE ip_range = $1 AND lifted_date IS NULL {lock}")
                    .bind(&text)
                    .fetch_optional(&mut *tx)
                    .await?;
            let Some(row) = row else { return Ok(false) };
            lift(&mut tx, row.int("block_id")?, &actor.name(), now).await?;
            let record = Record::new("unblock", "Address", &text, &text);
            audit::write(&mut tx, actor, now, &[record]).await?;
            tx.commit().await?;
            Ok(true)
        })
        .await
    }

    /// The ranges that are blocked at a time, with the times they end at.
    pub async fn blocks_in_force(
        &self,
        now: Timestamp,
    ) -> Result<Vec<(IpNet, Option<Timestamp>)>, StoreError> {
        let rows = query(
            "SELECT ip_range, expiration_date FROM blocked_ips WHERE lifted_date IS NULL \
             AND (expiration_date IS NULL OR expiration_date > $1) ORDER BY block_id LIMIT $2",
        )
        .bind(millis(now))
        .bind(MOST_READ)
        .fetch_all(self.readers())
        .await?;
        rows.iter().map(|row| Ok((row.parsed("ip_range")?, row.maybe_time("expiration_date")?))).collect()
    }

    /// Blocked ranges and those that were, the newest first.
    pub async fn list_blocks(&self, limit: u32) -> Result<Vec<Block>, StoreError> {
        self.page_blocks(None, limit).await
    }

    /// A page of them: those before one, the newest first.
    pub async fn page_blocks(&self, before: Option<i64>, limit: u32) -> Result<Vec<Block>, StoreError> {
        let rows = query("SELECT * FROM blocked_ips WHERE block_id < $1 ORDER BY block_id DESC LIMIT $2")
            .bind(before.unwrap_or(i64::MAX))
            .bind(limit)
            .fetch_all(self.readers())
            .await?;
        rows.iter().map(read).collect()
    }

    /// Adds how often ranges turned somebody away.
    pub async fn note_block_hits(&self, hits: &[(IpNet, u64)]) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let mut sorted = hits.to_vec();
        // In one order, so that two replicas do not wait for each other.
        sorted.sort_by_key(|(range, _)| *range);
        for (range, more) in sorted {
            query("UPDATE blocked_ips SET hits = hits + $1 WHERE ip_range = $2 AND lifted_date IS NULL")
                .bind(int(more))
                .bind(range.to_string())
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await
    }
}

/// Makes history of blocks that are past their time, and forgets what is long over.
pub(super) async fn prune(db: &mut Connection, now: Timestamp, before: i64) -> Result<u64, StoreError> {
    query(
        "UPDATE blocked_ips SET lifted_date = expiration_date, lifted_by = 'system' \
         WHERE lifted_date IS NULL AND expiration_date <= $1",
    )
    .bind(millis(now))
    .execute(&mut *db)
    .await?;
    let gone = query("DELETE FROM blocked_ips WHERE lifted_date < $1").bind(before).execute(&mut *db).await?;
    Ok(gone.rows_affected())
}

fn read(row: &Row) -> Result<Block, StoreError> {
    Ok(Block {
        id: row.int("block_id")?,
        range: row.parsed("ip_range")?,
        reason: row.text("reason")?,
        severity: row.text("severity")?,
        source: row.text("block_source")?,
        since: row.time("block_date")?,
        until: row.maybe_time("expiration_date")?,
        by: row.text("blocked_by")?,
        hits: row.count("hits")?,
        lifted_at: row.maybe_time("lifted_date")?,
        lifted_by: row.maybe_text("lifted_by")?,
    })
}
