//! Revocations: decisions that are final. They are recorded with what they hit, and hold whatever becomes of the record.

use horizon_crds::{Document, KindName, Name, ResourceId, RevocationSpec, TargetKind};
use horizon_model::ServerId;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    Actor, NewEvent, Severity, Source, StoreError,
    audit::{self, Record},
    dialect::{Connection, query},
    effects::{self, REMOVED, SERVER_REMOVED, USER_REMOVED},
    event, resources,
    row::{Columns as _, millis},
};

/// Records a revocation and lets it take effect. Returns the servers with sessions that may have to end.
pub(super) async fn record(
    db: &mut Connection,
    uid: Uuid,
    document: &Document<RevocationSpec>,
    actor: &Actor,
    now: Timestamp,
) -> Result<Vec<ServerId>, StoreError> {
    let (spec, namespace) = (&document.spec, &document.metadata.namespace);
    let (target, name) = (spec.target.kind, spec.target.name.as_str());
    let kind = match target {
        TargetKind::Server => KindName::Server.as_str(),
        TargetKind::PersonalKey => KindName::PersonalKey.as_str(),
        TargetKind::RegistrationKey => KindName::RegistrationKey.as_str(),
        TargetKind::Device => "Device",
    };
    let id = find(db, target, namespace, name).await?;
    let reason = spec.reason.as_str();
    let mut servers = Vec::new();
    if let Some(id) = &id {
        match target {
            TargetKind::Server => {
                server(db, id, reason, spec.compromised, now).await?;
                servers.extend(id.parse().ok().map(ServerId));
            }
            TargetKind::PersonalKey => {
                // What is asked for at the same time is either refused from here on, or seen by what follows.
                personal_key(db, id, reason, spec.compromised, now).await?;
                servers = servers_of_key(db, id).await?;
            }
            TargetKind::RegistrationKey => registration_key(db, id, reason, now).await?,
            TargetKind::Device => {
                device(db, id, reason, now).await?;
                servers = servers_of_device(db, id).await?;
            }
        }
    }
    query(
        "INSERT INTO revocations (revocation_uid, target_kind, target_namespace, target_name, target_id, reason, \
         compromised, decided_at, effective_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(uid.to_string())
    .bind(kind)
    .bind(namespace.as_str())
    .bind(name)
    .bind(&id)
    .bind(reason)
    .bind(spec.compromised)
    .bind(millis(now))
    .bind(millis(now))
    .execute(&mut *db)
    .await?;
    let target_id = id.clone().unwrap_or_default();
    let record = Record::new("revoke", kind, target_id, format!("{namespace}/{name}")).notes(reason);
    audit::write(db, actor, now, &[record]).await?;
    if spec.compromised {
        let event = NewEvent {
            kind: "compromised",
            severity: Severity::Critical,
            source: id.as_deref().and_then(|id| id.parse().ok()).map_or(Source::System, Source::Resource),
            address: None,
            description: format!("{kind} {namespace}/{name} was revoked as compromised: {reason}"),
            data: serde_json::Value::Null,
        };
        event::write(db, &event, now).await?;
    }
    Ok(servers)
}

/// What a resource of a kind is as the target of a revocation.
pub(super) fn target_kind(kind: KindName) -> Option<TargetKind> {
    match kind {
        KindName::Server => Some(TargetKind::Server),
        KindName::PersonalKey => Some(TargetKind::PersonalKey),
        KindName::RegistrationKey => Some(TargetKind::RegistrationKey),
        _ => None,
    }
}

/// Revocations that were written before what they name came into being take effect on it now. One that hit an earlier
/// resource of the name does not: a recreated name inherits nothing.
pub(super) async fn catch_up(
    db: &mut Connection,
    new: &[(TargetKind, &ResourceId, Uuid)],
    now: Timestamp,
) -> Result<(), StoreError> {
    let rows = query(
        "SELECT v.revocation_uid, v.target_kind, v.target_namespace, v.target_name, v.reason, v.compromised \
         FROM revocations v JOIN resources r ON r.uid = v.revocation_uid WHERE v.target_id IS NULL AND r.deleted_at IS NULL",
    )
    .fetch_all(&mut *db)
    .await?;
    for row in &rows {
        let (kind, namespace, name) =
            (row.text("target_kind")?, row.text("target_namespace")?, row.text("target_name")?);
        let hit = new.iter().find(|(_, id, _)| {
            id.kind.as_str() == kind && id.namespace.as_str() == namespace && id.name.as_str() == name
        });
        let Some((target, _, uid)) = hit else { continue };
        let (id, reason, compromised) = (uid.to_string(), row.text("reason")?, row.flag("compromised")?);
        match target {
            TargetKind::Server => server(db, &id, &reason, compromised, now).await?,
            TargetKind::PersonalKey => personal_key(db, &id, &reason, compromised, now).await?,
            TargetKind::RegistrationKey => registration_key(db, &id, &reason, now).await?,
            TargetKind::Device => continue,
        }
        query("UPDATE revocations SET target_id = $1 WHERE revocation_uid = $2")
            .bind(&id)
            .bind(row.text("revocation_uid")?)
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

async fn find(
    db: &mut Connection,
    target: TargetKind,
    namespace: &Name,
    name: &str,
) -> Result<Option<String>, StoreError> {
    let kind = match target {
        TargetKind::Server => KindName::Server,
        TargetKind::PersonalKey => KindName::PersonalKey,
        TargetKind::RegistrationKey => KindName::RegistrationKey,
        TargetKind::Device => {
            let row = query(
                "SELECT d.device_id FROM devices d JOIN personal_keys k ON k.key_id = d.key_id \
                 WHERE d.device_id = $1 AND k.namespace = $2",
            )
            .bind(name)
            .bind(namespace.as_str())
            .fetch_optional(&mut *db)
            .await?;
            return row.map(|row| row.text("device_id")).transpose();
        }
    };
    Ok(resources::uid_of(db, kind, namespace, name).await?.map(|uid| uid.to_string()))
}

async fn server(
    db: &mut Connection,
    id: &str,
    reason: &str,
    compromised: bool,
    now: Timestamp,
) -> Result<(), StoreError> {
    query("UPDATE servers SET revoked_date = $1 WHERE server_id = $2 AND revoked_date IS NULL")
        .bind(millis(now))
        .bind(id)
        .execute(&mut *db)
        .await?;
    if compromised {
        query("UPDATE servers SET compromised = TRUE WHERE server_id = $1")
            .bind(id)
            .execute(&mut *db)
            .await?;
    }
    effects::decommission(db, id, &effects::decided(reason), now).await?;
    effects::refresh_server(db, id).await
}

/// Decides that a registration key is revoked. One that was used stays used too: the appliance is not affected. What ended it
/// before because something else was removed is no reason to let it come back any more.
pub(super) async fn registration_key(
    db: &mut Connection,
    uid: &str,
    reason: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    query(
        "UPDATE registration_keys SET revoked_date = COALESCE(revoked_date, $1), revocation_reason = $2 \
         WHERE key_uid = $3 AND (revoked_date IS NULL OR revocation_reason IN ($4, $5))",
    )
    .bind(millis(now))
    .bind(effects::decided(reason))
    .bind(uid)
    .bind(REMOVED)
    .bind(SERVER_REMOVED)
    .execute(&mut *db)
    .await?;
    Ok(())
}

/// Decides that a personal key is deactivated; a compromised one is that also when it was only deactivated before. What ended
/// it before because something else was removed is no reason to let it come back any more.
pub(super) async fn personal_key(
    db: &mut Connection,
    id: &str,
    reason: &str,
    compromised: bool,
    now: Timestamp,
) -> Result<(), StoreError> {
    query(
        "UPDATE personal_keys SET status = CASE WHEN $1 OR status = 'compromised' THEN 'compromised' \
         ELSE 'deactivated' END, deactivation_date = COALESCE(deactivation_date, $2), \
         deactivation_reason = CASE WHEN deactivation_reason IN ($3, $4) THEN $5 \
         ELSE COALESCE(deactivation_reason, $5) END WHERE key_id = $6",
    )
    .bind(compromised)
    .bind(millis(now))
    .bind(REMOVED)
    .bind(USER_REMOVED)
    .bind(effects::decided(reason))
    .bind(id)
    .execute(&mut *db)
    .await?;
    Ok(())
}

async fn device(db: &mut Connection, id: &str, reason: &str, now: Timestamp) -> Result<(), StoreError> {
    query(
        "UPDATE devices SET status = 'blocked', blocked_date = $1, blocked_reason = $2, revoked_date = $1 \
         WHERE device_id = $3 AND revoked_date IS NULL",
    )
    .bind(millis(now))
    .bind(reason)
    .bind(id)
    .execute(&mut *db)
    .await?;
    Ok(())
}

pub(super) async fn servers_of_key(db: &mut Connection, key: &str) -> Result<Vec<ServerId>, StoreError> {
    let query =
        "SELECT DISTINCT server_id FROM connections WHERE key_id = $1 AND status IN ('requested', 'active')";
    servers(db, query, key).await
}

pub(super) async fn servers_of_user(db: &mut Connection, user: &str) -> Result<Vec<ServerId>, StoreError> {
    let query = "SELECT DISTINCT server_id FROM connections WHERE user_uid = $1 AND status IN ('requested', 'active')";
    servers(db, query, user).await
}

pub(super) async fn servers_of_device(
    db: &mut Connection,
    device: &str,
) -> Result<Vec<ServerId>, StoreError> {
    let query = "SELECT DISTINCT server_id FROM connections WHERE device_id = $1 AND status IN ('requested', 'active')";
    servers(db, query, device).await
}

async fn servers(db: &mut Connection, sql: &'static str, id: &str) -> Result<Vec<ServerId>, StoreError> {
    let rows = query(sql).bind(id).fetch_all(&mut *db).await?;
    rows.iter().map(|row| row.parsed("server_id")).collect()
}
