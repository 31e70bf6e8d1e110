//! Whom a change concerns. What is not named here is not touched by it.

use std::collections::BTreeSet;

use horizon_crds::{
    AccessPolicySpec, KeyRotationSpec, KindName, Name, ReferenceTarget, Resource, ResourceId,
    RevocationTarget, RotationType, ServerSelector, TargetKind,
};
use horizon_model::{DeviceId, ServerId};
use uuid::Uuid;

use crate::{
    index::{Index, Stored},
    rotation::selects,
};

/// Whom a change concerns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Servers whose state is to be composed again, their sessions included.
    pub servers: BTreeSet<ServerId>,
    /// Users whose sessions are to be decided again, wherever they are.
    pub users: BTreeSet<Uuid>,
    /// Devices whose sessions are to be decided again.
    pub devices: BTreeSet<DeviceId>,
    /// Resources whose status may read differently.
    pub statuses: BTreeSet<ResourceId>,
}

impl Scope {
    /// Whom the changes from `old` to `new` of these resources concern.
    pub fn of<'a>(old: &Index, new: &Index, changed: impl IntoIterator<Item = &'a ResourceId>) -> Self {
        let mut scope = Self::default();
        for id in changed {
            scope.add(old, new, id);
        }
        scope
    }

    /// Whether it concerns nobody.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes in another scope.
    pub fn extend(&mut self, other: Self) {
        self.servers.extend(other.servers);
        self.users.extend(other.users);
        self.devices.extend(other.devices);
        self.statuses.extend(other.statuses);
    }

    fn add(&mut self, old: &Index, new: &Index, id: &ResourceId) {
        let (before, after) = (old.by_id(id), new.by_id(id));
        let namespace = &id.namespace;
        let appeared_or_went = before.is_some() != after.is_some();
        for (index, stored) in [(old, before), (new, after)] {
            let Some(stored) = stored else { continue };
            match &*stored.resource {
                Resource::Server(_) => {
                    self.servers.insert(stored.server_id());
                    if appeared_or_went {
                        self.policies(
                            index.policies_of_server(namespace, &id.name).map(|(policy, _)| policy),
                        );
                    }
                }
                Resource::User(_) => self.user(index, stored, before, after),
                Resource::AccessPolicy(policy) => self.policy(index, namespace, &policy.spec),
                Resource::VirtualNetwork(_) => {
                    let target = ReferenceTarget::Kind(KindName::VirtualNetwork);
                    let servers = index.referring(namespace, KindName::Server, target, &id.name);
                    self.servers.extend(servers.map(|server| server.server_id()));
                }
                Resource::SecurityPolicy(_) => {
                    let interval = |index: &Index| index.security_policy(namespace).heartbeat_interval;
                    if interval(old) != interval(new) {
                        let servers = index.in_namespace(KindName::Server, namespace);
                        self.servers.extend(servers.iter().map(|server| server.server_id()));
                    }
                    // Which of them holds may be another.
                    let all = index.in_namespace(KindName::SecurityPolicy, namespace);
                    self.statuses.extend(all.iter().map(|policy| policy.id()));
                }
                Resource::PersonalKey(key) => self.owner(index, namespace, &key.spec.user_ref),
                Resource::RegistrationKey(_) => {}
                Resource::Approval(approval) => {
                    self.statuses.insert(sibling(id, KindName::Server, &approval.spec.server_ref));
                }
                Resource::Revocation(revocation) => self.revoked(index, id, &revocation.spec.target),
                Resource::RotationPolicy(_) => {
                    let target = ReferenceTarget::Kind(KindName::RotationPolicy);
                    let keys = index.referring(namespace, KindName::PersonalKey, target, &id.name);
                    self.statuses.extend(keys.map(|key| key.id()));
                }
                Resource::KeyRotation(rotation) => self.rotated(index, namespace, &rotation.spec),
                Resource::DeviceDecision(decision) => {
                    self.devices.extend(decision.spec.device.parse::<DeviceId>());
                }
            }
        }
        if appeared_or_went {
            self.referrers(old, id);
            self.referrers(new, id);
        }
        self.statuses.insert(id.clone());
    }

    fn policies<'a>(&mut self, policies: impl Iterator<Item = &'a std::sync::Arc<Stored>>) {
        self.statuses.extend(policies.map(|policy| policy.id()));
    }

    /// Only a user's groups and suspension decide anything.
    fn user<S: AsRef<Stored>>(
        &mut self,
        index: &Index,
        stored: &Stored,
        before: Option<&S>,
        after: Option<&S>,
    ) {
        let decisive = |stored: Option<&S>| match stored.map(|s| &*s.as_ref().resource) {
            Some(Resource::User(user)) => Some((user.spec.groups.clone(), user.spec.suspended)),
            _ => None,
        };
        if decisive(before) == decisive(after) {
            return;
        }
        self.users.insert(stored.uid);
        let (namespace, name) = (stored.resource.namespace(), stored.resource.name());
        for (policy, spec) in index.policies_of_user(namespace, name) {
            let id = policy.id();
            self.statuses
                .extend(spec.networks.iter().map(|network| sibling(&id, KindName::VirtualNetwork, network)));
            self.statuses.insert(id);
        }
    }

    fn policy(&mut self, index: &Index, namespace: &Name, spec: &AccessPolicySpec) {
        let networks = spec.networks.iter().cloned();
        self.statuses.extend(networks.map(|name| ResourceId {
            kind: KindName::VirtualNetwork,
            namespace: namespace.clone(),
            name,
        }));
        if spec.servers.contains(&ServerSelector::Any) {
            let users = matched_users(index, namespace, spec);
            self.users.extend(
                users.iter().filter_map(|name| index.user(namespace, name)).map(|(user, _)| user.uid),
            );
            return;
        }
        for selector in &spec.servers {
            if let ServerSelector::Named(server) = selector {
                self.servers.extend(index.server_named(namespace, server));
            }
        }
    }

    fn owner(&mut self, index: &Index, namespace: &Name, user: &Name) {
        if let Some((stored, _)) = index.user(namespace, user) {
            self.users.insert(stored.uid);
            self.statuses.insert(stored.id());
        }
    }

    fn revoked(&mut self, index: &Index, id: &ResourceId, target: &RevocationTarget) {
        let kind = match target.kind {
            TargetKind::Server => KindName::Server,
            TargetKind::PersonalKey => KindName::PersonalKey,
            TargetKind::RegistrationKey => KindName::RegistrationKey,
            TargetKind::Device => {
                self.devices.extend(target.name.parse::<DeviceId>());
                return;
            }
        };
        let Some(stored) = index.get(kind, &id.namespace, &target.name) else { return };
        self.statuses.insert(stored.id());
        match &*stored.resource {
            Resource::Server(_) => {
                self.servers.insert(stored.server_id());
            }
            Resource::PersonalKey(key) => self.owner(index, &id.namespace, &key.spec.user_ref),
            _ => {}
        }
    }

    /// Keys that are replaced at once end sessions; what the others entail is decided when they are carried out.
    fn rotated(&mut self, index: &Index, namespace: &Name, spec: &KeyRotationSpec) {
        for stored in index.in_namespace(KindName::PersonalKey, namespace) {
            let Resource::PersonalKey(key) = &*stored.resource else { continue };
            let user = &key.spec.user_ref;
            let member = spec.groups.iter().any(|group| index.members(namespace, group).contains(user));
            if selects(spec, stored.resource.name(), user, member) {
                self.statuses.insert(stored.id());
                if spec.kind != RotationType::Scheduled {
                    self.owner(index, namespace, user);
                }
            }
        }
    }

    fn referrers(&mut self, index: &Index, id: &ResourceId) {
        for from in [
            KindName::Server,
            KindName::AccessPolicy,
            KindName::PersonalKey,
            KindName::RegistrationKey,
            KindName::Approval,
        ] {
            let referring = index.referring(&id.namespace, from, ReferenceTarget::Kind(id.kind), &id.name);
            self.statuses.extend(referring.map(|stored| stored.id()));
        }
    }
}

fn sibling(of: &ResourceId, kind: KindName, name: &Name) -> ResourceId {
    ResourceId { kind, namespace: of.namespace.clone(), name: name.clone() }
}

/// The users a policy names, by themselves or through a group, as far as they exist.
pub fn matched_users<'a>(
    index: &'a Index,
    namespace: &'a Name,
    spec: &'a AccessPolicySpec,
) -> BTreeSet<&'a Name> {
    let named = spec.subjects.users.iter().filter(|name| index.user(namespace, name).is_some());
    let grouped = spec.subjects.groups.iter().flat_map(|group| index.members(namespace, group));
    named.chain(grouped).collect()
}
