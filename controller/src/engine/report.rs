//! What is wrong with what the directory declares, gathered for people.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use horizon_controller_core::{Desired, PruneHeld};
use horizon_crds::{Problem, ResourceId};

/// The most problems that are kept to be shown.
const MAX_PROBLEMS: usize = 1000;

/// What is wrong, and what waits.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Problems by file and place.
    pub problems: Arc<Vec<Problem>>,
    /// Removals that wait for a confirmation.
    pub held: Option<PruneHeld>,
}

/// Problems by the resource they are about.
pub(super) type ByResource = HashMap<ResourceId, Vec<Problem>>;

impl Report {
    /// Gathers the problems of the directory, of its files, and of documents that cannot come into force. The second answer
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
}

/// The resources whose problems differ.
pub(super) fn differing(before: &ByResource, after: &ByResource) -> BTreeSet<ResourceId> {
    let ids = before.keys().chain(after.keys());
    ids.filter(|id| before.get(*id) != after.get(*id)).cloned().collect()
}
