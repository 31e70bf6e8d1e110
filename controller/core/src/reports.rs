//! Both ends of a session count what goes through it. Whether the two counts can be of the same traffic is decided here.

/// By how much the counts may differ whatever the traffic, in bytes: what is under way, and what small sessions amount to.
const SLACK: u64 = 1 << 20;
/// How much of what one end sent may be lost on the way, in percent.
const LOSS_PERCENT: u64 = 25;

/// What both ends counted at two moments, in bytes since the session began. The first moment is that of the client's report
/// before, the second that of its newest; of the appliance it is what it had reported by then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TotalsOfBoth {
    /// What the client sent, then and now.
    pub client_sent: (u64, u64),
    /// What the client received, then and now.
    pub client_received: (u64, u64),
    /// What the appliance sent to the client, then and now.
    pub server_sent: (u64, u64),
    /// What the appliance received from the client, then and now.
    pub server_received: (u64, u64),
}

/// How the counts contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The appliance counts more from the client than the client ever sent.
    MoreFromClient,
    /// Much of what the client sent is not counted by the appliance.
    LessFromClient,
    /// The client counts more from the appliance than that ever sent.
    MoreFromServer,
    /// Much of what the appliance sent is not counted by the client.
    LessFromServer,
}

impl Difference {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::MoreFromClient => "the appliance counts more from the client than the client sent",
            Self::LessFromClient => "the appliance counts much less from the client than the client sent",
            Self::MoreFromServer => "the client counts more from the appliance than the appliance sent",
            Self::LessFromServer => "the client counts much less from the appliance than the appliance sent",
        }
    }
}

/// Compares. The ends report at different moments, so what one received by then is held against what the other sent by now:
/// no order of reports makes honest ends differ. What was sent then must have arrived by now but for what was lost, provided
/// that the other end has reported since, which `appliance_reported_since` says of the appliance.
pub fn compare_reports(totals: &TotalsOfBoth, appliance_reported_since: bool) -> Option<Difference> {
    let more = |received: u64, sent: u64| received > sent.saturating_add(SLACK);
    let less = |received: u64, sent: u64| {
        let least = u128::from(sent) * u128::from(100 - LOSS_PERCENT) / 100;
        u128::from(received) + u128::from(SLACK) < least
    };
    if more(totals.server_received.0, totals.client_sent.1) {
        Some(Difference::MoreFromClient)
    } else if appliance_reported_since && less(totals.server_received.1, totals.client_sent.0) {
        Some(Difference::LessFromClient)
    } else if appliance_reported_since && more(totals.client_received.0, totals.server_sent.1) {
        Some(Difference::MoreFromServer)
    } else if less(totals.client_received.1, totals.server_sent.0) {
        Some(Difference::LessFromServer)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const M: u64 = 1 << 20;

    #[test]
    fn ends_that_contradict_each_other_are_told() {
        let totals = |client_sent, client_received, server_sent, server_received| TotalsOfBoth {
            client_sent,
            client_received,
            server_sent,
            server_received,
        };
        let cases = [
            (totals((0, 0), (0, 0), (0, 0), (0, 0)), None),
            (totals((9 * M, 10 * M), (9 * M, 9 * M), (9 * M, 9 * M), (9 * M, 9 * M)), None),
            (totals((0, 5 * M), (0, 0), (0, 0), (7 * M, 7 * M)), Some(Difference::MoreFromClient)),
            (totals((100 * M, 100 * M), (0, 0), (0, 0), (0, 60 * M)), Some(Difference::LessFromClient)),
            (totals((100 * M, 100 * M), (0, 0), (0, 0), (0, 76 * M)), None),
            (totals((0, 0), (8 * M, 8 * M), (0, 5 * M), (0, 0)), Some(Difference::MoreFromServer)),
            (totals((0, 0), (0, 60 * M), (100 * M, 100 * M), (0, 0)), Some(Difference::LessFromServer)),
        ];
        for (i, (totals, expected)) in cases.into_iter().enumerate() {
            assert_eq!(compare_reports(&totals, true), expected, "case {i}");
        }
        let unheard = totals((100 * M, 100 * M), (8 * M, 8 * M), (0, 0), (0, 0));
        assert_eq!(compare_reports(&unheard, false), None, "the appliance has said nothing since");
    }

    proptest! {
        #[test]
        fn honest_ends_never_differ_whenever_they_report(
            steps in prop::collection::vec((0u64..50_000_000, 0u64..50_000_000, 0u64..20, any::<bool>()), 1..20),
        ) {
            // What was sent and received of it, with up to a fifth lost; the appliance reports at some steps only.
            let (mut sent, mut got, mut down, mut down_got) = (0, 0, 0, 0);
            let (mut server, mut then) = ((0, 0), None);
            let mut reported = false;
            for (up, toward, loss, reports) in steps {
                sent += up;
                got += up - up * loss / 100;
                down += toward;
                down_got += toward - toward * loss / 100;
                if reports {
                    server = (down, got);
                    reported = true;
                }
                let now = (sent, down_got, server.0, server.1);
                if let Some((s, r, ss, sr)) = then {
                    let totals = TotalsOfBoth {
                        client_sent: (s, now.0),
                        client_received: (r, now.1),
                        server_sent: (ss, now.2),
                        server_received: (sr, now.3),
                    };
                    prop_assert_eq!(compare_reports(&totals, reported), None);
                }
                then = Some(now);
                reported = false;
            }
        }
    }
}
