//! Rate limits: so many in a window of time, by the generic cell rate algorithm, which needs one time per counter.

use std::time::Duration;

use jiff::Timestamp;

/// So many in a window of time. All may come at once; the right to more grows back evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    count: u32,
    window: Duration,
}

impl Limit {
    /// `count` in `window`, each at least one of its unit.
    pub fn new(count: u32, window: Duration) -> Self {
        Self { count: count.max(1), window: window.max(Duration::from_millis(1)) }
    }

    /// `count` in a minute.
    pub fn per_minute(count: u32) -> Self {
        Self::new(count, Duration::from_secs(60))
    }

    /// How long one takes to grow back: who is refused may come again then.
    pub fn grows_back(self) -> Duration {
        self.window / self.count
    }

    /// How long one takes to grow back, and the window, in microseconds.
    pub(crate) fn microseconds(self) -> (u64, u64) {
        let window = u64::try_from(self.window.as_micros()).unwrap_or(u64::MAX / 4);
        ((window / u64::from(self.count)).max(1), window)
    }

    /// The counter after one more at `now`: the time until which the right is used up. `None` when it is beyond the limit.
    pub(crate) fn count(self, used_until: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
        let now = now.as_microsecond();
        let window = i64::try_from(self.window.as_micros()).unwrap_or(i64::MAX / 4);
        let step = (window / i64::from(self.count)).max(1);
        // No right is used up for longer than two windows, so a later time is one of a clock that was set back since: it must
        // not keep anybody waiting until the clock is there again.
        let longest = window.max(step).saturating_mul(2);
        let used_until =
            used_until.map(Timestamp::as_microsecond).filter(|t| t.saturating_sub(now) <= longest);
        let next = used_until.map_or(now, |t| t.max(now)) + step;
        let within = next - now <= window.max(step);
        within.then(|| Timestamp::from_microsecond(next).unwrap_or(Timestamp::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn a_clock_that_was_set_back_uses_up_no_right() {
        let limit = Limit::per_minute(3);
        let year = 365 * 24 * 3600;
        let used = limit.count(None, at(year));
        assert!(used.is_some());
        // A year early, then right: the right is whole, and limits as before.
        let mut used = used;
        let mut allowed = |now| {
            let next = limit.count(used, now);
            used = next.or(used);
            next.is_some()
        };
        assert!(allowed(at(0)) && allowed(at(0)) && allowed(at(0)));
        assert!(!allowed(at(0)) && !allowed(at(19)));
        assert!(allowed(at(20)));
        // What others counted may use up two windows, and holds.
        assert_eq!(limit.count(Some(at(120)), at(0)), None);
        assert!(limit.count(Some(at(121)), at(0)).is_some());
    }

    #[test]
    fn a_burst_is_allowed_and_then_grows_back() {
        let limit = Limit::per_minute(3);
        let mut used = None;
        let mut allowed = |now| {
            let next = limit.count(used, now);
            used = next.or(used);
            next.is_some()
        };
        assert!(allowed(at(0)) && allowed(at(0)) && allowed(at(0)));
        assert!(!allowed(at(0)));
        assert!(!allowed(at(19)));
        assert!(allowed(at(20)));
        assert!(!allowed(at(21)));
        assert!(allowed(at(1000)) && allowed(at(1000)) && allowed(at(1000)));
        assert!(!allowed(at(1000)));
    }
}
