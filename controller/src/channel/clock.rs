//! The wall clock against the clock that nobody sets. Times in the database are wall times: after somebody set the clock, what
//! looks long ago may not be.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// How much the two clocks may drift apart between two looks before the wall clock was set.
const TOLERATED: SignedDuration = SignedDuration::from_secs(5);

/// Watches the wall clock.
#[derive(Debug)]
pub(super) struct Clock(Mutex<Seen>);

#[derive(Debug)]
struct Seen {
    at: Instant,
    wall: Timestamp,
    set: Option<Instant>,
}

impl Clock {
    pub(super) fn new(at: Instant, wall: Timestamp) -> Self {
        Self(Mutex::new(Seen { at, wall, set: None }))
    }

    /// Looks at both clocks. Returns by how much the wall clock was set since the last look, if it was.
    pub(super) fn look(&self, at: Instant, wall: Timestamp) -> Option<SignedDuration> {
        // Each look is one step, so what was seen is whole whatever thread panics.
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = SignedDuration::try_from(at.saturating_duration_since(seen.at)).unwrap_or_default();
        let by = wall.duration_since(seen.wall).saturating_sub(passed);
        (seen.at, seen.wall) = (at, wall);
        if by.abs() <= TOLERATED {
            return None;
        }
        seen.set = Some(at);
        Some(by)
    }

    /// So much of a span up to now as is certain: what lies before the wall clock was set is not.
    pub(super) fn certain(&self, span: Duration, at: Instant) -> Duration {
        let set = self.0.lock().unwrap_or_else(PoisonError::into_inner).set;
        set.map_or(span, |set| span.min(at.saturating_duration_since(set)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_before_the_clock_was_set_is_not_certain() {
        let (start, wall) = (Instant::now(), Timestamp::UNIX_EPOCH);
        let clock = Clock::new(start, wall);
        let later = |seconds| start + Duration::from_secs(seconds);
        let at = |seconds| wall + SignedDuration::from_secs(seconds);
        let hour = Duration::from_secs(3600);
        assert_eq!(clock.look(later(10), at(12)), None);
        assert_eq!(clock.certain(hour, later(10)), hour);
        assert_eq!(clock.look(later(20), at(3622)), Some(SignedDuration::from_secs(3600)));
        assert_eq!(clock.certain(hour, later(20)), Duration::ZERO);
        assert_eq!(clock.look(later(30), at(3632)), None);
        assert_eq!(clock.certain(hour, later(50)), Duration::from_secs(30));
        assert_eq!(clock.certain(Duration::from_secs(2), later(50)), Duration::from_secs(2));
        assert_eq!(clock.look(later(60), at(62)), Some(SignedDuration::from_secs(-3600)));
        assert_eq!(clock.certain(hour, later(61)), Duration::from_secs(1));
    }
}
