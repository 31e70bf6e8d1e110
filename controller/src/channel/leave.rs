//! Holds on channels that are over: the store is told, many at a time, and then whoever wants to know who is online.

use std::{
    mem,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use horizon_model::ServerId;
use tokio::{sync::Notify, time::sleep};

use super::{Context, registry::ServerSeat};
use crate::{live::Hint, store::ChannelLease};

/// The most holds that the store is told of at once.
const BATCH: usize = 512;
/// How soon the store is told again that could not be.
const RETRY: Duration = Duration::from_secs(1);

type Left = (ServerId, ChannelLease);

#[derive(Default)]
struct Inner {
    left: Mutex<Vec<Left>>,
    bell: Notify,
}

/// Takes holds back. A clone is the same one.
#[derive(Clone, Default)]
pub(super) struct Leaver(Arc<Inner>);

/// A seat with the hold on its server's channel, which is given back when this is dropped.
pub(super) struct Holding {
    seat: ServerSeat,
    leaver: Leaver,
}

impl Leaver {
    pub(super) fn hold(&self, seat: ServerSeat) -> Holding {
        Holding { seat, leaver: self.clone() }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Vec<Left>) -> T) -> T {
        // Each change is one step, so the list is whole whatever thread panics.
        change(&mut self.0.left.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Deref for Holding {
    type Target = ServerSeat;
    fn deref(&self) -> &ServerSeat {
        &self.seat
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        // As many at most as were connected at once.
        self.leaver.with(|left| left.push((self.seat.server, self.seat.lease)));
        self.leaver.0.bell.notify_one();
    }
}

/// Tells the store of the holds that are over, until the task is ended.
pub(super) async fn run(context: Arc<Context>) {
    loop {
        context.leaver.0.bell.notified().await;
        while !context.give_back().await {
            sleep(RETRY).await;
        }
    }
}

impl Context {
    /// Gives back what is over. Returns whether nothing is left to be given back.
    pub(super) async fn give_back(&self) -> bool {
        loop {
            let batch = self.leaver.with(|left| {
                let rest = left.split_off(left.len().min(BATCH));
                mem::replace(left, rest)
            });
            if batch.is_empty() {
                return true;
            }
            let released = self.store.release_channels(&batch).await;
            let failed = released.as_ref().err().map(ToString::to_string);
            // While the store cannot say who holds a channel now, its old holder is the last that is known of. The order of
            // leases keeps a newer one's word above this.
            let released = released.unwrap_or_else(|_| vec![true; batch.len()]);
            let now = self.now();
            for ((server, lease), _) in batch.iter().zip(released).filter(|(_, released)| *released) {
                self.live.server_offline(*server, *lease, now);
                self.live.publish(Hint::StatusDirty(server.0));
            }
            if let Some(error) = failed {
                tracing::warn!(
                    error,
                    channels = batch.len(),
                    "channels could not be given back; it is tried again"
                );
                self.leaver.with(|left| left.extend(batch));
                return false;
            }
        }
    }
}
