//! The directory source: a tree of TOML files that declares what an organisation wants.
//!
//! A file that cannot be read keeps what it held in force; a listing that is not complete removes nothing. Changes are
//! noticed through the system's file notifications, and by a full look every so often should one be lost.

mod declare;
mod directory;
mod ignore;
mod listing;
mod read;
mod scan;
#[cfg(test)]
mod tests;
mod watch;

pub use declare::{Declare, Declared};
pub use directory::{Changes, Directory};
pub use listing::{Listing, read_directory, read_file};
pub use scan::{MAX_DEPTH, MAX_ENTRIES, MAX_FILES};
pub use watch::{Source, SourceOptions};

use std::sync::Arc;

use horizon_crds::Problem;

/// The paths of all documents below a directory, as the source reads them.
///
/// # Errors
/// When the directory cannot be listed to its end.
pub fn documents(root: &std::path::Path) -> Result<Vec<String>, Box<Problem>> {
    let scan = scan::scan(root);
    match scan.problems.into_iter().next() {
        Some(problem) if !scan.complete => Err(Box::new(problem)),
        _ => Ok(scan.files.keys().map(ToString::to_string).collect()),
    }
}

/// A problem of a whole file or directory.
fn problem(path: &str, message: impl Into<String>, remedy: impl Into<String>) -> Problem {
    Problem {
        file: Arc::from(if path.is_empty() { "." } else { path }),
        position: None,
        resource: None,
        field: String::new(),
        message: message.into(),
        remedy: remedy.into(),
    }
}
