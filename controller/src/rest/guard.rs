//! What every request goes through before its handler: who it is from, whether they may, and how often.

use std::{net::IpAddr, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use horizon_controller_core::{DeviceStanding, account::Permission, payload::Rules};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    Problem, Rest, body, idempotency,
    serve::Remote,
    token::{Audience, Claims, TokenError},
};
use crate::{
    api::{ApiError, server::Account},
    channel::accept,
    detect::Door,
    live::{Counted, Limit},
    metrics::NameLabel,
    store::{Actor, AdminSessionId, Caller, DeviceRecord, SignedIn},
};

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The name of the header that names a request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest name of a request that a caller may give, in characters.
const MAX_REQUEST_ID: usize = 64;

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Anybody. Who shows a token is known, and it must be a valid one.
    Anyone,
    /// Anybody who wants to sign in or to prove a secret: few attempts are allowed.
    Stranger,
    /// Any administrator who is signed in, whatever they still must do.
    SignedIn,
    /// Any administrator who is signed in and has nothing to do first.
    Settled,
    /// An administrator with a permission.
    May(Permission),
    /// An administrator with one of some permissions; which one it takes follows from the request.
    MayOne(&'static [Permission]),
    /// A device with a token.
    Device,
    /// A device with a token, or an administrator with a permission.
    DeviceOr(Permission),
}

/// A route, as the guard knows it.
#[derive(Clone)]
pub(super) struct Guarded {
    pub(super) rest: Rest,
    pub(super) access: Access,
    /// The method and the path.
    pub(super) endpoint: &'static str,
}

/// A device that showed its token.
#[derive(Clone, Debug)]
pub(super) struct TokenDevice {
    pub(super) record: DeviceRecord,
    pub(super) token: Uuid,
    pub(super) expires: jiff::Timestamp,
}

/// Where a request came from, by the socket.
pub(super) fn address(request: &Request) -> IpAddr {
    let remote = request.extensions().get::<Remote>();
    remote.map_or(IpAddr::from([0, 0, 0, 0]), |remote| remote.0.ip().to_canonical())
}

/// The outermost: every request, whether there is a route for it or not.
pub(super) async fn gate(State(rest): State<Rest>, request: Request, next: Next) -> Response {
    let since = std::time::Instant::now();
    let id = request_id(request.headers());
    let span = tracing::debug_span!("rest", %id, method = %request.method(), path = request.uri().path());
    let answer = tracing::Instrument::instrument(admitted(&rest, request, next), span).await;
    let outcome = match answer.status() {
        status if status.is_success() => "ok",
        status if status.is_server_error() => "failed",
        _ => "refused",
    };
    let metrics = &rest.api.metrics;
    metrics.api_requests.get_or_create(&NameLabel { name: outcome }).inc();
    metrics.api_seconds.observe(since.elapsed().as_secs_f64());
    finish(answer, &id, rest.tls)
}

async fn admitted(rest: &Rest, request: Request, next: Next) -> Response {
    let (address, now) = (address(&request), rest.now());
    let index = rest.api.engine.index();
    let declared = accept::blocked_networks(&index).any(|network| network.contains(&address));
    if declared || rest.blocks.refuse(address, now) {
        return Problem::forbidden("this address is blocked").into_response();
    }
    let policy = accept::policy(&index);
    let limit = Limit::per_minute(policy.rest_limits.requests_per_address);
    if !rest.api.live.allow(Counted::Request(address), limit, now) {
        return limited("requests from this address", limit).into_response();
    }
    let (parts, body) = request.into_parts();
    match body::read(&parts.headers, body, policy.payload.max_bytes).await {
        Ok(bytes) => match Rules::from(&policy.payload).json(&bytes) {
            Ok(()) => next.run(Request::from_parts(parts, Body::from(bytes))).await,
            Err(hit) => {
                let problem = Problem::payload(hit.to_string());
                rest.detect.refused_payload(address, Door::Rest, hit);
                problem.into_response()
            }
        },
        Err(problem) => {
            let mut answer = problem.into_response();
            // What is left of the body is not read.
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            answer
        }
    }
}

/// A name that a request gives itself, if it is a harmless one; otherwise a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let harmless = |id: &&str| {
        (1..=MAX_REQUEST_ID).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    given.filter(harmless).map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

/// Says problems in the words of this API, and what browsers and caches are to know.
fn finish(answer: Response, id: &str, tls: bool) -> Response {
    let problem = answer.extensions().get::<ApiError>().cloned().map(Problem::from);
    let problem = problem.or_else(|| answer.extensions().get::<Problem>().cloned());
    let mut answer = match problem {
        Some(mut problem) => {
            problem.instance = Some(id.into());
            let close = answer.headers().get(header::CONNECTION).cloned();
            let mut answer = problem.into_response();
            if let Some(close) = close {
                answer.headers_mut().insert(header::CONNECTION, close);
            }
            answer
        }
        None => answer,
    };
    let headers = answer.headers_mut();
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let nothing = "default-src 'none'; frame-ancestors 'none'";
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(nothing));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if tls {
        let year = HeaderValue::from_static("max-age=31536000");
        headers.insert(header::STRICT_TRANSPORT_SECURITY, year);
    }
    answer
}

fn limited(what: &str, limit: Limit) -> Problem {
    Problem::rate_limited(format!("too many {what}"), limit.grows_back().as_secs() + 1)
}

/// Of each route: who may, how often, once, and not for too long.
pub(super) async fn guard(State(route): State<Guarded>, request: Request, next: Next) -> Response {
    let served = async {
        match route.let_in(request).await {
            Ok(request) => idempotency::once(&route, request, next).await,
            Err(problem) => problem.into_response(),
        }
    };
    match tokio::time::timeout(REQUEST_TIMEOUT, served).await {
        Ok(answer) => answer,
        Err(_) => Problem::unavailable("the controller was too busy to answer in time").into_response(),
    }
}

impl Guarded {
    async fn let_in(&self, mut request: Request) -> Result<Request, Problem> {
        let rest = &self.rest;
        let (address, now) = (address(&request), rest.now());
        let limits = rest.policy().rest_limits;
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let of_class = if reads { limits.reads_per_endpoint } else { limits.changes_per_endpoint };
        if self.access == Access::Stranger {
            if let Some(until) = rest.api.live.locked_out_until(address, now) {
                let seconds = until.duration_since(now).as_secs();
                // Who goes on trying is seen.
                rest.detect.wrong_secret(address);
                let detail = "this address failed too often";
                return Err(Problem::rate_limited(detail, u64::try_from(seconds).unwrap_or(0) + 1));
            }
            let what = "attempts from this address";
            self.count(Counted::SignIn(address), limits.sign_ins_per_address, what)?;
        }
        let agent = request.headers().get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        let country = rest.geo.lookup(address).and_then(|place| place.country);
        let caller = Caller::new(address, agent.unwrap_or_default(), country);
        let bearer = bearer(request.headers())?.map(str::to_owned);
        match (self.access, bearer) {
            (Access::Stranger, _) | (Access::Anyone, None) => {}
            (_, None) => return Err(Problem::unauthorized("no token was sent")),
            (Access::Device, Some(token)) => {
                let device = self.device(&token, address).await?;
                request.extensions_mut().insert(device);
            }
            (Access::DeviceOr(permission), Some(token)) => match self.is_devices(&token).await {
                true => drop(request.extensions_mut().insert(self.device(&token, address).await?)),
                false => {
                    let who = self.admin(&token, &caller).await?;
                    self.allowed(&who, Some(permission))?;
                    self.enter(&mut request, who, &caller)?;
                }
            },
            (access, Some(token)) => {
                let who = self.admin(&token, &caller).await?;
                match access {
                    Access::May(permission) => self.allowed(&who, Some(permission))?,
                    Access::MayOne(some) => {
                        self.allowed(
                            &who,
                            some.iter().find(|p| who.permissions.contains(p)).or(some.first()).copied(),
                        )?;
                    }
                    Access::Settled | Access::Anyone => self.allowed(&who, None)?,
                    _ => {}
                }
                self.enter(&mut request, who, &caller)?;
            }
        }
        // Last: whoever is refused before uses up nothing of what all share, so strangers keep nobody out.
        self.count(Counted::RequestTo(self.endpoint), of_class, "requests to this endpoint")?;
        request.extensions_mut().insert(caller);
        Ok(request)
    }

    /// The administrator of a token, as they are now.
    async fn admin(&self, token: &str, caller: &Caller) -> Result<SignedIn, Problem> {
        let (rest, now) = (&self.rest, self.rest.now());
        let claims = self.claims(token, Audience::Admin, caller.address, now).await?;
        let session = claims.sid.ok_or_else(|| Problem::unauthorized("the token is not valid here"))?;
        if rest.api.live.is_token_dead(session, now) {
            return Err(Problem::unauthorized("the session has ended"));
        }
        let policy = rest.accounts();
        let who = rest.api.store.signed_in(AdminSessionId(session), caller, &policy, now).await;
        let who = who.inspect_err(|error| {
            if matches!(error, crate::store::SessionRefused::Suspicious) {
                rest.api.live.kill_token(session, policy.absolute, now);
            }
        })?;
        // The session says who it is; a token of it that says otherwise is none of ours.
        if who.admin.0 != claims.sub {
            return Err(Problem::unauthorized("the token is not valid here"));
        }
        self.count_user(claims.sub)?;
        Ok(who)
    }

    /// Counts a request; an error when there are more than so many a minute.
    fn count(&self, counted: Counted, a_minute: u32, what: &str) -> Result<(), Problem> {
        let limit = Limit::per_minute(a_minute);
        match self.rest.api.live.allow(counted, limit, self.rest.now()) {
            true => Ok(()),
            false => Err(limited(what, limit)),
        }
    }

    fn count_user(&self, user: Uuid) -> Result<(), Problem> {
        let a_minute = self.rest.policy().rest_limits.requests_per_user;
        self.count(Counted::RequestOf(user), a_minute, "requests of this account")
    }

    /// What a token says. One that is none of ours counts as a wrong secret.
    async fn claims(
        &self,
        token: &str,
        audience: Audience,
        from: IpAddr,
        now: Timestamp,
    ) -> Result<Claims, Problem> {
        let claims = self.rest.tokens.check(token, audience, now).await;
        claims.map_err(|error| {
            if matches!(error, TokenError::Forged) {
                note_failure(&self.rest, from);
            }
            refused(error)
        })
    }

    fn allowed(&self, who: &SignedIn, permission: Option<Permission>) -> Result<(), Problem> {
        if !who.duties.is_empty() {
            return Err(Problem::duties(&who.duties));
        }
        match permission {
            Some(permission) if !who.permissions.contains(&permission) => {
                Err(Problem::forbidden(format!("it takes the permission {permission}")))
            }
            _ => Ok(()),
        }
    }

    fn enter(&self, request: &mut Request, who: SignedIn, caller: &Caller) -> Result<(), Problem> {
        request.extensions_mut().insert(Account(Actor::account(&who.username, caller)));
        request.extensions_mut().insert(who);
        Ok(())
    }

    /// Whether a token is one of a device.
    async fn is_devices(&self, token: &str) -> bool {
        let read = self.rest.tokens.check(token, Audience::Device, self.rest.now()).await;
        matches!(read, Ok(_) | Err(TokenError::Expired))
    }

    /// The device of a token, as it is now.
    async fn device(&self, token: &str, from: IpAddr) -> Result<TokenDevice, Problem> {
        let (rest, now) = (&self.rest, self.rest.now());
        let claims = self.claims(token, Audience::Device, from, now).await?;
        let dead =
            rest.api.live.is_token_dead(claims.jti, now) || rest.api.store.is_blacklisted(claims.jti).await?;
        if dead {
            return Err(Problem::unauthorized("the token is not valid any more"));
        }
        self.count_user(claims.sub)?;
        let record = rest.api.store.device_by_id(claims.sub.into()).await?;
        let record = record.ok_or_else(|| Problem::unauthorized("the device is not enrolled"))?;
        if record.standing(now) != DeviceStanding::Good {
            return Err(Problem::forbidden("the device or its personal key can no longer be used"));
        }
        let expires = jiff::Timestamp::from_second(claims.exp).unwrap_or(now);
        Ok(TokenDevice { record, token: claims.jti, expires })
    }
}

fn refused(error: TokenError) -> Problem {
    match error {
        TokenError::Store(error) => error.into(),
        other => Problem::unauthorized(other.to_string()),
    }
}

/// The token of a request (RFC 6750, section 2.1).
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut sent = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = sent.next() else { return Ok(None) };
    let wrong = || Problem::unauthorized("the Authorization header is none of `Bearer TOKEN`");
    if sent.next().is_some() {
        return Err(wrong());
    }
    let (scheme, token) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or_else(wrong)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(Some(token.trim())) } else { Err(wrong()) }
}

/// Counts a failure to prove a secret; an address that fails too often is locked out.
pub(super) fn note_failure(rest: &Rest, address: IpAddr) {
    rest.detect.wrong_secret(address);
    rest.api.live.note_failure(address, accept::lockout(&rest.policy()), rest.now());
}

/// What is answered where there is no route.
pub(super) async fn nothing() -> Response {
    Problem::not_found("there is nothing at this path").into_response()
}

/// What is answered where there is no such method.
pub(super) async fn no_method() -> Response {
    Problem::method_not_allowed().into_response()
}

/// An answer without a body.
pub(super) fn no_content() -> Response {
    StatusCode::NO_CONTENT.into_response()
}
