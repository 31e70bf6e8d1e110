//! Approvals of identities. Each speaks of one digest, and takes effect once: now if that digest waits, else when it comes.

use horizon_crds::{ApprovalSpec, Document, KindName};
use horizon_model::ServerId;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    Actor, StoreError,
    audit::{self, Record},
    changed,
    dialect::{Connection, query},
    effects, factors, identity, resources,
    row::{Columns as _, millis},
};

/// Records an approval.
pub(super) async fn record(
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
    let waits = waits(db, ServerId(server), *spec.identity_digest.as_bytes()).await?;
    if waits {
        take_effect(db, uid, ServerId(server), now).await?;
    }
    let name = format!("{namespace}/{}", spec.server_ref);
    let record = Record::new("approve", KindName::Server.as_str(), server, name).notes(format!(
        "identity {}{}",
        spec.identity_digest,
        if waits { "; new credentials are due" } else { ", which the server does not report now" }
    ));
    audit::write(db, actor, now, &[record]).await
}

/// Whether a digest waits for an approval. The small changes of a server that is in good standing may be approved too:
/// later ones are compared with them from then on.
async fn waits(db: &mut Connection, server: ServerId, digest: [u8; 32]) -> Result<bool, StoreError> {
    let row = query("SELECT pending_digest, identity_drift FROM servers WHERE server_id = $1 {lock}")
        .bind(server.to_string())
        .fetch_one(&mut *db)
        .await?;
    match row.maybe_bytes32("pending_digest")? {
        Some(pending) => Ok(pending == digest),
        None if row.int("identity_drift")? > 0 => {
            let drifted = identity::digest(&factors::current(db, server).await?) == digest;
            if drifted {
                factors::await_approval(db, server).await?;
                query("UPDATE servers SET pending_digest = $1 WHERE server_id = $2")
                    .bind(&digest[..])
                    .bind(server.to_string())
                    .execute(&mut *db)
                    .await?;
            }
            Ok(drifted)
        }
        None => Ok(false),
    }
}

/// Lets an approval take effect that was given before its identity came. Whether there was one.
pub(super) async fn that_waits(
    db: &mut Connection,
    server: ServerId,
    digest: [u8; 32],
    now: Timestamp,
) -> Result<bool, StoreError> {
    let row = query(
        "SELECT a.approval_uid FROM approvals a JOIN resources r ON r.uid = a.approval_uid WHERE a.server_id = $1 \
         AND a.identity_digest = $2 AND a.effective_at IS NULL AND r.deleted_at IS NULL",
    )
    .bind(server.to_string())
    .bind(&digest[..])
    .fetch_optional(&mut *db)
    .await?;
    let Some(row) = row else { return Ok(false) };
    take_effect(db, row.parsed("approval_uid")?, server, now).await?;
    Ok(true)
}

/// The pending identity is the server's from now on, and its appliance gets a new verification secret. What its software can
/// be asked is learned anew, for the approved machine may run an older one.
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
    factors::approve_waiting(db, server).await?;
    query(
        "UPDATE servers SET identity_digest = pending_digest, pending_digest = NULL, requires_verification = FALSE, \
         verification_reason = NULL, identity_changes = '[]', identity_drift = 0, reissue_secret = TRUE, \
         challenges_v2 = FALSE, doubted_incarnation = NULL, verified = CASE WHEN verified THEN TRUE ELSE NULL END WHERE server_id = $1",
    )
    .bind(server.to_string())
    .execute(&mut *db)
    .await?;
    effects::refresh_server(db, &server.to_string()).await?;
    changed::touch(db, &server.to_string()).await
}
