//! Leadership: one row with an epoch that fences. Whoever takes it raises the epoch, and writes that name an older one
//! change nothing from then on, however late they come.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{
    LeaderEpoch, ReplicaId, Store, StoreError,
    dialect::{Connection, Row, query},
    row::{Columns as _, millis},
};

/// What a replica that tries to lead hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseOutcome {
    /// It leads, until the lease it asked for is over.
    Held(LeaderEpoch),
    /// Another does.
    Other {
        /// The other's name.
        name: String,
        /// Since when, by the database's clock.
        since: Timestamp,
    },
}

/// The last renewal that this process saw of somebody else's lease, and when it first saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watched {
    renewals: i64,
    epoch: i64,
    since: Instant,
}

impl Store {
    /// Takes the leadership: the epoch rises, and every older one is fenced once this returns. For whoever was elected
    /// elsewhere, as by a Lease of Kubernetes.
    pub async fn take_leadership(
        &self,
        replica: ReplicaId,
        name: &str,
        now: Timestamp,
    ) -> Result<LeaderEpoch, StoreError> {
        self.repeatable("take_leadership", || async {
            let mut tx = self.begin().await?;
            // What the leader before has begun ends first.
            query("SELECT epoch FROM leadership WHERE singleton = 1 {lock}").fetch_one(&mut *tx).await?;
            let row = query(
                "UPDATE leadership SET epoch = epoch + 1, replica_id = $1, replica_name = $2, since = $3, \
                 held_until = NULL, renewals = renewals + 1 WHERE singleton = 1 RETURNING epoch",
            )
            .bind(replica.to_string())
            .bind(name)
            .bind(millis(now))
            .fetch_one(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok(LeaderEpoch(row.int("epoch")?))
        })
        .await
    }

    /// Takes or renews the leadership as a lease of the database: whoever holds it keeps it by calling this again before
    /// `ttl` is over. Another takes it once it is over by the database's clock, or once it has seen no renewal for `ttl` by
    /// its own: a clock that was set back keeps nobody waiting for longer than that.
    pub async fn try_lease(
        &self,
        replica: ReplicaId,
        name: &str,
        ttl: Duration,
    ) -> Result<LeaseOutcome, StoreError> {
        let ttl_ms = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX / 2);
        let seen_at = Instant::now();
        // Neither renewing nor looking waits for what the leader writes meanwhile, which may take longer than a lease.
        if let Some(epoch) = self.renew(replica, ttl_ms).await? {
            return Ok(LeaseOutcome::Held(epoch));
        }
        let row = query("SELECT leadership.*, {now} AS clock FROM leadership WHERE singleton = 1")
            .fetch_one(self.readers())
            .await?;
        if row.maybe_text("replica_id")?.is_some() && !self.is_over(&row, row.int("clock")?, ttl, seen_at)? {
            return other(&row);
        }
        let mut tx = self.begin().await?;
        let row = query("SELECT leadership.*, {now} AS clock FROM leadership WHERE singleton = 1 {lock}")
            .fetch_one(&mut *tx)
            .await?;
        let clock = row.int("clock")?;
        let own = row.maybe_text("replica_id")? == Some(replica.to_string());
        let free =
            own || row.maybe_text("replica_id")?.is_none() || self.is_over(&row, clock, ttl, seen_at)?;
        if !free {
            return other(&row);
        }
        // A holder that comes late finds its epoch as it was, if nobody took it meanwhile.
        let epoch = row.int("epoch")? + i64::from(!own);
        query(
            "UPDATE leadership SET epoch = $1, replica_id = $2, replica_name = $3, since = $4, held_until = $5, \
             renewals = renewals + 1 WHERE singleton = 1",
        )
        .bind(epoch)
        .bind(replica.to_string())
        .bind(name)
        .bind(if own { row.maybe_int("since")?.unwrap_or(clock) } else { clock })
        .bind(clock.saturating_add(ttl_ms))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(LeaseOutcome::Held(LeaderEpoch(epoch)))
    }

    /// Renews the lease of a replica that holds it; `None` for any other.
    async fn renew(&self, replica: ReplicaId, ttl_ms: i64) -> Result<Option<LeaderEpoch>, StoreError> {
        let mut tx = self.begin().await?;
        let row = query(
            "UPDATE leadership SET held_until = {now} + $1, renewals = renewals + 1 \
             WHERE singleton = 1 AND replica_id = $2 RETURNING epoch",
        )
        .bind(ttl_ms)
        .bind(replica.to_string())
        .fetch_optional(&mut *tx)
        .await?;
        tx.commit().await?;
        row.map(|row| Ok(LeaderEpoch(row.int("epoch")?))).transpose()
    }

    /// Whether somebody else's lease is over.
    fn is_over(&self, row: &Row, clock: i64, ttl: Duration, now: Instant) -> Result<bool, StoreError> {
        let (renewals, epoch) = (row.int("renewals")?, row.int("epoch")?);
        let mut watched = self.inner.watched.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let unmoved = match *watched {
            Some(last) if (last.renewals, last.epoch) == (renewals, epoch) => {
                now.saturating_duration_since(last.since) >= ttl
            }
            _ => {
                *watched = Some(Watched { renewals, epoch, since: now });
                false
            }
        };
        // Without an end it was given by an election elsewhere, which alone says when it is over.
        let Some(until) = row.maybe_int("held_until")? else { return Ok(false) };
        Ok(unmoved || until <= clock)
    }

    /// Gives the leadership back, if it is still the replica's: another takes it at once.
    pub async fn release_lease(&self, replica: ReplicaId) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        query(
            "UPDATE leadership SET epoch = epoch + 1, replica_id = NULL, replica_name = NULL, held_until = NULL \
             WHERE singleton = 1 AND replica_id = $1",
        )
        .bind(replica.to_string())
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }
}

fn other(row: &Row) -> Result<LeaseOutcome, StoreError> {
    Ok(LeaseOutcome::Other {
        name: row.maybe_text("replica_name")?.unwrap_or_default(),
        since: row.maybe_time("since")?.unwrap_or_default(),
    })
}

/// Whether an epoch is in force. It stays so until the caller's transaction ends.
pub(super) async fn leads(db: &mut Connection, epoch: LeaderEpoch) -> Result<bool, StoreError> {
    let row = query("SELECT epoch FROM leadership WHERE singleton = 1 {keep}").fetch_one(&mut *db).await?;
    Ok(row.int("epoch")? == epoch.0)
}
