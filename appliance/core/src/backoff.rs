//! When to try again.

use std::time::Duration;

/// Delays that double from a first to a longest, each shortened by chance so that many do not come back at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    attempt: u32,
}

impl Backoff {
    /// Delays from `first` to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, attempt: 0 }
    }

    /// The next delay: between a tenth of it and all of it, by `chance` (uniform over its range).
    pub fn next(&mut self, chance: u32) -> Duration {
        let full = self.first.saturating_mul(2u32.saturating_pow(self.attempt)).min(self.longest);
        self.attempt = self.attempt.saturating_add(1);
        let least = full / 10;
        least + (full - least).mul_f64(f64::from(chance) / f64::from(u32::MAX))
    }

    /// Starts again with the first delay.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn delays_grow_to_the_longest_and_are_spread_by_chance(chances in prop::collection::vec(any::<u32>(), 1..80)) {
            let (first, longest) = (Duration::from_millis(500), Duration::from_secs(60));
            let mut backoff = Backoff::new(first, longest);
            let mut full = first;
            for chance in chances {
                let delay = backoff.next(chance);
                prop_assert!(delay >= full / 10 && delay <= full);
                full = (full * 2).min(longest);
            }
            backoff.reset();
            prop_assert!(backoff.next(u32::MAX) <= first);
        }
    }
}
