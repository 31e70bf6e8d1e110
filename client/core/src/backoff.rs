//! When to try again: pauses that double up to a limit, each jittered so that many clients do not return at once.

use std::time::Duration;

/// A sequence of pauses.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Pauses from `first` to `longest`, before jitter.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// The pause after one more failure, between half and one and a half of the plain value. `jitter` is a random
    /// number in 0.0..1.0.
    pub fn pause(&mut self, jitter: f64) -> Duration {
        let plain = self.first.saturating_mul(1 << self.failures.min(20)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        plain.mul_f64(0.5 + jitter.clamp(0.0, 1.0))
    }

    /// After a success the next pause is the first again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_limit_and_begin_again() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        let pauses: Vec<_> = (0..5).map(|_| backoff.pause(0.5).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 5, 5]);
        backoff.reset();
        assert_eq!(backoff.pause(0.0), Duration::from_millis(500));
        assert_eq!(backoff.pause(9.0), Duration::from_secs(3));
    }
}
