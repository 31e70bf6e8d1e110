//! What a resource amounts to, in sentences.

use horizon_controller_core::{GrantFacts, Index, Stored, grant, grant_named, matched_users, servers_for};
use horizon_crds::{KindName, Resource};

use crate::store::ServerRecord;

/// The most sentences about one resource.
const MAX: usize = 50;

/// The sentences about a resource.
pub(super) fn about(index: &Index, stored: &Stored) -> Vec<String> {
    let namespace = stored.resource.namespace();
    let name = stored.resource.name();
    let mut said = match &*stored.resource {
        Resource::User(_) => user(index, stored),
        Resource::Server(_) => server(index, stored),
        Resource::AccessPolicy(policy) => {
            let mut users: Vec<_> =
                matched_users(index, namespace, &policy.spec).into_iter().map(ToString::to_string).collect();
            users.sort();
            let servers: Vec<_> = index
                .in_namespace(KindName::Server, namespace)
                .iter()
                .map(|s| s.resource.name())
                .filter(|server| policy.spec.servers.iter().any(|selector| selector.matches(server)))
                .map(ToString::to_string)
                .collect();
            vec![listed("it speaks of users", &users), listed("it speaks of servers", &servers)]
        }
        Resource::VirtualNetwork(_) => {
            let names = |kind| {
                let all = index.in_namespace(kind, namespace).iter();
                let speaks =
                    all.filter(|s| s.resource.references().iter().any(|r| r.name == *name && is_network(r)));
                speaks.map(|s| s.resource.name().to_string()).collect::<Vec<_>>()
            };
            vec![
                listed("servers that carry it", &names(KindName::Server)),
                listed("policies that open it", &names(KindName::AccessPolicy)),
            ]
        }
        _ => Vec::new(),
    };
    if said.len() > MAX {
        let more = said.len() - (MAX - 1);
        said.truncate(MAX - 1);
        said.push(format!("and {more} more"));
    }
    said
}

fn is_network(reference: &horizon_crds::Reference) -> bool {
    reference.target == horizon_crds::ReferenceTarget::Kind(KindName::VirtualNetwork)
}

fn listed(what: &str, names: &[String]) -> String {
    match names {
        [] => format!("{what}: none"),
        names if names.len() > 20 => {
            format!("{what}: {} and {} more", names[..20].join(", "), names.len() - 20)
        }
        names => format!("{what}: {}", names.join(", ")),
    }
}

/// What a person may use, and of everything else why not.
fn user(index: &Index, stored: &Stored) -> Vec<String> {
    let namespace = stored.resource.namespace();
    let name = stored.resource.name();
    let usable = servers_for(index, stored.uid);
    let mut said = Vec::new();
    for server in index.in_namespace(KindName::Server, namespace) {
        match grant_named(index, GrantFacts::POLICY_ONLY, namespace, name, server.resource.name()) {
            Ok(grant) => {
                let networks = grant
                    .networks
                    .iter()
                    .map(|n| if n.name.is_empty() { "the access network" } else { &n.name });
                let networks: Vec<_> = networks.collect();
                said.push(format!("may use server {}: {}", server.resource.name(), networks.join(", ")));
            }
            Err(denial) if usable.contains(&server.server_id()) => {
                said.push(format!("may not use server {} now: {denial}", server.resource.name()));
            }
            Err(denial) => said.push(format!("may not use server {}: {denial}", server.resource.name())),
        }
    }
    said
}

/// What is known about the appliance of a server.
pub(super) fn appliance(record: &ServerRecord) -> Vec<String> {
    let Some(key) = record.public_key else { return Vec::new() };
    let host = record.hostname.as_deref().unwrap_or("an unnamed host");
    let mut said = vec![format!("runs on {host}, under the key {key}")];
    if !record.addresses.is_empty() {
        let addresses: Vec<_> = record.addresses.iter().map(ToString::to_string).collect();
        said.push(listed("clients reach it at", &addresses));
    }
    said.extend(record.unreachable.clone());
    said.extend(record.verification_reason.as_ref().map(|why| format!("waits for an approval: {why}")));
    said.extend(record.problems.iter().map(|p| format!("{} is not in force: {}", p.entry, p.message)));
    said.push(format!(
        "was told state {} and applied state {}",
        record.state_generation, record.applied_generation
    ));
    said
}

/// Who may use a server.
fn server(index: &Index, stored: &Stored) -> Vec<String> {
    let users = index.in_namespace(KindName::User, stored.resource.namespace());
    let may = users
        .iter()
        .filter(|user| grant(index, GrantFacts::POLICY_ONLY, user.uid, stored.server_id()).is_ok());
    let names: Vec<_> = may.map(|user| user.resource.name().to_string()).collect();
    vec![listed("users whom policies let use it", &names)]
}
