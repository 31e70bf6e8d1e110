//! Reads what the controller and the tunnel answered.

use horizon_client_core::{failure::Failure, ipc::ServerView, status::SessionView};
use horizon_model::{DeviceId, PublicKey, Ticket};
use horizon_tunnel::{DropReason, SessionSnapshot};
use horizon_wire::{
    convert,
    envelope::{self, Context},
    keyset::KeySet,
    proto::{self, KeyUse},
};
use jiff::Timestamp;

/// The most servers of a list.
const MAX_SERVERS: usize = 10_000;

/// Adds what the tunnel measured of a session.
pub(super) fn measure(session: &mut SessionView, found: &SessionSnapshot) {
    use DropReason as R;
    session.bytes_sent = found.counters.bytes_to_peer;
    session.bytes_received = found.counters.bytes_from_peer;
    session.rtt_micros = found.path.map(|p| u64::try_from(p.rtt.as_micros()).unwrap_or(u64::MAX));
    let theirs = [R::Malformed, R::WrongNetwork, R::SpoofedSource, R::Forbidden, R::Unsolicited];
    session.violations = theirs
        .into_iter()
        .map(|reason| (reason.name().to_owned(), found.counters.drops.get(reason)))
        .filter(|(_, count)| *count > 0)
        .collect();
}

/// The servers of a list; `None` when it breaks a rule of its schema.
pub(super) fn server_views(list: proto::Servers) -> Option<Vec<ServerView>> {
    if list.servers.len() > MAX_SERVERS {
        return None;
    }
    let view = |s: proto::ServerSummary| {
        let text = |value| convert::text(value, "server").ok();
        Some(ServerView {
            name: text(s.name)?,
            available: s.available,
            reason: text(s.reason)?,
            capabilities: convert::decode_capabilities(&s.capabilities).ok()?,
            location: text(s.location)?,
            networks: s.networks.into_iter().map(text).collect::<Option<_>>()?,
        })
    };
    list.servers.into_iter().map(view).collect()
}

/// The ticket in an envelope, if the organisation signed it for this device.
pub(super) fn open_ticket(
    envelope: &proto::Envelope,
    keyset: &KeySet,
    key: &PublicKey,
    device: Option<DeviceId>,
) -> Result<Ticket, Failure> {
    // A machine whose clock is behind the KeySet still finds its way.
    let now = Timestamp::now().as_millisecond().max(keyset.issued);
    let untrusted = |why: String| {
        Failure::failed(
            format!("the controller's ticket is not to be trusted: {why}"),
            "tell the organisation's admin",
        )
    };
    let payload = envelope::open(Context::Ticket, envelope, |k| keyset.allows(KeyUse::Ticket, k, now))
        .map_err(|e| untrusted(e.to_string()))?;
    let ticket = convert::decode_ticket(payload).map_err(|e| untrusted(e.to_string()))?;
    if ticket.device_key != *key || device.is_some_and(|d| d != ticket.device) {
        return Err(untrusted("it is for another device".into()));
    }
    Ok(ticket)
}

/// The failure for an answer of another kind than was asked for.
pub(super) fn unreadable() -> Failure {
    Failure::failed("the controller's answer cannot be read", "check that both sides are up to date")
}

#[cfg(test)]
mod tests {
    use horizon_model::{NetworkId, Secret, ServerId, SessionId};
    use horizon_wire::{key::SigningKey, keyset::KeySetKey, proto::KeyPhase};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_ticket_of_another_device_is_refused() {
        let key = |n: u8| SigningKey::from_seed(Secret::new([n; 32]));
        let (root, tickets, own, other) = (key(1), key(2), key(3), key(4));
        let listed = KeySetKey {
            usage: KeyUse::Ticket,
            key: tickets.public(),
            not_before: 0,
            not_after: i64::MAX,
            phase: KeyPhase::Current,
        };
        let keyset =
            KeySet { version: 1, root: root.public(), keys: vec![listed], issued: 1, revoked: Vec::new() };
        let (mine, theirs) = (DeviceId(Uuid::from_u128(3)), DeviceId(Uuid::from_u128(4)));
        let sealed = |device: DeviceId, device_key: PublicKey| {
            let ticket = Ticket {
                session: SessionId(Uuid::from_u128(9)),
                server: ServerId(Uuid::from_u128(8)),
                server_name: "paris-1".into(),
                device,
                device_key,
                appliance_key: key(5).public(),
                addresses: Vec::new(),
                secret: Secret::new([6; 32]),
                networks: vec![horizon_model::TicketNetwork {
                    id: NetworkId::ACCESS,
                    name: String::new(),
                    addresses: vec!["100.64.0.5/32".parse().unwrap()],
                    routes: Vec::new(),
                    inbound: horizon_model::Inbound::AnswersOnly,
                }],
                dns: Vec::new(),
                capabilities: Vec::new(),
                mtu: 1420,
                issued: Timestamp::UNIX_EPOCH,
                failover: horizon_model::Failover::Allowed,
            };
            envelope::seal(Context::Ticket, &tickets, convert::encode_ticket(&ticket))
        };
        let open = |envelope: &proto::Envelope| open_ticket(envelope, &keyset, &own.public(), Some(mine));
        assert!(open(&sealed(mine, own.public())).is_ok());
        for stolen in
            [sealed(theirs, other.public()), sealed(mine, other.public()), sealed(theirs, own.public())]
        {
            let refused = open(&stolen).unwrap_err();
            assert!(refused.message.contains("another device"), "{refused}");
        }
    }
}
