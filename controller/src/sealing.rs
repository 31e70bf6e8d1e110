//! Seals the audit trail into its chain while this replica leads, and signs how far it is.

use std::time::Duration;

use horizon_wire::{Message as _, audit, proto};
use jiff::{SignedDuration, Timestamp};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    keys::KeyRing,
    replica::Leadership,
    stop::Stop,
    store::{LeaderEpoch, Store, StoreError},
};

/// How often rows are sealed.
const LOOK: Duration = Duration::from_secs(2);
/// The least time between two checkpoints.
const CHECKPOINT: SignedDuration = SignedDuration::from_secs(60);

/// What seals.
pub struct Sealing {
    /// The database.
    pub store: Store,
    /// The keys that sign checkpoints.
    pub keys: KeyRing,
    /// Whether this replica leads.
    pub leadership: Leadership,
}

impl Sealing {
    /// Works until it is to stop.
    pub async fn run(self, mut stop: Stop) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.requested() => return,
            }
            let Some(epoch) = self.leadership.leads() else { continue };
            match self.seal(epoch, Timestamp::now()).await {
                Ok(()) => {}
                Err(StoreError::Fenced) => tracing::debug!("another replica leads and seals the audit trail"),
                Err(error) => {
                    tracing::warn!(%error, "the audit trail could not be sealed; it is tried again")
                }
            }
        }
    }

    /// Seals what there is, and signs a checkpoint when it is time.
    ///
    /// # Errors
    /// When the database failed, or another replica leads.
    pub async fn seal(&self, epoch: LeaderEpoch, now: Timestamp) -> Result<(), StoreError> {
        if self.store.audit_waits().await? {
            self.store.seal_audit(Some(epoch), now).await?;
        }
        let head = self.store.audit_head().await?;
        let keys = self.keys.now();
        let newest = self.store.newest_checkpoint().await?;
        let is_due = match &newest {
            None => head.link > 0,
            Some((link, envelope)) => {
                let made = proto::AuditCheckpoint::decode(&envelope.payload[..]).map_or(0, |said| said.time);
                let age = now.duration_since(Timestamp::from_millisecond(made).unwrap_or_default());
                // Appliances take none that a key of the past signed.
                let other_key = envelope.key != keys.state.public().0;
                head.link > *link && (age >= CHECKPOINT || other_key)
            }
        };
        if !is_due {
            return Ok(());
        }
        let content = proto::AuditCheckpoint {
            link: head.link,
            digest: head.digest.to_vec(),
            last_row: head.last_row,
            rows: head.rows,
            time: now.as_millisecond(),
        };
        self.store
            .put_checkpoint(head.link, &audit::checkpoint(&keys.state, &content), Some(epoch), now)
            .await
    }
}
