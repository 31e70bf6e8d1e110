//! What the files of a source declare, file by file, so that a changed file costs what is in it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use horizon_crds::{Origin as Place, Parsed, Problem, Resource, ResourceId, document::KUBERNETES_PREFIX};
use uuid::Uuid;

use crate::{
    index::{Index, Origin, Stored},
    plan::ID_ANNOTATION,
};

/// How many identities are remembered that documents claim.
const MAX_IDENTITIES: usize = 1_000_000;

/// Which version of a Kubernetes object something is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectVersion {
    /// The object's identity. An object recreated under the same name has another.
    pub uid: Uuid,
    /// Its `metadata.generation`, which the API server counts with every change of the spec.
    pub generation: i64,
}

/// A resource that a file declares.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The resource.
    pub resource: Arc<Resource>,
    /// Where it is written.
    pub place: Place,
}

/// What one file holds.
#[derive(Clone, Debug, Default)]
pub struct File {
    /// The resources without a problem.
    pub resources: Vec<Candidate>,
    /// What is wrong with the file and its documents.
    pub problems: Vec<Problem>,
    /// Whether every document could be told by kind and name. If not, nothing that this file used to hold counts as gone.
    pub complete: bool,
    /// The Kubernetes object it stands for; `None` for a file of a directory.
    pub object: Option<ObjectVersion>,
    /// Who wrote it last, where the source can tell.
    pub author: Option<Arc<str>>,
}

impl From<Parsed> for File {
    fn from(parsed: Parsed) -> Self {
        let complete = parsed.is_complete();
        let resources = parsed.resources.into_iter();
        Self {
            resources: resources
                .map(|(resource, place)| Candidate { resource: Arc::new(resource), place })
                .collect(),
            problems: parsed.problems,
            complete,
            ..Self::default()
        }
    }
}

impl File {
    /// A file that cannot be read at all: what it used to hold stays in force.
    pub fn unreadable(problem: Problem) -> Self {
        Self { problems: vec![problem], ..Self::default() }
    }

    /// The resources it mentions, each with its position among the good ones, or `None` when it is broken.
    fn mentions(&self) -> impl Iterator<Item = (ResourceId, Option<usize>)> {
        let broken = self.problems.iter().filter_map(|problem| problem.resource.clone());
        let good = self.resources.iter().enumerate();
        good.map(|(at, candidate)| (candidate.resource.id(), Some(at))).chain(broken.map(|id| (id, None)))
    }
}

/// A file that mentions a resource, with the position among its good ones, or `None` when it is broken there.
type Mention = (Arc<str>, Option<usize>);

/// What is wanted of one resource.
#[derive(Debug)]
pub(crate) enum Wanted<'a> {
    /// To be as this candidate of this file says.
    Be(&'a Candidate, &'a File),
    /// To stay as it is: its document cannot be read now.
    Stay,
    /// Not to be.
    Gone,
}

/// What all files of a source declare.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    files: BTreeMap<Arc<str>, Arc<File>>,
    /// By resource, the files that mention it, in order, each with its position in the file.
    mentions: HashMap<ResourceId, Vec<Mention>>,
    complete: bool,
    /// Which resources identities stand for that documents claim; `None` for one that nothing ever had.
    identities: HashMap<Uuid, Option<ResourceId>>,
}

/// What a document says about its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Nothing, or what is so anyway, or an identity that nothing here ever had.
    None,
    /// It is that of another resource.
    Of(ResourceId),
    /// It is that of an earlier resource of the name, which has been made anew since.
    Earlier,
    /// It is no identity.
    Malformed,
}

impl Desired {
    /// Nothing, and not known to be everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the listing of files is complete: only then may what is missing count as removed.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Says whether the listing is complete.
    pub fn set_complete(&mut self, complete: bool) {
        self.complete = complete;
    }

    /// The files, by path.
    pub fn files(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<File>)> {
        self.files.iter()
    }

    /// Whether no file declares anything, not even in a form that cannot be read.
    pub fn is_empty(&self) -> bool {
        self.mentions.is_empty() && self.files.values().all(|file| file.complete)
    }

    /// Every resource that some file mentions.
    pub fn ids(&self) -> impl Iterator<Item = &ResourceId> {
        self.mentions.keys()
    }

    /// Sets what a file holds; `None` when it is gone. Returns the resources that the file mentions or did; those that came
    /// from it while it could be read are found by [`declared_by`](crate::declared_by).
    pub fn set_file(&mut self, path: &Arc<str>, file: Option<File>) -> BTreeSet<ResourceId> {
        let mut touched = BTreeSet::new();
        if let Some(old) = self.files.remove(path) {
            for (id, _) in old.mentions() {
                if let Some(places) = self.mentions.get_mut(&id) {
                    places.retain(|(p, _)| p != path);
                    if places.is_empty() {
                        self.mentions.remove(&id);
                    }
                }
                touched.insert(id);
            }
        }
        if let Some(new) = file {
            for (id, at) in new.mentions() {
                let places = self.mentions.entry(id.clone()).or_default();
                let place = (path.clone(), at);
                if let Err(slot) = places.binary_search(&place) {
                    places.insert(slot, place);
                }
                touched.insert(id);
            }
            self.files.insert(path.clone(), Arc::new(new));
        }
        touched
    }

    /// Lets a candidate share the memory of the resource in force when both are equal.
    pub fn share(&mut self, stored: &Stored) {
        let Origin::File(path) = &stored.origin else { return };
        let Some(places) = self.mentions.get(&stored.id()) else { return };
        let Some(file) = self.files.get_mut(path) else { return };
        for at in places.iter().filter(|(p, _)| p == path).filter_map(|(_, at)| *at) {
            let candidate = &file.resources[at].resource;
            if !Arc::ptr_eq(candidate, &stored.resource) && *candidate == stored.resource {
                Arc::make_mut(file).resources[at].resource = stored.resource.clone();
            }
        }
    }

    /// The good documents of a resource, by file.
    fn candidates(&self, id: &ResourceId) -> impl Iterator<Item = (&Arc<str>, &Candidate, &File)> {
        let places = self.mentions.get(id).into_iter().flatten();
        places.filter_map(|(path, at)| {
            let file = self.files.get(path)?;
            Some((path, file.resources.get((*at)?)?, &**file))
        })
    }

    /// The identities that documents of these resources claim and that are neither in force nor looked up yet.
    pub fn unknown_identities<'a>(
        &self,
        index: &Index,
        ids: impl IntoIterator<Item = &'a ResourceId>,
    ) -> Vec<Uuid> {
        let claims = ids.into_iter().flat_map(|id| self.candidates(id)).filter_map(|(_, candidate, _)| {
            candidate.resource.metadata().annotations.get(ID_ANNOTATION)?.parse().ok()
        });
        let unknown = claims.filter(|uid| index.by_uid(*uid).is_none() && !self.identities.contains_key(uid));
        unknown.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Says which resources identities stand for; those not in `found` nothing ever had.
    pub fn learn_identities(&mut self, asked: &[Uuid], found: &HashMap<Uuid, ResourceId>) {
        if self.identities.len() > MAX_IDENTITIES {
            self.identities.clear();
        }
        self.identities.extend(asked.iter().map(|uid| (*uid, found.get(uid).cloned())));
    }

    /// What a document that is to come into force says about its identity.
    pub(crate) fn claim(&self, index: &Index, resource: &Resource) -> Claim {
        let Some(text) = resource.metadata().annotations.get(ID_ANNOTATION) else { return Claim::None };
        let Ok(uid) = text.parse::<Uuid>() else { return Claim::Malformed };
        let id = resource.id();
        let living = index.by_id(&id);
        if living.is_some_and(|stored| stored.uid == uid) {
            return Claim::None;
        }
        if let Some(other) = index.by_uid(uid) {
            return Claim::Of(other.id());
        }
        match self.identities.get(&uid) {
            Some(Some(other)) if *other != id => Claim::Of(other.clone()),
            Some(Some(_)) if living.is_some() => Claim::Earlier,
            _ => Claim::None,
        }
    }

    /// The version of the Kubernetes object that declares a resource, or would if it were well-formed.
    pub fn object(&self, id: &ResourceId) -> Option<ObjectVersion> {
        self.mentions.get(id)?.iter().find_map(|(path, _)| self.files.get(path)?.object)
    }

    /// What is wanted of a resource, given what is in force. Of several documents for one resource, the one of the file
    /// that it was last taken from holds, else the first.
    pub(crate) fn wanted(&self, id: &ResourceId, stored: Option<&Stored>) -> Wanted<'_> {
        let home = match stored.map(|s| &s.origin) {
            Some(Origin::File(path)) => Some(path),
            _ => None,
        };
        if let Some(home) = home {
            if let Some((_, candidate, file)) = self.candidates(id).find(|(path, ..)| *path == home) {
                return Wanted::Be(candidate, file);
            }
            let mentioned =
                self.mentions.get(id).is_some_and(|places| places.iter().any(|(path, _)| path == home));
            let unreadable = match self.files.get(home) {
                Some(file) => !file.complete,
                None => !self.complete,
            };
            if mentioned || unreadable {
                return Wanted::Stay;
            }
            // What else has the name now is another object, and nothing to it.
            if home.starts_with(KUBERNETES_PREFIX) && self.candidates(id).next().is_none() {
                return Wanted::Gone;
            }
        }
        match self.candidates(id).next() {
            Some((_, candidate, file)) => Wanted::Be(candidate, file),
            None if self.mentions.contains_key(id) || !self.complete => Wanted::Stay,
            None => Wanted::Gone,
        }
    }

    /// The documents of a resource besides the one that holds.
    pub(crate) fn duplicates(&self, id: &ResourceId, chosen: &Candidate) -> Vec<&Candidate> {
        self.candidates(id).map(|(_, c, _)| c).filter(|c| !std::ptr::eq(*c, chosen)).collect()
    }
}
