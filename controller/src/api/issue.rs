//! The strings people paste: registration tokens and personal keys. Each is made of a resource, which lists and revokes
//! like any other, and a secret, which is shown once.

use std::sync::Arc;

use axum::{Extension, Json, extract::State};
use horizon_crds::{Document, KindName, Metadata, PersonalKeySpec, RegistrationKeySpec, Resource, Text};
use horizon_model::KeyId;
use jiff::Timestamp;

use super::{
    Api, ApiError, change,
    model::{InvitationRequest, Issued, TokenRequest},
    read,
    server::{Account, Body},
};
use crate::store::IssueError;

pub(crate) async fn token(
    State(api): State<Arc<Api>>,
    Extension(account): Extension<Account>,
    Body(request): Body<TokenRequest>,
) -> Result<Json<Issued>, ApiError> {
    let TokenRequest { namespace, server, lifetime } = request;
    if api.engine.index().server(&namespace, &server).is_none() {
        return Err(read::missing(&api, KindName::Server, &namespace, &server));
    }
    let metadata = Metadata::new(namespace, change::record_name(&[&server])?);
    let spec = RegistrationKeySpec { server_ref: server, lifetime, revocation: None };
    let resource = Resource::RegistrationKey(Document { metadata: metadata.clone(), spec });
    let stored = change::put(&api, &resource, &account).await?;
    let now = Timestamp::now();
    let secret = api.store.issue_registration_secret(stored.uid, now).await.map_err(refused)?;
    let token = api.strings.registration_token(&metadata.name, secret);
    let expires_at = stored.created_at.checked_add(lifetime.get()).ok().map(Into::into);
    Ok(Json(Issued { name: metadata.name, secret: token, expires_at }))
}

pub(crate) async fn invitation(
    State(api): State<Arc<Api>>,
    Extension(account): Extension<Account>,
    Body(request): Body<InvitationRequest>,
) -> Result<Json<Issued>, ApiError> {
    let InvitationRequest { namespace, user, lifetime } = request;
    if api.engine.index().user(&namespace, &user).is_none() {
        return Err(read::missing(&api, KindName::User, &namespace, &user));
    }
    let metadata = Metadata::new(namespace, change::record_name(&[&user])?);
    let spec = PersonalKeySpec {
        user_ref: user,
        expires_at: None,
        lifetime,
        rotation_policy: None,
        revocation: None,
        notes: Text::lossy(""),
    };
    let resource = Resource::PersonalKey(Document { metadata: metadata.clone(), spec });
    let stored = change::put(&api, &resource, &account).await?;
    let issued =
        api.store.issue_personal_secret(KeyId(stored.uid), Timestamp::now()).await.map_err(refused)?;
    let key = api.strings.personal_key(issued.key, issued.secret);
    let expires_at = lifetime.and_then(|span| stored.created_at.checked_add(span.get()).ok()).map(Into::into);
    Ok(Json(Issued { name: metadata.name, secret: key, expires_at }))
}

fn refused(error: IssueError) -> ApiError {
    match error {
        IssueError::Store(error) => ApiError::internal("make the secret", error),
        other => ApiError::conflict(other.to_string(), "ask for another one"),
    }
}
