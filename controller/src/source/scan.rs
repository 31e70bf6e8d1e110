//! Listing the directory: every document below it, with a stamp that tells whether it changed.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use horizon_crds::Problem;

use super::{
    ignore::{is_document, is_hidden},
    problem,
};

/// The most documents in one directory tree.
pub const MAX_FILES: usize = 100_000;
/// The most names of any sort that a listing looks at.
pub const MAX_ENTRIES: usize = 400_000;
/// How deep the tree may be.
pub const MAX_DEPTH: usize = 16;

/// What tells one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A listing of the directory.
#[derive(Debug)]
pub(super) struct Scan {
    /// Documents by their path below the directory, with `/` between names.
    pub(super) files: BTreeMap<Arc<str>, Stamp>,
    /// What could not be looked at, and what was passed over.
    pub(super) problems: Vec<Problem>,
    /// Whether nothing was missed, so that what is not listed does not exist.
    pub(super) complete: bool,
}

/// Lists every document below `root`.
pub(super) fn scan(root: &Path) -> Scan {
    let mut walk = Walk {
        scan: Scan { files: BTreeMap::new(), problems: Vec::new(), complete: true },
        seen: HashSet::new(),
        entries: 0,
    };
    match fs::metadata(root) {
        Ok(metadata) if metadata.is_dir() => {
            walk.directory(root, "", &mut vec![(metadata.dev(), metadata.ino())]);
        }
        Ok(_) => walk.missed(
            "",
            "the source is not a directory",
            "give the path of the directory with the documents",
        ),
        Err(error) => {
            let message = format!("the directory {} cannot be looked at: {}", root.display(), plain(&error));
            walk.missed(
                "",
                message,
                "make it again, or correct the path; what it declared stays in force meanwhile",
            );
        }
    }
    walk.scan
}

struct Walk {
    scan: Scan,
    /// The directories that were listed.
    seen: HashSet<(u64, u64)>,
    entries: usize,
}

impl Walk {
    fn note(&mut self, path: &str, message: impl Into<String>, remedy: impl Into<String>) {
        self.scan.problems.push(problem(path, message, remedy));
    }

    fn missed(&mut self, path: &str, message: impl Into<String>, remedy: impl Into<String>) {
        self.scan.complete = false;
        self.note(path, message, remedy);
    }

    /// `above` holds the directories from the root down to this one.
    fn directory(&mut self, directory: &Path, path: &str, above: &mut Vec<(u64, u64)>) {
        if let Some(identity) = above.last() {
            self.seen.insert(*identity);
        }
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) => {
                let message = format!("the directory cannot be listed: {}", plain(&error));
                return self.missed(
                    path,
                    message,
                    "let the controller's user read and enter it; nothing is removed meanwhile",
                );
            }
        };
        let mut names = Vec::new();
        for entry in entries {
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                let message = format!("there are more than {MAX_ENTRIES} names in the directory");
                return self.missed("", message, "remove what does not belong there");
            }
            match entry {
                Ok(entry) => names.push(entry.file_name()),
                Err(error) => {
                    let message = format!("the directory cannot be listed to its end: {}", plain(&error));
                    self.missed(path, message, "check the file system");
                }
            }
        }
        names.sort();
        for name in names {
            match name.to_str() {
                Some(name) if is_hidden(name) => {}
                Some(name) => self.entry(&directory.join(name), join(path, name), name, above),
                None => {
                    let shown = join(path, &name.to_string_lossy());
                    self.note(&shown, "the name is not UTF-8 text, so the file is passed over", "rename it");
                }
            }
        }
    }

    fn entry(&mut self, full: &PathBuf, path: String, name: &str, above: &mut Vec<(u64, u64)>) {
        let metadata = match fs::metadata(full) {
            Ok(metadata) => metadata,
            Err(error) => {
                // Gone since the listing, or a link to nowhere: neither holds anything.
                let link = fs::symlink_metadata(full).is_ok_and(|m| m.file_type().is_symlink());
                if error.kind() == io::ErrorKind::NotFound {
                    if link && is_document(name) {
                        self.missed(&path, "the symbolic link leads nowhere", "correct or remove it");
                    }
                } else if is_document(name) || link {
                    self.missed(
                        &path,
                        format!("the file cannot be looked at: {}", plain(&error)),
                        "correct or remove it",
                    );
                }
                return;
            }
        };
        if metadata.is_dir() {
            return self.subdirectory(full, &path, &metadata, above);
        }
        if !is_document(name) {
            return;
        }
        if self.scan.files.len() >= MAX_FILES {
            if self.scan.complete {
                let message = format!("there are more than {MAX_FILES} documents");
                self.missed("", message, "put several resources into one file under [[resource]]");
            }
            return;
        }
        self.scan.files.insert(path.into(), Stamp::from(&metadata));
    }

    fn subdirectory(&mut self, full: &Path, path: &str, metadata: &Metadata, above: &mut Vec<(u64, u64)>) {
        let identity = (metadata.dev(), metadata.ino());
        if above.contains(&identity) {
            return self.note(
                path,
                "the symbolic link leads back to a directory above it",
                "remove the link",
            );
        }
        if self.seen.contains(&identity) {
            return self.note(
                path,
                "the directory is reached a second time through a link",
                "remove the link",
            );
        }
        if above.len() > MAX_DEPTH {
            let message = format!("the directory is more than {MAX_DEPTH} levels deep");
            return self.missed(path, message, "move it up");
        }
        above.push(identity);
        self.directory(full, path, above);
        above.pop();
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
}

/// The error without its number.
pub(super) fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it does not exist".into(),
        io::ErrorKind::PermissionDenied => "permission is denied".into(),
        _ => error.to_string(),
    }
}
