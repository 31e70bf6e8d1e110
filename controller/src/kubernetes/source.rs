//! The objects of every kind as one source of the desired state.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    time::Duration,
};

use horizon_controller_core::File;
use horizon_crds::{KindName, Name, Problem};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::Instant,
};

use super::{
    Cluster, Objects, Stamps,
    author::LOOK,
    convert::path,
    watch::{Note, Watch},
};
use crate::{
    source::{Changes, Declare, Declared},
    store::Actor,
};

/// How long the objects must be quiet before a change is handed on.
const QUIET: Duration = Duration::from_millis(5);
/// The longest that a burst without quiet is waited for.
const LONGEST_BURST: Duration = Duration::from_millis(100);
/// How long the first whole listing is waited for. What is known of a part would make references look broken.
const FIRST_PATIENCE: Duration = Duration::from_secs(10);
/// How often statuses are looked at that somebody else wrote.
const OVERWRITTEN_LOOK: Duration = Duration::from_millis(500);
/// The most notes of objects that wait; watches wait then.
const MAX_NOTES: usize = 1024;
/// The most changes that wait for the reader.
const MAX_CHANGES: usize = 4;

/// Kubernetes as the source: objects of all namespaces, or of some.
#[derive(Clone, Debug)]
pub struct Source {
    cluster: Cluster,
    namespaces: Vec<Name>,
    objects: Objects,
    stamps: Stamps,
}

impl Source {
    /// A source of the objects of these namespaces; of all, when none is named. What it learns of each object besides
    /// what that declares goes into `objects`.
    pub fn new(cluster: Cluster, namespaces: Vec<Name>, objects: Objects) -> Self {
        Self { cluster, namespaces, objects, stamps: Stamps::default() }
    }

    /// Whether the API server notes who changes objects.
    pub fn stamps(&self) -> &Stamps {
        &self.stamps
    }

    /// The lists to follow.
    fn lists(&self) -> Vec<(KindName, Option<String>)> {
        let kinds = KindName::ALL.into_iter();
        if self.namespaces.is_empty() {
            return kinds.map(|kind| (kind, None)).collect();
        }
        let of = |kind| self.namespaces.iter().map(move |namespace| (kind, Some(namespace.to_string())));
        kinds.flat_map(of).collect()
    }
}

/// Ends the following when it is dropped.
struct Guard(AbortHandle);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Declare for Source {
    fn start(&self) -> io::Result<Declared> {
        let (changes, receiver) = mpsc::channel(MAX_CHANGES);
        let task = tokio::spawn(follow(self.clone(), changes));
        Ok(Declared { changes: receiver, guard: Box::new(Guard(task.abort_handle())) })
    }

    fn actor(&self) -> Actor {
        Actor::Kubernetes("(who deleted it is in the API server's audit log)".to_owned())
    }

    fn describe(&self) -> String {
        if self.namespaces.is_empty() {
            return "Kubernetes, all namespaces".to_owned();
        }
        let names: Vec<_> = self.namespaces.iter().map(Name::as_str).collect();
        format!(
            "Kubernetes, {} {}",
            if names.len() == 1 { "namespace" } else { "namespaces" },
            names.join(", ")
        )
    }
}

async fn follow(source: Source, changes: mpsc::Sender<Changes>) {
    // What was known of an earlier time may have been handed on then, and not now.
    source.objects.clear();
    source.cluster.metrics.objects.clear();
    source.stamps.look(&source.cluster.client).await;
    let lists = source.lists();
    let (notes, receiver) = mpsc::channel(MAX_NOTES);
    let gathering = Gathering::new(lists.len(), source.cluster.metrics.clone());
    let mut tasks = JoinSet::new();
    for (number, list) in lists.into_iter().enumerate() {
        let shared = (source.objects.clone(), source.stamps.clone());
        tasks.spawn(Watch::new(&source.cluster, list, shared, (number, notes.clone())).run());
    }
    let objects = source.objects.clone();
    tasks.spawn(async move {
        loop {
            tokio::time::sleep(OVERWRITTEN_LOOK).await;
            for (key, uid) in objects.to_write_again(Instant::now()) {
                tracing::warn!(kind = %key.kind, namespace = %key.namespace, name = %key.name,
                    "somebody else wrote a status: it is written again");
                // It belongs to no list in particular.
                if notes.send((0, Note::Overwritten(path(&key, uid)))).await.is_err() {
                    return;
                }
            }
        }
    });
    tasks.spawn(async move {
        loop {
            tokio::time::sleep(LOOK).await;
            source.stamps.look(&source.cluster.client).await;
        }
    });
    gathering.run(receiver, changes).await;
}

/// Gathers what the watches tell and hands it on in batches.
struct Gathering {
    waiting: BTreeMap<Arc<str>, Option<File>>,
    overwritten: BTreeSet<Arc<str>>,
    lists: Vec<Standing>,
    metrics: super::KubernetesMetrics,
    began: Instant,
    /// Whether anything was handed on.
    started: bool,
    /// Whether there is something to tell besides files.
    news: bool,
}

/// Where a list stands.
#[derive(Clone, Debug, Default)]
struct Standing {
    /// Whether it was known whole.
    synced: bool,
    /// Whether it cannot be followed, so that what is known is not all there is.
    lost: bool,
    problem: Option<Problem>,
}

impl Gathering {
    fn new(lists: usize, metrics: super::KubernetesMetrics) -> Self {
        Self {
            waiting: BTreeMap::new(),
            overwritten: BTreeSet::new(),
            lists: vec![Standing::default(); lists],
            metrics,
            began: Instant::now(),
            started: false,
            news: false,
        }
    }

    async fn run(mut self, mut notes: mpsc::Receiver<(usize, Note)>, changes: mpsc::Sender<Changes>) {
        // When the first and the last note of the burst came.
        let mut burst: Option<(Instant, Instant)> = None;
        loop {
            let due = self.due(burst);
            tokio::select! {
                note = notes.recv() => {
                    let Some((list, note)) = note else { return };
                    self.take(list, note);
                    let now = Instant::now();
                    burst = Some((burst.map_or(now, |(first, _)| first), now));
                }
                () = tokio::time::sleep_until(due) => {
                    burst = None;
                    if self.has_news() && changes.send(self.hand_on()).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// When to hand on what waits.
    fn due(&self, burst: Option<(Instant, Instant)>) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        if !self.started {
            // A list that is lost is not waited for: somebody has to be told.
            let decided = self.lists.iter().all(|list| list.synced || list.lost);
            return if decided { Instant::now() } else { self.began + FIRST_PATIENCE };
        }
        match burst {
            Some((first, last)) if self.has_news() => (last + QUIET).min(first + LONGEST_BURST),
            _ => far,
        }
    }

    fn has_news(&self) -> bool {
        !self.started || self.news || !self.waiting.is_empty() || !self.overwritten.is_empty()
    }

    fn take(&mut self, list: usize, note: Note) {
        let standing = &mut self.lists[list];
        match note {
            Note::Put(path, file) => {
                self.waiting.insert(path, Some(*file));
            }
            Note::Gone(path) => {
                self.waiting.insert(path, None);
            }
            Note::Overwritten(path) => {
                self.overwritten.insert(path);
            }
            Note::Synced => {
                self.news |= !standing.synced || standing.lost || standing.problem.is_some();
                *standing = Standing { synced: true, lost: false, problem: None };
            }
            Note::Well => {
                self.news |= standing.lost || standing.problem.is_some();
                (standing.lost, standing.problem) = (false, None);
            }
            Note::Trouble { problem, lost } => {
                self.news |= standing.lost != lost || standing.problem.as_ref() != Some(&problem);
                (standing.lost, standing.problem) = (lost, Some(problem));
            }
        }
    }

    fn hand_on(&mut self) -> Changes {
        let complete = self.lists.iter().all(|list| list.synced && !list.lost);
        self.metrics.synced.set(i64::from(complete));
        let mut problems: Vec<_> = self.lists.iter().filter_map(|list| list.problem.clone()).collect();
        if !self.started && !complete && problems.is_empty() {
            problems.push(Problem {
                file: "Kubernetes".into(),
                position: None,
                resource: None,
                field: String::new(),
                message: "the API server has not listed everything yet".to_owned(),
                remedy: "nothing is removed meanwhile; look at the API server if this lasts".to_owned(),
            });
        }
        let full = !self.started;
        self.started = true;
        self.news = false;
        let files = std::mem::take(&mut self.waiting).into_iter().collect();
        let overwritten = std::mem::take(&mut self.overwritten);
        Changes { files, overwritten, complete, problems, full }
    }
}
