//! Identity: what an appliance's machine is like is kept with its history, and weighed against what was approved
//! (`horizon_controller_core::identity`). A significant change quarantines the server: it takes no new sessions until an
//! `Approval` names the digest that waits. A smaller one is noted; what was approved stays what all later ones are compared
//! with.

use horizon_controller_core::identity::{self, Assessment, Verdict};
use horizon_crds::IdentityPolicy;
use horizon_model::{Factor, FactorKind, IdentityChange, ServerId};
use jiff::Timestamp;
use serde_json::json;

use super::{
    ChannelLease, NewEvent, Severity, Source, Store, StoreError, approval, changed, channels,
    dialect::{Connection, query},
    effects, event, factors,
    row::Columns as _,
};

/// The most changes that are kept with a server.
const MAX_CHANGES: usize = 32;
/// The longest description of a place.
const MAX_LOCATION: usize = 128;
/// Why a server waits whose machine is another.
const ANOTHER_MACHINE: &str = "its appliance reports another machine than the approved one";
/// Why it still waits when the machine is the approved one again.
const APPROVED_AGAIN: &str = "its appliance reported another machine, and now the approved one again";

/// What is known of an appliance's machine now.
#[derive(Clone, Copy, Debug)]
pub struct Observation<'a> {
    /// What the appliance reports of hardware, network and software. What it says of its place or its TPM counts for nothing.
    pub reported: &'a [Factor],
    /// Where its public address is; empty when that is not known.
    pub place: &'a [Factor],
    /// What its TPM proved; `None` when it was not asked now, empty when it could prove nothing.
    pub attested: Option<&'a [Factor]>,
    /// How changes are weighed.
    pub policy: &'a IdentityPolicy,
}

/// What an observation led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityOutcome {
    /// The machine is the approved one.
    Same,
    /// It differs a little from the approved one.
    Absorbed(Vec<IdentityChange>),
    /// It differs a lot: the digest waits for an approval.
    Pending {
        /// The digest that waits.
        digest: [u8; 32],
        /// What differs from the approved identity.
        changes: Vec<IdentityChange>,
    },
}

/// Whether a factor is the appliance's own to report. Where it is and what its TPM signed the controller finds out itself.
pub fn is_own(factor: &Factor) -> bool {
    !matches!(factor.kind, FactorKind::Geolocation | FactorKind::CryptographicAttestation)
}

/// The SHA-256 over the factors that make the identity, in the order of their kinds and names.
pub(super) fn digest(factors: &[Factor]) -> [u8; 32] {
    let mut sorted: Vec<_> = identity::identifying(factors).collect();
    sorted.sort();
    sorted.dedup();
    let mut bytes = b"horizon identity v2\0".to_vec();
    for factor in sorted {
        for part in [factor.kind.as_str(), &factor.name, &factor.value] {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
    }
    horizon_wire::key::sha256(&bytes).0
}

/// Where a machine is, in words; `None` when that is not known.
pub(super) fn location(factors: &[Factor]) -> Option<String> {
    let value = |name: &str| {
        let found = factors.iter().find(|f| f.kind == FactorKind::Geolocation && f.name == name);
        found.map(|f| f.value.as_str())
    };
    let place = [value("city"), value("country")].into_iter().flatten().collect::<Vec<_>>().join(", ");
    let text = match (place.is_empty(), value("asn")) {
        (true, None) => return None,
        (true, Some(provider)) => provider.to_owned(),
        (false, None) => place,
        (false, Some(provider)) => format!("{place} ({provider})"),
    };
    Some(text.chars().take(MAX_LOCATION).collect())
}

impl Store {
    /// Takes in what is known of an appliance's machine now. A significant change quarantines the server, unless its digest
    /// was approved before it came.
    pub async fn observe_factors(
        &self,
        server: ServerId,
        lease: ChannelLease,
        observed: Observation<'_>,
        now: Timestamp,
    ) -> Result<IdentityOutcome, StoreError> {
        let (outcome, raised) =
            self.retried("observe_factors", || self.observe_once(server, lease, observed, now)).await?;
        if raised {
            self.inner.metrics.security_event("identity_pending");
        }
        Ok(outcome)
    }

    /// What the observation led to, and whether somebody should look at it.
    async fn observe_once(
        &self,
        server: ServerId,
        lease: ChannelLease,
        observed: Observation<'_>,
        now: Timestamp,
    ) -> Result<(IdentityOutcome, bool), StoreError> {
        let mut tx = self.begin().await?;
        if !channels::hold(&mut tx, server, lease).await? {
            return Ok((IdentityOutcome::Same, false));
        }
        let approved = factors::approved(&mut tx, server).await?;
        let mut machine: Vec<_> = observed.reported.iter().filter(|f| is_own(f)).cloned().collect();
        machine.extend_from_slice(observed.place);
        match observed.attested {
            Some(attested) => machine.extend_from_slice(attested),
            None => {
                let before = factors::current(&mut tx, server).await?;
                machine.extend(before.into_iter().filter(|f| f.kind == FactorKind::CryptographicAttestation));
            }
        }
        factors::write(&mut tx, server, &machine, now).await?;
        let assessment = identity::assess(&approved, &machine, observed.policy);
        let outcome = match assessment.verdict {
            Verdict::Significant => quarantine(&mut tx, server, &machine, assessment, now).await?,
            Verdict::Same | Verdict::Minor => {
                (accept(&mut tx, server, &approved, &machine, assessment, now).await?, false)
            }
        };
        tx.commit().await?;
        Ok(outcome)
    }
}

/// Notes a machine that is the approved one, or differs a little.
async fn accept(
    db: &mut Connection,
    server: ServerId,
    approved: &[Factor],
    machine: &[Factor],
    assessment: Assessment,
    now: Timestamp,
) -> Result<IdentityOutcome, StoreError> {
    let Assessment { mut changes, drift, adopted, .. } = assessment;
    let joined = |change: &IdentityChange| {
        change.from.is_none() && adopted.iter().any(|f| (f.kind, &f.name) == (change.kind, &change.name))
    };
    changes.retain(|change| !joined(change));
    changes.truncate(MAX_CHANGES);
    let row = query(
        "SELECT identity_changes, requires_verification, identity_digest, pending_digest, verification_reason \
         FROM servers WHERE server_id = $1",
    )
    .bind(server.to_string())
    .fetch_one(&mut *db)
    .await?;
    if !adopted.is_empty() {
        factors::approve(db, server, &adopted).await?;
    }
    let baseline: Vec<_> = approved.iter().chain(&adopted).cloned().collect();
    let identity_digest =
        if adopted.is_empty() { row.maybe_bytes32("identity_digest")? } else { Some(digest(&baseline)) };
    // A quarantine stays until somebody ends it; what waits for that is what the machine is now.
    let mut pending = row.maybe_bytes32("pending_digest")?;
    let mut reason = row.maybe_text("verification_reason")?;
    if row.flag("requires_verification")? && pending.is_some() {
        pending = Some(digest(machine));
        factors::await_approval(db, server).await?;
        if reason.as_deref() == Some(ANOTHER_MACHINE) {
            reason = Some(APPROVED_AGAIN.to_owned());
        }
    }
    query(
        "UPDATE servers SET identity_digest = $1, pending_digest = $2, verification_reason = $3, identity_changes = $4, \
         identity_drift = $5, location = $6 WHERE server_id = $7",
    )
    .bind(identity_digest.map(|d| d.to_vec()))
    .bind(pending.map(|d| d.to_vec()))
    .bind(reason)
    .bind(json!(changes).to_string())
    .bind(i64::from(drift.0))
    .bind(location(machine))
    .bind(server.to_string())
    .execute(&mut *db)
    .await?;
    if changes.is_empty() {
        return Ok(IdentityOutcome::Same);
    }
    if row.json::<Vec<IdentityChange>>("identity_changes")? != changes {
        let what = "it stays the approved one";
        let event = difference(server, "identity_changed", Severity::Low, drift.0, &changes, what);
        event::write(db, &event, now).await?;
    }
    Ok(IdentityOutcome::Absorbed(changes))
}

async fn quarantine(
    db: &mut Connection,
    server: ServerId,
    machine: &[Factor],
    assessment: Assessment,
    now: Timestamp,
) -> Result<(IdentityOutcome, bool), StoreError> {
    let Assessment { mut changes, drift, .. } = assessment;
    changes.truncate(MAX_CHANGES);
    let digest = digest(machine);
    let row = query("SELECT pending_digest, verification_reason FROM servers WHERE server_id = $1")
        .bind(server.to_string())
        .fetch_one(&mut *db)
        .await?;
    let known = row.maybe_bytes32("pending_digest")? == Some(digest)
        && row.maybe_text("verification_reason")?.as_deref() == Some(ANOTHER_MACHINE);
    query(
        "UPDATE servers SET pending_digest = $1, requires_verification = TRUE, verification_reason = $2, doubted_incarnation = NULL, \
         identity_changes = $3, identity_drift = $4, location = $5 WHERE server_id = $6",
    )
    .bind(&digest[..])
    .bind(ANOTHER_MACHINE)
    .bind(json!(changes).to_string())
    .bind(i64::from(drift.0))
    .bind(location(machine))
    .bind(server.to_string())
    .execute(&mut *db)
    .await?;
    factors::await_approval(db, server).await?;
    effects::refresh_server(db, &server.to_string()).await?;
    changed::touch(db, &server.to_string()).await?;
    if approval::that_waits(db, server, digest, now).await? {
        return Ok((IdentityOutcome::Same, false));
    }
    if !known {
        let what = "it takes no new sessions until the identity is approved";
        let event = difference(server, "identity_pending", Severity::High, drift.0, &changes, what);
        event::write(db, &event, now).await?;
    }
    Ok((IdentityOutcome::Pending { digest, changes }, !known))
}

fn difference(
    server: ServerId,
    kind: &'static str,
    severity: Severity,
    drift: u16,
    changes: &[IdentityChange],
    what: &str,
) -> NewEvent {
    let names: Vec<_> = changes.iter().map(|c| c.name.as_str()).collect();
    NewEvent {
        kind,
        severity,
        source: Source::Server(server),
        address: None,
        description: format!(
            "the machine of server {server} changed by {drift} points ({}): {what}",
            names.join(", ")
        ),
        data: json!({ "drift": drift, "changes": changes }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factor(kind: FactorKind, name: &str, value: &str) -> Factor {
        Factor { kind, name: name.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn the_digest_covers_what_can_wait_for_an_approval() {
        let board = factor(FactorKind::HardwareFingerprint, "dmi/board_serial", "a");
        let tpm = factor(FactorKind::CryptographicAttestation, "tpm/key", "k");
        let kernel = factor(FactorKind::RuntimeEnvironment, "kernel", "6.18");
        let all = [board.clone(), tpm.clone(), kernel];
        assert_eq!(
            digest(&all),
            digest(&[tpm, board.clone()]),
            "a kernel is not in it, and order is nothing"
        );
        assert_ne!(digest(&all), digest(&[board]));
    }

    #[test]
    fn a_location_is_told_as_far_as_it_is_known() {
        let geo = |name, value| factor(FactorKind::Geolocation, name, value);
        let (country, city, asn) = (geo("country", "DE"), geo("city", "Berlin"), geo("asn", "AS64500"));
        assert_eq!(location(&[]), None);
        assert_eq!(location(std::slice::from_ref(&country)).as_deref(), Some("DE"));
        assert_eq!(location(std::slice::from_ref(&asn)).as_deref(), Some("AS64500"));
        assert_eq!(location(&[asn, country, city]).as_deref(), Some("Berlin, DE (AS64500)"));
    }
}
