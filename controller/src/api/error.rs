//! What the API answers when it does not do what it was asked.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// An answer that says what happened, to what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("{message}{}{remedy}", if remedy.is_empty() { "" } else { "\n" })]
#[serde(rename_all = "camelCase")]
pub struct ApiError {
    /// The HTTP status; not part of the body.
    #[serde(skip)]
    pub status: u16,
    /// What happened, to what.
    pub message: String,
    /// What to do; may be empty.
    #[serde(default)]
    pub remedy: String,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status: status.as_u16(), message: message.into(), remedy: remedy.into() }
    }

    /// The request cannot be understood (400).
    pub fn bad_request(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message, remedy)
    }

    /// There is no such thing (404).
    pub fn not_found(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message, remedy)
    }

    /// The state of things forbids it (409).
    pub fn conflict(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message, remedy)
    }

    /// The path knows other methods (405).
    pub(super) fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "this path does not know that method",
            "use GET to read, POST to change",
        )
    }

    /// The body is too large, or broke off (413).
    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message, "send less at once")
    }

    /// It took too long (503).
    pub(super) fn timeout() -> Self {
        let message = "the controller was too busy to answer in time";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message, "try again, and see the controller's log")
    }

    /// The controller is about to end (503).
    pub(super) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the controller is stopping", "try again when it runs")
    }

    /// Somebody else is needed for it, or in the way, for now (503).
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message, "`horizon-controller status` shows the replicas")
    }

    /// The controller failed (500). The details go to the log; the caller learns where to look.
    pub fn internal(what: &'static str, error: impl std::fmt::Display) -> Self {
        tracing::error!(%error, "the API could not {what}");
        let message = format!("the controller could not {what}: {error}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message, "see the controller's log, and try again")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut answer = (status, Json(&self)).into_response();
        // Whoever serves this elsewhere says it in the words of another interface.
        answer.extensions_mut().insert(self);
        answer
    }
}
