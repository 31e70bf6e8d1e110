//! The lease of leadership in the database.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::elector::{Attempt, ElectError, Elector};
use crate::store::{LeaseOutcome, ReplicaId, Store};

/// The lease as a row of the database, by the database's clock.
#[derive(Debug)]
pub struct DatabaseLease {
    store: Store,
    replica: ReplicaId,
    name: String,
    duration: Duration,
}

impl DatabaseLease {
    /// The lease of the controllers on this database.
    pub fn new(store: Store, replica: ReplicaId, name: impl Into<String>, duration: Duration) -> Self {
        Self { store, replica, name: name.into(), duration }
    }
}

impl Elector for DatabaseLease {
    fn attempt(&mut self) -> BoxFuture<'_, Result<Attempt, ElectError>> {
        Box::pin(async {
            let outcome = self.store.try_lease(self.replica, &self.name, self.duration).await;
            Ok(match outcome.map_err(ElectError::new)? {
                LeaseOutcome::Held(epoch) => Attempt::Held(Some(epoch)),
                LeaseOutcome::Other { name, .. } => Attempt::Other { name: Some(name) },
            })
        })
    }

    fn release(&mut self) -> BoxFuture<'_, Result<(), ElectError>> {
        Box::pin(async { self.store.release_lease(self.replica).await.map_err(ElectError::new) })
    }

    fn duration(&self) -> Option<Duration> {
        Some(self.duration)
    }
}
