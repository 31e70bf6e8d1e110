//! The chain over the audit trail: the leader seals rows in batches. A row may come to light after rows with higher numbers, as
//! its transaction took longer; the numbers that were missing are looked for again for a while.

use horizon_wire::{
    Message as _,
    audit::{Hash, Link, Row},
    proto,
};
use jiff::Timestamp;

use super::{
    LeaderEpoch, Store, StoreError,
    dialect::{self, Builder, Connection, query},
    registration::fence,
    row::{Columns as _, int, millis},
};

/// The most rows of a link.
pub(super) const MAX_ROWS: usize = 500;
/// The length of a partition of the audit trail, in milliseconds (migrations/0002_replicas.postgres.sql).
pub(super) const MONTH: i64 = 2_592_000_000;
/// For how long a number that is missing is looked for, in milliseconds: no transaction lasts as long.
pub(super) const GAP_PATIENCE: i64 = 10 * 60 * 1000;
/// The most numbers that are looked for at once.
const MAX_GAPS: usize = 1000;
/// The most links that one call makes.
const MAX_LINKS: usize = 20;

/// The columns of a row that are hashed after its number and time, in their order.
const TEXTS: [&str; 9] = [
    "actor_type",
    "actor_name",
    "action",
    "target_type",
    "target_id",
    "target_name",
    "previous_state",
    "new_state",
    "notes",
];

/// The newest link, for whoever goes on from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainHead {
    /// Its number; 0 before the first.
    pub link: u64,
    /// Its digest.
    pub digest: Hash,
    /// The highest number of a sealed row.
    pub last_row: i64,
    /// How many rows are sealed.
    pub rows: u64,
    /// Numbers below it that were missing, each with when that was seen first.
    gaps: Vec<(i64, i64)>,
}

pub(super) fn read_row(row: &dialect::Row) -> Result<Row, StoreError> {
    let texts = TEXTS.iter().map(|column| row.maybe_text(column)).collect::<Result<_, _>>()?;
    Ok(Row { id: row.int("log_id")?, time: row.int("timestamp")?, texts })
}

pub(super) fn read_link(row: &dialect::Row) -> Result<(Link, Hash), StoreError> {
    let hash =
        |column| row.maybe_bytes32(column)?.ok_or(StoreError::Corrupt { column, why: "is missing".into() });
    let link = Link {
        number: row.count("link")?,
        previous: hash("previous")?,
        ranges: row.json("row_ranges")?,
        rows: hash("rows_digest")?,
        marks: row.bytes("row_marks")?,
        month: row.int("month")?,
        dropped: row.int("dropped")?,
        time: row.int("sealed_date")?,
    };
    // Whoever can write the database must not keep its reader busy for ever.
    let mut rows = 0_i64;
    for (first, last) in &link.ranges {
        rows = rows.saturating_add(last.saturating_sub(*first).saturating_add(1).max(0));
    }
    if rows > MAX_ROWS as i64 {
        return Err(StoreError::Corrupt { column: "row_ranges", why: "names too many rows".into() });
    }
    Ok((link, hash("digest")?))
}

async fn head(db: &mut Connection) -> Result<ChainHead, StoreError> {
    let row =
        query("SELECT link, digest, last_row, row_total, gaps FROM audit_links ORDER BY link DESC LIMIT 1")
            .fetch_optional(&mut *db)
            .await?;
    let Some(row) = row else { return Ok(ChainHead::default()) };
    Ok(ChainHead {
        link: row.count("link")?,
        digest: row.maybe_bytes32("digest")?.unwrap_or_default(),
        last_row: row.int("last_row")?,
        rows: row.count("row_total")?,
        gaps: row.json("gaps")?,
    })
}

async fn append(db: &mut Connection, head: &mut ChainHead, link: &Link) -> Result<(), StoreError> {
    let digest = link.digest();
    let last = link.ranges.last().map_or(0, |(_, last)| *last);
    let ids: std::collections::HashSet<i64> = link.ids().collect();
    // What is between the rows of this link and was never seen.
    let first = head.last_row + 1;
    let mut gaps: Vec<(i64, i64)> = head.gaps.iter().copied().filter(|(id, _)| !ids.contains(id)).collect();
    let from = first.max(last.saturating_sub(MAX_GAPS as i64));
    gaps.extend((from..=last).filter(|id| !ids.contains(id)).map(|id| (id, link.time)));
    gaps.retain(|(_, since)| link.time.saturating_sub(*since) < GAP_PATIENCE);
    let over = gaps.len().saturating_sub(MAX_GAPS);
    gaps.drain(..over);
    *head = ChainHead {
        link: link.number,
        digest,
        last_row: head.last_row.max(last),
        rows: head.rows + link.count(),
        gaps,
    };
    query(
        "INSERT INTO audit_links (link, previous, digest, row_ranges, rows_digest, row_marks, month, dropped, sealed_date, \
         last_row, row_total, gaps) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(int(link.number))
    .bind(&link.previous[..])
    .bind(&digest[..])
    .bind(serde_json::json!(link.ranges).to_string())
    .bind(&link.rows[..])
    .bind(&link.marks[..])
    .bind(link.month)
    .bind(link.dropped)
    .bind(link.time)
    .bind(head.last_row)
    .bind(int(head.rows))
    .bind(serde_json::json!(head.gaps).to_string())
    .execute(&mut *db)
    .await?;
    Ok(())
}

/// Records that rows of the months before `month` are let go, before they are.
pub(super) async fn record_drop(db: &mut Connection, month: i64, now: Timestamp) -> Result<(), StoreError> {
    db.serialise("audit chain").await?;
    let row = query("SELECT COALESCE(MAX(dropped), 0) AS dropped, MIN(month) AS first FROM audit_links WHERE row_total > 0")
        .fetch_one(&mut *db)
        .await?;
    if row.int("dropped")? >= month || row.maybe_int("first")?.is_none_or(|first| first >= month) {
        return Ok(());
    }
    let mut head = head(db).await?;
    let mut link = Link::over(head.link + 1, head.digest, millis(now).div_euclid(MONTH), millis(now), &[]);
    link.dropped = month;
    append(db, &mut head, &link).await
}

impl Store {
    /// Seals rows that are not yet. Returns how many.
    pub async fn seal_audit(&self, leader: Option<LeaderEpoch>, now: Timestamp) -> Result<u64, StoreError> {
        let _timed = self.timed("seal_audit");
        self.retried("seal_audit", || async {
            let mut tx = self.begin().await?;
            fence(&mut tx, leader).await?;
            tx.serialise("audit chain").await?;
            let mut head = head(&mut tx).await?;
            let before = head.rows;
            for _ in 0..MAX_LINKS {
                let found = unsealed(&mut tx, &head).await?;
                if found.is_empty() {
                    break;
                }
                // One link for each month: its rows are let go together.
                let mut months: Vec<(i64, Vec<Row>)> = Vec::new();
                for row in found {
                    let month = row.time.div_euclid(MONTH);
                    match months.iter_mut().find(|(m, _)| *m == month) {
                        Some((_, rows)) => rows.push(row),
                        None => months.push((month, vec![row])),
                    }
                }
                for (month, rows) in months {
                    let link = Link::over(head.link + 1, head.digest, month, millis(now), &rows);
                    append(&mut tx, &mut head, &link).await?;
                }
            }
            tx.commit().await?;
            Ok::<_, StoreError>(head.rows - before)
        })
        .await
    }

    /// Whether there are rows that are not sealed, or numbers that are looked for.
    pub async fn audit_waits(&self) -> Result<bool, StoreError> {
        let head = self.audit_head().await?;
        if !head.gaps.is_empty() {
            return Ok(true);
        }
        let newest = query("SELECT log_id FROM audit_logs WHERE log_id > $1 LIMIT 1")
            .bind(head.last_row)
            .fetch_optional(self.readers())
            .await?;
        Ok(newest.is_some())
    }

    /// How far the chain is.
    pub async fn audit_head(&self) -> Result<ChainHead, StoreError> {
        let mut tx = self.readers().snapshot().await?;
        head(&mut tx).await
    }

    /// Keeps a checkpoint.
    pub async fn put_checkpoint(
        &self,
        link: u64,
        envelope: &proto::Envelope,
        leader: Option<LeaderEpoch>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.repeatable("put_checkpoint", || async {
            let mut tx = self.begin().await?;
            fence(&mut tx, leader).await?;
            query(
                "INSERT INTO audit_checkpoints (link, envelope, made_date) VALUES ($1, $2, $3) \
                 ON CONFLICT (link) DO NOTHING",
            )
            .bind(int(link))
            .bind(envelope.encode_to_vec())
            .bind(millis(now))
            .execute(&mut *tx)
            .await?;
            tx.commit().await
        })
        .await
    }

    /// The newest checkpoint, with the number of its link.
    pub async fn newest_checkpoint(&self) -> Result<Option<(u64, proto::Envelope)>, StoreError> {
        let row = query("SELECT link, envelope FROM audit_checkpoints ORDER BY link DESC LIMIT 1")
            .fetch_optional(self.readers())
            .await?;
        row.map(|row| {
            let envelope = proto::Envelope::decode(&row.bytes("envelope")?[..])
                .map_err(|error| StoreError::Corrupt { column: "envelope", why: error.to_string() })?;
            Ok((row.count("link")?, envelope))
        })
        .transpose()
    }

    /// Whether the chain has the link that a witness saw.
    pub async fn has_link(&self, link: u64, digest: &[u8]) -> Result<bool, StoreError> {
        let row = query("SELECT digest FROM audit_links WHERE link = $1")
            .bind(int(link))
            .fetch_optional(self.readers())
            .await?;
        Ok(row.map(|row| row.bytes("digest")).transpose()?.is_some_and(|known| known == digest))
    }
}

/// The next rows that are not sealed, in the order of their numbers.
async fn unsealed(db: &mut Connection, head: &ChainHead) -> Result<Vec<Row>, StoreError> {
    let mut rows = Vec::new();
    if !head.gaps.is_empty() {
        let mut late = Builder::new("SELECT * FROM audit_logs WHERE log_id IN ");
        late.push_list(head.gaps.iter().map(|(id, _)| *id));
        late.push(" ORDER BY log_id");
        for row in &late.build().fetch_all(&mut *db).await? {
            rows.push(read_row(row)?);
        }
        rows.truncate(MAX_ROWS);
    }
    let room = i64::try_from(MAX_ROWS - rows.len()).unwrap_or_default();
    let next = query("SELECT * FROM audit_logs WHERE log_id > $1 ORDER BY log_id LIMIT $2")
        .bind(head.last_row)
        .bind(room);
    for row in &next.fetch_all(&mut *db).await? {
        rows.push(read_row(row)?);
    }
    Ok(rows)
}
