//! Argon2id work: so much at once, and so many who wait for it. Each computation takes 19 MiB and about 10 ms of a core.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::StoreError;

/// A line before a few places. Whoever comes when it is full is sent away at once, before anything is computed.
#[derive(Clone)]
pub(super) struct Line(Arc<Inner>);

struct Inner {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    most: usize,
}

/// One who waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Line {
    /// A line of at most `most` before so many places.
    pub(super) fn new(places: usize, most: usize) -> Self {
        let places = Arc::new(Semaphore::new(places));
        Self(Arc::new(Inner { places, waiting: AtomicUsize::new(0), most }))
    }

    /// Waits for a place. It is held by the work itself, which goes on when whoever asked has gone.
    pub(super) async fn place(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        let before = self.0.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.0.waiting);
        if before >= self.0.most {
            return Err(StoreError::Busy);
        }
        self.0.places.clone().acquire_owned().await.map_err(|_| StoreError::Closed)
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, time::Duration};

    use super::*;

    #[tokio::test]
    async fn who_comes_when_the_line_is_full_is_sent_away_and_who_leaves_makes_room() {
        let line = Line::new(1, 2);
        let first = line.place().await.unwrap();
        let (mut second, mut third) = (Box::pin(line.place()), Box::pin(line.place()));
        for waits in [&mut second, &mut third] {
            assert!(tokio::time::timeout(Duration::ZERO, waits).await.is_err());
        }
        assert!(matches!(line.place().await, Err(StoreError::Busy)));
        drop(third);
        let mut fourth = pin!(line.place());
        assert!(tokio::time::timeout(Duration::ZERO, &mut fourth).await.is_err());
        drop(first);
        let second = second.await.unwrap();
        drop(second);
        drop(fourth.await.unwrap());
        assert_eq!(line.0.waiting.load(Ordering::Relaxed), 0);
    }
}
