//! The accounts of administrators, their roles and sessions, for those who manage them.

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use horizon_controller_core::account::AccountPolicy;
use serde::Serialize;
use uuid::Uuid;

use super::{
    Problem, Rest,
    account::{kill, sessions_of},
    guard,
    page::{Page, Paging, page},
    schema::{ChangeAdmin, MakeAdmin, OneTime, PutRole, Reason, RotateKeys},
};
use crate::{
    account::one_time_password,
    api::server::{Account, Ask, Body, In},
    store::{
        Actor, AdminChange, AdminError, AdminId, AdminSessionId, AdminSessionView, AdminView, LogoutReason,
        NewAdmin, OneTimePassword, RoleView, Store, WhichAdmin,
    },
};

type Answer<T> = Result<Json<T>, Problem>;

/// A one-time password from now on.
fn one_time(policy: &AccountPolicy, now: jiff::Timestamp) -> OneTimePassword {
    let until = now.checked_add(policy.one_time).unwrap_or(jiff::Timestamp::MAX);
    OneTimePassword { text: one_time_password(), until }
}

fn shown(view: &AdminView, password: &OneTimePassword) -> OneTime {
    OneTime {
        username: view.username.clone(),
        id: view.id.0,
        password: password.text.to_string(),
        expires_at: password.until.to_string(),
    }
}

/// Makes an account with a one-time password: the operation of this interface, of the local socket and of `init`.
///
/// # Errors
/// Those of [`AdminError`].
pub(crate) async fn make(
    store: &Store,
    request: MakeAdmin,
    policy: &AccountPolicy,
    actor: &Actor,
    now: jiff::Timestamp,
) -> Result<OneTime, AdminError> {
    let password = one_time(policy, now);
    let MakeAdmin { username, email, full_name, roles } = request;
    let roles = roles.into_iter().collect();
    let new = NewAdmin { username, email, full_name, roles, password: password.clone() };
    let made = store.create_admin(&new, actor, now).await?;
    Ok(shown(&made, &password))
}

/// Gives an account another one-time password.
///
/// # Errors
/// Those of [`AdminError`].
pub(crate) async fn reset_password(
    store: &Store,
    which: &WhichAdmin,
    policy: &AccountPolicy,
    actor: &Actor,
    now: jiff::Timestamp,
) -> Result<(OneTime, Vec<AdminSessionId>), AdminError> {
    let password = one_time(policy, now);
    let change = AdminChange::ResetPassword(password.clone());
    let (view, ended) = store.change_admin(which, &change, None, actor, now).await?;
    Ok((shown(&view, &password), ended))
}

/// An answer with its version.
fn versioned(value: &impl Serialize, version: i64) -> Response {
    let mut answer = Json(value).into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{version}\"")) {
        answer.headers_mut().insert(header::ETAG, tag);
    }
    answer
}

/// The version that a change is about (RFC 9110, section 13.1.1); `None` for whichever there is.
fn if_match(headers: &HeaderMap) -> Result<Option<i64>, Problem> {
    let value = headers.get(header::IF_MATCH).ok_or_else(Problem::precondition_required)?;
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let version = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).and_then(|v| v.parse().ok());
    version.map(Some).ok_or_else(|| Problem::bad_request("If-Match is none of our ETags"))
}

pub(super) async fn list(State(rest): State<Rest>, Ask(paging): Ask<Paging>) -> Answer<Page<AdminView>> {
    let (limit, after) = (paging.limit()?, paging.after("admins")?);
    let found = rest.api.store.list_admins(after.as_deref(), limit + 1).await?;
    Ok(Json(page("admins", found, limit, |view| view.username.clone())))
}

pub(super) async fn one(State(rest): State<Rest>, In(id): In<Uuid>) -> Result<Response, Problem> {
    let view = rest.api.store.admin(AdminId(id)).await?.ok_or(AdminError::Unknown)?;
    Ok(versioned(&view, view.version))
}

pub(super) async fn create(
    State(rest): State<Rest>,
    Extension(account): Extension<Account>,
    Body(request): Body<MakeAdmin>,
) -> Result<(StatusCode, Json<OneTime>), Problem> {
    let made = make(&rest.api.store, request, &rest.accounts(), &account.actor(), rest.now()).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

async fn changed(
    rest: &Rest,
    account: &Account,
    id: Uuid,
    change: &AdminChange,
    expected: Option<i64>,
) -> Result<AdminView, Problem> {
    let (which, store) = (WhichAdmin::Id(AdminId(id)), &rest.api.store);
    let (view, ended) = store.change_admin(&which, change, expected, &account.actor(), rest.now()).await?;
    kill(rest, &ended);
    Ok(view)
}

pub(super) async fn change(
    State(rest): State<Rest>,
    Extension(account): Extension<Account>,
    In(id): In<Uuid>,
    headers: HeaderMap,
    Body(request): Body<ChangeAdmin>,
) -> Result<Response, Problem> {
    let mut expected = if_match(&headers)?;
    let mut view = rest.api.store.admin(AdminId(id)).await?.ok_or(AdminError::Unknown)?;
    if expected.is_some_and(|expected| expected != view.version) {
        return Err(Problem::precondition_failed(view.version));
    }
    let ChangeAdmin { email, full_name, roles } = request;
    if email.is_some() || full_name.is_some() {
        let email = email.map_or(view.email.clone(), |text| Some(text).filter(|text| !text.is_empty()));
        let full_name = full_name.unwrap_or_else(|| view.full_name.clone());
        view = changed(&rest, &account, id, &AdminChange::Profile { email, full_name }, expected).await?;
        expected = expected.map(|_| view.version);
    }
    if let Some(roles) = roles {
        let change = AdminChange::Roles(roles.into_iter().collect());
        view = changed(&rest, &account, id, &change, expected).await?;
    }
    Ok(versioned(&view, view.version))
}

pub(super) async fn suspend(
    State(rest): State<Rest>,
    Extension(account): Extension<Account>,
    In(id): In<Uuid>,
    Body(Reason { reason }): Body<Reason>,
) -> Answer<AdminView> {
    Ok(Json(changed(&rest, &account, id, &AdminChange::Suspend(reason), None).await?))
}

pub(super) async fn activate(
    State(rest): State<Rest>,
    Extension(account): Extension<Account>,
    In(id): In<Uuid>,
) -> Answer<AdminView> {
    Ok(Json(changed(&rest, &account, id, &AdminChange::Activate, None).await?))
}

pub(super) async fn unlock(
    State(rest): State<Rest>,
    Extension(account): Extension<Account>,
    In(id): In<Uuid>,
) -> Answer<AdminView> {
    Ok(Json(changed(&rest, &account, id, &AdminChange::Unlock, None).await?))
}

pub(super) async fn new_password(
    State(rest): State<Rest>,
    Extension(account): Extension<Account>,
    In(id): In<Uuid>,
) -> Answer<OneTime> {
    let which = WhichAdmin::Id(AdminId(id));
    let (store, policy) = (&rest.api.store, rest.accounts());
    let (shown, ended) = reset_password(store, &which, &policy, &account.actor(), rest.now()).await?;
    kill(&rest, &ended);
    Ok(Json(shown))
}

pub(super) async fn reset_totp(
    State(rest): State<Rest>,
    Extension(account): Extension<Account>,
    In(id): In<Uuid>,
) -> Answer<AdminView> {
    Ok(Json(changed(&rest, &account, id, &AdminChange::ResetTotp, None).await?))
}

pub(super) async fn put_role(
    State(rest): State<Rest>,
    Extension(account): Extension<Account>,
    In(name): In<String>,
    Body(request): Body<PutRole>,
) -> Answer<RoleView> {
    let PutRole { description, permissions } = request;
    let role = RoleView { name, description, built_in: false, permissions };
    rest.api.store.put_role(&role, &account.actor(), rest.now()).await?;
    Ok(Json(role))
}

pub(super) async fn sessions(
    State(rest): State<Rest>,
    Ask(paging): Ask<Paging>,
) -> Answer<Page<AdminSessionView>> {
    sessions_of(&rest, None, &paging).await
}

pub(super) async fn end_session(
    State(rest): State<Rest>,
    Extension(account): Extension<Account>,
    In(session): In<Uuid>,
) -> Result<Response, Problem> {
    let (store, session) = (&rest.api.store, AdminSessionId(session));
    let reason = LogoutReason::AdminTerminated;
    if !store.end_admin_session(session, None, reason, &account.actor(), rest.now()).await? {
        return Err(Problem::not_found("there is no such session"));
    }
    kill(&rest, &[session]);
    Ok(guard::no_content())
}

pub(super) async fn rotate_keys(
    State(rest): State<Rest>,
    Extension(account): Extension<Account>,
    Body(RotateKeys { compromised }): Body<RotateKeys>,
) -> Result<Response, Problem> {
    rest.api.store.rotate_token_keys(compromised, &account.actor(), rest.now()).await?;
    rest.tokens.forget();
    Ok(guard::no_content())
}
