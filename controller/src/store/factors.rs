//! The rows of identity factors. Each says when it was first and last seen, whether it holds now, whether it was approved, and
//! whether it waits for an approval. Those of the past stay as history.

use horizon_controller_core::identity;
use horizon_model::{Factor, FactorKind, ServerId};
use jiff::Timestamp;
use serde::Serialize;

use super::{
    Store, StoreError,
    dialect::{Connection, Row, query},
    row::{Columns as _, millis},
};

/// The most factors of the past that are kept of a server.
const MAX_HISTORY: i64 = 256;
/// The most factors that are listed of a server.
const MAX_LISTED: i64 = 512;
const KINDS: [FactorKind; 5] = [
    FactorKind::HardwareFingerprint,
    FactorKind::NetworkSignature,
    FactorKind::Geolocation,
    FactorKind::CryptographicAttestation,
    FactorKind::RuntimeEnvironment,
];

/// A factor with its history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FactorRecord {
    /// The factor.
    #[serde(flatten)]
    pub factor: Factor,
    /// When it was first seen.
    pub first_seen: Timestamp,
    /// When it was last news that it holds.
    pub last_seen: Timestamp,
    /// How sure it is, in percent.
    pub confidence: u64,
    /// Whether it holds now.
    pub current: bool,
    /// Whether it is part of what was approved.
    pub approved: bool,
}

/// Writes what a machine is like now; what it was like before is history.
pub(super) async fn write(
    db: &mut Connection,
    server: ServerId,
    factors: &[Factor],
    now: Timestamp,
) -> Result<(), StoreError> {
    query("UPDATE server_identity_factors SET is_current = FALSE WHERE server_id = $1 AND is_current")
        .bind(server.to_string())
        .execute(&mut *db)
        .await?;
    for factor in factors {
        query(
            "INSERT INTO server_identity_factors (server_id, factor_type, factor_name, factor_value, first_seen, \
             last_seen, confidence, is_current, is_approved) VALUES ($1, $2, $3, $4, $5, $5, $6, TRUE, FALSE) \
             ON CONFLICT (server_id, factor_type, factor_name, factor_value) \
             DO UPDATE SET last_seen = excluded.last_seen, is_current = TRUE, confidence = excluded.confidence",
        )
        .bind(server.to_string())
        .bind(factor.kind.as_str())
        .bind(&factor.name)
        .bind(&factor.value)
        .bind(millis(now))
        .bind(i64::from(identity::confidence(factor.kind, &factor.name)))
        .execute(&mut *db)
        .await?;
    }
    query(
        "DELETE FROM server_identity_factors WHERE server_id = $1 AND NOT is_current AND NOT is_approved \
         AND NOT is_pending AND factor_id NOT IN (SELECT factor_id FROM server_identity_factors WHERE server_id = $1 \
         AND NOT is_current AND NOT is_approved AND NOT is_pending ORDER BY last_seen DESC, factor_id DESC LIMIT $2)",
    )
    .bind(server.to_string())
    .bind(MAX_HISTORY)
    .execute(&mut *db)
    .await?;
    Ok(())
}

/// Writes the factors of a new registration: they hold, and they are approved.
pub(super) async fn start(
    db: &mut Connection,
    server: ServerId,
    factors: &[Factor],
    now: Timestamp,
) -> Result<(), StoreError> {
    write(db, server, factors, now).await?;
    query("UPDATE server_identity_factors SET is_approved = is_current, is_pending = FALSE WHERE server_id = $1")
        .bind(server.to_string())
        .execute(&mut *db)
        .await?;
    Ok(())
}

/// Takes factors into what was approved.
pub(super) async fn approve(
    db: &mut Connection,
    server: ServerId,
    factors: &[Factor],
) -> Result<(), StoreError> {
    for factor in factors {
        query(
            "UPDATE server_identity_factors SET is_approved = TRUE WHERE server_id = $1 AND factor_type = $2 \
             AND factor_name = $3 AND factor_value = $4",
        )
        .bind(server.to_string())
        .bind(factor.kind.as_str())
        .bind(&factor.name)
        .bind(&factor.value)
        .execute(&mut *db)
        .await?;
    }
    Ok(())
}

/// What holds now is what waits for an approval.
pub(super) async fn await_approval(db: &mut Connection, server: ServerId) -> Result<(), StoreError> {
    query("UPDATE server_identity_factors SET is_pending = is_current WHERE server_id = $1 AND is_pending <> is_current")
        .bind(server.to_string())
        .execute(&mut *db)
        .await?;
    Ok(())
}

/// What waited is what was approved. Where nothing waited, as after a wrong answer, what was approved stays so.
pub(super) async fn approve_waiting(db: &mut Connection, server: ServerId) -> Result<(), StoreError> {
    query(
        "UPDATE server_identity_factors SET is_approved = is_pending WHERE server_id = $1 AND EXISTS (SELECT 1 \
         FROM server_identity_factors f WHERE f.server_id = $1 AND f.is_pending)",
    )
    .bind(server.to_string())
    .execute(&mut *db)
    .await?;
    query("UPDATE server_identity_factors SET is_pending = FALSE WHERE server_id = $1 AND is_pending")
        .bind(server.to_string())
        .execute(&mut *db)
        .await?;
    Ok(())
}

/// What holds now.
pub(super) async fn current(db: &mut Connection, server: ServerId) -> Result<Vec<Factor>, StoreError> {
    let rows = query(
        "SELECT factor_type, factor_name, factor_value FROM server_identity_factors \
         WHERE server_id = $1 AND is_current ORDER BY factor_type, factor_name",
    )
    .bind(server.to_string())
    .fetch_all(&mut *db)
    .await?;
    rows.iter().map(read_factor).collect()
}

/// What was approved.
pub(super) async fn approved(db: &mut Connection, server: ServerId) -> Result<Vec<Factor>, StoreError> {
    let rows = query(
        "SELECT factor_type, factor_name, factor_value FROM server_identity_factors WHERE server_id = $1 AND is_approved",
    )
    .bind(server.to_string())
    .fetch_all(&mut *db)
    .await?;
    rows.iter().map(read_factor).collect()
}

impl Store {
    /// What is known of a server's machine: what holds now first, then the past, the newest first.
    pub async fn list_factors(&self, server: ServerId) -> Result<Vec<FactorRecord>, StoreError> {
        let rows = query(
            "SELECT * FROM server_identity_factors WHERE server_id = $1 \
             ORDER BY is_current DESC, CASE WHEN is_current THEN 0 ELSE last_seen END DESC, factor_type, factor_name, factor_id \
             LIMIT $2",
        )
        .bind(server.to_string())
        .bind(MAX_LISTED)
        .fetch_all(self.readers())
        .await?;
        let read = |row: &Row| {
            Ok(FactorRecord {
                factor: read_factor(row)?,
                first_seen: row.time("first_seen")?,
                last_seen: row.time("last_seen")?,
                confidence: row.count("confidence")?,
                current: row.flag("is_current")?,
                approved: row.flag("is_approved")?,
            })
        };
        rows.iter().map(read).collect()
    }
}

fn read_factor(row: &Row) -> Result<Factor, StoreError> {
    let kind = row.text("factor_type")?;
    let kind = KINDS
        .into_iter()
        .find(|k| k.as_str() == kind)
        .ok_or(StoreError::Corrupt { column: "factor_type", why: "no kind of factor".into() })?;
    Ok(Factor { kind, name: row.text("factor_name")?, value: row.text("factor_value")? })
}
