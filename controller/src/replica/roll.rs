//! The roll of replicas: each says every so often that it lives, and learns which others do.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{
    metrics::Metrics,
    stop::Stop,
    store::{ReplicaId, ReplicaInfo, ReplicaRow, Store, StoreError},
};

/// How often a replica says that it lives.
const BEAT: Duration = Duration::from_secs(1);
/// How long one try may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// The roll as this replica knows it. A clone is the same.
#[derive(Clone)]
pub struct Roll(Arc<Inner>);

struct Inner {
    store: Store,
    replica: ReplicaId,
    info: Mutex<ReplicaInfo>,
    rows: watch::Sender<Vec<ReplicaRow>>,
    /// When the database answered last.
    answered: Mutex<Instant>,
    metrics: Metrics,
}

impl std::fmt::Debug for Roll {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Roll")
    }
}

impl Roll {
    /// Enters this replica.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn enter(
        store: Store,
        replica: ReplicaId,
        info: ReplicaInfo,
        metrics: Metrics,
    ) -> Result<Self, StoreError> {
        store.replica_beat(replica, &info).await?;
        let rows = store.replicas().await?;
        let inner = Inner {
            store,
            replica,
            info: Mutex::new(info),
            rows: watch::Sender::new(rows),
            answered: Mutex::new(Instant::now()),
            metrics,
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Says that this replica lives until it is to stop, and looks who else does.
    pub async fn run(self, mut stop: Stop) {
        let mut ticks = interval(BEAT);
        // What goes on for a while is said once.
        let mut failing = false;
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.requested() => return,
                _ = ticks.tick() => {}
            }
            match timeout(PATIENCE, self.beat()).await {
                Ok(Ok(())) => failing = false,
                Ok(Err(error)) if !failing => {
                    failing = true;
                    tracing::warn!(%error, "the roll of replicas cannot be written; trying again");
                }
                Err(_) if !failing => {
                    failing = true;
                    tracing::warn!("the roll of replicas cannot be written in time; trying again");
                }
                _ => {}
            }
            self.0.metrics.database_up.set(i64::from(self.away_for() < PATIENCE));
        }
    }

    async fn beat(&self) -> Result<(), StoreError> {
        let info = lock(&self.0.info).clone();
        self.0.store.replica_beat(self.0.replica, &info).await?;
        let rows = self.0.store.replicas().await?;
        *lock(&self.0.answered) = Instant::now();
        let living = rows.iter().filter(|row| row.alive()).count();
        self.0.metrics.replicas.set(i64::try_from(living).unwrap_or(i64::MAX));
        self.0.rows.send_replace(rows);
        Ok(())
    }

    /// Says that this replica is about to go, so that nobody is sent to it.
    pub async fn drain(&self) {
        lock(&self.0.info).draining = true;
        match timeout(PATIENCE, self.beat()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "other replicas could not be told that this one goes"),
            Err(_) => tracing::warn!("other replicas could not be told in time that this one goes"),
        }
    }

    /// Leaves the roll.
    pub async fn leave(&self) {
        match timeout(PATIENCE, self.0.store.remove_replica(self.0.replica)).await {
            Ok(Ok(())) => {}
            // It counts as gone after a while.
            Ok(Err(error)) => tracing::debug!(%error, "this replica could not leave the roll"),
            Err(_) => tracing::debug!("this replica could not leave the roll in time"),
        }
    }

    /// The replicas, as the database knew them last.
    pub fn replicas(&self) -> Vec<ReplicaRow> {
        self.0.rows.borrow().clone()
    }

    /// Where the others are that live and stay.
    pub fn elsewhere(&self) -> Vec<String> {
        let rows = self.0.rows.borrow();
        let stays = |row: &&ReplicaRow| row.replica != self.0.replica && !row.info.draining && row.alive();
        rows.iter().filter(stays).flat_map(|row| row.info.addresses.iter().cloned()).collect()
    }

    /// For how long the database has not answered.
    pub fn away_for(&self) -> Duration {
        lock(&self.0.answered).elapsed()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What it holds is replaced as a whole, so it is right whatever thread panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
