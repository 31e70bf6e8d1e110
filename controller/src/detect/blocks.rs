//! The blocked addresses, as every replica knows them.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use horizon_controller_core::detect::blocks::BlockSet;
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::store::{Store, StoreError};

/// The most ranges whose hits are counted between two writes.
const MOST_COUNTED: usize = 10_000;

/// The blocked addresses. A clone is the same; the default one blocks nothing.
#[derive(Clone, Default)]
pub struct Blocks(Arc<Inner>);

#[derive(Default)]
struct Inner {
    set: watch::Sender<Arc<BlockSet>>,
    hits: Mutex<HashMap<IpNet, u64>>,
}

impl Blocks {
    /// Whether an address is blocked. Counts that it was turned away.
    pub fn refuse(&self, address: IpAddr, now: Timestamp) -> bool {
        let Some(range) = self.0.set.borrow().find(address, now) else { return false };
        // Each change is one step, so the counts are whole whatever thread panics.
        let mut hits = self.0.hits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = hits.get_mut(&range) {
            *count += 1;
        } else if hits.len() < MOST_COUNTED {
            hits.insert(range, 1);
        }
        true
    }

    /// Waits until an address is blocked. Cancel safe.
    pub async fn blocked(&self, address: IpAddr) {
        let mut set = self.0.set.subscribe();
        let inside = |set: &Arc<BlockSet>| set.find(address, Timestamp::now()).is_some();
        // The sender lives as long as this.
        let _ = set.wait_for(inside).await;
    }

    /// How many ranges are blocked.
    pub fn count(&self) -> usize {
        self.0.set.borrow().len()
    }

    /// Reads what is blocked.
    pub(super) async fn load(&self, store: &Store, now: Timestamp) -> Result<(), StoreError> {
        let set = Arc::new(BlockSet::new(store.blocks_in_force(now).await?));
        self.0.set.send_if_modified(|before| {
            let changed = **before != *set;
            if changed {
                *before = set;
            }
            changed
        });
        Ok(())
    }

    /// Writes down how often ranges turned somebody away.
    pub(super) async fn write_hits(&self, store: &Store) -> Result<(), StoreError> {
        let hits: Vec<_> = self.0.hits.lock().unwrap_or_else(PoisonError::into_inner).drain().collect();
        if hits.is_empty() { Ok(()) } else { store.note_block_hits(&hits).await }
    }
}
