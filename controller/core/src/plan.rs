//! From what is in force and what is wanted to what changes. Planning again after applying a plan yields nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use horizon_crds::{Issue, KindName, Name, Origin as Place, Problem, Resource, ResourceId};
use horizon_model::NetworkId;
use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    accept::{self, Proposal},
    desired::{Candidate, Claim, Desired, Wanted},
    index::{Index, Origin, Stored},
    scope::Scope,
};

/// A resource that comes into force or changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// The resource.
    pub resource: Arc<Resource>,
    /// Where it comes from.
    pub origin: Origin,
    /// Who wrote it, where the source can tell.
    pub author: Option<Arc<str>>,
}

/// What is to be done. Everything in it can be done in any order, in one transaction.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Resources that come into force or change, by id.
    pub puts: BTreeMap<ResourceId, Put>,
    /// Resources that go out of force.
    pub removals: BTreeSet<ResourceId>,
    /// Of the removals, those to be planned again once this plan is applied: other objects have their names now.
    pub again: BTreeSet<ResourceId>,
    /// Documents that cannot come into force, and why. What they would replace stays in force. They are to be planned
    /// again with every other change, which may have been what they waited for.
    pub rejected: BTreeMap<ResourceId, Vec<Problem>>,
    /// Removals that wait for a confirmation.
    pub held: Option<PruneHeld>,
    /// Whom it concerns.
    pub scope: Scope,
}

impl Plan {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.removals.is_empty()
    }
}

/// How many resources may go without a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneLimit {
    /// The most of a kind in a namespace, in percent.
    pub percent: u8,
    /// As many of them may always go.
    pub always: usize,
}

impl Default for PruneLimit {
    fn default() -> Self {
        Self { percent: 20, always: 5 }
    }
}

/// The resources that are counted together: those of a kind in a namespace. What goes on in one namespace keeps nothing in
/// another from going.
pub type Counted = (KindName, Name);

/// What was removed lately, so that a slow removal of everything counts as one.
pub type Recent = BTreeMap<Counted, usize>;

/// Removals that wait for somebody to confirm them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PruneHeld {
    /// What would be removed.
    pub resources: BTreeSet<ResourceId>,
    /// Why it waits, and how to confirm.
    pub message: String,
}

/// What a plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// What the files declare.
    pub desired: &'a Desired,
    /// How many may go without a question.
    pub limit: PruneLimit,
    /// What went lately.
    pub recent: &'a Recent,
    /// Removals that were confirmed.
    pub confirmed: &'a BTreeSet<ResourceId>,
}

/// Every resource that a plan over everything looks at.
pub fn everything(index: &Index, desired: &Desired) -> BTreeSet<ResourceId> {
    let from_files =
        index.iter().filter(|stored| matches!(stored.origin, Origin::File(_))).map(|stored| stored.id());
    from_files.chain(desired.ids().cloned()).collect()
}

/// The resources in force that come from these files, whatever the files hold now.
pub fn declared_by(index: &Index, files: &BTreeSet<Arc<str>>) -> BTreeSet<ResourceId> {
    let from = |stored: &&Arc<Stored>| matches!(&stored.origin, Origin::File(path) if files.contains(path));
    index.iter().filter(from).map(|stored| stored.id()).collect()
}

/// Plans what is to be done about `touched`. What is not touched is taken to be as wanted.
pub fn plan(index: &Index, wish: Wish<'_>, touched: &BTreeSet<ResourceId>) -> Plan {
    let mut plan = Plan::default();
    let mut proposals = BTreeMap::new();
    let mut removals = BTreeSet::new();
    for id in touched {
        let stored = index.by_id(id);
        match wish.desired.wanted(id, stored.map(|s| &**s)) {
            Wanted::Stay => {}
            Wanted::Gone => {
                if stored.is_some_and(|s| matches!(s.origin, Origin::File(_))) {
                    removals.insert(id.clone());
                }
            }
            Wanted::Be(candidate, _) if stored.is_some_and(|s| is_recreated(s, candidate)) => {
                removals.insert(id.clone());
            }
            Wanted::Be(candidate, file) => {
                let problems = duplicates(wish.desired, id, candidate);
                if !problems.is_empty() {
                    plan.rejected.insert(id.clone(), problems);
                }
                let origin = Origin::File(candidate.place.file().into());
                let author = file.author.clone();
                let put = Put { resource: candidate.resource.clone(), origin, author };
                if stored.is_none_or(|s| s.resource != put.resource || s.origin != put.origin) {
                    if let Some(issue) = wrong_claim(index, wish.desired, &put.resource) {
                        let problem = Problem::from_issue(issue, &put.resource, &candidate.place);
                        plan.rejected.entry(id.clone()).or_default().push(problem);
                        continue;
                    }
                    proposals.insert(id.clone(), Proposal { put, place: candidate.place.clone() });
                }
            }
        }
    }
    (plan.removals, plan.held) = limit(index, &wish, removals);
    let replaced = |id: &&ResourceId| {
        let stored = index.by_id(id).map(|stored| &**stored);
        matches!(wish.desired.wanted(id, stored), Wanted::Be(..))
    };
    plan.again = plan.removals.iter().filter(replaced).cloned().collect();
    settle(index, plan, proposals)
}

/// The annotation by which a document claims to be a resource that is in force, or was until it was removed, by its uid: moved
/// from elsewhere or brought back, not new.
pub const ID_ANNOTATION: &str = "horizon.dev/id";

/// Whether the object of Kubernetes that a resource comes from was deleted and another made under its name, which inherits
/// nothing unless it says that it is the same resource.
fn is_recreated(stored: &Stored, candidate: &Candidate) -> bool {
    let claimed = candidate.resource.metadata().annotations.get(ID_ANNOTATION);
    stored.origin.is_recreated_as(candidate.place.file())
        && claimed.is_none_or(|id| id.parse() != Ok(stored.uid))
}

/// What is wrong with the identity that a document claims.
fn wrong_claim(index: &Index, desired: &Desired, resource: &Resource) -> Option<Issue> {
    let id = resource.id();
    let (message, remedy) = match desired.claim(index, resource) {
        Claim::None => return None,
        Claim::Of(other) => (
            format!("it claims the identity of {other}, which keeps it"),
            format!("remove the annotation {ID_ANNOTATION} here, or the other document that has it"),
        ),
        Claim::Earlier => (
            format!("it claims the identity of an earlier {id}, which was made anew since"),
            format!(
                "remove the annotation {ID_ANNOTATION} to go on with the one in force; or remove the document, and \
                 write it again with the annotation once the one in force is gone"
            ),
        ),
        Claim::Malformed => (
            "it claims an identity that is none".to_owned(),
            format!("remove the annotation {ID_ANNOTATION}, or copy it from `horizon-controller export`"),
        ),
    };
    Some(Issue { field: format!("metadata.annotations[{ID_ANNOTATION:?}]"), message, remedy })
}

/// Plans a change that the controller's own interface asks for.
///
/// # Errors
/// Why the resource cannot come into force.
pub fn plan_put(index: &Index, resource: Arc<Resource>) -> Result<Plan, Vec<Issue>> {
    let id = resource.id();
    let issues = resource.check();
    if !issues.is_empty() {
        return Err(issues);
    }
    if index.by_id(&id).is_some_and(|s| s.resource == resource && s.origin == Origin::Api) {
        return Ok(Plan::default());
    }
    let put = Put { resource, origin: Origin::Api, author: None };
    let proposals = BTreeMap::from([(id, Proposal { put, place: Place::elsewhere("request") })]);
    let plan = settle(index, Plan::default(), proposals);
    if plan.rejected.is_empty() {
        return Ok(plan);
    }
    let problems = plan.rejected.into_values().flatten();
    Err(problems.map(|p| Issue { field: p.field, message: p.message, remedy: p.remedy }).collect())
}

/// What the index is after a plan. `assigned` gives what the store gave each put: its identity, generation, number and date.
pub fn apply(index: &Index, plan: &Plan, assigned: impl IntoIterator<Item = Stored>) -> Index {
    let mut next = index.clone();
    for id in &plan.removals {
        next.remove(id);
    }
    for stored in assigned {
        next.insert(Arc::new(stored));
    }
    next
}

/// What the index would be after a plan, for a look ahead: what is new gets an identity and a number that nothing has.
pub fn preview(index: &Index, plan: &Plan) -> Index {
    let mut numbers = (1..=u16::MAX).rev().map(NetworkId);
    let taken: BTreeSet<_> = index.all(KindName::VirtualNetwork).iter().filter_map(|s| s.number).collect();
    let stored = plan.puts.values().zip(1_u128..).map(|(put, count)| {
        let mut stored = provisional(index, put);
        if index.by_id(&put.resource.id()).is_none() {
            // Identities of the store are UUIDs with a version; these have none.
            stored.uid = Uuid::from_u128(count);
            if put.resource.kind() == KindName::VirtualNetwork {
                stored.number = numbers.find(|number| !taken.contains(number));
            }
        }
        stored
    });
    apply(index, plan, stored.collect::<Vec<_>>())
}

/// How many virtual networks there can be: each has a number of its own in datagram headers.
const MAX_NETWORKS: usize = u16::MAX as usize;

/// Takes away the new virtual networks for which no number is left, and says so of each. Numbers of networks that go in the
/// same plan are free only after it.
fn reject_beyond_numbers(
    index: &Index,
    plan: &mut Plan,
    proposals: &mut BTreeMap<ResourceId, Proposal>,
    most: usize,
) {
    let free = most.saturating_sub(index.all(KindName::VirtualNetwork).len());
    let is_new = |id: &&ResourceId| id.kind == KindName::VirtualNetwork && index.by_id(id).is_none();
    let beyond: Vec<_> = proposals.keys().filter(is_new).skip(free).cloned().collect();
    for (id, proposal) in beyond.into_iter().filter_map(|id| proposals.remove_entry(&id)) {
        let issue = Issue {
            field: "metadata.name".into(),
            message: format!("there are as many virtual networks as there can be ({most})"),
            remedy: "remove one that is not used any more".into(),
        };
        let problem = Problem::from_issue(issue, &proposal.put.resource, &proposal.place);
        plan.rejected.entry(id).or_default().push(problem);
    }
}

/// Accepts what can be accepted and finds out whom it concerns.
fn settle(index: &Index, mut plan: Plan, mut proposals: BTreeMap<ResourceId, Proposal>) -> Plan {
    reject_beyond_numbers(index, &mut plan, &mut proposals, MAX_NETWORKS);
    let mut next = index.clone();
    for id in &plan.removals {
        next.remove(id);
    }
    for proposal in proposals.values() {
        next.insert(Arc::new(provisional(index, &proposal.put)));
    }
    let rejected = accept::reject(index, &mut next, &proposals);
    for (id, proposal) in proposals {
        match rejected.get(&id) {
            Some(issues) => {
                let place = |issue: &Issue| {
                    Problem::from_issue(issue.clone(), &proposal.put.resource, &proposal.place)
                };
                plan.rejected.entry(id).or_default().extend(issues.iter().map(place));
            }
            None => {
                plan.puts.insert(id, proposal.put);
            }
        }
    }
    plan.scope = Scope::of(index, &next, plan.puts.keys().chain(&plan.removals));
    plan.scope.users.remove(&Uuid::nil());
    plan.scope.servers.retain(|server| !server.0.is_nil());
    plan
}

/// A put as if it were in force. What does not exist yet has no identity; nobody can hold a session with it.
fn provisional(index: &Index, put: &Put) -> Stored {
    let old = index.by_id(&put.resource.id());
    Stored {
        resource: put.resource.clone(),
        uid: old.map_or(Uuid::nil(), |s| s.uid),
        generation: old.map_or(1, |s| s.generation),
        origin: put.origin.clone(),
        number: old.and_then(|s| s.number),
        created_at: old.map_or(Timestamp::UNIX_EPOCH, |s| s.created_at),
    }
}

fn duplicates(desired: &Desired, id: &ResourceId, chosen: &crate::Candidate) -> Vec<Problem> {
    let problem = |other: &crate::Candidate| {
        let issue = Issue {
            field: "metadata.name".into(),
            message: format!("{id} is declared a second time; the document at {} holds", chosen.place),
            remedy: "remove one of the two, or give it another name".into(),
        };
        Problem::from_issue(issue, &other.resource, &other.place)
    };
    desired.duplicates(id, chosen).into_iter().map(problem).collect()
}

/// The most groups of resources that the message about removals names.
const MAX_NAMED: usize = 20;

/// Splits removals into those that are done and those that wait.
fn limit(
    index: &Index,
    wish: &Wish<'_>,
    removals: BTreeSet<ResourceId>,
) -> (BTreeSet<ResourceId>, Option<PruneHeld>) {
    let counted = |id: &ResourceId| -> Counted { (id.kind, id.namespace.clone()) };
    let mut counts = BTreeMap::<Counted, usize>::new();
    for id in removals.iter().filter(|id| !wish.confirmed.contains(*id)) {
        *counts.entry(counted(id)).or_default() += 1;
    }
    let in_force = |(kind, namespace): &Counted| index.in_namespace(*kind, namespace.as_str()).len();
    let too_many = |of: &Counted, count: usize| {
        let recent = wish.recent.get(of).copied().unwrap_or_default();
        let (going, all) = (count + recent, in_force(of) + recent);
        going > wish.limit.always && going * 100 > all * usize::from(wish.limit.percent)
    };
    let emptied = wish.desired.is_empty();
    let held_groups: BTreeMap<_, _> =
        counts.into_iter().filter(|(of, count)| emptied || too_many(of, *count)).collect();
    let waits = |id: &ResourceId| held_groups.contains_key(&counted(id)) && !wish.confirmed.contains(id);
    let (held, done): (BTreeSet<_>, BTreeSet<_>) = removals.into_iter().partition(waits);
    if held.is_empty() {
        return (done, None);
    }
    let mut what: Vec<_> = held_groups
        .iter()
        .take(MAX_NAMED)
        .map(|(of, count)| format!("{count} of {} {} in '{}'", in_force(of), of.0.plural(), of.1))
        .collect();
    if held_groups.len() > what.len() {
        what.push("others".into());
    }
    let why =
        if emptied { "it declares nothing any more" } else { "that is more than goes without a question" };
    let message = format!(
        "the source no longer declares {}: {why}, so they stay in force; confirm with `horizon-controller confirm-prune`, \
         or bring them back",
        what.join(" and ")
    );
    (done, Some(PruneHeld { resources: held, message }))
}

#[cfg(test)]
mod tests {
    use crate::testing::{World, document, id, resource};

    use super::*;

    #[test]
    fn a_network_without_a_number_is_rejected_alone() {
        let network = |name: &str| resource("VirtualNetwork", name, "addressRanges = [\"10.77.0.0/24\"]");
        let world = World::of(&[
            ("a", document("VirtualNetwork", "a", "addressRanges = [\"10.76.0.0/24\"]")),
            ("u", document("User", "ana", "")),
        ]);
        let proposal = |resource: Resource| {
            let put = Put { resource: Arc::new(resource), origin: Origin::Api, author: None };
            (put.resource.id(), Proposal { put, place: Place::elsewhere("test") })
        };
        let mut proposals = BTreeMap::from([
            proposal(network("a")),
            proposal(network("b")),
            proposal(network("c")),
            proposal(resource("User", "ben", "")),
        ]);
        let mut plan = Plan::default();
        reject_beyond_numbers(&world.index, &mut plan, &mut proposals, 2);
        let kept: Vec<_> = proposals.keys().map(|id| id.name.as_str()).collect();
        assert_eq!(kept, ["ben", "a", "b"], "one more network, and everything else");
        let network = |name| id(KindName::VirtualNetwork, name);
        assert_eq!(plan.rejected.keys().collect::<Vec<_>>(), [&network("c")]);
        assert!(plan.rejected[&network("c")][0].message.contains("as many virtual networks"));
    }
}
