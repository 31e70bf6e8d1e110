//! Before this replica stops: its peers are sent to others, a few at a time.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use super::{Context, registry::Elsewhere};
use crate::store::random;

/// How many peers are sent away in a second: the other replicas have to take them in.
const PER_SECOND: usize = 2_000;
/// How often some are.
const STEP: Duration = Duration::from_millis(20);
/// How often it is looked whether all have gone.
const LOOK: Duration = Duration::from_millis(50);

impl Context {
    /// Sends every peer to other replicas, and waits until they have gone, but not for long.
    pub(super) async fn send_all_away(&self, addresses: Vec<String>) {
        self.draining.store(true, Ordering::Relaxed);
        let patience = self.settings.leave_patience;
        let deadline = Instant::now() + patience;
        let elsewhere: Elsewhere = addresses.into();
        let mut peers = self.registry.everybody();
        shuffle(&mut peers);
        tracing::info!(peers = peers.len(), "sending all peers to other replicas");
        let steps = step_count(peers.len(), patience);
        let size = peers.len().div_ceil(steps).max(1);
        let mut next = Instant::now();
        for some in peers.chunks(size) {
            for peer in some {
                peer.send_away(&elsewhere);
            }
            next += STEP;
            sleep_until(next).await;
        }
        while !self.registry.is_empty() && Instant::now() < deadline {
            sleep(LOOK).await;
        }
    }
}

/// In how many steps so many peers are sent away: two thirds of the patience at most, and not faster than need be.
fn step_count(peers: usize, patience: Duration) -> usize {
    let span = Duration::from_secs_f64(peers as f64 / PER_SECOND as f64).min(patience * 2 / 3);
    usize::try_from(span.as_millis() / STEP.as_millis()).unwrap_or(usize::MAX).max(1)
}

/// In an order by chance, so that those who came together do not arrive together.
fn shuffle<T>(all: &mut [T]) {
    let mut state = u64::from_be_bytes(random());
    for i in (1..all.len()).rev() {
        // The order needs to be mixed, not secret: Knuth's linear congruential generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let upto = u64::try_from(i).unwrap_or(u64::MAX).saturating_add(1);
        all.swap(i, usize::try_from((state >> 33) % upto).unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn departures_are_paced_within_the_patience() {
        let patience = Duration::from_secs(15);
        assert_eq!(step_count(0, patience), 1);
        assert_eq!(step_count(10, patience), 1);
        assert_eq!(step_count(2_000, patience), 50);
        assert_eq!(step_count(1_000_000, patience), 500);
    }

    #[test]
    fn an_order_by_chance_leaves_nobody_out() {
        let mut all: Vec<_> = (0..1000).collect();
        shuffle(&mut all);
        assert!(all.windows(2).any(|pair| pair[0] > pair[1]));
        all.sort_unstable();
        assert!(all.into_iter().eq(0..1000));
    }
}
