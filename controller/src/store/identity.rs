//! Identity factors: kept with their history, compared with what was approved.
//!
//! Hardware and attestation factors make the identity; its digest is over them alone. Network and runtime factors are kept
//! for people to read: they change with every cable and upgrade. A change of more than [`SIGNIFICANT_PERCENT`] of the
//! approved identity factors is significant: the server takes no new sessions until an `Approval` names the new digest.
//! A smaller one, like one disk of four, is taken over and noted.

use horizon_crds::{ApprovalSpec, Document, KindName};
use horizon_model::{Factor, FactorKind, IdentityChange, ServerId};
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::{
    Actor, ChannelLease, NewEvent, Severity, Source, Store, StoreError,
    audit::{self, Record},
    changed, channels,
    dialect::{Connection, query},
    effects, event, resources,
    row::{Columns as _, millis},
};

/// The part of the approved identity factors, in percent, above which a change needs an approval.
pub const SIGNIFICANT_PERCENT: usize = 40;
/// The most factors of the past that are kept of a server.
const MAX_HISTORY: i64 = 256;
/// The most changes that are kept with a server.
const MAX_CHANGES: usize = 32;

/// What differs between two sets of identity factors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityChanges {
    /// The differences, by kind and name.
    pub changes: Vec<IdentityChange>,
    /// Whether they need an approval.
    pub significant: bool,
}

/// What a report of factors led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityOutcome {
    /// The identity is the approved one.
    Same,
    /// It changed a little, which was taken over.
    Absorbed(Vec<IdentityChange>),
    /// It changed a lot: the digest waits for an approval.
    Pending {
        /// The digest that waits.
        digest: [u8; 32],
        /// What differs from the approved identity.
        changes: Vec<IdentityChange>,
    },
}

fn identifies(kind: FactorKind) -> bool {
    matches!(kind, FactorKind::HardwareFingerprint | FactorKind::CryptographicAttestation)
}

/// The SHA-256 over the factors that make the identity, in the order of their kinds and names.
pub(super) fn digest(factors: &[Factor]) -> [u8; 32] {
    let mut sorted: Vec<_> = factors.iter().filter(|f| identifies(f.kind)).collect();
    sorted.sort();
    let mut bytes = b"horizon identity v1\0".to_vec();
    for factor in sorted {
        for part in [factor.kind.as_str(), &factor.name, &factor.value] {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
    }
    horizon_wire::key::sha256(&bytes).0
}

/// Compares reported factors with the approved ones.
pub(super) fn compare(approved: &[Factor], reported: &[Factor]) -> IdentityChanges {
    let key = |f: &Factor| (f.kind, f.name.clone());
    let identifying = |list: &[Factor]| -> std::collections::BTreeMap<_, _> {
        list.iter().filter(|f| identifies(f.kind)).map(|f| (key(f), f.value.clone())).collect()
    };
    let (before, after) = (identifying(approved), identifying(reported));
    let mut changes = Vec::new();
    for ((kind, name), value) in &before {
        let now = after.get(&(*kind, name.clone()));
        if now != Some(value) {
            let (from, to) = (Some(value.clone()), now.cloned());
            changes.push(IdentityChange { kind: *kind, name: name.clone(), from, to });
        }
    }
    // What was there and is not, or is another, counts; what merely joined does not.
    let lost = changes.len();
    for ((kind, name), value) in &after {
        if !before.contains_key(&(*kind, name.clone())) {
            changes.push(IdentityChange {
                kind: *kind,
                name: name.clone(),
                from: None,
                to: Some(value.clone()),
            });
        }
    }
    let significant =
        lost * 100 > before.len() * SIGNIFICANT_PERCENT || before.is_empty() && !after.is_empty();
    IdentityChanges { changes, significant }
}

/// Writes the factors of a new registration: they are current and approved, and those before are history.
pub(super) async fn start_factors(
    db: &mut Connection,
    server: ServerId,
    factors: &[Factor],
    now: Timestamp,
) -> Result<(), StoreError> {
    write_factors(db, server, factors, now).await?;
    approve_current(db, server).await
}

async fn approve_current(db: &mut Connection, server: ServerId) -> Result<(), StoreError> {
    query("UPDATE server_identity_factors SET is_approved = is_current WHERE server_id = $1")
        .bind(server.to_string())
        .execute(&mut *db)
        .await?;
    Ok(())
}

async fn write_factors(
    db: &mut Connection,
    server: ServerId,
    factors: &[Factor],
    now: Timestamp,
) -> Result<(), StoreError> {
    const CERTAIN: i64 = 100;
    /// What an appliance says of its network is easy to imitate.
    const LIKELY: i64 = 60;
    query("UPDATE server_identity_factors SET is_current = FALSE WHERE server_id = $1 AND is_current")
        .bind(server.to_string())
        .execute(&mut *db)
        .await?;
    for factor in factors {
        query(
            "INSERT INTO server_identity_factors (server_id, factor_type, factor_name, factor_value, first_seen, \
             last_seen, confidence, is_current, is_approved) VALUES ($1, $2, $3, $4, $5, $5, $6, TRUE, FALSE) \
             ON CONFLICT (server_id, factor_type, factor_name, factor_value) \
             DO UPDATE SET last_seen = excluded.last_seen, is_current = TRUE",
        )
        .bind(server.to_string())
        .bind(factor.kind.as_str())
        .bind(&factor.name)
        .bind(&factor.value)
        .bind(millis(now))
        .bind(if identifies(factor.kind) { CERTAIN } else { LIKELY })
        .execute(&mut *db)
        .await?;
    }
    query(
        "DELETE FROM server_identity_factors WHERE server_id = $1 AND NOT is_current AND NOT is_approved \
         AND factor_id NOT IN (SELECT factor_id FROM server_identity_factors WHERE server_id = $1 AND NOT is_current \
         AND NOT is_approved ORDER BY last_seen DESC, factor_id DESC LIMIT $2)",
    )
    .bind(server.to_string())
    .bind(MAX_HISTORY)
    .execute(&mut *db)
    .await?;
    Ok(())
}

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

async fn approved_factors(db: &mut Connection, server: ServerId) -> Result<Vec<Factor>, StoreError> {
    let rows = query(
        "SELECT factor_type, factor_name, factor_value FROM server_identity_factors WHERE server_id = $1 AND is_approved",
    )
    .bind(server.to_string())
    .fetch_all(&mut *db)
    .await?;
    rows.iter().map(read_factor).collect()
}

fn read_factor(row: &super::dialect::Row) -> Result<Factor, StoreError> {
    let kind = row.text("factor_type")?;
    let kind = [
        FactorKind::HardwareFingerprint,
        FactorKind::NetworkSignature,
        FactorKind::Geolocation,
        FactorKind::CryptographicAttestation,
        FactorKind::RuntimeEnvironment,
    ]
    .into_iter()
    .find(|k| k.as_str() == kind)
    .ok_or(StoreError::Corrupt { column: "factor_type", why: "no kind of factor".into() })?;
    Ok(Factor { kind, name: row.text("factor_name")?, value: row.text("factor_value")? })
}

impl Store {
    /// Takes in what an appliance reports about its machine. A significant change quarantines the server, unless its digest
    /// was approved before it came.
    pub async fn observe_factors(
        &self,
        server: ServerId,
        lease: ChannelLease,
        factors: &[Factor],
        now: Timestamp,
    ) -> Result<IdentityOutcome, StoreError> {
        let (outcome, raised) =
            self.retried("observe_factors", || self.observe_once(server, lease, factors, now)).await?;
        if raised {
            self.inner.metrics.security_event("identity_pending");
        }
        Ok(outcome)
    }

    /// What the report led to, and whether somebody should look at it.
    async fn observe_once(
        &self,
        server: ServerId,
        lease: ChannelLease,
        factors: &[Factor],
        now: Timestamp,
    ) -> Result<(IdentityOutcome, bool), StoreError> {
        let mut tx = self.begin().await?;
        if !channels::hold(&mut tx, server, lease).await? {
            return Ok((IdentityOutcome::Same, false));
        }
        let approved = approved_factors(&mut tx, server).await?;
        write_factors(&mut tx, server, factors, now).await?;
        let IdentityChanges { mut changes, significant } = compare(&approved, factors);
        changes.truncate(MAX_CHANGES);
        let new = digest(factors);
        let outcome = if changes.is_empty() {
            (IdentityOutcome::Same, false)
        } else if !significant {
            query("UPDATE servers SET identity_digest = $1 WHERE server_id = $2")
                .bind(&new[..])
                .bind(server.to_string())
                .execute(&mut *tx)
                .await?;
            approve_current(&mut tx, server).await?;
            let event = difference(
                server,
                "identity_changed",
                Severity::Low,
                &changes,
                "a small change was taken over",
            );
            event::write(&mut tx, &event, now).await?;
            (IdentityOutcome::Absorbed(changes), false)
        } else {
            quarantine(&mut tx, server, new, &changes, now).await?
        };
        tx.commit().await?;
        Ok(outcome)
    }
}

async fn quarantine(
    db: &mut Connection,
    server: ServerId,
    digest: [u8; 32],
    changes: &[IdentityChange],
    now: Timestamp,
) -> Result<(IdentityOutcome, bool), StoreError> {
    let row = query("SELECT identity_digest, pending_digest FROM servers WHERE server_id = $1")
        .bind(server.to_string())
        .fetch_one(&mut *db)
        .await?;
    // It was approved while the appliance reported something else.
    if row.maybe_bytes32("identity_digest")? == Some(digest) {
        approve_current(db, server).await?;
        return Ok((IdentityOutcome::Same, false));
    }
    let known = row.maybe_bytes32("pending_digest")? == Some(digest);
    query(
        "UPDATE servers SET pending_digest = $1, requires_verification = TRUE, verification_reason = $2, \
             identity_changes = $3 WHERE server_id = $4",
    )
    .bind(&digest[..])
    .bind("its appliance reports another machine than the approved one")
    .bind(json!(changes).to_string())
    .bind(server.to_string())
    .execute(&mut *db)
    .await?;
    effects::refresh_server(db, &server.to_string()).await?;
    changed::touch(db, &server.to_string()).await?;
    let waiting = query(
            "SELECT a.approval_uid FROM approvals a JOIN resources r ON r.uid = a.approval_uid WHERE a.server_id = $1 \
             AND a.identity_digest = $2 AND a.effective_at IS NULL AND r.deleted_at IS NULL",
        )
        .bind(server.to_string())
        .bind(&digest[..])
        .fetch_optional(&mut *db)
        .await?;
    if let Some(row) = waiting {
        take_effect(db, row.parsed("approval_uid")?, server, now).await?;
        return Ok((IdentityOutcome::Same, false));
    }
    if !known {
        let what = "it takes no new sessions until the identity is approved";
        event::write(db, &difference(server, "identity_pending", Severity::High, changes, what), now).await?;
    }
    Ok((IdentityOutcome::Pending { digest, changes: changes.to_vec() }, !known))
}

fn difference(
    server: ServerId,
    kind: &'static str,
    severity: Severity,
    changes: &[IdentityChange],
    what: &str,
) -> NewEvent {
    let names: Vec<_> = changes.iter().map(|c| c.name.as_str()).collect();
    NewEvent {
        kind,
        severity,
        source: Source::Server(server),
        address: None,
        description: format!("the machine of server {server} changed ({}): {what}", names.join(", ")),
        data: json!(changes),
    }
}

/// Records an approval; it takes effect now if its digest waits, else when it comes.
pub(super) async fn record_approval(
    db: &mut Connection,
    uid: Uuid,
    document: &Document<ApprovalSpec>,
    actor: &Actor,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (spec, namespace) = (&document.spec, &document.metadata.namespace);
    let Some(server) = resources::uid_of(db, KindName::Server, namespace, &spec.server_ref).await? else {
        return Ok(());
    };
    query(
        "INSERT INTO approvals (approval_uid, server_id, identity_digest, decided_at) VALUES ($1, $2, $3, $4)",
    )
    .bind(uid.to_string())
    .bind(server.to_string())
    .bind(&spec.identity_digest.as_bytes()[..])
    .bind(millis(now))
    .execute(&mut *db)
    .await?;
    let row = query("SELECT pending_digest FROM servers WHERE server_id = $1 {lock}")
        .bind(server.to_string())
        .fetch_one(&mut *db)
        .await?;
    let waits = row.maybe_bytes32("pending_digest")? == Some(*spec.identity_digest.as_bytes());
    if waits {
        take_effect(db, uid, ServerId(server), now).await?;
    }
    let name = format!("{namespace}/{}", spec.server_ref);
    let record = Record::new("approve", KindName::Server.as_str(), server, name).notes(format!(
        "identity {}{}",
        spec.identity_digest,
        if waits { "" } else { ", which the server does not report now" }
    ));
    audit::write(db, actor, now, &[record]).await
}

/// The pending identity is the server's from now on, and its appliance gets a new verification secret.
async fn take_effect(
    db: &mut Connection,
    approval: Uuid,
    server: ServerId,
    now: Timestamp,
) -> Result<(), StoreError> {
    query("UPDATE approvals SET effective_at = $1 WHERE approval_uid = $2 AND effective_at IS NULL")
        .bind(millis(now))
        .bind(approval.to_string())
        .execute(&mut *db)
        .await?;
    let row = query("SELECT pending_digest FROM servers WHERE server_id = $1")
        .bind(server.to_string())
        .fetch_one(&mut *db)
        .await?;
    // The factors that were approved are those of the digest, which may not be what is reported now.
    let reported = current(db, server).await?;
    if row.maybe_bytes32("pending_digest")? == Some(digest(&reported)) {
        approve_current(db, server).await?;
    }
    query(
        "UPDATE servers SET identity_digest = pending_digest, pending_digest = NULL, requires_verification = FALSE, \
         verification_reason = NULL, identity_changes = '[]', reissue_secret = TRUE, \
         verified = CASE WHEN verified THEN TRUE ELSE NULL END WHERE server_id = $1",
    )
    .bind(server.to_string())
    .execute(&mut *db)
    .await?;
    effects::refresh_server(db, &server.to_string()).await?;
    changed::touch(db, &server.to_string()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hardware(values: &[(&str, &str)]) -> Vec<Factor> {
        let factor = |(name, value): &(&str, &str)| Factor {
            kind: FactorKind::HardwareFingerprint,
            name: (*name).to_owned(),
            value: (*value).to_owned(),
        };
        values.iter().map(factor).collect()
    }

    #[test]
    fn only_large_losses_of_hardware_are_significant() {
        let approved = hardware(&[("board", "a"), ("cpu", "b"), ("disk/0", "c"), ("nic/0", "d")]);
        let cases = [
            (hardware(&[("nic/0", "d"), ("cpu", "b"), ("board", "a"), ("disk/0", "c")]), 0, false),
            (hardware(&[("board", "a"), ("cpu", "b"), ("disk/0", "x"), ("nic/0", "d")]), 1, false),
            (
                hardware(&[("board", "a"), ("cpu", "b"), ("disk/0", "c"), ("nic/0", "d"), ("nic/1", "e")]),
                1,
                false,
            ),
            (hardware(&[("board", "x"), ("cpu", "b"), ("disk/0", "x"), ("nic/0", "d")]), 2, true),
            (hardware(&[]), 4, true),
        ];
        for (reported, changes, significant) in cases {
            let found = compare(&approved, &reported);
            assert_eq!((found.changes.len(), found.significant), (changes, significant), "{reported:?}");
        }
        let mut other = approved.clone();
        other.push(Factor {
            kind: FactorKind::RuntimeEnvironment,
            name: "kernel".into(),
            value: "6.18".into(),
        });
        assert!(compare(&approved, &other).changes.is_empty());
        assert_eq!(digest(&approved), digest(&other));
        assert_ne!(digest(&approved), digest(&approved[1..]));
    }
}
