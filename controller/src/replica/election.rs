//! When this replica may lead, and when it asks for the lease: decisions alone, with the time as an argument.
//!
//! The time is that of a clock which nobody sets and which goes on while the machine sleeps: steps of the wall clock
//! neither elect nor depose anybody, and who slept past the lease knows at once.

use std::time::Duration;

/// The time since the machine started, its sleep included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub Duration);

impl Moment {
    /// Later than any other.
    pub const NEVER: Self = Self(Duration::MAX);

    /// This much later.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }

    /// How long it is until then; zero when it has passed.
    pub fn until(self, then: Self) -> Duration {
        then.0.saturating_sub(self.0)
    }
}

/// How many times a lease is renewed before it would end.
const RENEWALS: u32 = 3;
/// How many times a replica that does not lead asks within the duration of a lease.
const QUESTIONS: u32 = 6;
/// The part of a lease that is not used, because clocks do not run equally fast: one in this many.
const UNUSED: u32 = 10;

/// Whether this replica may lead, as far as it knows.
#[derive(Clone, Debug)]
pub struct Election {
    /// `None` when the lease never ends.
    lease: Option<Duration>,
    /// Until when this replica may lead; `None` when it may not.
    until: Option<Moment>,
    /// When it asks next.
    ask_at: Moment,
}

impl Election {
    /// Nobody leads yet, as far as is known; it is asked at once.
    pub fn new(lease: Option<Duration>, now: Moment) -> Self {
        Self { lease, until: None, ask_at: now }
    }

    /// Whether this replica may lead now.
    pub fn leads(&self, now: Moment) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Until when it may lead, whether that has passed or not.
    pub fn until(&self) -> Option<Moment> {
        self.until
    }

    /// Whether the lease is to be asked for now.
    pub fn is_due(&self, now: Moment) -> bool {
        self.ask_at <= now
    }

    /// When something is to be done: asking, or stepping down.
    pub fn wake_at(&self) -> Moment {
        self.until.map_or(self.ask_at, |until| until.min(self.ask_at))
    }

    /// How long an answer is waited for. `None` when it does not matter.
    pub fn patience(&self) -> Option<Duration> {
        self.lease.map(|lease| lease / RENEWALS)
    }

    /// The lease that was asked for at `asked` is held. Returns whether this replica leads: an answer that took too long
    /// is worth nothing.
    pub fn held(&mut self, asked: Moment, now: Moment) -> bool {
        match self.lease {
            None => (self.until, self.ask_at) = (Some(Moment::NEVER), Moment::NEVER),
            Some(lease) => {
                self.until = Some(asked.after(lease - lease / UNUSED));
                self.ask_at = asked.after(lease / RENEWALS).max(now);
            }
        }
        self.step_down_if_over(now)
    }

    /// Another replica holds the lease.
    pub fn other(&mut self, now: Moment) {
        self.until = None;
        self.ask_at = now.after(self.pause());
    }

    /// There was no answer. What is held stays held until it ends.
    pub fn failed(&mut self, now: Moment) {
        self.ask_at = now.after(self.pause());
        self.step_down_if_over(now);
    }

    /// The database knows a newer leader, or this replica does not want to lead any more.
    pub fn deposed(&mut self, now: Moment) {
        self.other(now);
    }

    /// Notes that the lease ended, if it did. Returns whether this replica leads.
    pub fn step_down_if_over(&mut self, now: Moment) -> bool {
        if !self.leads(now) {
            self.until = None;
        }
        self.until.is_some()
    }

    fn pause(&self) -> Duration {
        const ALONE: Duration = Duration::from_secs(1);
        self.lease.map_or(ALONE, |lease| lease / QUESTIONS)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEASE: Duration = Duration::from_secs(3);

    fn at(ms: u64) -> Moment {
        Moment(Duration::from_millis(ms))
    }

    #[test]
    fn a_leader_renews_in_time_and_steps_down_when_it_cannot() {
        let mut election = Election::new(Some(LEASE), at(0));
        assert!(election.is_due(at(0)) && !election.leads(at(0)));
        assert!(election.held(at(0), at(10)));
        assert_eq!(election.wake_at(), at(1000));
        assert!(election.held(at(1000), at(1005)));
        election.failed(at(2000));
        assert!(election.leads(at(2000)) && election.wake_at() == at(2500));
        election.failed(at(3000));
        election.failed(at(3500));
        assert_eq!(election.wake_at(), at(3700), "it wakes to step down");
        assert!(!election.leads(at(3700)) && !election.step_down_if_over(at(3700)));
        assert_eq!(election.wake_at(), at(4000));
    }

    #[test]
    fn who_slept_past_the_lease_does_not_lead() {
        let mut election = Election::new(Some(LEASE), at(0));
        assert!(election.held(at(0), at(1)));
        assert!(!election.leads(at(60_000)));
        // The answer to what was asked before the sleep comes after it.
        let mut election = Election::new(Some(LEASE), at(0));
        assert!(!election.held(at(0), at(60_000)) && election.until().is_none());
        assert!(election.is_due(at(60_000)), "it asks again at once");
    }

    #[test]
    fn a_lease_without_end_is_asked_for_once() {
        let mut election = Election::new(None, at(0));
        assert!(election.held(at(0), at(0)));
        assert!(election.leads(at(u64::MAX)) && !election.is_due(at(u64::MAX)));
    }

    #[test]
    fn who_is_deposed_asks_again_after_a_pause() {
        let mut election = Election::new(Some(LEASE), at(0));
        election.held(at(0), at(0));
        election.deposed(at(100));
        assert!(!election.leads(at(100)) && !election.is_due(at(100)) && election.is_due(at(600)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// Nothing answers.
        Fail,
        /// The keeper answers after this many milliseconds.
        Answer(u64),
        /// The machine stands still.
        Freeze(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
        let step = prop_oneof![
            Just(Step::Fail),
            (0u64..2_000).prop_map(Step::Answer),
            (0u64..10_000).prop_map(Step::Freeze)
        ];
        proptest::collection::vec((0usize..3, step), 0..200)
    }

    proptest! {
        /// A keeper that gives the lease to one at a time, replicas that ask it with delays, failures and freezes: at no
        /// time two of them believe to lead.
        #[test]
        fn there_is_never_a_second_leader(steps in steps()) {
            let mut now = at(0);
            let mut replicas: Vec<_> = (0..3).map(|_| Election::new(Some(LEASE), now)).collect();
            let mut keeper: Option<(usize, Moment)> = None;
            for (who, step) in steps {
                if let Step::Freeze(ms) = step {
                    now = now.after(Duration::from_millis(ms));
                }
                if !replicas[who].is_due(now) {
                    now = now.after(Duration::from_millis(100));
                }
                if replicas[who].is_due(now) {
                    match step {
                        Step::Fail | Step::Freeze(_) => replicas[who].failed(now),
                        Step::Answer(ms) => {
                            let asked = now;
                            // The keeper decides somewhere between question and answer.
                            now = now.after(Duration::from_millis(ms / 2));
                            let free = keeper.is_none_or(|(holder, ends)| holder == who || ends <= now);
                            if free {
                                keeper = Some((who, now.after(LEASE)));
                            }
                            now = now.after(Duration::from_millis(ms - ms / 2));
                            if free { replicas[who].held(asked, now); } else { replicas[who].other(now); }
                        }
                    }
                }
                let leaders = replicas.iter().filter(|replica| replica.leads(now)).count();
                prop_assert!(leaders <= 1);
            }
        }
    }
}
