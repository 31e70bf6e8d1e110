//! Devices: everything about one, and what is decided about it.

use std::sync::Arc;

use axum::{Extension, Json, extract::State};
use horizon_crds::{
    DeviceDecisionSpec, DeviceVerdict, Document, InvalidValue, KindName, Metadata, Name, Resource, Text,
};
use horizon_model::DeviceId;

use super::{
    Api, ApiError,
    change::{put, record_name},
    model::{DeviceDecisionRequest, DeviceDetail, List, Object, Recorded},
    read::{InNamespace, objects, values},
    server::{Account, Ask, Body, In},
};
use crate::store::EventFilter;

/// How many records of each kind are told about one device.
const RECORDS: u32 = 20;

pub(crate) async fn one(
    State(api): State<Arc<Api>>,
    In(id): In<DeviceId>,
) -> Result<Json<DeviceDetail>, ApiError> {
    let fault = |error| ApiError::internal("read the device", error);
    let Some(device) = api.store.device(id).await.map_err(fault)? else {
        return Err(ApiError::not_found(
            format!("there is no device {id}"),
            "`horizon-controller get devices` lists them",
        ));
    };
    let sessions = api.store.sessions_of_device(id, RECORDS).await.map_err(fault)?;
    let filter = EventFilter { source: Some(id.0), limit: RECORDS };
    let events = api.store.list_security_events(&filter).await.map_err(fault)?;
    let changes = api.store.list_audit_of(&id.to_string(), RECORDS).await.map_err(fault)?;
    Ok(Json(DeviceDetail {
        online: api.live.is_device_online(id),
        device: serde_json::to_value(&device).unwrap_or_default(),
        sessions: values(&sessions),
        events: values(&events),
        changes: values(&changes),
    }))
}

pub(crate) async fn decisions(
    State(api): State<Arc<Api>>,
    Ask(query): Ask<InNamespace>,
) -> Result<Json<List<Object>>, ApiError> {
    objects(&api, KindName::DeviceDecision, &query).await
}

pub(crate) async fn decide(
    State(api): State<Arc<Api>>,
    Extension(account): Extension<Account>,
    Body(request): Body<DeviceDecisionRequest>,
) -> Result<Json<Recorded>, ApiError> {
    let DeviceDecisionRequest { namespace, device, decision, reason, new_name } = request;
    let fault = |error| ApiError::internal("read the device", error);
    let found = api.store.device(device).await.map_err(fault)?;
    let found = found.filter(|found| found.namespace == namespace.as_str() && found.status != "inactive");
    let Some(found) = found else {
        let message = format!("no user of namespace '{namespace}' has a device {device}");
        return Err(ApiError::not_found(message, "`horizon-controller get devices` lists them"));
    };
    if found.revoked {
        return Err(ApiError::conflict(
            format!("device '{}' was revoked, which is final", found.name),
            "enrol the machine anew: `horizon key add` after removing its device key",
        ));
    }
    let invalid = |error: InvalidValue| ApiError::bad_request(error.message, error.remedy);
    let reason: Text<256> = reason.parse().map_err(invalid)?;
    let new_name = new_name.map(|name| name.parse()).transpose().map_err(invalid)?;
    let metadata = Metadata::new(namespace, record_name(&["device", decision.as_str(), &found.name_part()])?);
    let name = metadata.name.clone();
    let id: Name = device.to_string().parse().map_err(invalid)?;
    let done = match decision {
        DeviceVerdict::Block => "is blocked until it is allowed again",
        DeviceVerdict::Allow => "may connect",
        DeviceVerdict::Suspect => "is suspicious",
        DeviceVerdict::Forget => "is forgotten and must be enrolled again",
        DeviceVerdict::Rename => "has another name",
    };
    let message = format!("device '{}' of {} {done} ({name})", found.name, found.user);
    let spec = DeviceDecisionSpec { device: id, decision, reason, new_name };
    put(&api, &Resource::DeviceDecision(Document { metadata, spec }), &account).await?;
    Ok(Json(Recorded { kind: KindName::DeviceDecision, name, message }))
}
