//! The index read backwards: from a name to the resources that mention it. Only what a change really alters is rewritten.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use horizon_crds::{KindName, Name, ReferenceTarget, Resource, RevocationTarget, ServerSelector};

use crate::index::Stored;

/// Something a resource mentions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mention {
    /// A user is in a group.
    Group(Name),
    /// A resource of this kind refers to a name.
    Reference(KindName, ReferenceTarget, Name),
    /// A policy speaks of every server.
    AnyServer,
    /// A revocation names a target.
    Revocation(RevocationTarget),
}

/// By namespace and mention, the names of the resources that make it, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lookups(Arc<BTreeMap<(Name, Mention), Vec<Name>>>);

fn mentions(resource: &Resource) -> BTreeSet<Mention> {
    let kind = resource.kind();
    let mut mentions: BTreeSet<_> =
        resource.references().into_iter().map(|r| Mention::Reference(kind, r.target, r.name)).collect();
    match resource {
        Resource::User(user) => mentions.extend(user.spec.groups.iter().cloned().map(Mention::Group)),
        Resource::AccessPolicy(policy) if policy.spec.servers.contains(&ServerSelector::Any) => {
            mentions.insert(Mention::AnyServer);
        }
        Resource::Revocation(revocation) => {
            mentions.insert(Mention::Revocation(revocation.spec.target.clone()));
        }
        _ => {}
    }
    mentions
}

impl Lookups {
    /// Replaces what `old` mentioned by what `new` mentions. Both, where given, have the same kind and name.
    pub(crate) fn replace(&mut self, old: Option<&Stored>, new: Option<&Stored>) {
        let before = old.map(|s| mentions(&s.resource)).unwrap_or_default();
        let after = new.map(|s| mentions(&s.resource)).unwrap_or_default();
        if before == after {
            return;
        }
        let Some(resource) = new.or(old).map(|s| &s.resource) else { return };
        let map = Arc::make_mut(&mut self.0);
        for gone in before.difference(&after) {
            let key = (resource.namespace().clone(), gone.clone());
            if let Some(names) = map.get_mut(&key) {
                if let Ok(at) = names.binary_search(resource.name()) {
                    names.remove(at);
                }
                if names.is_empty() {
                    map.remove(&key);
                }
            }
        }
        for fresh in after.difference(&before) {
            let names = map.entry((resource.namespace().clone(), fresh.clone())).or_default();
            if let Err(at) = names.binary_search(resource.name()) {
                names.insert(at, resource.name().clone());
            }
        }
    }

    fn get(&self, namespace: &Name, mention: Mention) -> &[Name] {
        self.0.get(&(namespace.clone(), mention)).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn members(&self, namespace: &Name, group: &Name) -> &[Name] {
        self.get(namespace, Mention::Group(group.clone()))
    }

    /// The resources of kind `from` that refer to a name.
    pub(crate) fn referring(
        &self,
        namespace: &Name,
        from: KindName,
        target: ReferenceTarget,
        name: &Name,
    ) -> &[Name] {
        self.get(namespace, Mention::Reference(from, target, name.clone()))
    }

    pub(crate) fn policies_of_subjects(
        &self,
        namespace: &Name,
        user: &Name,
        groups: &[Name],
    ) -> BTreeSet<&Name> {
        let refer =
            |target, name: &Name| self.referring(namespace, KindName::AccessPolicy, target, name).iter();
        let by_name = refer(ReferenceTarget::Kind(KindName::User), user);
        by_name.chain(groups.iter().flat_map(|group| refer(ReferenceTarget::Group, group))).collect()
    }

    pub(crate) fn policies_of_server(&self, namespace: &Name, server: &Name) -> BTreeSet<&Name> {
        let target = ReferenceTarget::Kind(KindName::Server);
        let named = self.referring(namespace, KindName::AccessPolicy, target, server);
        named.iter().chain(self.get(namespace, Mention::AnyServer)).collect()
    }

    pub(crate) fn revocations_of(&self, namespace: &Name, target: &RevocationTarget) -> &[Name] {
        self.get(namespace, Mention::Revocation(target.clone()))
    }
}
