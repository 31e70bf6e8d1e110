//! What happens when a server's appliance attaches while another connection holds its channel. Pure decisions.

use horizon_model::Incarnation;

/// What to do with an appliance that attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The same process has a new connection: the old one is over, whichever replica has it.
    Reconnect,
    /// Another process is connected: it is asked to prove that it lives.
    AskTheOther,
}

/// Decides what an arrival is.
pub(super) fn arrival(connected: Incarnation, newcomer: Incarnation) -> Arrival {
    if connected == newcomer { Arrival::Reconnect } else { Arrival::AskTheOther }
}

/// What the answer of the connected process means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It lives: the newcomer is a clone and is refused. The server goes on.
    RefuseNewcomer,
    /// It is gone or no longer knows the secret: the newcomer takes its place.
    Replace,
}

/// Decides by whether the connected process answered rightly in time.
pub(super) fn verdict(answered: bool) -> Verdict {
    if answered { Verdict::RefuseNewcomer } else { Verdict::Replace }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn newcomers_are_judged_by_who_is_there() {
        let (a, b) = (Incarnation(Uuid::from_u128(1)), Incarnation(Uuid::from_u128(2)));
        assert_eq!(arrival(a, a), Arrival::Reconnect);
        assert_eq!(arrival(a, b), Arrival::AskTheOther);
        assert_eq!(verdict(true), Verdict::RefuseNewcomer);
        assert_eq!(verdict(false), Verdict::Replace);
    }
}
