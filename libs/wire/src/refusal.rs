//! A refusal: what happened, to what, and what to do.

use thiserror::Error;

use crate::proto;

/// The longest message that is taken from a peer, in characters.
const MAX_MESSAGE_CHARS: usize = 2048;
/// The longest remedy: it may hold a whole document.
const MAX_REMEDY_CHARS: usize = 64 * 1024;

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
    /// Takes what a peer said, as far as it is text: it is shown on terminals.
    fn from(raw: proto::Refused) -> Self {
        Self {
            code: raw.code(),
            message: readable(&raw.message, MAX_MESSAGE_CHARS, false),
            remedy: readable(&raw.remedy, MAX_REMEDY_CHARS, true),
            retry_after_seconds: raw.retry_after_seconds,
        }
    }
}

/// The beginning of a text without control characters; a remedy may have several lines.
fn readable(text: &str, limit: usize, lines: bool) -> String {
    text.chars().filter(|c| !c.is_control() || lines && *c == '\n').take(limit).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_says_cannot_steer_a_terminal() {
        let raw = proto::Refused {
            message: format!("no\r\u{1b}[31m\n{}", "x".repeat(5000)),
            remedy: "[spec]\nname = \"a\"\u{7}\n".into(),
            ..Default::default()
        };
        let refusal = Refusal::from(raw);
        assert!(refusal.message.starts_with("no[31mxxx"), "{refusal}");
        assert_eq!(refusal.message.chars().count(), MAX_MESSAGE_CHARS);
        assert_eq!(refusal.remedy, "[spec]\nname = \"a\"\n");
        let own = Refusal::new(proto::RefusalCode::Policy, "what", "do\nthis").retry_after(3);
        assert_eq!(Refusal::from(proto::Refused::from(own.clone())), own);
    }
}
