//! What is wrong with what is declared, gathered for people.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    sync::Arc,
};

use horizon_controller_core::{Desired, PruneHeld};
use horizon_crds::{Problem, ResourceId};
use serde::{Deserialize, Serialize};

/// The most problems that are kept to be shown.
const MAX_PROBLEMS: usize = 1000;
/// The most problems, and removals that wait, that the leader tells other replicas.
const MAX_TOLD: usize = 200;

/// What is wrong, and what waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Problems by file and place.
    pub problems: Arc<Vec<Problem>>,
    /// Removals that wait for a confirmation.
    pub held: Option<PruneHeld>,
}

/// The same as every replica shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Told {
    /// What is wrong.
    pub problems: Vec<ToldProblem>,
    /// Resources whose removal waits for a confirmation.
    pub held: Vec<String>,
    /// Stands for all of them, also those that are too many to be listed; empty when none wait.
    pub held_digest: String,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToldProblem {
    /// The resource it is about, when it is about one.
    pub resource: Option<String>,
    /// What it is, in a sentence.
    pub text: String,
}

/// Problems by the resource they are about.
pub(super) type ByResource = HashMap<ResourceId, Vec<Problem>>;

impl Report {
    /// Gathers the problems of the source, of its files, and of documents that cannot come into force. The second answer
    /// has those that are about a resource.
    pub(super) fn gather(
        directory: &[Problem],
        desired: &Desired,
        rejected: &BTreeMap<ResourceId, Vec<Problem>>,
        held: Option<&PruneHeld>,
    ) -> (Self, ByResource) {
        let files = desired.files().flat_map(|(_, file)| &file.problems);
        let all = directory.iter().chain(files).chain(rejected.values().flatten());
        let mut by_resource = ByResource::new();
        let mut problems = Vec::new();
        for problem in all {
            if let Some(id) = &problem.resource {
                by_resource.entry(id.clone()).or_default().push(problem.clone());
            }
            problems.push(problem.clone());
        }
        problems.sort_by(|a, b| (&a.file, a.position, &a.field).cmp(&(&b.file, b.position, &b.field)));
        problems.truncate(MAX_PROBLEMS);
        (Self { problems: Arc::new(problems), held: held.cloned() }, by_resource)
    }

    /// As every replica shows it.
    pub fn told(&self) -> Told {
        let problem = |problem: &Problem| ToldProblem {
            resource: problem.resource.as_ref().map(ToString::to_string),
            text: problem.to_string(),
        };
        let held = self.held.iter().flat_map(|held| &held.resources);
        Told {
            problems: self.problems.iter().take(MAX_TOLD).map(problem).collect(),
            held: held.take(MAX_TOLD).map(ToString::to_string).collect(),
            held_digest: self.held.as_ref().map(held_digest).unwrap_or_default(),
        }
    }
}

/// Stands for everything that waits.
pub(super) fn held_digest(held: &PruneHeld) -> String {
    let mut text = String::new();
    for id in &held.resources {
        // Names hold no line breaks.
        let _ = writeln!(text, "{id}");
    }
    horizon_wire::key::sha256(text.as_bytes()).to_string()
}

/// The resources whose problems differ.
pub(super) fn differing(before: &ByResource, after: &ByResource) -> BTreeSet<ResourceId> {
    let ids = before.keys().chain(after.keys());
    ids.filter(|id| before.get(*id) != after.get(*id)).cloned().collect()
}
