//! The journal: every change of the host, written down before the first is made, so that whatever a crash leaves behind
//! can be undone. Undoing what was never done changes nothing.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{plan::Change, resolv::Original};

/// The version of the form below.
const VERSION: u32 = 1;
/// The largest journal that is read, in bytes.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;

/// What has to be undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Journal {
    version: u32,
    /// The changes of links, routes and rules, in the order they are made.
    pub changes: Vec<Change>,
    /// The resolver's file, if it is to be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolver: Option<ResolverChange>,
}

/// A change of the resolver's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolverChange {
    /// Which file.
    pub path: PathBuf,
    /// What it was.
    pub original: Original,
}

/// Bytes that are no journal of this version.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum JournalError {
    /// Another version wrote it.
    #[error("the journal has the form {0}, this version reads {VERSION}")]
    Version(u32),
    /// It cannot be read.
    #[error("the journal cannot be read: {0}")]
    Malformed(String),
}

impl Journal {
    /// A journal of the changes that are about to be made.
    pub fn new(changes: Vec<Change>, resolver: Option<ResolverChange>) -> Self {
        Self { version: VERSION, changes, resolver }
    }

    /// Its bytes.
    pub fn encode(&self) -> Result<Vec<u8>, JournalError> {
        serde_json::to_vec(self).map_err(|e| JournalError::Malformed(e.to_string()))
    }

    /// Reads its bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, JournalError> {
        if bytes.len() > MAX_BYTES {
            return Err(JournalError::Malformed(format!("it has more than {MAX_BYTES} bytes")));
        }
        let journal: Self =
            serde_json::from_slice(bytes).map_err(|e| JournalError::Malformed(e.to_string()))?;
        if journal.version == VERSION { Ok(journal) } else { Err(JournalError::Version(journal.version)) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::{Observed, plan};

    fn journal() -> Journal {
        let ticket = crate::plan::tests::ticket(&[(0, &["100.64.0.5/32"], &["0.0.0.0/0"])]);
        let content = b"nameserver 192.0.2.1\n\xff".to_vec();
        let original = Original::File { mode: 0o644, uid: 0, gid: 0, content };
        Journal::new(
            plan(&ticket, &Observed::default(), "t"),
            Some(ResolverChange { path: "/etc/resolv.conf".into(), original }),
        )
    }

    #[test]
    fn a_journal_returns_and_other_versions_are_refused() {
        let bytes = journal().encode().unwrap();
        assert_eq!(Journal::decode(&bytes), Ok(journal()));
        let mut later = journal();
        later.version = 2;
        assert_eq!(Journal::decode(&later.encode().unwrap()), Err(JournalError::Version(2)));
        assert!(matches!(Journal::decode(&bytes[..bytes.len() / 2]), Err(JournalError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Journal::decode(&bytes);
        }
    }
}
