//! What a failed request means.

use kube::core::Status;

/// What a failure calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// What was known is too old to go on from: list anew.
    Expired,
    /// The server does not know the resource.
    Missing,
    /// The server does not let us: 401 or 403.
    Refused,
    /// The object is not as it was thought to be.
    Conflict,
    /// The server cannot take what was sent: too large, or against its schema.
    Unfit,
    /// It may go well another time.
    Passing,
}

impl Failure {
    pub(super) fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(status),
            _ => Self::Passing,
        }
    }

    pub(super) fn of_status(status: &Status) -> Self {
        // The server was set back to an earlier state: it will not reach what was known of it.
        if status.message.contains("Too large resource version") {
            return Self::Expired;
        }
        match status.code {
            410 => Self::Expired,
            404 => Self::Missing,
            401 | 403 => Self::Refused,
            409 => Self::Conflict,
            400 | 413 | 422 => Self::Unfit,
            500 if status.message.contains("request is too large") => Self::Unfit,
            _ => Self::Passing,
        }
    }
}

/// An error in the server's words, without the library's around it.
pub(super) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        error => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(inner) = source {
                let inner_text = inner.to_string();
                if !text.contains(&inner_text) {
                    text = format!("{text}: {inner_text}");
                }
                source = inner.source();
            }
            text
        }
    }
}
