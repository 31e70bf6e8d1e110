//! Whether a heartbeat is accepted. A pure decision.

use horizon_model::{Incarnation, Secret, ServerId};
use horizon_wire::Message as _;
use horizon_wire::{heartbeat, proto};

/// Who beats, and what was last heard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected<'a> {
    pub(super) server: ServerId,
    pub(super) incarnation: Incarnation,
    /// The number of the last accepted beat since the appliance attached; 0 before the first.
    pub(super) counter: u64,
    pub(super) current: &'a Secret,
    pub(super) previous: Option<&'a Secret>,
}

/// A beat that is accepted.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) body: proto::HeartbeatBody,
    /// The secret that authenticated it.
    pub(super) secret: Secret,
}

/// Why a beat is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejected {
    /// Its tag is wrong under both secrets.
    WrongTag,
    /// It cannot be read, though its tag is right.
    Malformed,
    /// It is of another server or another start of the appliance.
    OtherSender,
    /// Its number was seen before.
    Replayed,
}

/// Decides. The tag comes first: nothing of a beat is looked at that its sender did not vouch for.
pub(super) fn accept(expected: Expected<'_>, beat: &proto::Heartbeat) -> Result<Accepted, Rejected> {
    let secrets = [Some(expected.current), expected.previous];
    let secret = secrets
        .into_iter()
        .flatten()
        .find(|secret| heartbeat::verify(secret, &beat.payload, &beat.tag))
        .ok_or(Rejected::WrongTag)?;
    let body = proto::HeartbeatBody::decode(&beat.payload[..]).map_err(|_| Rejected::Malformed)?;
    if body.server_id != expected.server.as_bytes() || body.incarnation != expected.incarnation.as_bytes() {
        return Err(Rejected::OtherSender);
    }
    // A number may be passed over: the appliance may have given up on one that never came.
    if body.counter <= expected.counter {
        return Err(Rejected::Replayed);
    }
    Ok(Accepted { body, secret: secret.clone() })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const SERVER: ServerId = ServerId(Uuid::from_u128(1));
    const RUN: Incarnation = Incarnation(Uuid::from_u128(2));

    fn beat(server: ServerId, run: Incarnation, counter: u64, secret: &Secret) -> proto::Heartbeat {
        let body = proto::HeartbeatBody {
            server_id: server.as_bytes().to_vec(),
            incarnation: run.as_bytes().to_vec(),
            counter,
            ..Default::default()
        };
        let payload = body.encode_to_vec();
        proto::Heartbeat { tag: heartbeat::sign(secret, &payload), payload }
    }

    #[test]
    fn only_new_beats_of_the_right_sender_are_accepted() {
        let (current, previous, other) = (Secret::new([1; 32]), Secret::new([2; 32]), Secret::new([3; 32]));
        let expected = Expected {
            server: SERVER,
            incarnation: RUN,
            counter: 4,
            current: &current,
            previous: Some(&previous),
        };
        let cases = [
            (beat(SERVER, RUN, 5, &current), None),
            (beat(SERVER, RUN, 5, &previous), None),
            (beat(SERVER, RUN, 5, &other), Some(Rejected::WrongTag)),
            (beat(SERVER, RUN, 4, &current), Some(Rejected::Replayed)),
            (beat(SERVER, RUN, 0, &current), Some(Rejected::Replayed)),
            (beat(SERVER, RUN, 6, &current), None),
            (beat(ServerId(Uuid::from_u128(9)), RUN, 5, &current), Some(Rejected::OtherSender)),
            (beat(SERVER, Incarnation(Uuid::from_u128(9)), 5, &current), Some(Rejected::OtherSender)),
        ];
        for (i, (beat, rejected)) in cases.iter().enumerate() {
            assert_eq!(accept(expected, beat).err(), *rejected, "case {i}");
        }
        let garbage = proto::Heartbeat { payload: vec![0xff], tag: heartbeat::sign(&current, &[0xff]) };
        assert_eq!(accept(expected, &garbage).err(), Some(Rejected::Malformed));
        let used = accept(expected, &beat(SERVER, RUN, 5, &previous)).unwrap();
        assert_eq!(used.secret.expose(), previous.expose());
        let fresh = Expected { previous: None, ..expected };
        assert_eq!(accept(fresh, &beat(SERVER, RUN, 5, &previous)).err(), Some(Rejected::WrongTag));
    }
}
