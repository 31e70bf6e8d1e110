//! Two states of the resources in force, compared: which resources differ and who would notice.

use std::collections::{BTreeMap, BTreeSet};

use horizon_controller_core::{Grant, GrantFacts, Index, Plan, Purpose, Stored, grant_named, matched_users};
use horizon_crds::{
    AccessPolicySpec, KindName, Name, Reference, ReferenceTarget, Resource, ResourceId, ServerSelector,
};
use horizon_model::{DestinationRule, Protocol, ServerId, SessionId};
use serde_json::Value;
use uuid::Uuid;

use super::model::{AccessDiff, Action, Diff, Effect, FieldDiff, ResourceDiff, SessionDiff};

/// The most pairs of user and server whose access is compared; beyond it the answer says that it is partial.
const MAX_PAIRS: usize = 100_000;

/// A live session.
#[derive(Clone, Debug)]
pub(super) struct LiveSession {
    /// Which.
    pub(super) id: SessionId,
    /// Whose.
    pub(super) user: Uuid,
    /// Where.
    pub(super) server: ServerId,
}

/// A user and a server of one namespace.
type Pair = (Name, Name, Name);

/// Compares `index` with `next`, to which `plan` leads.
pub(super) fn compare(index: &Index, next: &Index, plan: &Plan, live: &[LiveSession]) -> Diff {
    let changed = || plan.puts.keys().chain(&plan.removals);
    let mut pairs = BTreeSet::new();
    let partial = !changed().all(|id| [index, next].iter().all(|side| concerned(side, id, &mut pairs)));
    let access: BTreeMap<Pair, Effect> = pairs
        .into_iter()
        .filter_map(|pair| effect(index, next, &pair).map(|effect| (pair, effect)))
        .collect();
    let servers = plan.scope.servers.iter().filter_map(|id| index.by_uid(id.0).or_else(|| next.by_uid(id.0)));
    Diff {
        problems: Vec::new(),
        resources: changed().filter_map(|id| resource(index, next, id)).collect(),
        held: plan.held.as_ref().map(|held| held.message.clone()),
        servers: servers.map(|s| format!("{}/{}", s.resource.namespace(), s.resource.name())).collect(),
        sessions: live.iter().filter_map(|session| ending(index, &access, session)).collect(),
        access: access
            .into_iter()
            .map(|((namespace, user, server), effect)| AccessDiff { namespace, user, server, effect })
            .collect(),
        partial,
    }
}

fn resource(index: &Index, next: &Index, id: &ResourceId) -> Option<ResourceDiff> {
    let mut fields = Vec::new();
    let action = match (index.by_id(id), next.by_id(id)) {
        (None, Some(_)) => Action::Create,
        (Some(_), None) => Action::Remove,
        (Some(old), Some(new)) => {
            differences("", &old.resource.to_json(), &new.resource.to_json(), &mut fields);
            let (from, to) = (old.origin.to_string(), new.origin.to_string());
            if from != to {
                fields.push(FieldDiff { field: "file".into(), from: Some(from.into()), to: Some(to.into()) });
            }
            if fields.is_empty() {
                return None;
            }
            Action::Update
        }
        (None, None) => return None,
    };
    Some(ResourceDiff {
        kind: id.kind,
        namespace: id.namespace.clone(),
        name: id.name.clone(),
        action,
        fields,
    })
}

/// Finds the smallest fields in which two documents differ. Lists of different lengths are compared as a whole.
fn differences(path: &str, from: &Value, to: &Value, found: &mut Vec<FieldDiff>) {
    match (from, to) {
        _ if from == to => {}
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                differences(
                    &path,
                    a.get(key).unwrap_or(&Value::Null),
                    b.get(key).unwrap_or(&Value::Null),
                    found,
                );
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{i}]"), a, b, found);
            }
        }
        _ => {
            let side = |value: &Value| (!value.is_null()).then(|| value.clone());
            found.push(FieldDiff { field: path.to_owned(), from: side(from), to: side(to) });
        }
    }
}

/// Collects the users and servers between whom a change of this resource could alter something. False when there are too
/// many.
fn concerned(index: &Index, id: &ResourceId, pairs: &mut BTreeSet<Pair>) -> bool {
    let Some(stored) = index.by_id(id) else { return true };
    let namespace = &id.namespace;
    let mut add = |users: &BTreeSet<&Name>, servers: &[Name]| {
        for user in users {
            pairs.extend(servers.iter().map(|server| (namespace.clone(), (*user).clone(), server.clone())));
            if pairs.len() > MAX_PAIRS {
                return false;
            }
        }
        true
    };
    match &*stored.resource {
        Resource::AccessPolicy(policy) => {
            add(&matched_users(index, namespace, &policy.spec), &servers(index, namespace, &policy.spec))
        }
        Resource::User(_) => index
            .policies_of_user(namespace, &id.name)
            .into_iter()
            .all(|(_, policy)| add(&BTreeSet::from([&id.name]), &servers(index, namespace, policy))),
        Resource::Server(_) => index
            .policies_of_server(namespace, &id.name)
            .all(|(_, policy)| add(&matched_users(index, namespace, policy), std::slice::from_ref(&id.name))),
        Resource::VirtualNetwork(_) => policies_of_network(index, id)
            .iter()
            .all(|policy| add(&matched_users(index, namespace, policy), &servers(index, namespace, policy))),
        _ => true,
    }
}

fn policies_of_network(index: &Index, network: &ResourceId) -> Vec<AccessPolicySpec> {
    let names = |reference: &Reference| {
        reference.target == ReferenceTarget::Kind(KindName::VirtualNetwork) && reference.name == network.name
    };
    let policies = index.in_namespace(KindName::AccessPolicy, &network.namespace).iter();
    let naming = policies.filter(|policy| policy.resource.references().iter().any(names));
    naming
        .filter_map(|policy| index.policy(&network.namespace, policy.resource.name()))
        .map(|(_, spec)| spec.clone())
        .collect()
}

fn servers(index: &Index, namespace: &Name, policy: &AccessPolicySpec) -> Vec<Name> {
    if policy.servers.contains(&ServerSelector::Any) {
        return index
            .in_namespace(KindName::Server, namespace)
            .iter()
            .map(|s| s.resource.name().clone())
            .collect();
    }
    let named = policy.servers.iter().filter_map(|selector| match selector {
        ServerSelector::Named(name) => Some(name.clone()),
        ServerSelector::Any => None,
    });
    named.collect()
}

fn effect(index: &Index, next: &Index, (namespace, user, server): &Pair) -> Option<Effect> {
    let facts = GrantFacts { purpose: Purpose::LiveSession, ..GrantFacts::POLICY_ONLY };
    let of = |index: &Index| grant_named(index, facts, namespace, user, server).ok();
    match (of(index), of(next)) {
        (None, None) => None,
        (None, Some(_)) => Some(Effect::Gained),
        (Some(_), None) => Some(Effect::Lost),
        (Some(before), Some(after)) if before == after => None,
        (Some(before), Some(after)) if narrows(&before, &after) => Some(Effect::Narrowed),
        (Some(_), Some(_)) => Some(Effect::Changed),
    }
}

/// Whether something of `before` is not in `after`.
fn narrows(before: &Grant, after: &Grant) -> bool {
    let covers = |wider: &DestinationRule, rule: &DestinationRule| {
        wider == rule
            || (wider.prefix.contains(&rule.prefix)
                && wider.protocol == Protocol::Any
                && wider.ports.is_empty())
    };
    before.rules.iter().any(|rule| !after.rules.iter().any(|wider| covers(wider, rule)))
        || before.networks.iter().any(|n| after.network(n.id).is_none_or(|other| other.inbound != n.inbound))
        || before.capabilities.iter().any(|capability| !after.capabilities.contains(capability))
}

fn ending(index: &Index, access: &BTreeMap<Pair, Effect>, session: &LiveSession) -> Option<SessionDiff> {
    let name = |stored: &Stored| stored.resource.name().clone();
    let user = index.by_uid(session.user)?;
    let server = index.by_uid(session.server.0)?;
    let pair = (user.resource.namespace().clone(), name(user), name(server));
    let ends = match access.get(&pair)? {
        Effect::Lost => true,
        Effect::Narrowed => false,
        Effect::Gained | Effect::Changed => return None,
    };
    Some(SessionDiff { session: session.id, user: pair.1, server: pair.2, ends })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_smallest_differing_fields_are_found() {
        let from =
            json!({ "spec": { "a": 1, "list": [{ "x": 1 }, { "x": 2 }], "gone": true, "short": [1] } });
        let to = json!({ "spec": { "a": 2, "list": [{ "x": 1 }, { "x": 3 }], "new": "n", "short": [1, 2] } });
        let mut found = Vec::new();
        differences("", &from, &to, &mut found);
        let fields: Vec<_> = found.iter().map(|f| f.field.as_str()).collect();
        assert_eq!(fields, ["spec.a", "spec.gone", "spec.list[1].x", "spec.new", "spec.short"]);
        assert_eq!((&found[1].from, &found[1].to), (&Some(json!(true)), &None));
    }
}
