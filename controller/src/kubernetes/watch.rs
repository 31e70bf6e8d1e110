//! Following the objects of one kind: listing them whole, then being told of each change, and never taking what could not
//! be heard for what is not there.

use std::{collections::HashSet, pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use horizon_controller_core::File;
use horizon_crds::{KindName, Problem};
use kube::{
    Api,
    api::{ListParams, WatchEvent, WatchParams},
    core::DynamicObject,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{
    Cluster, Objects, Stamps,
    backoff::Backoff,
    convert::{Seen, path},
    failure::{Failure, words},
    metrics::ResourceLabel,
    objects::Key,
    resource_of,
};

/// How long a watch lasts before it is taken up anew, in seconds. A connection that died without a word is noticed then.
const WATCH_SECONDS: u32 = 120;
/// How much longer the server may stay silent.
const SILENCE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 10);
/// How long a listing may make no progress.
const STALL: Duration = Duration::from_secs(30);
/// How many objects a page of a listing has.
const PAGE: u32 = 500;
/// How often a page is tried before the listing is begun anew.
const PAGE_ATTEMPTS: usize = 6;
/// After how many listings by watch that did not end pages are asked for.
const STREAM_ATTEMPTS: usize = 2;
/// After how long a kind that cannot be followed is a problem.
const PATIENCE: Duration = Duration::from_secs(5);
/// The first and the longest wait before another attempt.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What is told of the objects.
#[derive(Debug)]
pub(super) enum Note {
    /// An object is so.
    Put(Arc<str>, Box<File>),
    /// An object is gone.
    Gone(Arc<str>),
    /// The status of an object is to be shown again.
    Overwritten(Arc<str>),
    /// Everything of this list is known.
    Synced,
    /// The list cannot be followed now. With `lost`, what is known of it is not all there is.
    Trouble { problem: Problem, lost: bool },
    /// The list can be followed again.
    Well,
}

/// One list that is followed: a kind in a namespace, or in all.
pub(super) struct Watch {
    kind: KindName,
    namespace: Option<String>,
    api: Api<DynamicObject>,
    objects: Objects,
    stamps: Stamps,
    label: ResourceLabel,
    metrics: super::KubernetesMetrics,
    number: usize,
    notes: mpsc::Sender<(usize, Note)>,
    /// The version to go on from; `None` to list anew.
    version: Option<String>,
    /// Whether listings are asked for as watches; else in pages.
    streams: bool,
    /// Listings by watch in a row that came to nothing.
    unfinished: usize,
    /// Since when nothing works, and whether that was told.
    trouble: Option<(Instant, bool)>,
}

/// Why following ended.
enum Ended {
    /// Nobody listens any more.
    Closed,
    /// The server does not answer as it should.
    Failed(kube::Error),
    /// The server says nothing.
    Silent,
    /// The server ended a listing before it was whole.
    Unfinished,
}

impl From<kube::Error> for Ended {
    fn from(error: kube::Error) -> Self {
        Self::Failed(error)
    }
}

impl Watch {
    pub(super) fn new(
        cluster: &Cluster,
        (kind, namespace): (KindName, Option<String>),
        (objects, stamps): (Objects, Stamps),
        (number, notes): (usize, mpsc::Sender<(usize, Note)>),
    ) -> Self {
        let resource = resource_of(kind);
        let api = match &namespace {
            Some(namespace) => Api::namespaced_with(cluster.client.clone(), namespace, &resource),
            None => Api::all_with(cluster.client.clone(), &resource),
        };
        Self {
            kind,
            namespace,
            api,
            objects,
            stamps,
            label: ResourceLabel { resource: kind.plural() },
            metrics: cluster.metrics.clone(),
            number,
            notes,
            version: None,
            streams: true,
            unfinished: 0,
            trouble: None,
        }
    }

    /// Follows until nobody listens.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(WAITS.0, WAITS.1);
        loop {
            let begin = Instant::now();
            let outcome = match &self.version {
                None if !self.streams => self.pages().await,
                _ => self.stream().await,
            };
            self.metrics.watch_restarts.get_or_create(&self.label).inc();
            if begin.elapsed() >= WAITS.1 {
                backoff.reset();
            }
            let wait = match outcome {
                Err(Ended::Closed) => return,
                // A watch ends by itself from time to time; one that ends at once is not begun again at once.
                Ok(()) => (begin.elapsed() < WAITS.0).then(|| backoff.wait()),
                Err(ended) => {
                    if self.troubled(&ended).await.is_err() {
                        return;
                    }
                    Some(backoff.wait())
                }
            };
            if let Some(wait) = wait {
                tokio::time::sleep(wait).await;
            }
        }
    }

    /// Watches from the version that is known, or from a listing that the watch itself brings.
    async fn stream(&mut self) -> Result<(), Ended> {
        let lists = self.version.is_none();
        let params = WatchParams {
            timeout: Some(WATCH_SECONDS),
            bookmarks: true,
            send_initial_events: lists,
            ..WatchParams::default()
        };
        // Without a version the listing is of now, and not of what a server remembers that fell behind.
        let from = self.version.clone().unwrap_or_default();
        let events = match self.api.watch(&params, &from).await {
            Ok(events) => events,
            Err(error) if lists && Failure::of(&error) == Failure::Unfit => {
                self.streams = false;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let mut events = pin!(events);
        let mut listed = lists.then(HashSet::new);
        if !lists {
            self.well().await?;
        }
        loop {
            let patience = if listed.is_some() { STALL } else { SILENCE };
            let event = match timeout(patience, events.next()).await {
                Err(_) if listed.is_some() => return Err(self.gave_up_listing(Ended::Silent)),
                Err(_) => return Err(Ended::Silent),
                Ok(None) if listed.is_some() => return Err(self.gave_up_listing(Ended::Unfinished)),
                Ok(None) => return Ok(()),
                Ok(Some(event)) => event?,
            };
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    self.reached(&object, listed.is_some());
                    self.saw(object, listed.as_mut()).await?;
                }
                WatchEvent::Deleted(object) => {
                    self.reached(&object, listed.is_some());
                    self.gone(object).await?;
                }
                WatchEvent::Bookmark(bookmark) => {
                    let whole = bookmark.metadata.annotations.contains_key("k8s.io/initial-events-end");
                    if whole && let Some(listed) = listed.take() {
                        self.listed(&listed).await?;
                    }
                    if listed.is_none() {
                        self.version = Some(bookmark.metadata.resource_version);
                    }
                }
                WatchEvent::Error(status) => return Err(Ended::Failed(kube::Error::Api(status.boxed()))),
            }
        }
    }

    fn gave_up_listing(&mut self, why: Ended) -> Ended {
        self.unfinished += 1;
        // A server that knows no such listing may send what is there and then say nothing.
        self.streams = self.unfinished < STREAM_ATTEMPTS;
        why
    }

    fn reached(&mut self, object: &DynamicObject, lists: bool) {
        if !lists && object.metadata.resource_version.is_some() {
            self.version.clone_from(&object.metadata.resource_version);
        }
    }

    /// Lists page by page.
    async fn pages(&mut self) -> Result<(), Ended> {
        let mut listed = HashSet::new();
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = self.page(&params).await?;
            for object in page.items {
                self.saw(object, Some(&mut listed)).await?;
            }
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                self.listed(&listed).await?;
                self.version = page.metadata.resource_version;
                return Ok(());
            }
        }
    }

    /// One page; a page that fails in passing is asked for again, so that the pages before it were not in vain.
    async fn page(&self, params: &ListParams) -> Result<kube::core::ObjectList<DynamicObject>, Ended> {
        let mut backoff = Backoff::new(WAITS.0, WAITS.1);
        let mut attempt = 1;
        loop {
            let failed = match timeout(STALL, self.api.list(params)).await {
                Ok(Ok(page)) => return Ok(page),
                Ok(Err(error)) if Failure::of(&error) != Failure::Passing => return Err(error.into()),
                Ok(Err(error)) => error.into(),
                Err(_) => Ended::Silent,
            };
            if attempt == PAGE_ATTEMPTS || params.continue_token.is_none() {
                return Err(failed);
            }
            attempt += 1;
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    /// An object is there. What it declares is told when that is new.
    async fn saw(&mut self, object: DynamicObject, listed: Option<&mut HashSet<Key>>) -> Result<(), Ended> {
        let Some(seen) = Seen::new(self.kind, object, self.stamps.are_made()) else {
            tracing::warn!(kind = %self.kind, "the API server sent an object without a name, a uid or a version");
            return Ok(());
        };
        let (uid, content) = (seen.entry.uid, seen.entry.content);
        if seen.ends {
            // Somebody deleted it: that others' finalizers keep it does not keep what it grants.
            return self.forget(&seen.key, uid).await;
        }
        let is_listed = listed.is_some();
        if let Some(listed) = listed {
            listed.insert(seen.key.clone());
        }
        match self.objects.saw(seen.key.clone(), seen.entry.clone(), is_listed) {
            Some(old) if old.uid == uid && old.content == content => return Ok(()),
            Some(old) if old.uid != uid => self.tell(Note::Gone(path(&seen.key, old.uid))).await?,
            Some(_) => {}
            None => {
                self.metrics.objects.get_or_create(&self.label).inc();
            }
        }
        let path = seen.path();
        self.tell(Note::Put(path, Box::new(seen.into_file()))).await
    }

    async fn gone(&mut self, object: DynamicObject) -> Result<(), Ended> {
        match Seen::new(self.kind, object, false) {
            Some(seen) => self.forget(&seen.key, seen.entry.uid).await,
            None => Ok(()),
        }
    }

    async fn forget(&mut self, key: &Key, uid: uuid::Uuid) -> Result<(), Ended> {
        if self.objects.gone(key, uid).is_none() {
            return Ok(());
        }
        self.metrics.objects.get_or_create(&self.label).dec();
        self.tell(Note::Gone(path(key, uid))).await
    }

    /// The listing is whole: what is known and was not in it is gone.
    async fn listed(&mut self, listed: &HashSet<Key>) -> Result<(), Ended> {
        self.unfinished = 0;
        let gone = self.objects.keep_only(self.kind, self.namespace.as_deref(), listed);
        for (key, entry) in gone {
            self.metrics.objects.get_or_create(&self.label).dec();
            self.tell(Note::Gone(path(&key, entry.uid))).await?;
        }
        self.trouble = None;
        self.tell(Note::Synced).await
    }

    async fn well(&mut self) -> Result<(), Ended> {
        match self.trouble.take() {
            Some((_, true)) => self.tell(Note::Well).await,
            _ => Ok(()),
        }
    }

    async fn tell(&self, note: Note) -> Result<(), Ended> {
        self.notes.send((self.number, note)).await.map_err(|_| Ended::Closed)
    }

    /// Following failed: finds out what that means, and tells it when it is more than a hiccup.
    async fn troubled(&mut self, why: &Ended) -> Result<(), Ended> {
        let (failure, words) = match why {
            Ended::Closed => return Err(Ended::Closed),
            Ended::Failed(error) => (Failure::of(error), words(error)),
            Ended::Silent => (Failure::Passing, "it fell silent".to_owned()),
            Ended::Unfinished => (Failure::Passing, "it broke off".to_owned()),
        };
        tracing::debug!(kind = %self.kind, namespace = self.namespace, %words, "following was interrupted");
        if failure == Failure::Expired {
            self.version = None;
            return Ok(());
        }
        let since = self.trouble.map_or_else(Instant::now, |(since, _)| since);
        let lost = matches!(failure, Failure::Missing | Failure::Refused);
        let tells = lost || since.elapsed() >= PATIENCE;
        self.trouble = Some((since, tells));
        if failure == Failure::Missing {
            self.version = None;
        }
        if !tells {
            return Ok(());
        }
        let plural = self.kind.plural();
        let (message, remedy) = match failure {
            Failure::Missing => (
                format!("the API server does not know {plural} of {}", horizon_crds::GROUP),
                "apply the definitions: `kubectl apply --server-side -k crds`".to_owned(),
            ),
            Failure::Refused => (
                format!("the API server does not let the controller read {plural}: {words}"),
                "bind the controller's service account to its role: manifests/base/rbac.yaml".to_owned(),
            ),
            _ => (
                format!("the {plural} cannot be followed: {words}"),
                "nothing is removed meanwhile; look at the API server if this lasts".to_owned(),
            ),
        };
        let file = match &self.namespace {
            Some(namespace) => format!("Kubernetes, namespace {namespace}"),
            None => "Kubernetes".to_owned(),
        };
        let problem = Problem {
            file: file.into(),
            position: None,
            resource: None,
            field: String::new(),
            message,
            remedy,
        };
        self.tell(Note::Trouble { problem, lost }).await
    }
}
