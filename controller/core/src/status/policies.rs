//! The statuses of policies, networks and decisions.

use std::collections::BTreeSet;

use horizon_crds::{
    AccessPolicySpec, AccessPolicyStatus, ApprovalSpec, ApprovalStatus, ConditionType, DeviceDecisionSpec,
    DeviceDecisionStatus, KindName, Name, ReferenceTarget, Resource, RevocationStatus, ServerSelector,
    ServerSpec, VirtualNetworkStatus,
};
use horizon_model::Capability;

use super::{Notes, facts::DecisionFacts};
use crate::{
    denial::camel,
    grant::opens_access,
    scope::matched_users,
    security::{self, Standing},
};

/// The most servers a revocation's status lists.
const MAX_SERVERS: usize = 256;

pub(super) fn access(status: &mut AccessPolicyStatus, spec: &AccessPolicySpec, note: &mut Notes<'_>) {
    let (index, namespace) = (note.input.index, note.input.stored.resource.namespace());
    let servers: Vec<&ServerSpec> = if spec.servers.contains(&ServerSelector::Any) {
        let all = index.in_namespace(KindName::Server, namespace).iter();
        all.filter_map(|stored| match &*stored.resource {
            Resource::Server(server) => Some(&server.spec),
            _ => None,
        })
        .collect()
    } else {
        let named = spec.servers.iter().filter_map(|selector| match selector {
            ServerSelector::Named(name) => index.server(namespace, name),
            ServerSelector::Any => None,
        });
        named.map(|(_, server)| server).collect()
    };
    status.matched_users = count(matched_users(index, namespace, spec).len());
    status.matched_servers = count(servers.len());
    match shortfall(spec, &servers) {
        _ if status.matched_users == 0 => {
            note.set(ConditionType::Ready, false, "NoUsers", "the policy matches no user")
        }
        _ if servers.is_empty() => {
            note.set(ConditionType::Ready, false, "NoServers", "the policy matches no server")
        }
        Some(message) => note.set(ConditionType::Ready, false, "WithoutEffect", &message),
        None => note.set(ConditionType::Ready, true, "InForce", "the policy grants what it lists"),
    }
}

/// What the policy lists without any effect, in words.
fn shortfall(spec: &AccessPolicySpec, servers: &[&ServerSpec]) -> Option<String> {
    let shared = |wanted: fn(Capability) -> bool| {
        spec.capabilities
            .iter()
            .any(|c| wanted(*c) && servers.iter().any(|server| server.capabilities.contains(c)))
    };
    let lan = |capability| capability == Capability::LanEmulation;
    if !spec.destinations.is_empty() && !shared(opens_access) {
        return Some(format!(
            "destinations need the capability {} or {}, in the policy and on its servers",
            camel(Capability::Vpn),
            camel(Capability::TrafficRouting)
        ));
    }
    if !spec.networks.is_empty() && !shared(lan) {
        let name = camel(Capability::LanEmulation);
        return Some(format!("networks need the capability {name}, in the policy and on its servers"));
    }
    let carried = |network| servers.iter().any(|server| server.networks.contains(network));
    let lost = spec.networks.iter().find(|network| !carried(*network))?;
    Some(format!("none of the servers lists the network \"{lost}\""))
}

pub(super) fn network(status: &mut VirtualNetworkStatus, addresses_in_use: u32, note: &mut Notes<'_>) {
    let (index, resource) = (note.input.index, &note.input.stored.resource);
    let (namespace, name) = (resource.namespace(), resource.name());
    let target = ReferenceTarget::Kind(KindName::VirtualNetwork);
    let mut members = BTreeSet::new();
    for policy in index.referring(namespace, KindName::AccessPolicy, target, name) {
        if let Resource::AccessPolicy(policy) = &*policy.resource {
            members.extend(matched_users(index, namespace, &policy.spec));
        }
    }
    status.members = count(members.len());
    status.addresses_in_use = addresses_in_use;
    let carried = index.referring(namespace, KindName::Server, target, name).next().is_some();
    if carried {
        note.set(ConditionType::Ready, true, "Carried", "servers carry the network");
    } else {
        note.set(ConditionType::Ready, false, "NoServers", "no server lists the network");
    }
}

pub(super) fn approval(
    status: &mut ApprovalStatus,
    spec: &ApprovalSpec,
    facts: &DecisionFacts,
    note: &mut Notes<'_>,
) {
    status.effective_at = facts.effective_at.map(Into::into);
    match facts.effective_at {
        Some(_) => note.set(ConditionType::Ready, true, "Effective", "the identity was approved"),
        None => {
            let message = format!("server \"{}\" does not report this identity", spec.server_ref);
            note.set(ConditionType::Ready, false, "Waiting", &message);
        }
    }
}

pub(super) fn revocation(status: &mut RevocationStatus, facts: &DecisionFacts, note: &mut Notes<'_>) {
    status.effective_at = facts.effective_at.map(Into::into);
    status.applied_servers = facts.applied_servers.iter().take(MAX_SERVERS).cloned().collect();
    match facts.effective_at {
        Some(_) => note.set(ConditionType::Ready, true, "Effective", "the revocation is in effect"),
        None => note.set(ConditionType::Ready, false, "Waiting", "the revocation is being carried out"),
    }
}

pub(super) fn device(
    status: &mut DeviceDecisionStatus,
    spec: &DeviceDecisionSpec,
    facts: &DecisionFacts,
    note: &mut Notes<'_>,
) {
    status.effective_at = facts.effective_at.map(Into::into);
    match facts.effective_at {
        Some(_) => note.set(ConditionType::Ready, true, "Effective", "the decision is in effect"),
        None => {
            let message =
                format!("no user of this namespace has a device {} that was not revoked", spec.device);
            note.set(ConditionType::Ready, false, "NoDevice", &message);
        }
    }
}

pub(super) fn security(note: &mut Notes<'_>) {
    let (index, resource) = (note.input.index, &note.input.stored.resource);
    let all = index.security_policies(resource.namespace());
    let list = |names: &[Name]| names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    match security::standing(resource.name(), all) {
        Standing::InForce(others) if others.is_empty() => {
            note.set(ConditionType::Ready, true, "InForce", "the policy holds");
        }
        Standing::InForce(others) => {
            let message =
                format!("of each setting the strictest holds, of this policy and {}", list(&others));
            note.set(ConditionType::Ready, true, "Together", &message);
        }
        Standing::Overruled(others) => {
            let message = format!(
                "{} hold, whose priority is higher; blockedNetworks hold all the same",
                list(&others)
            );
            note.set(ConditionType::Ready, false, "Overruled", &message);
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
