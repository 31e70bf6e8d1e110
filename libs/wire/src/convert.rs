//! Between messages and the model. Reading is where bytes become types that cannot be wrong: lengths, ranges and
//! counts are checked here and nowhere later.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use horizon_model::{
    ApplianceReport, Capability, DestinationRule, DeviceId, DeviceInfo, Digest, EgressEntry, EntryBody,
    EntryId, EntryProblem, Factor, FactorKind, Failover, Feature, Inbound, NetworkEntry, NetworkId,
    ProblemCode, Protocol, PublicKey, Secret, ServerId, SessionConflict, SessionEntry, SessionId,
    SessionKind, SessionNetwork, SessionUsage, SettingsEntry, Ticket, TicketNetwork, TunnelEntry, Violation,
    ViolationKind,
};
use jiff::Timestamp;
use prost::Message;
use thiserror::Error;

use crate::proto;

/// The most elements of any list inside an entry, a report or a ticket.
pub const MAX_LIST: usize = 1024;
/// The most sessions of a report.
pub const MAX_SESSIONS: usize = 16_384;
/// The most factors of a heartbeat.
pub const MAX_FACTORS: usize = 128;
const MAX_TEXT: usize = 256;

/// A message that breaks a rule of its schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the field '{0}' is missing, too long or out of range")]
pub struct Invalid(pub &'static str);

/// Why an entry cannot be acted on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EntryError {
    /// It needs something this version does not know.
    #[error("needs the feature '{0}', which this version does not have: upgrade the appliance")]
    UnknownFeature(String),
    /// It cannot be read.
    #[error("cannot be read")]
    Malformed,
    /// A field is wrong.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// The bytes of an entry.
pub fn encode_entry(body: &EntryBody) -> Bytes {
    use proto::entry_body::Body;
    let features = body.features().iter().map(|f| f.as_str().to_owned()).collect();
    let body = match body {
        EntryBody::Settings(s) => Body::Settings(proto::Settings { heartbeat_seconds: s.heartbeat_seconds }),
        EntryBody::Tunnel(t) => Body::Tunnel(proto::Tunnel {
            port: t.port.into(),
            mtu: t.mtu.into(),
            addresses: texts(&t.addresses),
        }),
        EntryBody::Egress(e) => {
            Body::Egress(proto::Egress { masquerade: e.masquerade, ranges: texts(&e.ranges) })
        }
        EntryBody::Network(n) => Body::Network(proto::Network {
            id: n.id.0.into(),
            name: n.name.clone(),
            ranges: texts(&n.ranges),
            mtu: n.mtu.into(),
        }),
        EntryBody::Session(s) => Body::Session(proto::Session {
            id: s.id.as_bytes().to_vec(),
            kind: match s.kind {
                SessionKind::Access => proto::SessionKind::Access,
                SessionKind::Trunk => proto::SessionKind::Trunk,
            }
            .into(),
            peer_key: s.peer_key.0.to_vec(),
            secret: s.secret.expose().to_vec(),
            networks: s
                .networks
                .iter()
                .map(|n| proto::SessionNetwork {
                    network: n.network.0.into(),
                    addresses: texts(&n.addresses),
                    inbound_any: n.inbound == Inbound::Any,
                })
                .collect(),
            rules: s.rules.iter().map(encode_rule).collect(),
            rate_limit: s.rate_limit.unwrap_or(0),
        }),
    };
    proto::EntryBody { features, body: Some(body) }.encode_to_vec().into()
}

/// Reads an entry. Its features are looked at first, so that nothing is misunderstood.
pub fn decode_entry(bytes: &[u8]) -> Result<EntryBody, EntryError> {
    use proto::entry_body::Body;
    let raw = proto::EntryBody::decode(bytes).map_err(|_| EntryError::Malformed)?;
    if let Some(unknown) = raw.features.iter().find(|f| Feature::from_name(f).is_none()) {
        return Err(EntryError::UnknownFeature(unknown.chars().take(64).collect()));
    }
    Ok(match raw.body.ok_or(EntryError::Malformed)? {
        Body::Settings(s) => {
            if !(1..=3600).contains(&s.heartbeat_seconds) {
                return Err(Invalid("heartbeat_seconds").into());
            }
            EntryBody::Settings(SettingsEntry { heartbeat_seconds: s.heartbeat_seconds })
        }
        Body::Tunnel(t) => EntryBody::Tunnel(TunnelEntry {
            port: u16::try_from(t.port).ok().filter(|p| *p != 0).ok_or(Invalid("port"))?,
            mtu: mtu(t.mtu)?,
            addresses: parse_all(&t.addresses, "addresses")?,
        }),
        Body::Egress(e) => EntryBody::Egress(EgressEntry {
            masquerade: e.masquerade,
            ranges: parse_all(&e.ranges, "ranges")?,
        }),
        Body::Network(n) => EntryBody::Network(NetworkEntry {
            id: network_id(n.id).filter(|id| *id != NetworkId::ACCESS).ok_or(Invalid("id"))?,
            name: text(n.name, "name")?,
            ranges: parse_all(&n.ranges, "ranges")?,
            mtu: mtu(n.mtu)?,
        }),
        Body::Session(s) => {
            let kind = match s.kind() {
                proto::SessionKind::Access => SessionKind::Access,
                proto::SessionKind::Trunk => SessionKind::Trunk,
                proto::SessionKind::Unspecified => return Err(Invalid("kind").into()),
            };
            bounded(&s.networks, "networks")?;
            bounded(&s.rules, "rules")?;
            EntryBody::Session(Box::new(SessionEntry {
                id: SessionId::from_slice(&s.id).ok_or(Invalid("id"))?,
                kind,
                peer_key: PublicKey::from_slice(&s.peer_key).ok_or(Invalid("peer_key"))?,
                secret: Secret::from_slice(&s.secret).ok_or(Invalid("secret"))?,
                networks: s
                    .networks
                    .iter()
                    .map(|n| {
                        Ok(SessionNetwork {
                            network: network_id(n.network).ok_or(Invalid("network"))?,
                            addresses: parse_all(&n.addresses, "addresses")?,
                            inbound: inbound(n.inbound_any),
                        })
                    })
                    .collect::<Result<_, Invalid>>()?,
                rules: s.rules.iter().map(decode_rule).collect::<Result<_, _>>()?,
                rate_limit: (s.rate_limit > 0).then_some(s.rate_limit),
            }))
        }
    })
}

fn encode_rule(rule: &DestinationRule) -> proto::Rule {
    let protocol = match rule.protocol {
        Protocol::Any => "any",
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Icmp => "icmp",
    };
    proto::Rule { prefix: rule.prefix.to_string(), protocol: protocol.into(), ports: texts(&rule.ports) }
}

fn decode_rule(raw: &proto::Rule) -> Result<DestinationRule, Invalid> {
    let protocol = match raw.protocol.as_str() {
        "any" => Protocol::Any,
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "icmp" => Protocol::Icmp,
        _ => return Err(Invalid("protocol")),
    };
    Ok(DestinationRule {
        prefix: parse(&raw.prefix, "prefix")?,
        protocol,
        ports: parse_all(&raw.ports, "ports")?,
    })
}

/// The message of a report.
pub fn encode_report(report: &ApplianceReport) -> proto::Report {
    proto::Report {
        generation: report.generation,
        digest: report.digest.map(|d| d.0.to_vec()).unwrap_or_default(),
        problems: report
            .problems
            .iter()
            .map(|p| proto::EntryProblem {
                entry: p.entry.to_string(),
                code: problem_name(p.code).into(),
                message: p.message.clone(),
            })
            .collect(),
        sessions: report
            .sessions
            .iter()
            .map(|s| proto::SessionUsage {
                session: s.session.as_bytes().to_vec(),
                connected: s.connected,
                remote: s.remote.map(|r| r.to_string()).unwrap_or_default(),
                bytes_sent: s.bytes_sent,
                bytes_received: s.bytes_received,
                rtt_micros: s.rtt_micros,
            })
            .collect(),
        violations: report
            .violations
            .iter()
            .map(|v| proto::Violation {
                session: v.session.as_bytes().to_vec(),
                kind: v.kind.as_str().into(),
                count: v.count,
            })
            .collect(),
        addresses: texts(&report.addresses),
    }
}

/// Reads a report.
pub fn decode_report(raw: proto::Report) -> Result<ApplianceReport, Invalid> {
    bounded(&raw.problems, "problems")?;
    bounded(&raw.violations, "violations")?;
    if raw.sessions.len() > MAX_SESSIONS {
        return Err(Invalid("sessions"));
    }
    Ok(ApplianceReport {
        generation: raw.generation,
        digest: if raw.digest.is_empty() {
            None
        } else {
            Some(Digest::from_slice(&raw.digest).ok_or(Invalid("digest"))?)
        },
        problems: raw
            .problems
            .into_iter()
            .map(|p| {
                Ok(EntryProblem {
                    entry: EntryId::new(p.entry).map_err(|_| Invalid("entry"))?,
                    code: PROBLEMS.iter().find(|(_, n)| *n == p.code).ok_or(Invalid("code"))?.0,
                    message: p.message.chars().take(MAX_TEXT * 4).collect(),
                })
            })
            .collect::<Result<_, Invalid>>()?,
        sessions: raw
            .sessions
            .into_iter()
            .map(|s| {
                Ok(SessionUsage {
                    session: SessionId::from_slice(&s.session).ok_or(Invalid("session"))?,
                    connected: s.connected,
                    remote: if s.remote.is_empty() { None } else { Some(parse(&s.remote, "remote")?) },
                    bytes_sent: s.bytes_sent,
                    bytes_received: s.bytes_received,
                    rtt_micros: s.rtt_micros,
                })
            })
            .collect::<Result<_, Invalid>>()?,
        violations: raw
            .violations
            .into_iter()
            .map(|v| {
                Ok(Violation {
                    session: SessionId::from_slice(&v.session).ok_or(Invalid("session"))?,
                    kind: VIOLATIONS.into_iter().find(|k| k.as_str() == v.kind).ok_or(Invalid("kind"))?,
                    count: v.count,
                })
            })
            .collect::<Result<_, Invalid>>()?,
        addresses: parse_all(&raw.addresses, "addresses")?,
    })
}

const PROBLEMS: [(ProblemCode, &str); 3] = [
    (ProblemCode::UnknownFeature, "unknown_feature"),
    (ProblemCode::Invalid, "invalid"),
    (ProblemCode::System, "system"),
];

const VIOLATIONS: [ViolationKind; 5] = [
    ViolationKind::SpoofedSource,
    ViolationKind::WrongNetwork,
    ViolationKind::ForbiddenDestination,
    ViolationKind::UnsolicitedInbound,
    ViolationKind::Malformed,
];

fn problem_name(code: ProblemCode) -> &'static str {
    PROBLEMS.iter().find(|(c, _)| *c == code).map_or("invalid", |(_, n)| n)
}

/// The message of a ticket.
pub fn encode_ticket(ticket: &Ticket) -> Vec<u8> {
    proto::Ticket {
        session: ticket.session.as_bytes().to_vec(),
        server: ticket.server.as_bytes().to_vec(),
        server_name: ticket.server_name.clone(),
        device: ticket.device.as_bytes().to_vec(),
        device_key: ticket.device_key.0.to_vec(),
        appliance_key: ticket.appliance_key.0.to_vec(),
        addresses: texts(&ticket.addresses),
        secret: ticket.secret.expose().to_vec(),
        networks: ticket
            .networks
            .iter()
            .map(|n| proto::TicketNetwork {
                id: n.id.0.into(),
                name: n.name.clone(),
                addresses: texts(&n.addresses),
                routes: texts(&n.routes),
                inbound_any: n.inbound == Inbound::Any,
            })
            .collect(),
        dns: texts(&ticket.dns),
        capabilities: encode_capabilities(&ticket.capabilities),
        mtu: ticket.mtu.into(),
        issued: ticket.issued.as_millisecond(),
        failover: match ticket.failover {
            Failover::Allowed => proto::Failover::Unspecified,
            Failover::Required => proto::Failover::Required,
            Failover::Never => proto::Failover::Never,
        }
        .into(),
    }
    .encode_to_vec()
}

/// Reads a ticket whose signature was verified.
pub fn decode_ticket(payload: &[u8]) -> Result<Ticket, Invalid> {
    let raw = proto::Ticket::decode(payload).map_err(|_| Invalid("ticket"))?;
    bounded(&raw.networks, "networks")?;
    let failover = match raw.failover() {
        proto::Failover::Unspecified => Failover::Allowed,
        proto::Failover::Required => Failover::Required,
        proto::Failover::Never => Failover::Never,
    };
    Ok(Ticket {
        failover,
        session: SessionId::from_slice(&raw.session).ok_or(Invalid("session"))?,
        server: ServerId::from_slice(&raw.server).ok_or(Invalid("server"))?,
        server_name: text(raw.server_name, "server_name")?,
        device: DeviceId::from_slice(&raw.device).ok_or(Invalid("device"))?,
        device_key: PublicKey::from_slice(&raw.device_key).ok_or(Invalid("device_key"))?,
        appliance_key: PublicKey::from_slice(&raw.appliance_key).ok_or(Invalid("appliance_key"))?,
        addresses: parse_all::<SocketAddr>(&raw.addresses, "addresses")?,
        secret: Secret::from_slice(&raw.secret).ok_or(Invalid("secret"))?,
        networks: raw
            .networks
            .into_iter()
            .map(|n| {
                Ok(TicketNetwork {
                    id: network_id(n.id).ok_or(Invalid("id"))?,
                    name: text(n.name, "name")?,
                    addresses: parse_all(&n.addresses, "addresses")?,
                    routes: parse_all(&n.routes, "routes")?,
                    inbound: inbound(n.inbound_any),
                })
            })
            .collect::<Result<_, Invalid>>()?,
        dns: parse_all::<IpAddr>(&raw.dns, "dns")?,
        capabilities: decode_capabilities(&raw.capabilities)?,
        mtu: mtu(raw.mtu)?,
        issued: timestamp(raw.issued, "issued")?,
    })
}

/// The message of a conflict.
pub fn encode_conflict(c: &SessionConflict) -> proto::SessionConflict {
    proto::SessionConflict {
        session: c.session.as_bytes().to_vec(),
        device_name: c.device_name.clone(),
        server_name: c.server_name.clone(),
        since: c.since.as_millisecond(),
    }
}

/// Reads a conflict.
pub fn decode_conflict(raw: proto::SessionConflict) -> Result<SessionConflict, Invalid> {
    Ok(SessionConflict {
        session: SessionId::from_slice(&raw.session).ok_or(Invalid("session"))?,
        device_name: text(raw.device_name, "device_name")?,
        server_name: text(raw.server_name, "server_name")?,
        since: timestamp(raw.since, "since")?,
    })
}

/// The names of capabilities.
pub fn encode_capabilities(list: &[Capability]) -> Vec<String> {
    list.iter().map(|c| c.as_str().to_owned()).collect()
}

/// Reads names of capabilities.
pub fn decode_capabilities(list: &[String]) -> Result<Vec<Capability>, Invalid> {
    bounded(list, "capabilities")?;
    list.iter()
        .map(|n| Capability::ALL.into_iter().find(|c| c.as_str() == n).ok_or(Invalid("capabilities")))
        .collect()
}

/// The messages of factors.
pub fn encode_factors(factors: &[Factor]) -> Vec<proto::Factor> {
    factors
        .iter()
        .map(|f| proto::Factor { kind: f.kind.as_str().into(), name: f.name.clone(), value: f.value.clone() })
        .collect()
}

/// Reads factors.
pub fn decode_factors(raw: Vec<proto::Factor>) -> Result<Vec<Factor>, Invalid> {
    const KINDS: [FactorKind; 5] = [
        FactorKind::HardwareFingerprint,
        FactorKind::NetworkSignature,
        FactorKind::Geolocation,
        FactorKind::CryptographicAttestation,
        FactorKind::RuntimeEnvironment,
    ];
    if raw.len() > MAX_FACTORS {
        return Err(Invalid("factors"));
    }
    raw.into_iter()
        .map(|f| {
            let kind = KINDS.into_iter().find(|k| k.as_str() == f.kind).ok_or(Invalid("kind"))?;
            Ok(Factor { kind, name: text(f.name, "name")?, value: text(f.value, "value")? })
        })
        .collect()
}

/// Reads what a device says of itself.
pub fn decode_device(raw: &proto::EnrolDevice) -> Result<DeviceInfo, Invalid> {
    Ok(DeviceInfo {
        name: text(raw.name.clone(), "name")?,
        platform: text(raw.platform.clone(), "platform")?,
        os_version: text(raw.os_version.clone(), "os_version")?,
        app_version: text(raw.app_version.clone(), "app_version")?,
        hardware_fingerprint: text(raw.hardware_fingerprint.clone(), "hardware_fingerprint")?,
    })
}

/// Addresses and other short values as text.
pub fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

/// Reads a bounded list of values from text.
pub fn parse_all<T: std::str::FromStr>(values: &[String], field: &'static str) -> Result<Vec<T>, Invalid> {
    bounded(values, field)?;
    values.iter().map(|v| parse(v, field)).collect()
}

/// A text without control characters of at most 256 bytes.
pub fn text(value: String, field: &'static str) -> Result<String, Invalid> {
    if value.len() > MAX_TEXT || value.chars().any(char::is_control) {
        Err(Invalid(field))
    } else {
        Ok(value)
    }
}

fn parse<T: std::str::FromStr>(value: &str, field: &'static str) -> Result<T, Invalid> {
    if value.len() > MAX_TEXT {
        return Err(Invalid(field));
    }
    value.parse().map_err(|_| Invalid(field))
}

fn bounded<T>(list: &[T], field: &'static str) -> Result<(), Invalid> {
    if list.len() > MAX_LIST { Err(Invalid(field)) } else { Ok(()) }
}

fn inbound(any: bool) -> Inbound {
    if any { Inbound::Any } else { Inbound::AnswersOnly }
}

fn network_id(id: u32) -> Option<NetworkId> {
    u16::try_from(id).ok().map(NetworkId)
}

fn mtu(value: u32) -> Result<u16, Invalid> {
    u16::try_from(value).ok().filter(|m| (1280..=9000).contains(m)).ok_or(Invalid("mtu"))
}

fn timestamp(millis: i64, field: &'static str) -> Result<Timestamp, Invalid> {
    Timestamp::from_millisecond(millis).map_err(|_| Invalid(field))
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
