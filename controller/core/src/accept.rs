//! Which proposed resources may come into force: those that change nothing that is final, refer to what exists, and do not
//! contradict others.

use std::{cell::LazyCell, collections::BTreeMap, sync::Arc};

use horizon_crds::{
    Cidr, Issue, KindName, Name, Names, Origin as Place, Reference, ReferenceTarget, Resource, ResourceId,
    ServerSpec, VirtualNetworkSpec,
};

use crate::{
    index::{Index, Origin},
    plan::{ID_ANNOTATION, Put},
};

/// A resource that would come into force.
#[derive(Clone, Debug)]
pub(crate) struct Proposal {
    pub(crate) put: Put,
    pub(crate) place: Place,
}

/// Finds the proposals that cannot come into force and takes them out of `next`, which holds all of them at first. Taking
/// one out may make others impossible; what remains is possible together.
pub(crate) fn reject(
    index: &Index,
    next: &mut Index,
    proposals: &BTreeMap<ResourceId, Proposal>,
) -> BTreeMap<ResourceId, Vec<Issue>> {
    let mut rejected = BTreeMap::new();
    loop {
        let names = LazyCell::new(|| Names::of(next.iter().map(|stored| &*stored.resource)));
        let round = Round { index, next, proposals, names };
        let mut fresh = BTreeMap::new();
        for (id, proposal) in proposals.iter().filter(|(id, _)| !rejected.contains_key(*id)) {
            let issues = round.issues(id, &proposal.put);
            if !issues.is_empty() {
                fresh.insert(id.clone(), issues);
            }
        }
        if fresh.is_empty() {
            return rejected;
        }
        for id in fresh.keys() {
            match index.by_id(id) {
                Some(old) => next.insert(Arc::clone(old)),
                None => drop(next.remove(id)),
            }
        }
        rejected.extend(fresh);
    }
}

/// Whether what a reference of a resource of `namespace` names exists.
pub(crate) fn exists(index: &Index, namespace: &Name, reference: &Reference) -> bool {
    match reference.target {
        ReferenceTarget::Kind(kind) => index.get(kind, namespace, &reference.name).is_some(),
        ReferenceTarget::Group => !index.members(namespace, &reference.name).is_empty(),
    }
}

struct Round<'a, F> {
    index: &'a Index,
    next: &'a Index,
    proposals: &'a BTreeMap<ResourceId, Proposal>,
    /// For suggestions; made only when something is wrong.
    names: LazyCell<Names, F>,
}

impl<F: FnOnce() -> Names> Round<'_, F> {
    fn issues(&self, id: &ResourceId, put: &Put) -> Vec<Issue> {
        let mut issues = Vec::new();
        let old = self.index.by_id(id);
        if let Some(old) = old {
            // A document that says that it is the very resource takes it over.
            let claims = put.resource.metadata().annotations.get(ID_ANNOTATION);
            let takes_over = claims.is_some_and(|uid| uid.parse() == Ok(old.uid));
            if matches!(old.origin, Origin::File(_)) != matches!(put.origin, Origin::File(_)) && !takes_over {
                issues.push(Issue {
                    field: "metadata.name".into(),
                    message: format!("{id} already belongs to {}", old.origin),
                    remedy: "change it there, or choose another name".into(),
                });
            }
            issues.extend(put.resource.check_update(&old.resource));
        }
        issues.extend(self.dangling(&put.resource, old.map(|old| &*old.resource)));
        match &*put.resource {
            Resource::VirtualNetwork(network) => {
                issues.extend(overlap(self.index, self.next, id, &network.spec));
                issues.extend(self.carried(id, &network.spec));
            }
            Resource::Server(server) => issues.extend(self.carries(id, &server.spec)),
            _ => {}
        }
        issues
    }

    /// References that name nothing. One that was in force before its target went does not stand in the way of other
    /// changes.
    fn dangling(&self, resource: &Resource, old: Option<&Resource>) -> Vec<Issue> {
        let missing: Vec<_> = resource
            .references()
            .into_iter()
            .filter(|reference| !exists(self.next, resource.namespace(), reference))
            .collect();
        if missing.is_empty() {
            return Vec::new();
        }
        let known = old.map(Resource::references).unwrap_or_default();
        let tolerated = |reference: &Reference| {
            known.iter().any(|k| k.target == reference.target && k.name == reference.name)
        };
        let fields: Vec<_> = missing.iter().filter(|r| !tolerated(r)).map(|r| r.field.as_str()).collect();
        let issues = self.names.dangling(resource).into_iter();
        issues.filter(|issue| fields.contains(&issue.field.as_str())).collect()
    }

    /// A server's own ranges against the networks it carries.
    fn carries(&self, id: &ResourceId, spec: &ServerSpec) -> Vec<Issue> {
        let networks = spec.networks.iter().filter_map(|name| self.next.network(&id.namespace, name));
        let clash = |(stored, network): (&Arc<_>, &VirtualNetworkSpec)| {
            let stored: &crate::Stored = stored;
            let (own, other) = first_overlap(&spec.egress.address_ranges, &network.address_ranges)?;
            Some(Issue {
                field: "spec.egress.addressRanges".into(),
                message: format!("{own} overlaps {other} of {}, which this server carries", stored.id()),
                remedy: "give the server another range".into(),
            })
        };
        networks.filter_map(clash).collect()
    }

    /// A network's ranges against those of the servers that carry it already.
    fn carried(&self, id: &ResourceId, spec: &VirtualNetworkSpec) -> Vec<Issue> {
        let target = ReferenceTarget::Kind(KindName::VirtualNetwork);
        let servers = self.next.referring(&id.namespace, KindName::Server, target, &id.name);
        let settled = servers.filter(|server| !self.proposals.contains_key(&server.id()));
        let clash = |stored: &Arc<crate::Stored>| {
            let Resource::Server(server) = &*stored.resource else { return None };
            let (own, other) = first_overlap(&spec.address_ranges, &server.spec.egress.address_ranges)?;
            Some(Issue {
                field: "spec.addressRanges".into(),
                message: format!("{own} overlaps {other} of {}, which carries this network", stored.id()),
                remedy: "give the network another range".into(),
            })
        };
        settled.filter_map(clash).collect()
    }
}

fn first_overlap(mine: &[Cidr], theirs: &[Cidr]) -> Option<(Cidr, Cidr)> {
    mine.iter().find_map(|own| theirs.iter().find(|other| other.overlaps(*own)).map(|other| (*own, *other)))
}

/// Ranges of networks must not overlap. Who holds a range already keeps it; of two newcomers the first by name gets it.
fn overlap(index: &Index, next: &Index, id: &ResourceId, spec: &VirtualNetworkSpec) -> Vec<Issue> {
    let held = |id: &ResourceId| match index.by_id(id).map(|s| &*s.resource) {
        Some(Resource::VirtualNetwork(network)) => network.spec.address_ranges.clone(),
        _ => Vec::new(),
    };
    let mine = held(id);
    let mut issues = Vec::new();
    for other in next.in_namespace(KindName::VirtualNetwork, &id.namespace) {
        let Resource::VirtualNetwork(network) = &*other.resource else { continue };
        let other_id = other.id();
        if other_id == *id {
            continue;
        }
        let theirs = held(&other_id);
        for (i, range) in spec.address_ranges.iter().enumerate() {
            let Some(clash) = network.spec.address_ranges.iter().find(|r| r.overlaps(*range)) else {
                continue;
            };
            let (i_held, they_held) = (mine.contains(range), theirs.contains(clash));
            let theirs_first = if i_held == they_held { other_id < *id } else { they_held };
            if theirs_first {
                issues.push(Issue {
                    field: format!("spec.addressRanges[{i}]"),
                    message: format!("{range} overlaps {clash} of {other_id}"),
                    remedy: "choose a range that no other network of the namespace uses".into(),
                });
            }
        }
    }
    issues
}
