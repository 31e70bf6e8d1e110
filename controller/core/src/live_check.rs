//! The look at a live session that the controller takes by itself, at a time that nobody can foresee: both ends are asked whether
//! a connection carries it now, and their answers are held against each other.

use std::time::Duration;

use horizon_model::SessionId;

/// How long until the next look: evenly between half of `interval` and one and a half. `chance` is a random number.
pub fn next_look(interval: Duration, chance: u32) -> Duration {
    // At most one and a half times what fits.
    interval / 2 + interval.mul_f64(f64::from(chance) / f64::from(u32::MAX))
}

/// Which of the sessions is looked at, whatever their order. `chance` is a random number.
pub fn pick(sessions: impl IntoIterator<Item = SessionId>, chance: u32) -> Option<SessionId> {
    let mut sorted: Vec<_> = sessions.into_iter().collect();
    sorted.sort_unstable();
    let n = usize::try_from(chance).unwrap_or(0).checked_rem(sorted.len())?;
    sorted.get(n).copied()
}

/// What one end says of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// A connection carries it.
    Connected,
    /// None does, or the end does not know the session.
    Not,
    /// Nothing, within the time there was.
    Nothing,
}

/// What both answers come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// Both say the same.
    Agree,
    /// The appliance carries a session that its device says it does not use.
    OnlyAppliance,
    /// The device uses a session that its appliance says it does not carry.
    OnlyDevice,
    /// One of them said nothing, so nothing can be told.
    Unheard,
}

impl Answers {
    /// The name, as the database keeps it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agree => "agree",
            Self::OnlyAppliance => "only_appliance",
            Self::OnlyDevice => "only_device",
            Self::Unheard => "unheard",
        }
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Agree => "both ends say the same",
            Self::OnlyAppliance => "its appliance carries a connection that its device denies",
            Self::OnlyDevice => "its device has a connection that its appliance denies",
            Self::Unheard => "one of its ends does not answer",
        }
    }
}

/// Holds the answers against each other.
pub fn compare_answers(appliance: Said, device: Said) -> Answers {
    match (appliance, device) {
        (Said::Nothing, _) | (_, Said::Nothing) => Answers::Unheard,
        (Said::Connected, Said::Not) => Answers::OnlyAppliance,
        (Said::Not, Said::Connected) => Answers::OnlyDevice,
        (Said::Connected, Said::Connected) | (Said::Not, Said::Not) => Answers::Agree,
    }
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// Nothing.
    None,
    /// Both are asked again after the patience: connections come and go, and one end hears of it before the other.
    AskAgain,
    /// An event is raised.
    Tell,
    /// The session ends, with an event.
    End,
}

/// Decides. `again` says whether they were asked before and did not agree then; `reachable` whether the device has a channel to a
/// controller and answers such questions: one that is away says nothing about its session.
pub fn consequence(answers: Answers, again: bool, reachable: bool) -> Consequence {
    match (answers, again) {
        (Answers::Agree, _) => Consequence::None,
        (Answers::Unheard, _) if !reachable => Consequence::None,
        (_, false) => Consequence::AskAgain,
        (Answers::Unheard, true) => Consequence::Tell,
        (Answers::OnlyAppliance | Answers::OnlyDevice, true) => Consequence::End,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_only_one_end_knows_ends_when_it_stays_so() {
        use {Answers as A, Consequence as C, Said as S};
        for (appliance, device, answers, first, second) in [
            (S::Connected, S::Connected, A::Agree, C::None, C::None),
            (S::Not, S::Not, A::Agree, C::None, C::None),
            (S::Connected, S::Not, A::OnlyAppliance, C::AskAgain, C::End),
            (S::Not, S::Connected, A::OnlyDevice, C::AskAgain, C::End),
            (S::Connected, S::Nothing, A::Unheard, C::AskAgain, C::Tell),
            (S::Nothing, S::Connected, A::Unheard, C::AskAgain, C::Tell),
        ] {
            assert_eq!(compare_answers(appliance, device), answers);
            assert_eq!(
                (consequence(answers, false, true), consequence(answers, true, true)),
                (first, second)
            );
        }
        assert_eq!(consequence(A::Unheard, true, false), C::None, "a device that is away denies nothing");
        assert_eq!(consequence(A::OnlyAppliance, true, false), C::End);
    }

    proptest! {
        #[test]
        fn looks_come_within_their_bounds(seconds in 1_u64..100_000, chance in any::<u32>()) {
            let interval = Duration::from_secs(seconds);
            let next = next_look(interval, chance);
            prop_assert!(next >= interval / 2 && next <= interval * 3 / 2);
        }

        #[test]
        fn every_session_has_its_turn_whatever_the_order(count in 1_u128..20, chance in any::<u32>(), turn in 0_usize..20) {
            let mut all: Vec<_> = (0..count).map(|n| SessionId(Uuid::from_u128(n))).collect();
            let picked = pick(all.clone(), chance).unwrap();
            prop_assert_eq!(picked.0.as_u128(), u128::from(chance) % count);
            let turn = turn % all.len();
            all.rotate_left(turn);
            prop_assert_eq!(pick(all, chance), Some(picked));
            prop_assert_eq!(pick([], chance), None);
        }
    }
}
