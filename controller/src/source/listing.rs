//! Reading documents without watching them, as bytes.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Arc,
};

use horizon_crds::{Problem, document::MAX_FILE_BYTES};

use super::{
    problem,
    scan::{Stamp, plain, scan},
};

/// Files as they are, and what was passed over.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The files' names, below the directory, and their bytes.
    pub files: Vec<(Arc<str>, Vec<u8>)>,
    /// Files and directories that could not be read.
    pub problems: Vec<Problem>,
}

/// Reads every document below a directory.
///
/// # Errors
/// When the directory itself cannot be looked at. What is wrong below it is among the problems.
pub fn read_directory(root: &Path) -> io::Result<Listing> {
    std::fs::read_dir(root)?;
    let scan = scan(root);
    let mut listing = Listing { files: Vec::new(), problems: scan.problems };
    for path in scan.files.into_keys() {
        match load(&root.join(&*path)) {
            Ok(Loaded { bytes: Ok(bytes), .. }) => listing.files.push((path, bytes)),
            Ok(Loaded { bytes: Err(why), .. }) => {
                listing.problems.push(problem(&path, why.message, why.remedy))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => listing.problems.push(unreadable(&path, &error)),
        }
    }
    Ok(listing)
}

/// Reads one file, which problems call `name`.
///
/// # Errors
/// When it cannot be opened. When it is no document it is among the problems.
pub fn read_file(path: &Path, name: &str) -> io::Result<Listing> {
    let mut listing = Listing::default();
    match load(path)?.bytes {
        Ok(bytes) => listing.files.push((name.into(), bytes)),
        Err(why) => listing.problems.push(problem(name, why.message, why.remedy)),
    }
    Ok(listing)
}

pub(super) fn unreadable(path: &str, error: &io::Error) -> Problem {
    problem(path, format!("the file cannot be read: {}", plain(error)), "let the controller's user read it")
}

/// A file that was opened.
pub(super) struct Loaded {
    pub(super) stamp: Stamp,
    /// Its bytes, or why they are not read.
    pub(super) bytes: Result<Vec<u8>, Unfit>,
}

/// Why a file is no document.
pub(super) struct Unfit {
    pub(super) message: String,
    pub(super) remedy: &'static str,
}

/// Reads a file, without waiting for anybody, such as the writer of a pipe.
pub(super) fn load(path: &Path) -> io::Result<Loaded> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    let bytes = if metadata.is_file() {
        bounded(&file, metadata.len())?
    } else {
        Err(Unfit { message: "this is not a regular file".into(), remedy: "put a file there" })
    };
    Ok(Loaded { stamp: Stamp::from(&metadata), bytes })
}

fn bounded(file: &File, size: u64) -> io::Result<Result<Vec<u8>, Unfit>> {
    let limit = MAX_FILE_BYTES as u64;
    let mut bytes = Vec::new();
    if size <= limit {
        bytes.reserve_exact(usize::try_from(size).unwrap_or_default() + 1);
        // It may grow while it is read.
        file.take(limit + 1).read_to_end(&mut bytes)?;
    }
    let size = size.max(bytes.len() as u64);
    if size > limit {
        let message = format!("the file has {size} bytes, more than the {limit} that are read");
        return Ok(Err(Unfit { message, remedy: "split it into several files" }));
    }
    Ok(Ok(bytes))
}
