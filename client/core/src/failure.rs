//! Why something the user asked for did not happen.

use std::fmt;

use horizon_model::SessionConflict;
use serde::{Deserialize, Serialize};

/// The kind of a failure; each has an exit code of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FailureKind {
    /// Something on this machine or on the way to the server went wrong.
    Failed,
    /// The request itself makes no sense.
    Usage,
    /// The organisation does not allow it.
    Refused,
    /// No controller answered.
    Unreachable,
    /// Another device of the same user holds the session.
    Conflict,
}

impl FailureKind {
    /// The exit code of the command: 1, 2, 3, 4 or 5 in the order above. 0 is success.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::Unreachable => 4,
            Self::Conflict => 5,
        }
    }
}

/// A failure as a person reads it: what happened, to what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The kind.
    pub kind: FailureKind,
    /// What happened, to what.
    pub message: String,
    /// What to do; empty where there is nothing to add.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
    /// The session in the way, for [`FailureKind::Conflict`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<Box<SessionConflict>>,
}

impl Failure {
    /// A failure of a kind.
    pub fn new(kind: FailureKind, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { kind, message: message.into(), remedy: remedy.into(), conflict: None }
    }

    /// Something went wrong.
    pub fn failed(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(FailureKind::Failed, message, remedy)
    }

    /// The session of another device is in the way.
    pub fn conflict(conflict: SessionConflict) -> Self {
        Self {
            kind: FailureKind::Conflict,
            message: format!(
                "you are already connected to {} from {}",
                conflict.server_name, conflict.device_name
            ),
            remedy: "end that connection and use this one instead with --take-over".into(),
            conflict: Some(Box::new(conflict)),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.remedy.is_empty() {
            write!(f, "\n{}", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_never_zero() {
        use FailureKind::{Conflict, Failed, Refused, Unreachable, Usage};
        let codes = [Failed, Usage, Refused, Unreachable, Conflict].map(FailureKind::exit_code);
        assert_eq!(codes, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_failure_reads_as_two_lines_and_survives_json() {
        let failure = Failure::new(FailureKind::Refused, "paris-1 is not yours", "ask for a policy");
        assert_eq!(failure.to_string(), "paris-1 is not yours\nask for a policy");
        let text = serde_json::to_string(&failure).unwrap();
        assert_eq!(serde_json::from_str::<Failure>(&text).unwrap(), failure);
    }
}
