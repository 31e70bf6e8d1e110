//! Verifies the audit trail of a database, without a controller and without any secret: every link, every row under it, the
//! signatures of the checkpoints, and what witnesses saw.

use std::{collections::BTreeMap, time::Instant};

use horizon_model::PublicKey;
use horizon_wire::{
    Message as _,
    audit::{self, Difference, Hash, Link, Row},
    key,
    keyset::{self, Anchor},
    proto::{self, KeyUse},
};
use jiff::Timestamp;
use serde::Serialize;

use super::{
    Database, StoreError,
    audit_chain::{GAP_PATIENCE, MONTH, read_link, read_row},
    dialect::{self, Pool, query},
    row::{Columns as _, millis},
};

/// How many rows or links are read at once.
const CHUNK: i64 = 5000;
/// The most findings that are told.
const MAX_FINDINGS: usize = 100;
/// The least age of rows that are let go, in milliseconds.
const LEAST_AGE: i64 = 90 * 24 * 3600 * 1000;

/// Something that is not as the chain says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// `edited`, `deleted`, `inserted`, `broken`, `cut`, `recomputed`, `dropped` or `signature`.
    pub kind: &'static str,
    /// The link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<u64>,
    /// The number of the row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row: Option<i64>,
    /// What is wrong, for people.
    pub message: String,
}

/// What a verification found.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditReport {
    /// What is wrong, the first of it; nothing when the trail is as it was written.
    pub findings: Vec<Finding>,
    /// How many findings there are.
    pub found: u64,
    /// Links that were verified.
    pub links: u64,
    /// Rows that were verified.
    pub rows: u64,
    /// Rows that are not sealed yet.
    pub unsealed: u64,
    /// Links whose rows were let go, as their time was over.
    pub dropped: u64,
    /// Checkpoints of the database whose signature and digest are right.
    pub checkpoints: u64,
    /// Witnesses that agree.
    pub witnesses: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl AuditReport {
    fn add(&mut self, kind: &'static str, link: Option<u64>, row: Option<i64>, message: String) {
        self.found += 1;
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding { kind, link, row, message });
        }
    }
}

/// Verifies the trail of a database. `witnesses` are checkpoints that appliances kept.
///
/// # Errors
/// When the database cannot be read.
pub async fn verify_audit(
    database: impl Into<Database>,
    witnesses: &[proto::Envelope],
    now: Timestamp,
) -> Result<AuditReport, StoreError> {
    let (writer, readers) = dialect::open(&database.into()).await?;
    let report = verify(&readers, witnesses, now).await;
    readers.close().await;
    writer.close().await;
    report
}

pub(super) async fn verify(
    pool: &Pool,
    witnesses: &[proto::Envelope],
    now: Timestamp,
) -> Result<AuditReport, StoreError> {
    let since = Instant::now();
    let mut report = AuditReport::default();
    let trusted = state_keys(pool).await?;
    // What is said to have been at a link, by whom.
    let mut seen: BTreeMap<u64, Vec<(Hash, bool)>> = BTreeMap::new();
    let mut take =
        |report: &mut AuditReport, envelope: &proto::Envelope, witness: bool| match audit::open_checkpoint(
            envelope,
            |key| trusted.contains(key),
        ) {
            Ok(said) => {
                let digest = said.digest[..].try_into().unwrap_or_default();
                seen.entry(said.link).or_default().push((digest, witness));
            }
            Err(error) => {
                let whose = if witness { "a witness" } else { "a checkpoint of the database" };
                report.add("signature", None, None, format!("{whose} is not to be trusted: {error}"));
            }
        };
    for row in &query("SELECT envelope FROM audit_checkpoints ORDER BY link").fetch_all(pool).await? {
        match proto::Envelope::decode(&row.bytes("envelope")?[..]) {
            Ok(envelope) => take(&mut report, &envelope, false),
            Err(_) => {
                report.add("signature", None, None, "a checkpoint of the database cannot be read".into())
            }
        }
    }
    for envelope in witnesses {
        take(&mut report, envelope, true);
    }
    let mut walk = Walk { seen, latest: millis(now).saturating_add(GAP_PATIENCE), ..Walk::default() };
    // Once through the chain for what was let go, once with the rows.
    let mut dropped = 0;
    let mut after = 0;
    loop {
        let rows = query("SELECT * FROM audit_links WHERE link > $1 ORDER BY link LIMIT $2")
            .bind(after)
            .bind(CHUNK)
            .fetch_all(pool)
            .await?;
        let Some(last) = rows.last() else { break };
        after = last.int("link")?;
        for row in &rows {
            let (link, digest) = read_link(row)?;
            walk.chain(&link, digest, &mut report);
            dropped = dropped.max(link.dropped);
        }
    }
    walk.end(&mut report);
    let mut rows = RowReader::new(pool);
    let mut after = 0;
    let mut newest = 0;
    loop {
        let links = query("SELECT * FROM audit_links WHERE link > $1 ORDER BY link LIMIT $2")
            .bind(after)
            .bind(CHUNK)
            .fetch_all(pool)
            .await?;
        let Some(last) = links.last() else { break };
        after = last.int("link")?;
        for row in &links {
            let (link, _) = read_link(row)?;
            newest = newest.max(link.time);
            if link.ranges.is_empty() {
                continue;
            }
            let found = rows.of(&link).await?;
            let over = link.month < dropped;
            if over && found.is_empty() {
                report.dropped += 1;
                continue;
            }
            report.rows += found.len() as u64;
            for difference in link.compare(&found) {
                // What is over may go, and need not at once.
                if !(over && matches!(difference, Difference::Missing(_))) {
                    tell(&mut report, &link, difference);
                }
            }
        }
    }
    rows.rest(newest, now, &mut report).await?;
    report.seconds = since.elapsed().as_secs_f64();
    Ok(report)
}

fn tell(report: &mut AuditReport, link: &Link, difference: Difference) {
    let (kind, row, what) = match difference {
        Difference::Changed(row) => ("edited", row, "says something else than when it was sealed"),
        Difference::Missing(row) => ("deleted", row, "was sealed and is not there any more"),
        Difference::Inserted(row) => ("inserted", row, "lies between sealed rows and was never sealed"),
    };
    report.add(kind, Some(link.number), Some(row), format!("row {row} {what} (link {})", link.number));
}

/// Every key that ever signed states, as the chain of KeySets lists them.
async fn state_keys(pool: &Pool) -> Result<Vec<PublicKey>, StoreError> {
    let rows = query("SELECT signed FROM keysets ORDER BY version").fetch_all(pool).await?;
    let mut keys = Vec::new();
    let mut held: Option<keyset::KeySet> = None;
    for row in &rows {
        let signed = proto::SignedKeySet::decode(&row.bytes("signed")?[..]);
        let Some(signed) = signed.ok() else { break };
        let next = match &held {
            None => keyset::read(&signed).and_then(|first| {
                keyset::walk(&Anchor::Root(key::root_id(&first.root)), std::slice::from_ref(&signed))
            }),
            Some(held) => keyset::walk(&Anchor::KeySet(held.clone()), std::slice::from_ref(&signed)),
        };
        let Ok(next) = next else { break };
        keys.extend(next.keys.iter().filter(|key| key.usage == KeyUse::State).map(|key| key.key));
        held = Some(next);
    }
    keys.sort_unstable_by_key(|key| key.0);
    keys.dedup();
    Ok(keys)
}

/// The way through the chain.
#[derive(Default)]
struct Walk {
    number: u64,
    digest: Hash,
    time: i64,
    /// No link can have been made later than this.
    latest: i64,
    seen: BTreeMap<u64, Vec<(Hash, bool)>>,
}

impl Walk {
    fn chain(&mut self, link: &Link, digest: Hash, report: &mut AuditReport) {
        report.links += 1;
        let number = Some(link.number);
        if link.number != self.number + 1 {
            let what =
                format!("after link {} comes link {}: those between were deleted", self.number, link.number);
            report.add("broken", number, None, what);
        } else if link.previous != self.digest {
            let what = format!("link {} does not follow the link before it", link.number);
            report.add("broken", number, None, what);
        }
        if link.digest() != digest {
            report.add(
                "broken",
                number,
                None,
                format!("link {} was edited: its digest is another one", link.number),
            );
        }
        if link.time < self.time.saturating_sub(GAP_PATIENCE) {
            report.add(
                "broken",
                number,
                None,
                format!("link {} was made before the link before it", link.number),
            );
        }
        // The age of rows that are let go is counted up to the time of the link.
        if link.time > self.latest {
            let what = format!("link {} says that it was made in the future", link.number);
            report.add("broken", number, None, what);
        }
        if link.dropped > 0 && link.dropped.saturating_mul(MONTH) > link.time.saturating_sub(LEAST_AGE) {
            let what = format!("link {} lets rows go that were younger than 90 days", link.number);
            report.add("dropped", number, None, what);
        }
        for (said, witness) in self.seen.remove(&link.number).unwrap_or_default() {
            match (said == digest, witness) {
                (true, true) => report.witnesses += 1,
                (true, false) => report.checkpoints += 1,
                (false, _) => {
                    let whose = if witness { "a witness" } else { "a signed checkpoint" };
                    let what = format!(
                        "{whose} saw another chain up to link {}: it was computed anew since",
                        link.number
                    );
                    report.add("recomputed", number, None, what);
                }
            }
        }
        (self.number, self.digest, self.time) = (link.number, digest, link.time);
    }

    fn end(&mut self, report: &mut AuditReport) {
        for (number, said) in std::mem::take(&mut self.seen) {
            let whose =
                if said.iter().any(|(_, witness)| *witness) { "a witness" } else { "a signed checkpoint" };
            let (kind, what) = match number > self.number {
                true => ("cut", format!("the chain ends with link {}: its end was cut off", self.number)),
                false => ("broken", "it is not there any more".to_owned()),
            };
            report.add(kind, Some(number), None, format!("{whose} saw link {number}, and {what}"));
        }
    }
}

/// Reads rows in the order of their numbers, once, and those that came late by themselves.
struct RowReader<'a> {
    pool: &'a Pool,
    /// Rows that were read and belong to no link so far.
    waiting: BTreeMap<i64, Row>,
    read_to: i64,
    over: bool,
}

impl<'a> RowReader<'a> {
    fn new(pool: &'a Pool) -> Self {
        Self { pool, waiting: BTreeMap::new(), read_to: i64::MIN, over: false }
    }

    async fn more(&mut self) -> Result<(), StoreError> {
        let rows = query("SELECT * FROM audit_logs WHERE log_id > $1 ORDER BY log_id LIMIT $2")
            .bind(self.read_to)
            .bind(CHUNK)
            .fetch_all(self.pool)
            .await?;
        self.over = rows.is_empty();
        for row in &rows {
            let row = read_row(row)?;
            self.read_to = row.id;
            self.waiting.insert(row.id, row);
        }
        Ok(())
    }

    /// The rows of a link that are there.
    async fn of(&mut self, link: &Link) -> Result<Vec<Row>, StoreError> {
        let last = link.ranges.iter().map(|(_, last)| *last).max().unwrap_or(i64::MIN);
        while !self.over && self.read_to < last {
            self.more().await?;
        }
        Ok(link.ids().filter_map(|id| self.waiting.remove(&id)).collect())
    }

    /// What is left belongs to no link: rows that are not sealed yet, or that were put there.
    async fn rest(mut self, newest: i64, now: Timestamp, report: &mut AuditReport) -> Result<(), StoreError> {
        let last = query("SELECT COALESCE(MAX(last_row), 0) AS last_row FROM audit_links")
            .fetch_one(self.pool)
            .await?;
        let last = last.int("last_row")?;
        loop {
            for (id, row) in std::mem::take(&mut self.waiting) {
                let young = row.time.saturating_add(GAP_PATIENCE) > newest;
                match id > last || young && row.time <= millis(now).saturating_add(GAP_PATIENCE) {
                    true => report.unsealed += 1,
                    false => {
                        let what =
                            format!("row {id} lies among sealed rows and was never sealed: it was put there");
                        report.add("inserted", None, Some(id), what);
                    }
                }
            }
            if self.over {
                return Ok(());
            }
            self.more().await?;
        }
    }
}
