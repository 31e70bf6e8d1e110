//! The strings of personal keys that people have to enter: after a key was replaced at once, and for handing one over with a code.

use std::sync::Arc;

use axum::{Extension, Json, extract::State};
use horizon_controller_core::{Origin, Stored};
use horizon_crds::{KindName, Name};
use horizon_model::KeyId;
use horizon_wire::token::Handover;
use jiff::{SignedDuration, Timestamp};

use super::{
    Api, ApiError,
    model::{HandedOver, HandoverRequest, Issued, KeyStringRequest},
    read,
    server::{Account, Body},
};
use crate::store::{HandoverError, IssueError};

fn key(api: &Api, namespace: &Name, name: &Name) -> Result<Arc<Stored>, ApiError> {
    let index = api.engine.index();
    let stored = index.get(KindName::PersonalKey, namespace, name).cloned();
    stored.ok_or_else(|| read::missing(api, KindName::PersonalKey, namespace, name))
}

/// `POST /v1/personal-key-strings`: the string of a key that was replaced at once, shown once.
pub(crate) async fn key_string(
    State(api): State<Arc<Api>>,
    Body(request): Body<KeyStringRequest>,
) -> Result<Json<Issued>, ApiError> {
    let KeyStringRequest { namespace, name } = request;
    let stored = key(&api, &namespace, &name)?;
    if matches!(stored.origin, Origin::File(_)) {
        let message =
            format!("the new string of '{name}' is put where `status.secretFile` or `status.secretRef` says");
        let remedy = format!("see `horizon-controller describe personalkey {name}`");
        return Err(ApiError::conflict(message, remedy));
    }
    let issued = api.store.issue_personal_secret(KeyId(stored.uid), Timestamp::now()).await;
    let issued = issued.map_err(|error| match error {
        IssueError::Store(error) => ApiError::internal("make the secret", error),
        other => {
            ApiError::conflict(other.to_string(), "replace the key: `horizon-controller rotate personalkey`")
        }
    })?;
    Ok(Json(Issued { name, secret: api.strings.personal_key(issued.key, issued.secret), expires_at: None }))
}

/// `POST /v1/handovers`: a string and a code for a key that nobody uses yet, each useless without the other.
pub(crate) async fn hand_over(
    State(api): State<Arc<Api>>,
    Extension(account): Extension<Account>,
    Body(request): Body<HandoverRequest>,
) -> Result<Json<HandedOver>, ApiError> {
    let HandoverRequest { namespace, name, lifetime } = request;
    let stored = key(&api, &namespace, &name)?;
    let open_for = SignedDuration::try_from(lifetime.get()).unwrap_or(SignedDuration::MAX);
    let made = api.store.hand_over(KeyId(stored.uid), open_for, &account.actor(), Timestamp::now()).await;
    let made = made.map_err(|error| match error {
        HandoverError::Store(error) => ApiError::internal("make the hand-over", error),
        HandoverError::InUse => ApiError::conflict(
            error.to_string(),
            "its devices have it already; to give a new one, replace it first: `horizon-controller rotate personalkey`",
        ),
        HandoverError::Ended => ApiError::conflict(error.to_string(), "make another key"),
    })?;
    let handover = Handover {
        controllers: api.strings.advertise.clone(),
        root: api.strings.root(),
        id: *made.id.as_bytes(),
        secret: made.secret,
    };
    let code = (*made.code).clone();
    Ok(Json(HandedOver { name, handover: handover.encode(), code, expires_at: made.expires.into() }))
}
