//! What happens when a server's appliance attaches while another connection speaks for the server. Pure decisions.

use horizon_model::{Incarnation, PublicKey};

/// What to do with an appliance that attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Nobody speaks for the server: it may.
    Admit,
    /// The same process has a new connection: the old one is over.
    Reconnect,
    /// Another process is connected: it is asked to prove that it lives.
    AskTheOther,
    /// Who is connected has a key that the server no longer has: another appliance was registered for it.
    Replace,
}

/// Decides what an arrival is.
pub(super) fn arrival(
    connected: Option<(Incarnation, PublicKey)>,
    newcomer: Incarnation,
    key: PublicKey,
) -> Arrival {
    match connected {
        None => Arrival::Admit,
        Some((_, other)) if other != key => Arrival::Replace,
        Some((same, _)) if same == newcomer => Arrival::Reconnect,
        Some(_) => Arrival::AskTheOther,
    }
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
        let (key, other) = (PublicKey([1; 32]), PublicKey([2; 32]));
        assert_eq!(arrival(None, a, key), Arrival::Admit);
        assert_eq!(arrival(Some((a, key)), a, key), Arrival::Reconnect);
        assert_eq!(arrival(Some((a, key)), b, key), Arrival::AskTheOther);
        assert_eq!(arrival(Some((a, other)), a, key), Arrival::Replace);
        assert_eq!(arrival(Some((a, other)), b, key), Arrival::Replace);
        assert_eq!(verdict(true), Verdict::RefuseNewcomer);
        assert_eq!(verdict(false), Verdict::Replace);
    }
}
