//! What administrators decide about devices: recorded with what it hit, and in force until the next decision says otherwise.

use horizon_crds::{DeviceDecisionSpec, DeviceVerdict, Document};
use horizon_model::{DeviceId, ServerId};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    Actor, NewEvent, Severity, Source, StoreError,
    audit::{self, Record},
    device,
    dialect::{Connection, Row, query},
    event, revocation,
    row::{Columns as _, millis},
};

/// Records a decision and lets it take effect. Returns the servers with sessions that may have to end.
pub(super) async fn record(
    db: &mut Connection,
    uid: Uuid,
    document: &Document<DeviceDecisionSpec>,
    actor: &Actor,
    now: Timestamp,
) -> Result<Vec<ServerId>, StoreError> {
    let (spec, namespace) = (&document.spec, &document.metadata.namespace);
    let (id, reason) = (spec.device.as_str(), spec.reason.as_str());
    let row = query(
        "SELECT d.* FROM devices d JOIN personal_keys k ON k.key_id = d.key_id \
         WHERE d.device_id = $1 AND k.namespace = $2 AND d.revoked_date IS NULL AND d.status <> 'inactive' {lock}",
    )
    .bind(id)
    .bind(namespace.as_str())
    .fetch_optional(&mut *db)
    .await?;
    query(
        "INSERT INTO device_decisions (decision_uid, device_id, decision, reason, decided_at, effective_at) \
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(uid.to_string())
    .bind(id)
    .bind(spec.decision.as_str())
    .bind(reason)
    .bind(millis(now))
    .bind(row.is_some().then(|| millis(now)))
    .execute(&mut *db)
    .await?;
    let Some(row) = row else { return Ok(Vec::new()) };
    let servers = decide(db, spec, &row, now).await?;
    let mut audited = Record::new(spec.decision.as_str(), "Device", id, device::called(&row)?).notes(reason);
    audited.previous = Some(state(&row.text("status")?, &device::called(&row)?));
    audited.new = Some(state(after(spec.decision, &row)?, spec.new_name.as_ref().map_or("", |n| n.as_str())));
    audit::write(db, actor, now, &[audited]).await?;
    let (kind, severity) = match spec.decision {
        DeviceVerdict::Block => ("device_blocked", Severity::Medium),
        DeviceVerdict::Allow => ("device_allowed", Severity::Info),
        DeviceVerdict::Suspect => ("device_suspicious", Severity::Medium),
        DeviceVerdict::Forget => ("device_forgotten", Severity::Info),
        DeviceVerdict::Rename => return Ok(servers),
    };
    let event = NewEvent {
        kind,
        severity,
        source: id.parse().map_or(Source::System, Source::Device),
        address: None,
        description: format!("device '{}' ({id}): {reason}", device::called(&row)?),
        data: serde_json::Value::Null,
    };
    event::write(db, &event, now).await?;
    Ok(servers)
}

fn state(status: &str, name: &str) -> String {
    let mut state = serde_json::json!({ "status": status });
    if !name.is_empty()
        && let Some(map) = state.as_object_mut()
    {
        map.insert("name".into(), name.into());
    }
    state.to_string()
}

fn after(verdict: DeviceVerdict, row: &Row) -> Result<&'static str, StoreError> {
    Ok(match verdict {
        DeviceVerdict::Block => "blocked",
        DeviceVerdict::Allow => "active",
        DeviceVerdict::Suspect => "suspicious",
        DeviceVerdict::Forget => "inactive",
        DeviceVerdict::Rename => match row.text("status")?.as_str() {
            "blocked" => "blocked",
            "suspicious" => "suspicious",
            _ => "active",
        },
    })
}

async fn decide(
    db: &mut Connection,
    spec: &DeviceDecisionSpec,
    row: &Row,
    now: Timestamp,
) -> Result<Vec<ServerId>, StoreError> {
    let (id, reason) = (spec.device.as_str(), spec.reason.as_str());
    let device: DeviceId = row.parsed("device_id")?;
    match spec.decision {
        DeviceVerdict::Block => {
            query(
                "UPDATE devices SET status = 'blocked', blocked_date = COALESCE(blocked_date, $1), blocked_reason = $2 \
                 WHERE device_id = $3",
            )
            .bind(millis(now))
            .bind(reason)
            .bind(id)
            .execute(&mut *db)
            .await?;
        }
        DeviceVerdict::Allow => {
            // Whoever allows it has seen where it runs now.
            query(
                "UPDATE devices SET status = 'active', blocked_date = NULL, blocked_reason = NULL, \
                 suspicious_date = NULL, suspicious_reason = NULL, \
                 hardware_fingerprint = COALESCE(other_fingerprint, hardware_fingerprint), other_fingerprint = NULL \
                 WHERE device_id = $1",
            )
            .bind(id)
            .execute(&mut *db)
            .await?;
        }
        DeviceVerdict::Suspect => suspect(db, device, reason, now).await?,
        DeviceVerdict::Forget => device::retire(db, device).await?,
        DeviceVerdict::Rename => {
            query("UPDATE devices SET given_name = $1 WHERE device_id = $2")
                .bind(spec.new_name.as_ref().map(|name| name.as_str()))
                .bind(id)
                .execute(&mut *db)
                .await?;
        }
    }
    revocation::servers_of_device(db, id).await
}

/// Doubts a device. One that is blocked stays so.
pub(super) async fn suspect(
    db: &mut Connection,
    device: DeviceId,
    reason: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    query(
        "UPDATE devices SET status = 'suspicious', suspicious_date = COALESCE(suspicious_date, $1), \
         suspicious_reason = $2 WHERE device_id = $3 AND status IN ('active', 'suspicious')",
    )
    .bind(millis(now))
    .bind(reason)
    .bind(device.to_string())
    .execute(&mut *db)
    .await?;
    Ok(())
}
