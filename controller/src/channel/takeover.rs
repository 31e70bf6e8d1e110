//! Whether a device may take over its user's session from another device. A pure decision.

use std::time::Duration;

use horizon_model::{DeviceId, SessionId};

/// The session that is live.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) session: SessionId,
    pub(crate) device: DeviceId,
    /// How long the appliance that carries it has been gone; `None` while it is connected.
    pub(crate) appliance_gone: Option<Duration>,
}

/// What to do first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takeover {
    /// Nothing stands in the way, or it is the device's own session.
    None,
    /// The user is asked.
    Ask,
    /// The session is ended, and its appliance has to confirm.
    End,
    /// The session is ended without the word of its appliance.
    EndUnconfirmed,
    /// The appliance has not been gone long enough.
    Wait(Duration),
}

/// Decides. A session that is not the one the user agreed to end is asked about again.
pub(crate) fn decide(
    held: Option<Held>,
    device: DeviceId,
    agreed: Option<SessionId>,
    grace: Duration,
) -> Takeover {
    match held {
        None => Takeover::None,
        Some(held) if held.device == device => Takeover::None,
        Some(held) if agreed != Some(held.session) => Takeover::Ask,
        Some(Held { appliance_gone: None, .. }) => Takeover::End,
        Some(Held { appliance_gone: Some(gone), .. }) if gone >= grace => Takeover::EndUnconfirmed,
        Some(Held { appliance_gone: Some(gone), .. }) => Takeover::Wait(grace - gone),
    }
}

/// What to do about a session that has ended and that its appliance may still admit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// The appliance is there: its word is waited for.
    Await,
    /// It has been gone long enough: it is done without its word, which is recorded.
    GiveUp,
    /// It has not been gone long enough.
    Wait(Duration),
}

/// Decides that. `gone` is how long the appliance has been gone; `None` while it is connected.
pub(crate) fn release(gone: Option<Duration>, grace: Duration) -> Release {
    match gone {
        None => Release::Await,
        Some(gone) if gone >= grace => Release::GiveUp,
        Some(gone) => Release::Wait(grace - gone),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn takeovers_need_the_right_consent_and_a_reachable_or_long_gone_appliance() {
        let (me, other) = (DeviceId(Uuid::from_u128(1)), DeviceId(Uuid::from_u128(2)));
        let (session, stale) = (SessionId(Uuid::from_u128(3)), SessionId(Uuid::from_u128(4)));
        let held = |device, gone: Option<u64>| {
            Some(Held { session, device, appliance_gone: gone.map(Duration::from_secs) })
        };
        let cases = [
            (None, None, Takeover::None),
            (None, Some(session), Takeover::None),
            (held(me, None), None, Takeover::None),
            (held(other, None), None, Takeover::Ask),
            (held(other, None), Some(stale), Takeover::Ask),
            (held(other, None), Some(session), Takeover::End),
            (held(other, Some(30)), Some(session), Takeover::Wait(Duration::from_secs(60))),
            (held(other, Some(90)), Some(session), Takeover::EndUnconfirmed),
        ];
        for (i, (held, agreed, expected)) in cases.into_iter().enumerate() {
            assert_eq!(decide(held, me, agreed, Duration::from_secs(90)), expected, "case {i}");
        }
    }
}
