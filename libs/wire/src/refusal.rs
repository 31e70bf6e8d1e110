//! A refusal: what happened, to what, and what to do.

use thiserror::Error;

use crate::proto;

/// Why a controller refused, as its peers see it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}{}{remedy}", if remedy.is_empty() { "" } else { "\n" })]
pub struct Refusal {
    /// The category.
    pub code: proto::RefusalCode,
    /// What happened, to what.
    pub message: String,
    /// What to do; may hold a document that would allow it.
    pub remedy: String,
    /// Seconds to wait before trying again; 0 when trying again is pointless.
    pub retry_after_seconds: u32,
}

impl Refusal {
    /// A refusal that stays until somebody acts.
    pub fn new(code: proto::RefusalCode, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { code, message: message.into(), remedy: remedy.into(), retry_after_seconds: 0 }
    }

    /// The same refusal, to be tried again after a while.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_seconds = seconds;
        self
    }
}

impl From<proto::Refused> for Refusal {
    fn from(raw: proto::Refused) -> Self {
        Self {
            code: raw.code(),
            message: raw.message,
            remedy: raw.remedy,
            retry_after_seconds: raw.retry_after_seconds,
        }
    }
}

impl From<Refusal> for proto::Refused {
    fn from(r: Refusal) -> Self {
        Self {
            code: r.code.into(),
            message: r.message,
            remedy: r.remedy,
            retry_after_seconds: r.retry_after_seconds,
        }
    }
}
