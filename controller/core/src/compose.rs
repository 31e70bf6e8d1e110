//! What an appliance is asked to be: the entries that follow from resources alone, and one entry for every session.

use std::net::IpAddr;

use horizon_crds::{KindName, LifecycleState, Resource, ServerSpec};
use horizon_model::{
    ApplianceState, EgressEntry, EntryBody, EntryId, NetworkEntry, NetworkId, PublicKey, Secret, ServerId,
    SessionEntry, SessionId, SessionKind, SessionNetwork, SettingsEntry, TicketNetwork, TunnelEntry,
};
use ipnet::IpNet;

use crate::{grant::Grant, index::Index};

/// What the store keeps of a session.
#[derive(Clone, Debug)]
pub struct SessionFacts {
    /// Which session.
    pub id: SessionId,
    /// Whose.
    pub kind: SessionKind,
    /// The peer's key.
    pub peer_key: PublicKey,
    /// Authenticates the first packet's connection id.
    pub secret: Secret,
    /// The addresses the session holds, network by network, as single addresses (/32, /128).
    pub addresses: Vec<(NetworkId, Vec<IpAddr>)>,
}

impl SessionFacts {
    fn in_network(&self, id: NetworkId) -> Option<&[IpAddr]> {
        self.addresses.iter().find(|(network, _)| *network == id).map(|(_, addresses)| addresses.as_slice())
    }
}

/// The entries of a server that follow from resources alone; `None` for a server that does not exist. A decommissioned
/// server is asked to be nothing.
///
/// Sessions are added by [`session_entry`]; the two together are the whole [`ApplianceState`].
pub fn base_state(index: &Index, server: ServerId) -> Option<ApplianceState> {
    let mut state = ApplianceState::default();
    let (stored, spec) = index.server_by_id(server)?;
    let namespace = stored.resource.namespace();
    if spec.lifecycle.state == LifecycleState::Decommissioned {
        return Some(state);
    }
    let heartbeat = index.security_policy(namespace).heartbeat_interval.get().as_secs();
    let settings =
        SettingsEntry { heartbeat_seconds: u32::try_from(heartbeat).unwrap_or(u32::MAX).clamp(1, 3600) };
    state.entries.insert(EntryId::settings(), EntryBody::Settings(settings));
    state.entries.insert(EntryId::tunnel(), EntryBody::Tunnel(tunnel(spec)));
    let ranges = spec.egress.address_ranges.iter().map(|range| range.get()).collect();
    let egress = EgressEntry { masquerade: spec.egress.masquerade, ranges };
    state.entries.insert(EntryId::egress(), EntryBody::Egress(egress));
    for name in &spec.networks {
        let Some(stored) = index.get(KindName::VirtualNetwork, namespace, name) else { continue };
        let (Some(id), Resource::VirtualNetwork(network)) = (stored.number, &*stored.resource) else {
            continue;
        };
        let entry = NetworkEntry {
            id,
            name: name.to_string(),
            ranges: network.spec.address_ranges.iter().map(|range| range.get()).collect(),
            mtu: network.spec.mtu,
        };
        state.entries.insert(EntryId::network(id), EntryBody::Network(entry));
    }
    Some(state)
}

/// The appliance holds the first host address of each access range.
fn tunnel(spec: &ServerSpec) -> TunnelEntry {
    let addresses =
        spec.egress.address_ranges.iter().filter_map(|range| appliance_address(range.get())).collect();
    TunnelEntry { port: spec.tunnel.port, mtu: spec.tunnel.mtu, addresses }
}

/// The appliance's own address in an access range, with the range's prefix length: the first after the network's own.
/// Sessions are given any other.
pub fn appliance_address(range: IpNet) -> Option<IpNet> {
    IpNet::new(range.hosts().find(|address| *address != range.network())?, range.prefix_len()).ok()
}

/// The entry that admits a session under a grant: the networks that are both granted and held. `None` when none is left, so
/// the session is to end.
pub fn session_entry(grant: &Grant, facts: &SessionFacts) -> Option<EntryBody> {
    let networks: Vec<_> = grant
        .networks
        .iter()
        .filter_map(|network| {
            let addresses: Vec<_> = facts.in_network(network.id)?.iter().copied().map(IpNet::from).collect();
            Some(SessionNetwork { network: network.id, addresses, inbound: network.inbound })
        })
        .collect();
    if networks.is_empty() {
        return None;
    }
    let access = networks.iter().any(|network| network.network == NetworkId::ACCESS);
    Some(EntryBody::Session(Box::new(SessionEntry {
        id: facts.id,
        kind: facts.kind,
        peer_key: facts.peer_key,
        secret: facts.secret.clone(),
        networks,
        rules: if access { grant.rules.clone() } else { Vec::new() },
        rate_limit: grant.rate_limit,
    })))
}

/// The networks of a ticket: the addresses the session holds with the prefix lengths of their ranges, and the routes.
pub fn ticket_networks(grant: &Grant, facts: &SessionFacts) -> Vec<TicketNetwork> {
    let networks = grant.networks.iter().filter_map(|network| {
        let held = facts.in_network(network.id)?;
        let addresses = held.iter().filter_map(|address| {
            let range = network.ranges.iter().find(|range| range.contains(address))?;
            IpNet::new(*address, range.prefix_len()).ok()
        });
        Some(TicketNetwork {
            id: network.id,
            name: network.name.clone(),
            addresses: addresses.collect(),
            routes: network.routes.clone(),
            inbound: network.inbound,
        })
    });
    networks.collect()
}
