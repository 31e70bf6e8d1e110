//! What is answered instead of what was asked for: problem details (RFC 9457).

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    api::ApiError,
    store::{AdminError, LoginError, OwnError, SessionRefused, StoreError},
};

/// The kind of content that problems are.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// Why something was not done (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Problem {
    /// The kind of problem: `urn:horizon:problem:` and a name for programs.
    #[serde(rename = "type")]
    #[schema(value_type = String, example = "urn:horizon:problem:not-found")]
    kind: Box<str>,
    /// The same for every problem of the kind.
    title: &'static str,
    /// The status of the answer.
    status: u16,
    /// What happened, to what.
    #[schema(value_type = String)]
    detail: Box<str>,
    /// What to do; may be absent.
    #[serde(skip_serializing_if = "str::is_empty")]
    #[schema(value_type = String)]
    remedy: Box<str>,
    /// The request, as the log of the controller knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(super) instance: Option<Box<str>>,
    /// What must be done before anything else.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub(super) must_do: Box<[crate::store::Duty]>,
    #[serde(skip)]
    retry_after: Option<u32>,
}

impl Problem {
    fn new(status: StatusCode, name: &str, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:horizon:problem:{name}").into(),
            title,
            status: status.as_u16(),
            detail: detail.into().into_boxed_str(),
            remedy: Box::default(),
            instance: None,
            must_do: Box::default(),
            retry_after: None,
        }
    }

    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into().into_boxed_str();
        self
    }

    pub(super) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(u32::try_from(seconds.max(1)).unwrap_or(u32::MAX));
        self
    }

    pub(super) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", "The request cannot be understood", detail)
    }

    /// No token, or one that is worth nothing.
    pub(super) fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "A valid token is needed", detail)
            .remedy("sign in: POST /v1/admin/login")
    }

    /// Who asks is known, and may not.
    pub(super) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "This is not allowed", detail)
    }

    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "There is no such thing", detail)
    }

    pub(super) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", "The state of things forbids it", detail)
    }

    /// Something must be done first, and what.
    pub(super) fn duties(duties: &[crate::store::Duty]) -> Self {
        let detail = "the password must be changed, or one-time codes set up, before anything else";
        let mut problem = Self::new(
            StatusCode::FORBIDDEN,
            "duty-first",
            "Something must be done first",
            detail,
        )
        .remedy(
            "mustDo says what: POST /v1/admin/password, or POST /v1/admin/totp and /v1/admin/totp/confirm",
        );
        problem.must_do = duties.into();
        problem
    }

    pub(super) fn precondition_failed(version: i64) -> Self {
        let detail = format!("it was changed meanwhile, and has version {version} now");
        Self::new(StatusCode::PRECONDITION_FAILED, "precondition-failed", "It was changed meanwhile", detail)
            .remedy("read it again, and send its ETag as If-Match")
    }

    pub(super) fn precondition_required() -> Self {
        let detail = "a change needs the version that is to be changed";
        let title = "The version is missing";
        Self::new(StatusCode::PRECONDITION_REQUIRED, "precondition-required", title, detail)
            .remedy("read it, and send its ETag as If-Match")
    }

    pub(super) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The body is too large", detail)
    }

    /// Refused by the payload rules, before anything read it.
    pub(super) fn payload(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "payload-refused", "The body is not taken", detail)
            .remedy("leave it out; an administrator can change the rules: payload of a SecurityPolicy")
    }

    pub(super) fn unsupported() -> Self {
        let detail = "a body must be JSON";
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            "The body is not JSON",
            detail,
        )
        .remedy("send Content-Type: application/json")
    }

    pub(super) fn slow() -> Self {
        let detail = "the body did not come in time";
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout", "The request took too long", detail)
    }

    pub(super) fn method_not_allowed() -> Self {
        let title = "The path knows other methods";
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            title,
            "this path does not know that method",
        )
    }

    /// Too often; more is right again after `seconds`.
    pub(super) fn rate_limited(detail: impl Into<String>, seconds: u64) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", "Too many requests", detail)
            .remedy("wait as long as Retry-After says")
            .retry_after(seconds)
    }

    pub(super) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The controller cannot do it now", detail)
            .remedy("try again")
            .retry_after(2)
    }

    /// The controller failed. The details go to the log alone.
    pub(super) fn internal(error: impl std::fmt::Display) -> Self {
        tracing::error!(%error, "a request of the REST API failed");
        let title = "The controller failed";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", title, "the controller failed to do it")
            .remedy("the log of the controller says why, under the id of this request")
    }

    /// Wrong credentials: one answer for every way in which they are.
    pub(super) fn refused(detail: impl Into<String>) -> Self {
        let title = "The credentials are refused";
        Self::new(StatusCode::UNAUTHORIZED, "invalid-credentials", title, detail)
    }

    pub(super) fn named(
        status: StatusCode,
        name: &str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self::new(status, name, title, detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut answer = (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        let headers = answer.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"horizon\""));
        }
        answer.extensions_mut().insert(self);
        answer
    }
}

impl From<ApiError> for Problem {
    fn from(error: ApiError) -> Self {
        let ApiError { status, message, remedy } = error;
        let problem = match StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR) {
            StatusCode::BAD_REQUEST => Self::bad_request(message),
            StatusCode::NOT_FOUND => Self::not_found(message),
            StatusCode::CONFLICT => Self::conflict(message),
            StatusCode::METHOD_NOT_ALLOWED => Self::method_not_allowed(),
            StatusCode::PAYLOAD_TOO_LARGE => Self::too_large(message),
            StatusCode::SERVICE_UNAVAILABLE => Self::unavailable(message),
            // What it says is for the log, where it is already.
            _ => return Self::internal("see the line before"),
        };
        if remedy.is_empty() { problem } else { problem.remedy(remedy) }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Database(_) | StoreError::Unknown(_) => {
                tracing::warn!(%error, "the database did not answer a request of the REST API");
                Self::unavailable("the database does not answer")
            }
            StoreError::Busy => Self::unavailable("too many secrets are checked at once"),
            other => Self::internal(other),
        }
    }
}

impl From<AdminError> for Problem {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Unknown => Self::not_found(error.to_string()),
            AdminError::Exists | AdminError::LastOne => Self::conflict(error.to_string()),
            AdminError::Changed(version) => Self::precondition_failed(version),
            AdminError::NoRole(_) | AdminError::Password(_) | AdminError::Invalid(_) => {
                Self::bad_request(error.to_string())
            }
            AdminError::Store(error) => error.into(),
        }
    }
}

impl From<LoginError> for Problem {
    fn from(error: LoginError) -> Self {
        let detail = error.to_string();
        match error {
            LoginError::Refused => Self::refused(detail),
            LoginError::CodeNeeded => {
                let title = "A one-time code is needed";
                Self::named(StatusCode::UNAUTHORIZED, "code-needed", title, detail)
                    .remedy("send the same with `code`: that of the authenticator, or a recovery code")
            }
            LoginError::Suspended(_) => {
                Self::named(StatusCode::FORBIDDEN, "suspended", "The account is suspended", detail)
            }
            LoginError::PasswordExpired => {
                Self::named(StatusCode::FORBIDDEN, "password-expired", "The password has expired", detail)
            }
            LoginError::Store(error) => error.into(),
        }
    }
}

impl From<OwnError> for Problem {
    fn from(error: OwnError) -> Self {
        let detail = error.to_string();
        match error {
            OwnError::Refused => Self::forbidden(detail),
            OwnError::Password(_) | OwnError::Same => Self::bad_request(detail),
            OwnError::AlreadyEnrolled | OwnError::NotBegun => Self::conflict(detail),
            OwnError::Ended => Self::unauthorized(detail),
            OwnError::Store(error) => error.into(),
        }
    }
}

impl From<SessionRefused> for Problem {
    fn from(error: SessionRefused) -> Self {
        match error {
            SessionRefused::Store(error) => error.into(),
            other => Self::unauthorized(other.to_string()),
        }
    }
}
