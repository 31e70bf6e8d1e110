//! From the entries of a state to what the host shall be. Entries that contradict themselves or others are left out and
//! named; the rest takes effect.

use std::collections::{BTreeMap, BTreeSet};

use horizon_model::{
    ApplianceState, EntryBody, EntryId, EntryProblem, Inbound, NetworkId, ProblemCode, SessionEntry,
    SessionId, SessionNetwork,
};
use ipnet::IpNet;

use crate::Ruleset;

/// Seconds between heartbeats when the state says nothing.
pub const DEFAULT_HEARTBEAT_SECONDS: u32 = 30;

/// What the host and the tunnel shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Seconds between heartbeats.
    pub heartbeat_seconds: u32,
    /// The tunnel; `None` means that nothing of Horizon is on the host.
    pub tunnel: Option<DesiredTunnel>,
    /// Virtual networks. Empty without a tunnel.
    pub networks: BTreeSet<NetworkId>,
    /// Sessions to admit. Empty without a tunnel.
    pub sessions: BTreeMap<SessionId, SessionEntry>,
}

/// The tunnel and its place on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredTunnel {
    /// The UDP port.
    pub port: u16,
    /// The inner MTU, in bytes.
    pub mtu: u16,
    /// The TUN device's addresses.
    pub addresses: BTreeSet<IpNet>,
    /// The packet filter and address translation.
    pub ruleset: Ruleset,
}

impl Default for Desired {
    fn default() -> Self {
        Self {
            heartbeat_seconds: DEFAULT_HEARTBEAT_SECONDS,
            tunnel: None,
            networks: BTreeSet::new(),
            sessions: BTreeMap::new(),
        }
    }
}

/// What a state asks for, with the TUN device named `tun`, and the entries that cannot be in force.
pub fn resolve(state: &ApplianceState, tun: &str) -> (Desired, Vec<EntryProblem>) {
    let mut problems = Problems::default();
    let mut desired = Desired::default();
    let mut egress = None;
    for (id, body) in &state.entries {
        if *id != name_of(body) {
            problems.add(id, "its name does not fit its content");
            continue;
        }
        match body {
            EntryBody::Settings(settings) => desired.heartbeat_seconds = settings.heartbeat_seconds,
            EntryBody::Egress(entry) => egress = Some(entry),
            EntryBody::Network(network) => {
                desired.networks.insert(network.id);
            }
            EntryBody::Tunnel(tunnel) => {
                desired.tunnel = Some(DesiredTunnel {
                    port: tunnel.port,
                    mtu: tunnel.mtu,
                    addresses: tunnel.addresses.iter().copied().collect(),
                    ruleset: Ruleset::closed(tun),
                });
            }
            EntryBody::Session(_) => {}
        }
    }
    let Some(tunnel) = &mut desired.tunnel else {
        for (id, body) in &state.entries {
            if matches!(body, EntryBody::Session(_) | EntryBody::Network(_) | EntryBody::Egress(_)) {
                problems.add(id, "there is no tunnel entry that could carry it");
            }
        }
        desired.networks.clear();
        return (desired, problems.0);
    };
    if let Some(egress) = egress {
        tunnel.ruleset = Ruleset::open(tun, &egress.ranges, egress.masquerade);
    }
    let mut holders: BTreeMap<(NetworkId, IpNet), SessionId> = BTreeMap::new();
    for (id, body) in &state.entries {
        let EntryBody::Session(session) = body else { continue };
        if *id != name_of(body) {
            continue;
        }
        match check(session, &desired.networks, &holders) {
            Ok(()) => {
                for network in &session.networks {
                    holders.extend(network.addresses.iter().map(|a| ((network.network, *a), session.id)));
                }
                let open = |n: &&SessionNetwork| n.network == NetworkId::ACCESS && n.inbound == Inbound::Any;
                let admitted = session.networks.iter().filter(open);
                tunnel.ruleset.admit(admitted.flat_map(|n| n.addresses.iter().copied()));
                desired.sessions.insert(session.id, (**session).clone());
            }
            Err(message) => problems.add(id, message),
        }
    }
    (desired, problems.0)
}

fn check(
    session: &SessionEntry,
    networks: &BTreeSet<NetworkId>,
    holders: &BTreeMap<(NetworkId, IpNet), SessionId>,
) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for network in &session.networks {
        if network.network != NetworkId::ACCESS && !networks.contains(&network.network) {
            return Err(format!("it holds network {}, which is not in the state", network.network));
        }
        if !seen.insert(network.network) {
            return Err(format!("it holds network {} twice", network.network));
        }
        for address in &network.addresses {
            if let Some(other) = holders.get(&(network.network, *address)) {
                return Err(format!("its address {address} belongs to session {other}"));
            }
        }
    }
    Ok(())
}

fn name_of(body: &EntryBody) -> EntryId {
    match body {
        EntryBody::Settings(_) => EntryId::settings(),
        EntryBody::Tunnel(_) => EntryId::tunnel(),
        EntryBody::Egress(_) => EntryId::egress(),
        EntryBody::Network(network) => EntryId::network(network.id),
        EntryBody::Session(session) => EntryId::session(session.id),
    }
}

#[derive(Default)]
struct Problems(Vec<EntryProblem>);

impl Problems {
    fn add(&mut self, entry: &EntryId, message: impl Into<String>) {
        self.0.push(EntryProblem {
            entry: entry.clone(),
            code: ProblemCode::Invalid,
            message: message.into(),
        });
    }
}

#[cfg(test)]
#[path = "desired_tests.rs"]
mod tests;
