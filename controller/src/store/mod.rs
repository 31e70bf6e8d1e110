//! The database: resources and their statuses, servers and their identities, keys, devices, sessions, heartbeats, events
//! and the audit trail. Every change is one transaction, with its audit row in it; what an operation acknowledges has
//! reached the disk. One connection writes, several read.

mod address;
mod audit;
mod challenge;
mod device;
mod dialect;
mod document;
mod effects;
mod event;
mod facts;
mod heartbeat;
mod identity;
mod migrate;
mod personal;
mod registration;
mod resources;
mod revocation;
mod row;
mod seal;
mod session;
mod session_rows;
mod settings;
mod state;
mod status;
#[cfg(test)]
pub(crate) mod tests;

pub use audit::{Actor, AuditEntry};
pub use challenge::ChallengeId;
pub use device::{DeviceRecord, DeviceView, EnrolError, Enrolled, KeyStanding};
pub use event::{EventFilter, NewEvent, SecurityEvent, Severity, Source};
pub use facts::ServerRecord;
pub use heartbeat::{Beat, BeatHistory, Heartbeats, RETENTION as BEAT_RETENTION};
pub use identity::{IdentityChanges, IdentityOutcome, SIGNIFICANT_PERCENT};
pub use personal::PersonalSecret;
pub use registration::{IssueError, RegisterError, RegisterRequest, RegisteredServer};
pub use resources::{Assigned, Change, CommitError, Committed};
pub(crate) use seal::random;
pub use seal::{EnvelopeKey, SealError};
pub use session::{EndReason, Ended, EndedBy, NewSession, SessionError, SessionOutcome, SessionStatus};
pub use session_rows::{SessionRow, SessionView, Usage};
pub use state::{AppliedState, StateNumber};

use std::{path::Path, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::sync::Semaphore;

use crate::metrics::Metrics;
use seal::Sealer;

/// How many Argon2id computations run at once; each takes 19 MiB and about 10 ms.
const HASHING_PERMITS: usize = 2;
/// How long closing waits for connections to come back.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// Why the database did not do what it was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The engine refused or failed.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// A stored value cannot be read.
    #[error("the database holds a value in column '{column}' that cannot be read: {why}; restore a backup")]
    Corrupt {
        /// Where.
        column: &'static str,
        /// Why.
        why: String,
    },
    /// A sealed value cannot be opened.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The schema is newer than this program.
    #[error(
        "the database has schema version {found}, this program knows up to {newest}: use a newer program"
    )]
    NewerSchema {
        /// What was found.
        found: i64,
        /// What this program knows.
        newest: i64,
    },
    /// A migration that was applied is not the one this program has.
    #[error(
        "schema version {0} of the database is not the one of this program: use the program that made it"
    )]
    OtherSchema(i64),
    /// Another appliance was registered for the server.
    #[error("another appliance was registered for the server")]
    Replaced,
    /// The store is being closed.
    #[error("the database is being closed")]
    Closed,
}

/// The database. A clone is another handle on the same one.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    writer: dialect::Pool,
    readers: dialect::Pool,
    sealer: Sealer,
    hashing: Semaphore,
    metrics: Metrics,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// Opens or makes the database file and brings its schema up to date. `envelope` opens what is sealed in it.
    pub async fn open(path: &Path, envelope: &EnvelopeKey, metrics: Metrics) -> Result<Self, StoreError> {
        let (writer, readers) = dialect::open(path).await?;
        let hashing = Semaphore::new(HASHING_PERMITS);
        let inner = Inner { writer, readers, sealer: Sealer::new(envelope), hashing, metrics };
        let store = Self { inner: Arc::new(inner) };
        let mut tx = store.begin().await?;
        migrate::run(&mut tx, jiff::Timestamp::now()).await?;
        settings::bind_envelope(&mut tx, &store.inner.sealer).await?;
        tx.commit().await?;
        Ok(store)
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.inner.readers).await?;
        Ok(())
    }

    /// Waits for running operations and closes the files. Later operations fail.
    pub async fn close(&self) {
        let closing = async {
            self.inner.readers.close().await;
            self.inner.writer.close().await;
        };
        if tokio::time::timeout(CLOSE_PATIENCE, closing).await.is_err() {
            tracing::warn!("the database was still busy when it was closed");
        }
    }

    /// A writing transaction. Dropped without a commit it changes nothing.
    async fn begin(&self) -> Result<dialect::Transaction, StoreError> {
        Ok(self.inner.writer.begin_with(dialect::BEGIN_WRITE).await?)
    }

    fn readers(&self) -> &dialect::Pool {
        &self.inner.readers
    }

    fn sealer(&self) -> &Sealer {
        &self.inner.sealer
    }

    /// Measures an operation from now until the guard is dropped.
    fn timed(&self, operation: &'static str) -> Timed<'_> {
        Timed { metrics: &self.inner.metrics, operation, since: std::time::Instant::now() }
    }
}

struct Timed<'a> {
    metrics: &'a Metrics,
    operation: &'static str,
    since: std::time::Instant,
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.metrics.store_operation(self.operation, self.since.elapsed());
    }
}
