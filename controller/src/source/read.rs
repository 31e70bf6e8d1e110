//! Reading one document file of the directory, whatever it is.

use std::{io, path::Path};

use horizon_controller_core::File;
use horizon_crds::document::parse;

use super::{
    listing::{Loaded, load, unreadable},
    problem,
    scan::Stamp,
};

/// A file's content, or why there is none.
pub(super) enum Content {
    /// It was read.
    Read {
        /// What it holds.
        file: File,
        /// A hash of its bytes; 0 when they could not be read.
        hash: u64,
        /// The stamp it had when it was opened; `None` when it could not be.
        stamp: Option<Stamp>,
    },
    /// It has the bytes it had before.
    Same(Stamp),
    /// It does not exist any more.
    Gone,
}

/// Reads and parses the file at `path` below `root`, unless its bytes still have the hash `known`.
pub(super) fn read(root: &Path, path: &str, known: Option<u64>) -> Content {
    match load(&root.join(path)) {
        Ok(Loaded { stamp, bytes: Ok(bytes) }) => {
            let hash = hash(&bytes);
            if known == Some(hash) {
                return Content::Same(stamp);
            }
            Content::Read { file: parse(path, &bytes).into(), hash, stamp: Some(stamp) }
        }
        Ok(Loaded { stamp, bytes: Err(why) }) => {
            let file = File::unreadable(problem(path, why.message, why.remedy));
            Content::Read { file, hash: 0, stamp: Some(stamp) }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Content::Gone,
        Err(error) => {
            Content::Read { file: File::unreadable(unreadable(path, &error)), hash: 0, stamp: None }
        }
    }
}

/// FNV-1a over 64 bits, never 0. It only saves work: who writes these files may also write two that collide.
fn hash(bytes: &[u8]) -> u64 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.max(1)
}
