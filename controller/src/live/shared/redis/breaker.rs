//! The circuit breaker around Redis: when it fails, it is left alone for a while instead of being waited for again and
//! again. A state machine without a clock: the time is an argument.

use std::time::{Duration, Instant};

/// So many faults in a row open it.
const THRESHOLD: u32 = 3;
/// How long it stays open the first time; doubled each time that the probe fails.
const SHORTEST: Duration = Duration::from_secs(1);
/// How long it stays open at most.
const LONGEST: Duration = Duration::from_secs(15);
/// After so long a probe that nobody reported on counts as failed.
const PROBE_PATIENCE: Duration = Duration::from_secs(10);

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing came back in time, or the connection broke.
    Unreachable,
    /// It said that it cannot do its work: it is full, loading, a replica, or wants another password.
    Refused,
}

/// Whether it may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It may.
    Closed,
    /// One tries whether it may.
    HalfOpen,
    /// It may not.
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inner {
    Closed { faults: u32 },
    Open { until: Instant, pause: Duration },
    HalfOpen { since: Instant, pause: Duration },
}

/// The breaker.
#[derive(Debug)]
pub(crate) struct Breaker(Inner);

impl Default for Breaker {
    fn default() -> Self {
        Self(Inner::Closed { faults: 0 })
    }
}

impl Breaker {
    /// Its state.
    pub(crate) fn state(&self) -> State {
        match self.0 {
            Inner::Closed { .. } => State::Closed,
            Inner::Open { .. } => State::Open,
            Inner::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Whether an ordinary operation may go out.
    pub(crate) fn admits(&self) -> bool {
        self.state() == State::Closed
    }

    /// Whether the one that probes may: always when closed, and once after each pause. It must report how it went.
    pub(crate) fn admits_probe(&mut self, now: Instant) -> bool {
        match self.0 {
            Inner::Closed { .. } => true,
            Inner::Open { until, .. } if now < until => false,
            Inner::HalfOpen { since, .. } if now < since + PROBE_PATIENCE => false,
            Inner::Open { pause, .. } | Inner::HalfOpen { pause, .. } => {
                self.0 = Inner::HalfOpen { since: now, pause };
                true
            }
        }
    }

    /// An ordinary operation went well. It closes nothing: only a probe does.
    pub(crate) fn succeeded(&mut self) {
        if let Inner::Closed { faults } = &mut self.0 {
            *faults = 0;
        }
    }

    /// The probe went well.
    pub(crate) fn probe_succeeded(&mut self) {
        self.0 = Inner::Closed { faults: 0 };
    }

    /// An operation or probe failed.
    pub(crate) fn failed(&mut self, fault: Fault, now: Instant) {
        self.0 = match self.0 {
            Inner::Closed { faults } if fault == Fault::Unreachable && faults + 1 < THRESHOLD => {
                Inner::Closed { faults: faults + 1 }
            }
            Inner::Closed { .. } => Inner::Open { until: now + SHORTEST, pause: SHORTEST },
            Inner::HalfOpen { pause, .. } => {
                let pause = (pause * 2).min(LONGEST);
                Inner::Open { until: now + pause, pause }
            }
            // What was under way when it opened.
            open @ Inner::Open { .. } => open,
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Succeeds,
        Unreachable,
        Refuses,
        /// So many milliseconds pass.
        Wait(u64),
        /// The probe asks; whether it may.
        Asks(bool),
        ProbeSucceeds,
    }
    use Event::*;

    fn play(events: &[Event]) -> State {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        for (number, event) in events.iter().enumerate() {
            match event {
                Succeeds => breaker.succeeded(),
                Unreachable => breaker.failed(Fault::Unreachable, now),
                Refuses => breaker.failed(Fault::Refused, now),
                Wait(ms) => now += Duration::from_millis(*ms),
                Asks(may) => assert_eq!(breaker.admits_probe(now), *may, "event {number} of {events:?}"),
                ProbeSucceeds => breaker.probe_succeeded(),
            }
        }
        breaker.state()
    }

    #[test]
    fn it_opens_and_closes() {
        let table: &[(&[Event], State)] = &[
            (&[], State::Closed),
            (&[Unreachable, Unreachable], State::Closed),
            (&[Unreachable, Unreachable, Succeeds, Unreachable, Unreachable], State::Closed),
            (&[Unreachable, Unreachable, Unreachable], State::Open),
            (&[Refuses], State::Open),
            // Successes of what was under way close nothing.
            (&[Refuses, Succeeds], State::Open),
            (&[Refuses, Wait(999), Asks(false)], State::Open),
            (&[Refuses, Wait(1000), Asks(true)], State::HalfOpen),
            (&[Refuses, Wait(1000), Asks(true), Asks(false), Succeeds], State::HalfOpen),
            (&[Refuses, Wait(1000), Asks(true), ProbeSucceeds, Asks(true)], State::Closed),
            (&[Refuses, Wait(1000), Asks(true), Unreachable, Wait(1999), Asks(false)], State::Open),
            (&[Refuses, Wait(1000), Asks(true), Unreachable, Wait(2000), Asks(true)], State::HalfOpen),
            // A probe that is never heard of again does not keep it half open.
            (&[Refuses, Wait(1000), Asks(true), Wait(10_000), Asks(true)], State::HalfOpen),
            // A second fault while open does not extend the pause.
            (&[Refuses, Wait(900), Refuses, Wait(100), Asks(true)], State::HalfOpen),
        ];
        for (events, state) in table {
            assert_eq!(play(events), *state, "{events:?}");
        }
    }

    proptest! {
        #[test]
        fn it_is_always_tried_again_and_never_hammered(
            steps in prop::collection::vec((0u64..20_000, any::<bool>()), 1..200),
        ) {
            let (mut breaker, mut now) = (Breaker::default(), Instant::now());
            breaker.failed(Fault::Refused, now);
            let mut last_probe = now;
            for (wait, works) in steps {
                now += Duration::from_millis(wait);
                let closed = breaker.admits();
                if breaker.admits_probe(now) && !closed {
                    prop_assert!(now - last_probe >= SHORTEST);
                    last_probe = now;
                    if works { breaker.probe_succeeded() } else { breaker.failed(Fault::Unreachable, now) }
                } else if closed {
                    breaker.failed(Fault::Refused, now);
                    last_probe = now;
                } else {
                    prop_assert!(now - last_probe < LONGEST);
                }
            }
            // Whatever happened, it is open for no longer than this.
            prop_assert!(breaker.admits_probe(now + LONGEST));
        }
    }
}
