//! Who may do what: the union of the access policies that name a person, cut down to what the server offers. What nothing
//! grants is refused.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use horizon_crds::{
    AccessPolicySpec, DeviceCondition, KindName, LifecycleState, Name, Resource, ServerSelector, ServerSpec,
    SuspiciousDevices, UserSpec,
};
use horizon_model::{Capability, DestinationRule, Failover, Inbound, NetworkId, ServerId};
use ipnet::IpNet;
use uuid::Uuid;

use crate::{
    denial::Denial,
    facts::{DeviceStanding, DeviceTraits, GrantFacts, Purpose, ServerStanding},
    index::{Index, Stored},
};

/// The most destination rules one session carries.
pub const MAX_RULES: usize = 1024;
/// The most ports and ranges of ports in the rules of one session, so that its entry fits the wire's limit.
pub const MAX_RULE_PORTS: usize = 2048;

/// What a user may do on a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The server.
    pub server: ServerId,
    /// The server's name.
    pub server_name: Name,
    /// What may be used, in the order of the schema.
    pub capabilities: Vec<Capability>,
    /// The networks of a session, the access network first where it is granted.
    pub networks: Vec<GrantedNetwork>,
    /// Where packets may go on the access network.
    pub rules: Vec<DestinationRule>,
    /// The most a session may carry each way, in bits per second.
    pub rate_limit: Option<u64>,
    /// Resolvers to use while connected.
    pub dns: Vec<IpAddr>,
    /// The inner MTU, in bytes.
    pub mtu: u16,
    /// How many sessions the server carries at once.
    pub max_sessions: u16,
    /// Whether the session may move to another server by itself.
    pub failover: Failover,
}

/// A network that a session may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantedNetwork {
    /// Its number in datagram headers.
    pub id: NetworkId,
    /// The `VirtualNetwork`'s name; empty for the access network.
    pub name: String,
    /// Where the session's addresses in it come from.
    pub ranges: Vec<IpNet>,
    /// What the client reaches through it.
    pub routes: Vec<IpNet>,
    /// Whether flows may be opened toward the client.
    pub inbound: Inbound,
}

impl Grant {
    /// The network of a number, if it is granted.
    pub fn network(&self, id: NetworkId) -> Option<&GrantedNetwork> {
        self.networks.iter().find(|network| network.id == id)
    }
}

/// Decides what a user may do on a server.
///
/// The access network needs the capability `vpn` (then all traffic is routed to the server) or `trafficRouting` (then the
/// policies' destinations are), and virtual networks need `lanEmulation`, each on the server and in the policy. Where one of
/// several policies allows inbound flows on the access network, the whole access network does.
///
/// # Errors
/// Everything that is not granted is denied; the denial says what is missing.
pub fn grant(index: &Index, facts: GrantFacts<'_>, user: Uuid, server: ServerId) -> Result<Grant, Denial> {
    let (user, person) = index.user_by_id(user).ok_or(Denial::UserGone)?;
    let (server, spec) = index.server_by_id(server).ok_or(Denial::ServerGone)?;
    if user.resource.namespace() != server.resource.namespace() {
        return Err(Denial::UnknownServer { server: server.resource.name().clone() });
    }
    decide(index, facts, (user, person), (server, spec))
}

/// [`grant`] by names, as people give them.
///
/// # Errors
/// As [`grant`].
pub fn grant_named(
    index: &Index,
    facts: GrantFacts<'_>,
    namespace: &Name,
    user: &Name,
    server: &Name,
) -> Result<Grant, Denial> {
    let person = index.user(namespace, user).ok_or_else(|| Denial::UnknownUser { user: user.clone() })?;
    let server =
        index.server(namespace, server).ok_or_else(|| Denial::UnknownServer { server: server.clone() })?;
    decide(index, facts, person, server)
}

/// The servers on which some policy grants the user something, in order of their names, whether or not they can take a
/// session now.
pub fn servers_for(index: &Index, user: Uuid) -> Vec<ServerId> {
    let Some((stored, _)) = index.user_by_id(user) else { return Vec::new() };
    let (namespace, name) = (stored.resource.namespace(), stored.resource.name());
    let mut names = BTreeSet::new();
    for (_, policy) in index.policies_of_user(namespace, name) {
        for selector in &policy.servers {
            match selector {
                ServerSelector::Named(server) => {
                    names.insert(server.clone());
                }
                ServerSelector::Any => {
                    let all = index.in_namespace(KindName::Server, namespace);
                    names.extend(all.iter().map(|server| server.resource.name().clone()));
                }
            }
        }
    }
    let facts = GrantFacts { purpose: Purpose::LiveSession, ..GrantFacts::POLICY_ONLY };
    let granted = names.iter().filter_map(|server| grant_named(index, facts, namespace, name, server).ok());
    granted.map(|grant| grant.server).collect()
}

type Person<'a> = (&'a Arc<Stored>, &'a UserSpec);
type Place<'a> = (&'a Arc<Stored>, &'a ServerSpec);

fn decide(
    index: &Index,
    facts: GrantFacts<'_>,
    (user, person): Person<'_>,
    (stored, spec): Place<'_>,
) -> Result<Grant, Denial> {
    let (namespace, user, server) = (user.resource.namespace(), user.resource.name(), stored.resource.name());
    check_person(user, person, facts)?;
    check_device(index, namespace, facts)?;
    let policies: Vec<_> = index
        .policies_of_user(namespace, user)
        .into_iter()
        .map(|(_, policy)| policy)
        .filter(|policy| policy.servers.iter().any(|selector| selector.matches(server)))
        .collect();
    if policies.is_empty() {
        return Err(Denial::no_policy(namespace, user, server, spec));
    }
    let policies: Vec<_> =
        policies.into_iter().filter(|policy| speaks_of(&policy.devices, facts.traits)).collect();
    if policies.is_empty() {
        return Err(Denial::DeviceExcluded { server: server.clone() });
    }
    check_server(server, spec, facts)?;

    let mut united = Union::default();
    for policy in &policies {
        united.add(index, namespace, spec, policy);
    }
    if united.networks.is_empty() && united.rules.is_empty() {
        return Err(Denial::nothing_in_common(server, &stored.resource, &policies));
    }
    Ok(united.into_grant(index, namespace, stored.server_id(), server, spec))
}

fn check_person(user: &Name, person: &UserSpec, facts: GrantFacts<'_>) -> Result<(), Denial> {
    if person.suspended {
        return Err(Denial::Suspended { user: user.clone(), reason: person.suspension_reason.to_string() });
    }
    match facts.device {
        DeviceStanding::Good => Ok(()),
        DeviceStanding::Revoked => Err(Denial::DeviceRevoked),
        DeviceStanding::KeyRevoked => Err(Denial::KeyRevoked),
        DeviceStanding::KeyExpired => Err(Denial::KeyExpired),
        DeviceStanding::KeyReplaced => Err(Denial::KeyReplaced),
        DeviceStanding::Blocked => Err(Denial::DeviceBlocked),
        DeviceStanding::Forgotten => Err(Denial::DeviceForgotten),
        DeviceStanding::Suspicious => Err(Denial::DeviceSuspicious),
    }
}

/// A suspicious device keeps its session; whether it may begin another is the namespace's policy.
fn check_device(index: &Index, namespace: &Name, facts: GrantFacts<'_>) -> Result<(), Denial> {
    let doubted =
        facts.purpose == Purpose::NewSession && facts.traits.is_some_and(|device| device.suspicious);
    if doubted && index.security_policy(namespace).devices.suspicious == SuspiciousDevices::NeedApproval {
        return Err(Denial::DeviceSuspicious);
    }
    Ok(())
}

/// Whether a policy's condition holds for a device.
fn speaks_of(condition: &DeviceCondition, device: Option<&DeviceTraits>) -> bool {
    let Some(device) = device else { return true };
    let among = |list: &[Name], word: &str| list.is_empty() || list.iter().any(|name| name.as_str() == word);
    among(&condition.ids, &device.id.to_string())
        && among(&condition.platforms, &device.platform)
        && !(condition.trusted_only && device.suspicious)
}

fn check_server(server: &Name, spec: &ServerSpec, facts: GrantFacts<'_>) -> Result<(), Denial> {
    let server = server.clone();
    let fresh = facts.purpose == Purpose::NewSession;
    let reason = spec.lifecycle.reason.to_string();
    match spec.lifecycle.state {
        LifecycleState::Decommissioned => return Err(Denial::Decommissioned { server, reason }),
        LifecycleState::Maintenance if fresh => return Err(Denial::Maintenance { server, reason }),
        LifecycleState::Maintenance | LifecycleState::Active => {}
    }
    match facts.server {
        ServerStanding::Good => Ok(()),
        ServerStanding::Unregistered => Err(Denial::Unregistered { server }),
        ServerStanding::Revoked => Err(Denial::ServerRevoked { server }),
        ServerStanding::Quarantined if fresh => Err(Denial::Quarantined { server }),
        ServerStanding::Quarantined => Ok(()),
    }
}

/// What several policies grant together.
#[derive(Default)]
struct Union {
    capabilities: BTreeSet<Capability>,
    networks: BTreeSet<Name>,
    rules: BTreeSet<DestinationRule>,
    inbound: bool,
    failover: Failover,
}

/// Whether a capability opens the access network.
pub(crate) fn opens_access(capability: Capability) -> bool {
    matches!(capability, Capability::Vpn | Capability::TrafficRouting)
}

impl Union {
    fn add(&mut self, index: &Index, namespace: &Name, server: &ServerSpec, policy: &AccessPolicySpec) {
        let shared: Vec<_> =
            policy.capabilities.iter().copied().filter(|c| server.capabilities.contains(c)).collect();
        if shared.iter().copied().any(opens_access) && !policy.destinations.is_empty() {
            self.rules.extend(policy.destinations.iter().map(DestinationRule::from));
            self.inbound |= policy.allow_inbound;
        }
        if shared.contains(&Capability::LanEmulation) {
            let carried = |name: &&Name| {
                server.networks.contains(name)
                    && index
                        .get(KindName::VirtualNetwork, namespace, name)
                        .is_some_and(|s| s.number.is_some())
            };
            self.networks.extend(policy.networks.iter().filter(carried).cloned());
        }
        self.capabilities.extend(shared);
        // What one of them forbids is forbidden; else what one of them requires is required.
        self.failover = self.failover.max(policy.failover);
    }

    fn into_grant(
        self,
        index: &Index,
        namespace: &Name,
        id: ServerId,
        name: &Name,
        spec: &ServerSpec,
    ) -> Grant {
        let rules = bounded(self.rules.into_iter().collect());
        let mut networks = Vec::new();
        if !rules.is_empty() {
            networks.push(GrantedNetwork {
                id: NetworkId::ACCESS,
                name: String::new(),
                ranges: spec.egress.address_ranges.iter().map(|range| range.get()).collect(),
                routes: access_routes(&self.capabilities, &rules),
                inbound: if self.inbound { Inbound::Any } else { Inbound::AnswersOnly },
            });
        }
        networks.extend(self.networks.iter().filter_map(|name| {
            let stored = index.get(KindName::VirtualNetwork, namespace, name)?;
            let Resource::VirtualNetwork(network) = &*stored.resource else { return None };
            let ranges: Vec<_> = network.spec.address_ranges.iter().map(|range| range.get()).collect();
            Some(GrantedNetwork {
                id: stored.number?,
                name: name.to_string(),
                routes: ranges.clone(),
                ranges,
                inbound: Inbound::Any,
            })
        }));
        Grant {
            server: id,
            server_name: name.clone(),
            capabilities: self.capabilities.into_iter().collect(),
            networks,
            rules,
            rate_limit: spec.limits.session_rate.map(|rate| rate.bits_per_second()),
            dns: spec.egress.dns.clone(),
            mtu: spec.tunnel.mtu,
            max_sessions: spec.limits.max_sessions,
            failover: self.failover,
        }
    }
}

/// With `vpn`, everything; without it only what the rules allow.
fn access_routes(capabilities: &BTreeSet<Capability>, rules: &[DestinationRule]) -> Vec<IpNet> {
    if capabilities.contains(&Capability::Vpn) {
        vec![IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())]
    } else {
        IpNet::aggregate(&rules.iter().map(|rule| rule.prefix).collect())
    }
}

/// Leaves out the narrowest rules where there are more than a session can carry.
fn bounded(mut rules: Vec<DestinationRule>) -> Vec<DestinationRule> {
    let ports: usize = rules.iter().map(|rule| rule.ports.len()).sum();
    if rules.len() > MAX_RULES || ports > MAX_RULE_PORTS {
        rules.sort_by_key(|rule| rule.prefix.prefix_len());
        let mut ports = 0;
        rules.retain(|rule| {
            ports += rule.ports.len();
            ports <= MAX_RULE_PORTS
        });
        rules.truncate(MAX_RULES);
    }
    rules
}
