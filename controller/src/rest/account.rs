//! Signing in and out, and what administrators do with their own accounts.

use axum::{
    Extension, Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use data_encoding::BASE64URL_NOPAD;
use horizon_model::Secret;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{
    Problem, Rest, guard,
    page::{Page, Paging, page},
    schema::{Code, ConfirmTotp, EnrolTotp, Login, Me, PasswordChange, Refresh, Tokens},
    token::{ADMIN_LIFETIME, Audience},
};
use crate::{
    account::{recovery_codes, recovery_digest, totp},
    api::server::{Account, Ask, Body, In},
    store::{
        AdminId, AdminSessionId, AdminSessionPlace, AdminSessionView, Begun, Caller, Credentials, Duty,
        LoginError, LogoutReason, OwnError, SessionRefused, SignedIn,
    },
};

/// What a refresh token begins with, so that it is known when it is found where it should not be.
const PREFIX: &str = "hzr_";

type Answer<T> = Result<Json<T>, Problem>;

/// The token that renews a session.
fn refresh_token(session: AdminSessionId, secret: &Secret) -> String {
    let bytes = Zeroizing::new([&session.0.as_bytes()[..], secret.expose()].concat());
    format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
}

fn read_refresh_token(text: &str) -> Option<(AdminSessionId, Secret)> {
    let text = text.strip_prefix(PREFIX).filter(|text| text.len() == 64)?;
    let bytes = Zeroizing::new(BASE64URL_NOPAD.decode(text.as_bytes()).ok()?);
    let (session, secret) = bytes.split_at_checked(16)?;
    Some((AdminSessionId(Uuid::from_slice(session).ok()?), Secret::from_slice(secret)?))
}

async fn tokens(rest: &Rest, begun: Begun) -> Result<Tokens, Problem> {
    let Begun { who, secret, expires } = begun;
    let now = rest.now();
    let (access, _) = rest.tokens.sign(Audience::Admin, who.admin.0, Some(who.session.0), now).await?;
    Ok(Tokens {
        access_token: access,
        token_type: "Bearer",
        expires_in: ADMIN_LIFETIME.as_secs(),
        refresh_token: refresh_token(who.session, &secret),
        session: who.session.0,
        session_expires_at: expires.to_string(),
        must_do: who.duties,
        recovery_codes: Vec::new(),
    })
}

/// Sessions that ended are dead at every replica at once.
pub(super) fn kill(rest: &Rest, sessions: &[AdminSessionId]) {
    let absolute = rest.accounts().absolute;
    for session in sessions {
        rest.api.live.kill_token(session.0, absolute, rest.now());
    }
}

pub(super) async fn login(
    State(rest): State<Rest>,
    Extension(caller): Extension<Caller>,
    Body(login): Body<Login>,
) -> Answer<Tokens> {
    let Login { username, password, code } = login;
    let given = Credentials { username, password: password.0, code: code.map(|code| code.0) };
    let begun = rest.api.store.sign_in(&given, &caller, &rest.accounts(), rest.now()).await;
    let begun = begun.inspect_err(|error| {
        if matches!(error, LoginError::Refused) {
            guard::note_failure(&rest, caller.address);
        }
    })?;
    tracing::info!(admin = given.username, "an administrator signed in");
    Ok(Json(tokens(&rest, begun).await?))
}

pub(super) async fn refresh(
    State(rest): State<Rest>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<Refresh>,
) -> Answer<Tokens> {
    let shown = read_refresh_token(&request.refresh_token.0);
    let Some((session, secret)) = shown else {
        guard::note_failure(&rest, caller.address);
        return Err(Problem::unauthorized("the session has ended"));
    };
    let store = &rest.api.store;
    let begun = store.renew_admin_session(session, &secret, &caller, &rest.accounts(), rest.now()).await;
    let begun = begun.inspect_err(|error| {
        if matches!(error, SessionRefused::Wrong) {
            guard::note_failure(&rest, caller.address);
        }
    })?;
    Ok(Json(tokens(&rest, begun).await?))
}

pub(super) async fn logout(
    State(rest): State<Rest>,
    Extension(who): Extension<SignedIn>,
    Extension(account): Extension<Account>,
) -> Result<Response, Problem> {
    let (store, now) = (&rest.api.store, rest.now());
    store.end_admin_session(who.session, None, LogoutReason::UserInitiated, &account.actor(), now).await?;
    kill(&rest, &[who.session]);
    Ok(guard::no_content())
}

pub(super) async fn me(State(rest): State<Rest>, Extension(who): Extension<SignedIn>) -> Answer<Me> {
    let left = rest.api.store.recovery_codes_left(who.admin).await?;
    let permissions = who.permissions.iter().map(ToString::to_string).collect();
    Ok(Json(Me {
        id: who.admin.0,
        username: who.username,
        session: who.session.0,
        permissions,
        must_do: who.duties,
        recovery_codes_left: left,
    }))
}

/// Counts a wrong password or code of somebody who is signed in: a stolen session may be trying them.
fn note_wrong(rest: &Rest, caller: &Caller, error: &OwnError) {
    if matches!(error, OwnError::Refused) {
        guard::note_failure(rest, caller.address);
    }
}

pub(super) async fn change_password(
    State(rest): State<Rest>,
    Extension(caller): Extension<Caller>,
    Extension(who): Extension<SignedIn>,
    Body(request): Body<PasswordChange>,
) -> Answer<Tokens> {
    let PasswordChange { current, new } = request;
    let (store, policy) = (&rest.api.store, rest.accounts());
    let changed = store.change_own_password(&who, &current.0, &new.0, (&caller, &policy), rest.now()).await;
    let (begun, ended) = changed.inspect_err(|error| note_wrong(&rest, &caller, error))?;
    kill(&rest, &ended);
    Ok(Json(tokens(&rest, begun).await?))
}

pub(super) async fn begin_totp(
    State(rest): State<Rest>,
    Extension(who): Extension<SignedIn>,
) -> Result<(StatusCode, Json<EnrolTotp>), Problem> {
    // Whoever knows only the one-time password sets nothing up with it.
    if who.duties.contains(&Duty::ChangePassword) {
        return Err(Problem::duties(&[Duty::ChangePassword]));
    }
    let secret = rest.api.store.begin_totp(&who).await?;
    let (secret, uri) = (totp::typed(&secret).to_string(), totp::uri(&secret, &who.username).to_string());
    Ok((StatusCode::CREATED, Json(EnrolTotp { secret, uri })))
}

pub(super) async fn confirm_totp(
    State(rest): State<Rest>,
    Extension(caller): Extension<Caller>,
    Extension(who): Extension<SignedIn>,
    Body(ConfirmTotp { code: Code(code) }): Body<ConfirmTotp>,
) -> Answer<Tokens> {
    let recovery = recovery_codes();
    let digests = recovery.iter().map(|code| recovery_digest(code)).collect();
    let (store, policy) = (&rest.api.store, rest.accounts());
    let confirmed = store.confirm_totp(&who, &code, &digests, (&caller, &policy), rest.now()).await;
    let (begun, ended) = confirmed.inspect_err(|error| note_wrong(&rest, &caller, error))?;
    kill(&rest, &ended);
    let mut tokens = tokens(&rest, begun).await?;
    tokens.recovery_codes = recovery.iter().map(|code| code.to_string()).collect();
    Ok(Json(tokens))
}

/// A page of the sessions of one account, or of all.
pub(super) async fn sessions_of(
    rest: &Rest,
    of: Option<AdminId>,
    paging: &Paging,
) -> Answer<Page<AdminSessionView>> {
    let (limit, after) = (paging.limit()?, paging.place(SESSIONS)?);
    let (store, policy) = (&rest.api.store, rest.accounts());
    let found = store.list_admin_sessions(of, after, &policy, rest.now(), limit + 1).await?;
    let place = |view: &AdminSessionView| {
        AdminSessionPlace { login: view.login_at.as_millisecond(), session: view.id }.to_string()
    };
    Ok(Json(page(SESSIONS, found, limit, place)))
}

/// The list of sessions, as a cursor names it.
const SESSIONS: &str = "admin sessions";

pub(super) async fn own_sessions(
    State(rest): State<Rest>,
    Extension(who): Extension<SignedIn>,
    Ask(paging): Ask<Paging>,
) -> Answer<Page<AdminSessionView>> {
    sessions_of(&rest, Some(who.admin), &paging).await
}

pub(super) async fn end_own_session(
    State(rest): State<Rest>,
    Extension(who): Extension<SignedIn>,
    Extension(account): Extension<Account>,
    In(session): In<Uuid>,
) -> Result<Response, Problem> {
    let (session, now) = (AdminSessionId(session), rest.now());
    let (store, reason) = (&rest.api.store, LogoutReason::UserInitiated);
    if !store.end_admin_session(session, Some(who.admin), reason, &account.actor(), now).await? {
        return Err(Problem::not_found("there is no such session of yours"));
    }
    kill(&rest, &[session]);
    Ok(guard::no_content())
}

/// The keys of tokens, for programs that check tokens themselves (RFC 7517).
#[derive(Serialize, ToSchema)]
pub(super) struct Jwks {
    #[schema(value_type = Vec<Object>)]
    keys: Vec<super::token::Jwk>,
}

pub(super) async fn jwks(State(rest): State<Rest>) -> Result<Response, Problem> {
    let keys = rest.tokens.keys(rest.now()).await?.iter().map(super::token::Jwk::from).collect();
    Ok(Json(Jwks { keys }).into_response())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn refresh_tokens_return(session in any::<u128>(), secret in any::<[u8; 32]>()) {
            let session = AdminSessionId(Uuid::from_u128(session));
            let text = refresh_token(session, &Secret::new(secret));
            let (again, read) = read_refresh_token(&text).unwrap();
            prop_assert_eq!((again, *read.expose()), (session, secret));
        }

        #[test]
        fn what_is_no_refresh_token_is_refused(text in "\\PC{0,80}") {
            prop_assert!(read_refresh_token(&text).is_none());
        }
    }
}
