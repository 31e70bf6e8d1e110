//! The directory as it is known, and what changed since.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use horizon_controller_core::{Desired, File};
use horizon_crds::Problem;

use super::{
    ignore::{is_document, is_hidden},
    read::{Content, read},
    scan::{Scan, Stamp, scan},
};

/// From how many files on reading is shared among threads.
const PARALLEL_FROM: usize = 256;
/// The most threads that read.
const MAX_READERS: usize = 8;

/// What changed in the directory.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Files that changed; `None` for those that are gone.
    pub files: Vec<(Arc<str>, Option<File>)>,
    /// Files that say what they said, and whose status is not shown any more as it was.
    pub overwritten: BTreeSet<Arc<str>>,
    /// Whether the listing behind this was complete: only then what is missing is gone.
    pub complete: bool,
    /// What is wrong with the directory as such.
    pub problems: Vec<Problem>,
    /// Whether this follows from a full listing rather than from single files.
    pub full: bool,
}

struct Known {
    /// `None` for a file that could not be opened, which is tried again at every look.
    stamp: Option<Stamp>,
    hash: u64,
}

/// The directory, with what is known of each file.
pub struct Directory {
    root: PathBuf,
    known: BTreeMap<Arc<str>, Known>,
    /// Files that were missing at the last look. They count as gone when they are missing again.
    missing: BTreeSet<Arc<str>>,
    complete: bool,
    problems: Vec<Problem>,
}

impl Directory {
    /// A directory of which nothing is known yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            known: BTreeMap::new(),
            missing: BTreeSet::new(),
            complete: false,
            problems: Vec::new(),
        }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Reads everything at once, for a look without watching.
    pub fn load(root: impl Into<PathBuf>) -> (Desired, Vec<Problem>) {
        let changes = Self::new(root).look();
        let mut desired = Desired::new();
        for (path, file) in changes.files {
            desired.set_file(&path, file);
        }
        desired.set_complete(changes.complete);
        (desired, changes.problems)
    }

    /// Whether files are missing that have to be missed a second time before they count as gone.
    pub fn is_settling(&self) -> bool {
        !self.missing.is_empty()
    }

    /// Lists the directory and reads what changed.
    pub fn look(&mut self) -> Changes {
        let Scan { files, problems, complete } = scan(&self.root);
        self.complete = complete;
        self.problems.clone_from(&problems);
        let stale: Vec<_> = files
            .iter()
            .filter(|(path, stamp)| self.known.get(*path).is_none_or(|known| known.stamp != Some(**stamp)))
            .map(|(path, _)| path.clone())
            .collect();
        let mut changed = self.read_all(&stale);
        if complete {
            let gone = |path: &&Arc<str>| !files.contains_key(*path);
            let missing: BTreeSet<_> = self.known.keys().filter(gone).cloned().collect();
            changed.extend(self.forget(missing));
        } else {
            self.missing.clear();
        }
        Changes { files: changed, complete: self.complete, problems, full: true, ..Changes::default() }
    }

    /// Looks at single files that somebody says have changed. `None` when only a full listing will do: a directory, a link
    /// or a file that was not there before is among them.
    pub fn look_at(&mut self, paths: &BTreeSet<PathBuf>) -> Option<Changes> {
        let mut names = Vec::new();
        for path in paths {
            let below = path.strip_prefix(&self.root).ok()?.to_str()?;
            let name = path.file_name()?.to_str()?;
            let parents = below.strip_suffix(name)?;
            if self.known.contains_key(below) {
                names.push(Arc::from(below));
            } else if parents.split('/').any(is_hidden) {
                continue;
            } else if is_hidden(name) {
                if replaces_files(path, name) {
                    return None;
                }
            } else if is_document(name) || path.is_dir() || self.knows_below(below) {
                return None;
            }
        }
        let is_link = |name: &Arc<str>| {
            let metadata = self.root.join(&**name).symlink_metadata();
            metadata.map_or(true, |metadata| !metadata.is_file())
        };
        if names.iter().any(is_link) {
            return None;
        }
        let files = self.read_all(&names);
        let problems = self.problems.clone();
        Some(Changes { files, complete: self.complete, problems, ..Changes::default() })
    }

    /// Whether files of a directory are known, which may be gone.
    fn knows_below(&self, directory: &str) -> bool {
        let prefix = format!("{directory}/");
        let after = (std::ops::Bound::Included(prefix.as_str()), std::ops::Bound::Unbounded);
        self.known.range::<str, _>(after).next().is_some_and(|(path, _)| path.starts_with(&prefix))
    }

    /// A file is often missing for a moment while it is replaced. It is forgotten when it is missing twice in a row.
    fn forget(&mut self, missing: BTreeSet<Arc<str>>) -> Vec<(Arc<str>, Option<File>)> {
        let (gone, fresh): (BTreeSet<_>, BTreeSet<_>) =
            missing.into_iter().partition(|path| self.missing.contains(path));
        self.missing = fresh;
        for path in &gone {
            self.known.remove(path);
        }
        gone.into_iter().map(|path| (path, None)).collect()
    }

    fn read_all(&mut self, paths: &[Arc<str>]) -> Vec<(Arc<str>, Option<File>)> {
        let contents = self.contents(paths);
        let mut changed = Vec::new();
        for (path, content) in paths.iter().zip(contents) {
            match content {
                Content::Read { file, hash, stamp } => {
                    self.known.insert(path.clone(), Known { stamp, hash });
                    changed.push((path.clone(), Some(file)));
                }
                Content::Same(stamp) => {
                    if let Some(known) = self.known.get_mut(path) {
                        known.stamp = Some(stamp);
                    }
                }
                // The next listing will miss it.
                Content::Gone => {}
            }
        }
        changed
    }

    fn contents(&self, paths: &[Arc<str>]) -> Vec<Content> {
        let hashes: HashMap<_, _> =
            paths.iter().filter_map(|path| Some((path, self.known.get(path)?.hash))).collect();
        let one = |path: &Arc<str>| read(&self.root, path, hashes.get(path).copied());
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_READERS);
        if paths.len() < PARALLEL_FROM || threads < 2 {
            return paths.iter().map(one).collect();
        }
        let share = paths.len().div_ceil(threads);
        thread::scope(|scope| {
            let spawn = |chunk: &'_ [Arc<str>]| {
                let chunk = chunk.to_vec();
                scope.spawn(move || chunk.iter().map(one).collect::<Vec<_>>())
            };
            let workers: Vec<_> = paths.chunks(share).map(spawn).collect();
            let done = workers.into_iter().zip(paths.chunks(share));
            // A reader that panicked read nothing: its share is read again here, where the panic would show.
            done.flat_map(|(worker, chunk)| worker.join().unwrap_or_else(|_| chunk.iter().map(one).collect()))
                .collect()
        })
    }
}

/// Whether this is the hidden link, or the directory it leads to, whose exchange replaces all files of a mounted ConfigMap.
fn replaces_files(path: &Path, name: &str) -> bool {
    name.starts_with("..") || path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink())
}
