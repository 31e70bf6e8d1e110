//! Watching the directory: a thread that waits for notifications, lets a burst of them pass, and looks.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::mpsc as channel,
    thread,
    time::{Duration, Instant},
};

use notify::{Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::{Changes, Directory, problem, scan::plain};

/// How the directory is watched.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// The directory.
    pub root: PathBuf,
    /// How long to wait for a burst of notifications to end.
    pub debounce: Duration,
    /// How often to look without a notification.
    pub rescan: Duration,
}

impl SourceOptions {
    /// The usual times for a directory: 30 ms of silence, and a look every minute.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), debounce: Duration::from_millis(30), rescan: Duration::from_secs(60) }
    }
}

/// The longest that a burst without silence is waited for.
const MAX_BURST: Duration = Duration::from_millis(500);
/// When to look a second time after files went missing.
const SETTLE: Duration = Duration::from_millis(200);
/// How often to look while the directory cannot be watched or is not there.
const UNWATCHED_RESCAN: Duration = Duration::from_secs(2);
/// The most notifications that wait to be looked at; when there are more, everything is looked at.
const MAX_WAITING: usize = 4096;
/// The most changes that wait for the reader.
const MAX_CHANGES: usize = 4;

/// A watched directory. Dropping it ends the watching.
#[derive(Debug)]
pub struct Source {
    wake: channel::SyncSender<Note>,
}

/// What the thread is told.
enum Note {
    /// These paths changed.
    Paths(Vec<PathBuf>),
    /// Something changed, and it is not known what.
    Anything,
    /// It is over.
    Stop,
}

impl Source {
    /// Starts to watch. The first [`Changes`] hold everything.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(options: SourceOptions) -> std::io::Result<(Self, mpsc::Receiver<Changes>)> {
        let (wake, notes) = channel::sync_channel(MAX_WAITING);
        let (changes, receiver) = mpsc::channel(MAX_CHANGES);
        let watching = Watching {
            directory: Directory::new(absolute(options.root)),
            debounce: options.debounce,
            rescan: options.rescan,
            wake: wake.clone(),
            notes,
            changes,
            watcher: None,
        };
        thread::Builder::new().name("directory-source".into()).spawn(move || watching.run())?;
        Ok((Self { wake }, receiver))
    }

    /// Asks for a full look now.
    pub fn look(&self) {
        // When the queue is full a look is due anyway.
        let _ = self.wake.try_send(Note::Anything);
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // When the queue is full the thread ends at its next send, because nobody receives.
        let _ = self.wake.try_send(Note::Stop);
    }
}

/// Notifications name absolute paths. Links stay as they are: the directory may be one that is pointed elsewhere later.
fn absolute(root: PathBuf) -> PathBuf {
    std::path::absolute(&root).unwrap_or(root)
}

struct Watching {
    directory: Directory,
    debounce: Duration,
    rescan: Duration,
    wake: channel::SyncSender<Note>,
    notes: channel::Receiver<Note>,
    changes: mpsc::Sender<Changes>,
    watcher: Option<Watched>,
}

/// A running watcher, and the directory it watches.
struct Watched {
    identity: (u64, u64),
    _watcher: RecommendedWatcher,
}

/// What a burst of notifications amounts to.
enum Burst {
    Paths(BTreeSet<PathBuf>),
    Anything,
    Stop,
}

impl Watching {
    fn run(mut self) {
        // Watched before it is read, so that nothing falls between.
        let unwatched = self.watch();
        let first = self.full(unwatched);
        if self.changes.blocking_send(first).is_err() {
            return;
        }
        loop {
            let changes = match self.next_burst() {
                Burst::Stop => return,
                Burst::Paths(paths) => match self.directory.look_at(&paths) {
                    Some(changes) => changes,
                    None => self.look(),
                },
                Burst::Anything => self.look(),
            };
            let news = changes.full || !changes.files.is_empty();
            if news && self.changes.blocking_send(changes).is_err() {
                return;
            }
        }
    }

    fn look(&mut self) -> Changes {
        let unwatched = self.watch();
        self.full(unwatched)
    }

    fn full(&mut self, unwatched: Option<horizon_crds::Problem>) -> Changes {
        let mut changes = self.directory.look();
        changes.problems.extend(unwatched);
        changes
    }

    /// Watches the directory if it is there and not watched already; says what is wrong otherwise.
    fn watch(&mut self) -> Option<horizon_crds::Problem> {
        use std::os::unix::fs::MetadataExt as _;
        let root = self.directory.root().to_owned();
        let metadata = match std::fs::metadata(&root) {
            Ok(metadata) if metadata.is_dir() => metadata,
            // The listing reports it.
            _ => {
                self.watcher = None;
                return None;
            }
        };
        let identity = (metadata.dev(), metadata.ino());
        if self.watcher.as_ref().is_some_and(|watched| watched.identity == identity) {
            return None;
        }
        // What the system is asked to watch must not be a link; what it tells is in terms of what it was asked.
        let real = root.canonicalize().unwrap_or_else(|_| root.clone());
        let (wake, from, to) = (self.wake.clone(), real.clone(), root.clone());
        let as_known = move |path: PathBuf| match path.strip_prefix(&from) {
            Ok(rest) => Some(to.join(rest)),
            Err(_) => (path == to).then_some(path),
        };
        let told = move |event: notify::Result<Event>| {
            let note = match event {
                Ok(event) if matches!(event.kind, EventKind::Access(_)) => return,
                Ok(event) if event.need_rescan() => Note::Anything,
                Ok(event) => {
                    let paths: Vec<_> = event.paths.into_iter().filter_map(&as_known).collect();
                    if paths.is_empty() {
                        return;
                    }
                    Note::Paths(paths)
                }
                Err(_) => Note::Anything,
            };
            // When the queue is full a look is due anyway.
            let _ = wake.try_send(note);
        };
        let config = Config::default().with_follow_symlinks(false);
        let started = RecommendedWatcher::new(told, config).and_then(|mut watcher| {
            watcher.watch(&real, RecursiveMode::Recursive)?;
            if let Some(parent) = root.parent() {
                // Tells when the directory itself is exchanged; without it the next look does.
                let _ = watcher.watch(parent, RecursiveMode::NonRecursive);
            }
            Ok(watcher)
        });
        match started {
            Ok(watcher) => {
                self.watcher = Some(Watched { identity, _watcher: watcher });
                None
            }
            Err(error) => {
                self.watcher = None;
                let why = match &error.kind {
                    notify::ErrorKind::Io(error) => plain(error),
                    _ => error.to_string(),
                };
                let seconds = UNWATCHED_RESCAN.as_secs();
                let message = format!(
                    "the directory cannot be watched ({why}): changes are noticed within {seconds} s"
                );
                Some(problem("", message, "raise fs.inotify.max_user_watches or make the directory readable"))
            }
        }
    }

    /// Waits for notifications, or for the time of the next look, and lets a burst pass.
    fn next_burst(&self) -> Burst {
        let patience = if self.directory.is_settling() {
            SETTLE
        } else if self.watcher.is_none() {
            UNWATCHED_RESCAN.min(self.rescan)
        } else {
            self.rescan
        };
        let mut paths = BTreeSet::new();
        let mut anything = false;
        let mut note = match self.notes.recv_timeout(patience) {
            Ok(note) => note,
            Err(channel::RecvTimeoutError::Timeout) => return Burst::Anything,
            Err(channel::RecvTimeoutError::Disconnected) => return Burst::Stop,
        };
        let end = Instant::now() + MAX_BURST.max(self.debounce);
        loop {
            match note {
                Note::Stop => return Burst::Stop,
                Note::Anything => anything = true,
                Note::Paths(more) => paths.extend(more),
            }
            let rest = end.saturating_duration_since(Instant::now()).min(self.debounce);
            note = match self.notes.recv_timeout(rest) {
                Ok(note) if !rest.is_zero() => note,
                Ok(Note::Stop) => return Burst::Stop,
                Ok(_) => return Burst::Anything,
                Err(_) => break,
            };
        }
        // What went missing has to be looked for in a listing.
        if anything || self.directory.is_settling() || paths.len() > MAX_WAITING / 2 {
            return Burst::Anything;
        }
        Burst::Paths(paths)
    }
}
