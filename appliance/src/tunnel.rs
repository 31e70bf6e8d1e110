//! Between the vocabulary of the state and that of the tunnel.

use horizon_model::{
    DestinationRule, NetworkId, PortRange, Protocol, SessionEntry, SessionId, SessionUsage, ViolationKind,
};
use horizon_tunnel::{
    Attachment, DestinationRules, DropReason, Inbound, RateLimit, Role, RuleProtocol, RulesError, Secret32,
    SessionConfig, SessionLimits, SessionSnapshot,
};

const BITS_PER_BYTE: u64 = 8;
/// Bytes that a limited session may send at once after a pause: a tenth of a second's worth, at least a few packets.
const MIN_BURST: u64 = 64 * 1024;

/// The tunnel's name for a session.
pub(crate) fn session_id(id: SessionId) -> horizon_tunnel::SessionId {
    horizon_tunnel::SessionId(*id.as_bytes())
}

/// Back again.
pub(crate) fn model_id(id: horizon_tunnel::SessionId) -> SessionId {
    SessionId(uuid::Uuid::from_bytes(id.0))
}

/// The tunnel's name for a network.
pub(crate) fn network_id(id: NetworkId) -> horizon_tunnel::NetworkId {
    horizon_tunnel::NetworkId(id.0)
}

/// How the tunnel admits a session. Destination rules speak of the access network; the members of a virtual network
/// reach one another.
pub(crate) fn session_config(session: &SessionEntry) -> Result<SessionConfig, RulesError> {
    let attachments = session.networks.iter().map(|network| {
        let from_peer = if network.network == NetworkId::ACCESS {
            DestinationRules::new(session.rules.iter().map(rule).collect())?
        } else {
            DestinationRules::allow_all()
        };
        Ok(Attachment {
            network: network_id(network.network),
            peer_addresses: network.addresses.clone(),
            from_peer,
            // The peer opens flows; which ones, its rules say. What may be opened toward it, its own end and the packet
            // filter decide.
            inbound: Inbound::Any,
        })
    });
    let limit = session.rate_limit.map(|bits| {
        let bytes_per_second = (bits / BITS_PER_BYTE).max(1);
        RateLimit { bytes_per_second, burst: (bytes_per_second / 10).max(MIN_BURST) }
    });
    Ok(SessionConfig {
        id: session_id(session.id),
        secret: Secret32::new(*session.secret.expose()),
        peer_key: session.peer_key.0,
        role: Role::Accept,
        attachments: attachments.collect::<Result<_, _>>()?,
        limits: SessionLimits { from_peer: limit, to_peer: limit },
    })
}

fn rule(rule: &DestinationRule) -> horizon_tunnel::DestinationRule {
    let port = |range: &PortRange| horizon_tunnel::PortRange { first: range.first(), last: range.last() };
    horizon_tunnel::DestinationRule {
        prefix: rule.prefix,
        protocol: match rule.protocol {
            Protocol::Any => RuleProtocol::Any,
            Protocol::Tcp => RuleProtocol::Tcp,
            Protocol::Udp => RuleProtocol::Udp,
            Protocol::Icmp => RuleProtocol::Icmp,
        },
        ports: rule.ports.iter().map(port).collect(),
    }
}

/// What a session has carried, as reports say it.
pub(crate) fn usage(snapshot: &SessionSnapshot) -> SessionUsage {
    let path = snapshot.path;
    SessionUsage {
        session: model_id(snapshot.id),
        connected: path.is_some(),
        remote: path.map(|p| p.remote),
        bytes_sent: snapshot.counters.bytes_to_peer,
        bytes_received: snapshot.counters.bytes_from_peer,
        rtt_micros: path.map_or(0, |p| u64::try_from(p.rtt.as_micros()).unwrap_or(u64::MAX)),
    }
}

/// What a session has done that it may not, in packets since it was admitted.
pub(crate) fn violations(snapshot: &SessionSnapshot) -> [(ViolationKind, u64); 5] {
    let drops = &snapshot.counters.drops;
    [
        (ViolationKind::SpoofedSource, drops.get(DropReason::SpoofedSource)),
        (ViolationKind::WrongNetwork, drops.get(DropReason::WrongNetwork)),
        (ViolationKind::ForbiddenDestination, drops.get(DropReason::Forbidden)),
        (ViolationKind::UnsolicitedInbound, drops.get(DropReason::Unsolicited)),
        (ViolationKind::Malformed, drops.get(DropReason::Malformed)),
    ]
}
