//! Appliances that arrive: so many at once that the database keeps up with them, and heartbeats with it.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

/// How many are looked at at once.
const AT_ONCE: usize = 64;
/// How many may wait for it before no more are taken in.
const WAITING: usize = 256;

/// Counts them.
#[derive(Debug)]
pub(super) struct Arrivals {
    turns: Semaphore,
    waiting: AtomicUsize,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self { turns: Semaphore::new(AT_ONCE), waiting: AtomicUsize::new(0) }
    }
}

/// The turn of one of them, until it is dropped.
pub(super) type Turn<'a> = SemaphorePermit<'a>;

/// One that waits.
struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Arrivals {
    /// Waits for a turn, in the order of arrival. `None` never comes while the controller runs.
    pub(super) async fn turn(&self) -> Option<Turn<'_>> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waits = Waits(&self.waiting);
        self.turns.acquire().await.ok()
    }

    /// Whether so many wait that no more should come.
    pub(super) fn are_many(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) >= WAITING
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn turns_are_limited_and_those_who_wait_are_counted() {
        let arrivals = Arrivals::default();
        let held: Vec<_> = (0..AT_ONCE).map(|_| arrivals.turn().now_or_never().flatten().unwrap()).collect();
        assert_eq!(arrivals.waiting.load(Ordering::Relaxed), 0);
        let mut waiting: Vec<_> = (0..WAITING).map(|_| Box::pin(arrivals.turn())).collect();
        assert!(!arrivals.are_many());
        assert!(waiting.iter_mut().all(|turn| turn.now_or_never().is_none()));
        assert!(arrivals.are_many());
        waiting.pop();
        assert!(!arrivals.are_many());
        drop(held);
        assert!(waiting[0].as_mut().now_or_never().is_some());
    }
}
