//! When to try again.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

/// Waits that double, each shortened by chance to as little as half, so that many who failed together come back apart.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// It went well.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }

    /// How long to wait now.
    pub(super) fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        let chance = RandomState::new().build_hasher().finish() % 512;
        wait / 2 + wait / 2 * u32::try_from(chance).unwrap_or_default() / 512
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for most in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.wait().as_millis();
            assert!((most / 2..=most).contains(&wait), "{wait} of {most}");
        }
        backoff.reset();
        assert!(backoff.wait() <= Duration::from_millis(100));
    }
}
