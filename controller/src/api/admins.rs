//! The accounts of administrators, as the local socket manages them: the first account, and the way back in for who locked
//! themselves out.

use std::sync::Arc;

use axum::{Extension, Json, extract::State};
use horizon_controller_core::account::AccountPolicy;
use jiff::Timestamp;
use serde::Deserialize;

use super::{
    Api, ApiError,
    model::List,
    server::{Account, Body, In},
};
use crate::{
    channel::accept,
    rest::{MakeAdmin, OneTime, make_admin, reset_password},
    store::{AdminChange, AdminError, AdminSessionId, AdminView, WhichAdmin},
};

/// The most accounts that are listed.
const MAX_LISTED: u32 = 1000;

/// What is done to an account.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Action {
    Suspend,
    Activate,
    Unlock,
    ResetTotp,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Why {
    #[serde(default)]
    reason: String,
}

fn refused(error: AdminError) -> ApiError {
    match error {
        AdminError::Unknown => {
            ApiError::not_found(error.to_string(), "`horizon-controller admin list` lists them")
        }
        AdminError::NoRole(_) => ApiError::bad_request(
            error.to_string(),
            "the roles that come with the program are admin, operator, viewer and auditor",
        ),
        AdminError::Password(_) | AdminError::Invalid(_) => ApiError::bad_request(error.to_string(), ""),
        AdminError::Store(error) => ApiError::internal("change the account", error),
        other => ApiError::conflict(other.to_string(), ""),
    }
}

pub(crate) async fn list(State(api): State<Arc<Api>>) -> Result<Json<List<AdminView>>, ApiError> {
    let items = api.store.list_admins(None, MAX_LISTED).await;
    Ok(Json(List { items: items.map_err(|error| ApiError::internal("list the accounts", error))? }))
}

pub(crate) async fn add(
    State(api): State<Arc<Api>>,
    Extension(account): Extension<Account>,
    Body(request): Body<MakeAdmin>,
) -> Result<Json<OneTime>, ApiError> {
    let now = Timestamp::now();
    // Where the REST API is not served, nobody has stated them yet.
    api.store.ensure_roles(now).await.map_err(|error| ApiError::internal("state the roles", error))?;
    Ok(Json(make_admin(&api.store, request, &policy(&api), &account.actor(), now).await.map_err(refused)?))
}

pub(crate) async fn new_password(
    State(api): State<Arc<Api>>,
    Extension(account): Extension<Account>,
    In(name): In<String>,
) -> Result<Json<OneTime>, ApiError> {
    let which = WhichAdmin::Name(name);
    let reset = reset_password(&api.store, &which, &policy(&api), &account.actor(), Timestamp::now()).await;
    let (shown, ended) = reset.map_err(refused)?;
    tell(&api, &ended);
    Ok(Json(shown))
}

pub(crate) async fn change(
    State(api): State<Arc<Api>>,
    Extension(account): Extension<Account>,
    In((name, action)): In<(String, Action)>,
    Body(Why { reason }): Body<Why>,
) -> Result<Json<AdminView>, ApiError> {
    let change = match action {
        Action::Suspend => AdminChange::Suspend(reason),
        Action::Activate => AdminChange::Activate,
        Action::Unlock => AdminChange::Unlock,
        Action::ResetTotp => AdminChange::ResetTotp,
    };
    let which = WhichAdmin::Name(name);
    let changed = api.store.change_admin(&which, &change, None, &account.actor(), Timestamp::now()).await;
    let (view, ended) = changed.map_err(refused)?;
    tell(&api, &ended);
    Ok(Json(view))
}

/// What holds for accounts.
fn policy(api: &Api) -> AccountPolicy {
    AccountPolicy::from(&accept::policy(&api.engine.index()).accounts)
}

/// Sessions that ended are dead at every replica at once.
fn tell(api: &Api, ended: &[AdminSessionId]) {
    let longest = policy(api).absolute;
    for session in ended {
        api.live.kill_token(session.0, longest, Timestamp::now());
    }
}
