//! A follower of objects, and short ways to make them.
#![allow(dead_code, reason = "two test programs share this, and neither uses all of it")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use horizon_controller::{
    kubernetes::{Cluster, KubernetesMetrics, Objects, Source, connect},
    source::{Declare as _, Declared},
};
use horizon_controller_core::{Candidate, Desired, File};
use horizon_crds::{GROUP, KindName, Problem, ResourceId, VERSION};
use horizon_services::{KubeApi, PATIENCE};
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

/// The API server that the tests of this program share, with the policy that notes who changes objects.
pub(crate) fn api() -> &'static KubeApi {
    static READY: OnceLock<()> = OnceLock::new();
    let api = KubeApi::shared().unwrap();
    READY.get_or_init(|| {
        let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/base/changed-by.yaml");
        api.kubectl(["apply", "--server-side", "-f", policy.to_str().unwrap()]).unwrap();
    });
    api
}

pub(crate) async fn cluster(kubeconfig: &Path) -> Cluster {
    connect(Some(kubeconfig), KubernetesMetrics::default()).await.unwrap()
}

pub(crate) fn resource(kind: KindName) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, kind.as_str()), kind.plural())
}

pub(crate) fn objects_of(client: &Client, kind: KindName, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &resource(kind))
}

pub(crate) fn id(kind: KindName, namespace: &str, name: &str) -> ResourceId {
    ResourceId { kind, namespace: namespace.parse().unwrap(), name: name.parse().unwrap() }
}

pub(crate) fn document(kind: KindName, name: &str, spec: Value) -> DynamicObject {
    let data = serde_json::Map::from_iter([("spec".to_owned(), spec)]);
    DynamicObject::new(name, &resource(kind)).data(data.into())
}

pub(crate) async fn create(
    client: &Client,
    kind: KindName,
    namespace: &str,
    name: &str,
    spec: Value,
) -> DynamicObject {
    let api = objects_of(client, kind, namespace);
    let document = document(kind, name, spec);
    until("an object to be taken", || async {
        match api.create(&PostParams::default(), &document).await {
            Ok(made) => Some(made),
            // The kind's definition is a moment old.
            Err(kube::Error::Api(status)) if status.code == 503 => None,
            Err(error) => panic!("{kind} {name}: {error}"),
        }
    })
    .await
}

pub(crate) async fn merge(
    client: &Client,
    kind: KindName,
    namespace: &str,
    name: &str,
    patch: Value,
) -> DynamicObject {
    let api = objects_of(client, kind, namespace);
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
}

pub(crate) async fn delete(client: &Client, kind: KindName, namespace: &str, name: &str) {
    objects_of(client, kind, namespace).delete(name, &DeleteParams::default()).await.unwrap();
}

/// Makes many users quickly.
pub(crate) async fn create_users(client: &Client, namespace: &str, count: usize) {
    use futures_util::StreamExt as _;
    let made = futures_util::stream::iter(0..count).map(|number| async move {
        create(client, KindName::User, namespace, &format!("user-{number:05}"), json!({})).await;
    });
    made.buffer_unordered(32).collect::<Vec<()>>().await;
}

/// Waits until `check` answers.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut check: impl FnMut() -> F) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for this: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What the engine would see of the objects.
pub(crate) struct Follower {
    declared: Declared,
    pub(crate) cluster: Cluster,
    pub(crate) objects: Objects,
    pub(crate) desired: Desired,
    pub(crate) complete: bool,
    pub(crate) problems: Vec<Problem>,
    /// How many times each path was told to be gone.
    pub(crate) gone: BTreeMap<Arc<str>, usize>,
    /// How many changes came.
    pub(crate) batches: usize,
    /// Whose status is to be shown again.
    pub(crate) overwritten: Vec<Arc<str>>,
    source: Source,
}

impl Follower {
    /// Follows a namespace, and waits for the first word.
    pub(crate) async fn start(kubeconfig: &Path, namespaces: &[&str]) -> Self {
        Self::with(cluster(kubeconfig).await, namespaces).await
    }

    pub(crate) async fn with(cluster: Cluster, namespaces: &[&str]) -> Self {
        let objects = Objects::default();
        let namespaces = namespaces.iter().map(|name| name.parse().unwrap()).collect();
        let source = Source::new(cluster.clone(), namespaces, objects.clone());
        let mut follower = Self {
            declared: source.start().unwrap(),
            cluster,
            objects,
            desired: Desired::new(),
            complete: false,
            problems: Vec::new(),
            gone: BTreeMap::new(),
            batches: 0,
            overwritten: Vec::new(),
            source,
        };
        follower.next().await;
        follower
    }

    /// Waits for the next change.
    pub(crate) async fn next(&mut self) {
        let changes =
            timeout(PATIENCE, self.declared.changes.recv()).await.expect("a change in time").unwrap();
        self.batches += 1;
        self.overwritten.extend(changes.overwritten);
        for (path, file) in changes.files {
            if file.is_none() {
                *self.gone.entry(path.clone()).or_default() += 1;
            }
            self.desired.set_file(&path, file);
        }
        self.complete = changes.complete;
        self.problems = changes.problems;
    }

    /// Waits for changes until `check` holds.
    pub(crate) async fn until(&mut self, what: &str, check: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !check(self) {
            assert!(Instant::now() < end, "waited in vain for this: {what}; problems: {:?}", self.problems);
            self.next().await;
        }
    }

    /// Takes what came until now.
    pub(crate) fn drain(&mut self) -> usize {
        let mut count = 0;
        while let Ok(changes) = self.declared.changes.try_recv() {
            count += 1;
            for (path, file) in changes.files {
                if file.is_none() {
                    *self.gone.entry(path.clone()).or_default() += 1;
                }
                self.desired.set_file(&path, file);
            }
            self.complete = changes.complete;
            self.problems = changes.problems;
        }
        count
    }

    /// Begins anew, as a replica that leads again.
    pub(crate) fn restart(&mut self) {
        self.declared = self.source.start().unwrap();
        (self.desired, self.complete) = (Desired::new(), false);
    }

    pub(crate) fn candidate(&self, id: &ResourceId) -> Option<&Candidate> {
        self.files().find_map(|file| file.resources.iter().find(|candidate| candidate.resource.id() == *id))
    }

    pub(crate) fn file(&self, id: &ResourceId) -> Option<&File> {
        self.files().find(|file| {
            let broken = file.problems.iter().any(|problem| problem.resource.as_ref() == Some(id));
            broken || file.resources.iter().any(|candidate| candidate.resource.id() == *id)
        })
    }

    /// The path that stands for the object that declares a resource.
    pub(crate) fn path(&self, id: &ResourceId) -> Arc<str> {
        self.candidate(id).unwrap().place.file().into()
    }

    pub(crate) fn has(&self, id: &ResourceId) -> bool {
        self.candidate(id).is_some()
    }

    fn files(&self) -> impl Iterator<Item = &File> {
        self.desired.files().map(|(_, file)| &**file)
    }

    pub(crate) fn count(&self) -> usize {
        self.desired.ids().count()
    }

    /// How many requests of a verb were made.
    pub(crate) fn requests(&self, verb: &str) -> u64 {
        self.counted(&format!("verb=\"{verb}\""))
    }

    /// How many requests had an answer of this code.
    pub(crate) fn answers(&self, code: &str) -> u64 {
        self.counted(&format!("code=\"{code}\""))
    }

    fn counted(&self, label: &str) -> u64 {
        let mut text = String::new();
        let mut registry = prometheus_client::registry::Registry::default();
        self.cluster.metrics.register(&mut registry);
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let mine = |line: &&str| line.starts_with("kubernetes_requests_total") && line.contains(label);
        text.lines().filter(mine).filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
    }
}

/// A ServiceAccount that may do what the controller may, in one namespace.
pub(crate) fn account(api: &KubeApi, namespace: &str, name: &str) -> PathBuf {
    api.kubectl(["create", "serviceaccount", name, "-n", namespace]).unwrap();
    api.kubeconfig_of_account(namespace, name).unwrap()
}

pub(crate) fn may_read(api: &KubeApi, namespace: &str, name: &str) {
    let role = format!("{namespace}-{name}");
    let plurals = KindName::ALL.map(|kind| format!("{}.{GROUP}", kind.plural())).join(",");
    api.kubectl([
        "create",
        "role",
        &role,
        "-n",
        namespace,
        "--verb=list,watch",
        &format!("--resource={plurals}"),
    ])
    .unwrap();
    let account = format!("--serviceaccount={namespace}:{name}");
    api.kubectl(["create", "rolebinding", &role, "-n", namespace, &format!("--role={role}"), &account])
        .unwrap();
}
