//! The server: routes, bounds, and who is asking.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    extract::{
        DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request, State,
        rejection::JsonRejection,
    },
    http::request::Parts,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use tokio::net::UnixListener;

use super::{
    ApiError, Strings, actor, admins, change, devices, diff, handover, issue, read, rotate, security,
};
use crate::{
    app::DatabaseWatch,
    config::Config,
    engine::Engine,
    export, http,
    live::Live,
    metrics::{Health, Metrics, NameLabel},
    replica::Roll,
    stop::Stop,
    store::{Actor, Store},
};

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a request waits for a controller that has just started.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// The largest body of a request, in bytes.
const MAX_BODY_BYTES: usize = 64 << 10;
/// The largest body of a request that carries files, in bytes.
const MAX_FILES_BYTES: usize = 64 << 20;

/// What the handlers work with.
pub struct Api {
    /// The settings in effect.
    pub config: Config,
    /// Makes tokens and invitations.
    pub strings: Strings,
    /// The resources in force.
    pub engine: Engine,
    /// The database.
    pub store: Store,
    /// The figures.
    pub metrics: Metrics,
    /// What is ready.
    pub health: Health,
    /// When the controller started.
    pub started_at: Timestamp,
    /// How replicas hear of each other.
    pub live: Arc<dyn Live>,
    /// The replicas; `None` where there can be no others.
    pub roll: Option<Roll>,
    /// Whether the database answers.
    pub database: DatabaseWatch,
    /// What declares resources, for people.
    pub source: String,
}

/// Serves until it is to stop.
pub async fn serve(listener: UnixListener, api: Arc<Api>, stop: Stop) {
    let routes = routes(api);
    let router = |stream: &tokio::net::UnixStream| {
        let account = actor::account(stream)?;
        Some(routes.clone().layer(Extension(Account(Actor::Admin(account)))))
    };
    http::serve(listener, router, |_| None, stop).await;
}

fn routes(api: Arc<Api>) -> Router {
    Router::new()
        .route("/v1/status", get(read::status))
        .route("/v1/sessions", get(read::sessions))
        .route("/v1/sessions/{id}", get(read::session))
        .route("/v1/devices", get(read::devices))
        .route("/v1/devices/{id}", get(devices::one))
        .route("/v1/devicedecisions", get(devices::decisions).post(devices::decide))
        .route("/v1/events", get(read::events))
        .route("/v1/audit", get(read::audit))
        .route("/v1/tokens", post(issue::token))
        .route("/v1/invitations", post(issue::invitation))
        .route("/v1/approvals", get(read::approvals).post(change::approve))
        .route("/v1/revocations", get(read::revocations).post(change::revoke))
        .route("/v1/personal-key-strings", post(handover::key_string))
        .route("/v1/handovers", post(handover::hand_over))
        .route("/v1/keyrotations", get(rotate::rotations).post(rotate::rotate))
        .route("/v1/admins", get(admins::list).post(admins::add))
        .route("/v1/admins/{name}/reset-password", post(admins::new_password))
        .route("/v1/admins/{name}/{action}", post(admins::change))
        .route("/v1/prune-confirmations", post(change::confirm_prune))
        .route("/v1/blocks", get(security::blocks).post(security::block))
        .route("/v1/unblocks", post(security::unblock))
        .route("/v1/events/{id}/handling", post(security::handle_event))
        .route("/v1/anomalies", get(security::anomalies))
        .route("/v1/anomalies/{id}/feedback", post(security::judge_anomaly))
        .route("/v1/notifications", get(security::notifications))
        .route("/v1/notifications/{id}", post(security::address_notification))
        .route("/v1/flags", get(security::flags).post(security::flag))
        .route("/v1/flag-clearings", post(security::clear_flag))
        .route("/v1/tasks", get(security::tasks))
        .route("/v1/services", get(security::services))
        .route("/v1/reports", get(security::reports))
        .route(export::PATH, get(export::handle))
        .route("/v1/{kind}", get(read::list))
        .route("/v1/{kind}/{name}", get(read::one))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .merge(
            Router::new().route("/v1/diff", post(diff::handle)).layer(DefaultBodyLimit::max(MAX_FILES_BYTES)),
        )
        .fallback(|| async { ApiError::not_found("there is nothing at this path", "") })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .layer(middleware::from_fn_with_state(api.clone(), bounded))
        .with_state(api)
}

/// Bounds the time of a request and counts it.
async fn bounded(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let since = std::time::Instant::now();
    if request.uri().path() != "/v1/status" {
        // Whoever asks right after the start means what is declared, not what was read of it so far.
        api.health.wait(START_PATIENCE).await;
    }
    let answer = match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(answer) => answer,
        Err(_) => ApiError::timeout().into_response(),
    };
    let outcome = match answer.status() {
        status if status.is_success() => "ok",
        status if status.is_server_error() => "failed",
        _ => "refused",
    };
    api.metrics.api_requests.get_or_create(&NameLabel { name: outcome }).inc();
    api.metrics.api_seconds.observe(since.elapsed().as_secs_f64());
    answer
}

/// The account at the other end.
#[derive(Clone, Debug)]
pub(crate) struct Account(pub(crate) Actor);

impl Account {
    /// The account as the audit trail names it.
    pub(crate) fn actor(&self) -> Actor {
        self.0.clone()
    }
}

/// A JSON body; what cannot be read is answered in this API's form.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(JsonRejection::BytesRejection(error)) => Err(ApiError::too_large(error.body_text())),
            Err(error) => Err(ApiError::bad_request(error.body_text(), "")),
        }
    }
}

/// The parts of a path.
pub(crate) struct In<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for In<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        path.map(|Path(path)| Self(path)).map_err(|error| ApiError::bad_request(error.body_text(), ""))
    }
}

/// What stands after the question mark.
pub(crate) struct Ask<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Ask<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(query)| Self(query)).map_err(|error| ApiError::bad_request(error.body_text(), ""))
    }
}
