//! A budget: so many per second, so many at once.

use std::time::Duration;

use tokio::time::Instant;

/// A token bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    interval: Duration,
    burst: u32,
    /// The time at which the bucket would be full.
    full_at: Instant,
}

impl Bucket {
    /// `per_second` and `burst` are at least 1.
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        Self {
            interval: Duration::from_secs(1) / per_second.max(1),
            burst: burst.max(1),
            full_at: Instant::now(),
        }
    }

    /// Waits for a token and takes it.
    pub(super) async fn take(&mut self) {
        let wait = self.take_at(Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes a token, and says how long to wait for it.
    fn take_at(&mut self, now: Instant) -> Duration {
        self.full_at = self.full_at.max(now) + self.interval;
        self.full_at.saturating_duration_since(now + self.interval * self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_at_once_and_then_the_rate_holds() {
        let mut bucket = Bucket::new(20, 100);
        let mut now = Instant::now();
        assert!((0..100).all(|_| bucket.take_at(now).is_zero()));
        assert_eq!(bucket.take_at(now), Duration::from_millis(50));
        assert_eq!(bucket.take_at(now), Duration::from_millis(100));
        now += Duration::from_secs(60);
        assert!((0..100).all(|_| bucket.take_at(now).is_zero()));
        assert!(!bucket.take_at(now).is_zero());
    }
}
