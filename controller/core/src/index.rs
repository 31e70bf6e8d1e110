//! The resources in force. A clone shares everything with its original, so a snapshot costs next to nothing; a change
//! copies one list of pointers per kind at most.

use std::{collections::HashMap, ops::Range, sync::Arc};

use horizon_crds::{
    AccessPolicySpec, KindName, Name, ReferenceTarget, Resource, ResourceId, RevocationTarget,
    RotationPolicySpec, SecurityPolicySpec, ServerSpec, UserSpec, VirtualNetworkSpec,
    document::KUBERNETES_PREFIX,
};
use horizon_model::{NetworkId, ServerId};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{lookup::Lookups, security};

/// Who a resource belongs to: only they change or remove it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A document of this file, by its path below the source's directory; or a Kubernetes object, by the path
    /// `kubernetes/NAMESPACE/KIND/NAME/UID`.
    File(Arc<str>),
    /// A request to the controller's own interface.
    Api,
}

impl Origin {
    /// Whether this is an object of Kubernetes.
    pub fn is_kubernetes(&self) -> bool {
        matches!(self, Self::File(path) if path.starts_with(KUBERNETES_PREFIX))
    }

    /// Whether both are objects of Kubernetes, and not the same one: somebody deleted one and made another.
    pub(crate) fn is_recreated_as(&self, path: &str) -> bool {
        self.is_kubernetes() && path.starts_with(KUBERNETES_PREFIX) && *self != Self::File(path.into())
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => match path.strip_prefix(KUBERNETES_PREFIX).and_then(|p| p.rsplit_once('/')) {
                Some((object, _uid)) => write!(f, "Kubernetes object {object}"),
                None => f.write_str(path),
            },
            Self::Api => f.write_str("the controller's own records"),
        }
    }
}

/// A resource in force, with what the store gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The resource.
    pub resource: Arc<Resource>,
    /// Its identity for as long as it exists. A resource recreated under the same name has another.
    pub uid: Uuid,
    /// 1 at first, one more with every change of the spec.
    pub generation: i64,
    /// Who it belongs to.
    pub origin: Origin,
    /// The number of a virtual network in datagram headers, 1 or above; `None` for every other kind.
    pub number: Option<NetworkId>,
    /// When it came into being.
    pub created_at: Timestamp,
}

impl Stored {
    /// Which resource it is.
    pub fn id(&self) -> ResourceId {
        self.resource.id()
    }

    fn key(&self) -> (&str, &str) {
        (self.resource.namespace(), self.resource.name())
    }

    /// Its identity as a server's.
    pub fn server_id(&self) -> ServerId {
        ServerId(self.uid)
    }
}

/// Every resource in force, by kind, namespace and name, with the lookups that decisions need.
#[derive(Clone, Debug, Default)]
pub struct Index {
    kinds: [Arc<Vec<Arc<Stored>>>; KindName::ALL.len()],
    uids: Arc<HashMap<Uuid, Arc<Stored>>>,
    lookups: Lookups,
}

macro_rules! typed {
    ($($(#[$doc:meta])* $method:ident: $kind:ident($spec:ty);)+) => {
        $(
            $(#[$doc])*
            pub fn $method(&self, namespace: &str, name: &str) -> Option<(&Arc<Stored>, &$spec)> {
                let stored = self.get(KindName::$kind, namespace, name)?;
                match &*stored.resource {
                    Resource::$kind(document) => Some((stored, &document.spec)),
                    _ => None,
                }
            }
        )+
    };
}

impl Index {
    /// An index of the given resources. Of two with one name, the later stays.
    pub fn new(resources: impl IntoIterator<Item = Stored>) -> Self {
        let mut sorted: Vec<_> = resources.into_iter().map(Arc::new).collect();
        sorted.sort_by(|a, b| a.key().cmp(&b.key()));
        let mut index = Self::default();
        for stored in sorted {
            index.insert(stored);
        }
        index
    }

    /// Puts a resource in its place.
    pub fn insert(&mut self, stored: Arc<Stored>) {
        let list = &mut self.kinds[slot(stored.resource.kind())];
        let place = list.binary_search_by(|s| s.key().cmp(&stored.key()));
        let old = place.ok().map(|at| list[at].clone());
        let uids = Arc::make_mut(&mut self.uids);
        if let Some(old) = &old {
            uids.remove(&old.uid);
        }
        uids.insert(stored.uid, stored.clone());
        self.lookups.replace(old.as_deref(), Some(&stored));
        let list = Arc::make_mut(list);
        match place {
            Ok(at) => list[at] = stored,
            Err(at) => list.insert(at, stored),
        }
    }

    /// Takes a resource away and returns it.
    pub fn remove(&mut self, id: &ResourceId) -> Option<Arc<Stored>> {
        let list = &mut self.kinds[slot(id.kind)];
        let at = list.binary_search_by(|s| s.key().cmp(&(&id.namespace, &id.name))).ok()?;
        let old = Arc::make_mut(list).remove(at);
        Arc::make_mut(&mut self.uids).remove(&old.uid);
        self.lookups.replace(Some(&old), None);
        Some(old)
    }

    /// The resource of a kind and name.
    pub fn get(&self, kind: KindName, namespace: &str, name: &str) -> Option<&Arc<Stored>> {
        let list = self.all(kind);
        list.binary_search_by(|s| s.key().cmp(&(namespace, name))).ok().map(|at| &list[at])
    }

    /// The resource of an id.
    pub fn by_id(&self, id: &ResourceId) -> Option<&Arc<Stored>> {
        self.get(id.kind, &id.namespace, &id.name)
    }

    /// Every resource of a kind, by namespace and name.
    pub fn all(&self, kind: KindName) -> &[Arc<Stored>] {
        &self.kinds[slot(kind)]
    }

    /// Every resource of a kind in a namespace, by name.
    pub fn in_namespace(&self, kind: KindName, namespace: &str) -> &[Arc<Stored>] {
        let list = self.all(kind);
        let start = list.partition_point(|s| s.resource.namespace().as_str() < namespace);
        let length = list[start..].partition_point(|s| s.resource.namespace().as_str() <= namespace);
        &list[Range { start, end: start + length }]
    }

    /// Every resource, kind by kind.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Stored>> {
        self.kinds.iter().flat_map(|list| list.iter())
    }

    /// How many resources there are.
    pub fn len(&self) -> usize {
        self.kinds.iter().map(|list| list.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The resource of an identity, of any kind.
    pub fn by_uid(&self, uid: Uuid) -> Option<&Arc<Stored>> {
        self.uids.get(&uid)
    }

    /// A server by its id, for the connections of appliances.
    pub fn server_by_id(&self, id: ServerId) -> Option<(&Arc<Stored>, &ServerSpec)> {
        let stored = self.by_uid(id.0)?;
        match &*stored.resource {
            Resource::Server(document) => Some((stored, &document.spec)),
            _ => None,
        }
    }

    /// A user by its identity, for the connections of devices.
    pub fn user_by_id(&self, uid: Uuid) -> Option<(&Arc<Stored>, &UserSpec)> {
        let stored = self.by_uid(uid)?;
        match &*stored.resource {
            Resource::User(document) => Some((stored, &document.spec)),
            _ => None,
        }
    }

    /// The id of the server of a name.
    pub fn server_named(&self, namespace: &str, name: &str) -> Option<ServerId> {
        self.get(KindName::Server, namespace, name).map(|stored| stored.server_id())
    }

    /// The security policy that holds in a namespace, of one or several, or the defaults.
    pub fn security_policy(&self, namespace: &str) -> SecurityPolicySpec {
        security::effective(self.security_policies(namespace))
    }

    /// The security policies of a namespace, by name.
    pub fn security_policies<'a>(
        &'a self,
        namespace: &str,
    ) -> impl Iterator<Item = (&'a Name, &'a SecurityPolicySpec)> {
        self.in_namespace(KindName::SecurityPolicy, namespace).iter().filter_map(|stored| {
            match &*stored.resource {
                Resource::SecurityPolicy(document) => Some((&document.metadata.name, &document.spec)),
                _ => None,
            }
        })
    }

    typed! {
        /// The server of a name.
        server: Server(ServerSpec);
        /// The user of a name.
        user: User(UserSpec);
        /// The virtual network of a name.
        network: VirtualNetwork(VirtualNetworkSpec);
        /// The access policy of a name.
        policy: AccessPolicy(AccessPolicySpec);
        /// The rotation policy of a name.
        rotation_policy: RotationPolicy(RotationPolicySpec);
    }

    /// The members of a group, by name.
    pub fn members(&self, namespace: &Name, group: &Name) -> &[Name] {
        self.lookups.members(namespace, group)
    }

    /// The access policies that name the user or a group of theirs, by name.
    pub fn policies_of_user<'a>(
        &'a self,
        namespace: &'a Name,
        user: &Name,
    ) -> Vec<(&'a Arc<Stored>, &'a AccessPolicySpec)> {
        let groups = self.user(namespace, user).map_or(&[][..], |(_, spec)| &spec.groups);
        let names = self.lookups.policies_of_subjects(namespace, user, groups);
        names.into_iter().filter_map(|name| self.policy(namespace, name)).collect()
    }

    /// The resources of kind `from` that refer to the name `name` of a `target`.
    pub fn referring<'a>(
        &'a self,
        namespace: &'a Name,
        from: KindName,
        target: ReferenceTarget,
        name: &Name,
    ) -> impl Iterator<Item = &'a Arc<Stored>> {
        let names = self.lookups.referring(namespace, from, target, name);
        names.iter().filter_map(move |name| self.get(from, namespace, name))
    }

    /// The access policies that speak of a server, by its name or because they speak of every server.
    pub fn policies_of_server<'a>(
        &'a self,
        namespace: &'a Name,
        server: &Name,
    ) -> impl Iterator<Item = (&'a Arc<Stored>, &'a AccessPolicySpec)> {
        let names = self.lookups.policies_of_server(namespace, server);
        names.into_iter().filter_map(|name| self.policy(namespace, name))
    }

    /// The revocations that name a target.
    pub fn revocations_of<'a>(&'a self, namespace: &'a Name, target: &RevocationTarget) -> &'a [Name] {
        self.lookups.revocations_of(namespace, target)
    }
}

fn slot(kind: KindName) -> usize {
    kind as usize
}
