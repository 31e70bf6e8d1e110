//! A token bucket: how much may pass at a given time.

use std::time::Instant;

/// Tokens refill at a fixed rate up to a burst; what finds no token does not pass.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    per_second: f64,
    burst: f64,
    tokens: f64,
    filled: Option<Instant>,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(per_second: u64, burst: u64) -> Self {
        let burst = burst as f64;
        Self { per_second: per_second as f64, burst, tokens: burst, filled: None }
    }

    /// Takes `amount` tokens if that many are there.
    pub fn take(&mut self, now: Instant, amount: u64) -> bool {
        if let Some(filled) = self.filled {
            let elapsed = now.saturating_duration_since(filled).as_secs_f64();
            self.tokens = (self.tokens + elapsed * self.per_second).min(self.burst);
        }
        self.filled = Some(now);
        let amount = amount as f64;
        let enough = self.tokens >= amount;
        if enough {
            self.tokens -= amount;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn refills_at_its_rate_up_to_its_burst() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(10, 5);
        assert!((0..5).all(|_| bucket.take(start, 1)));
        assert!(!bucket.take(start, 1));
        assert!(bucket.take(start + Duration::from_millis(100), 1));
        assert!(!bucket.take(start + Duration::from_millis(100), 1));
        assert!(bucket.take(start + Duration::from_secs(60), 5));
        assert!(!bucket.take(start + Duration::from_secs(60), 1));
    }
}
