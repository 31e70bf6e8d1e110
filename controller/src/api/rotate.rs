//! Rotations that somebody asks for, as `KeyRotation` records.

use std::sync::Arc;

use axum::{Extension, Json, extract::State};
use horizon_crds::{Document, KeyRotationSpec, KindName, Metadata, Resource, Text};

use super::{
    Api, ApiError,
    change::{put, record_name},
    model::{List, Object, Recorded, RotationRequest},
    read::{InNamespace, objects},
    server::{Account, Ask, Body},
};
use crate::live::Hint;

/// `POST /v1/keyrotations`.
pub(crate) async fn rotate(
    State(api): State<Arc<Api>>,
    Extension(account): Extension<Account>,
    Body(request): Body<RotationRequest>,
) -> Result<Json<Recorded>, ApiError> {
    let RotationRequest { namespace, target, names, kind, reason, overlap } = request;
    let parts: Vec<_> = ["rotate"].into_iter().chain(names.first().map(|name| name.as_str())).collect();
    let name = record_name(&parts)?;
    let reason: Text<256> = reason
        .parse()
        .map_err(|error: horizon_crds::InvalidValue| ApiError::bad_request(error.message, error.remedy))?;
    let all = names.is_empty();
    let spec =
        KeyRotationSpec { target, names, users: Vec::new(), groups: Vec::new(), all, kind, reason, overlap };
    let metadata = Metadata::new(namespace, name.clone());
    put(&api, &Resource::KeyRotation(Document { metadata, spec }), &account).await?;
    api.live.publish(Hint::KeysetsChanged);
    let message =
        format!("the rotation is recorded as {name}: `horizon-controller describe keyrotation {name}`");
    Ok(Json(Recorded { kind: KindName::KeyRotation, name, message }))
}

/// `GET /v1/keyrotations`.
pub(crate) async fn rotations(
    State(api): State<Arc<Api>>,
    Ask(query): Ask<InNamespace>,
) -> Result<Json<List<Object>>, ApiError> {
    objects(&api, KindName::KeyRotation, &query).await
}
