//! What a device is told of the servers that its user may use: over the channel, and over the REST API.

use horizon_controller_core::{
    DeviceStanding, GrantFacts, Index, Purpose, ServerStanding, grant, servers_for,
};
use horizon_wire::{convert, proto};

use super::refusals;
use crate::{
    live::Live,
    store::{DeviceRecord, Store, StoreError},
};

/// The most servers that are told of.
const MAX_SERVERS: usize = 1024;

/// The servers that a device in good standing may ask for, with what it may use there.
pub(crate) async fn list(
    store: &Store,
    live: &dyn Live,
    index: &Index,
    device: &DeviceRecord,
) -> Result<Vec<proto::ServerSummary>, StoreError> {
    let mut servers = Vec::new();
    for server in servers_for(index, device.user).into_iter().take(MAX_SERVERS) {
        let Some((stored, spec)) = index.server_by_id(server) else { continue };
        let name = stored.resource.name().to_string();
        // A list is for people, and may be a moment old; a request is decided by the store.
        let read = async {
            let standing = store.server_standing(server).await;
            standing.map(|standing| standing.unwrap_or(ServerStanding::Unregistered))
        };
        let standing = live.cache().server_standing(server, read).await?;
        let facts = GrantFacts {
            purpose: Purpose::NewSession,
            server: standing,
            device: DeviceStanding::Good,
            traits: Some(&device.traits),
        };
        let granted = grant(index, facts, device.user, server);
        let online = live.presence(server).is_some_and(|presence| presence.online);
        let reason = match &granted {
            Err(denial) => denial.to_string(),
            Ok(_) if !online => refusals::offline(&name).message,
            Ok(_) => String::new(),
        };
        let (capabilities, networks) = granted.map_or_else(
            |_| (spec.capabilities.clone(), Vec::new()),
            |g| (g.capabilities, g.networks.into_iter().map(|n| n.name).filter(|n| !n.is_empty()).collect()),
        );
        servers.push(proto::ServerSummary {
            name,
            available: reason.is_empty(),
            reason,
            capabilities: convert::encode_capabilities(&capabilities),
            location: spec.location.to_string(),
            networks,
        });
    }
    Ok(servers)
}
