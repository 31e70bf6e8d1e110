//! The database: resources and their statuses, servers and their identities, keys, devices, sessions, heartbeats, events
//! and the audit trail. Every change is one transaction, with its audit row in it; what an operation acknowledges has
//! reached the disk. One connection writes, several read.

mod address;
mod admin;
mod admin_end;
mod admin_idempotency;
mod admin_key;
mod admin_login;
mod admin_role;
mod admin_session;
mod adoption;
mod again;
mod anomaly;
mod approval;
mod attach;
mod audit;
mod audit_chain;
mod audit_verify;
mod block;
mod challenge;
mod changed;
mod channels;
mod client_report;
mod copy;
mod device;
mod device_decision;
mod device_machine;
mod dialect;
mod document;
mod effects;
mod event;
mod expiry;
mod factors;
mod facts;
mod flag;
mod forget;
mod handover;
mod hashing;
mod heartbeat;
mod identity;
mod ids;
mod keyset;
mod leadership;
mod look;
mod maintain;
mod migrate;
mod note;
mod notification;
mod notify;
mod pages;
mod personal;
mod registration;
mod reissue;
mod renewal;
mod replicas;
mod resources;
mod revocation;
mod rotation;
mod rotation_delivery;
mod rotation_history;
mod rotation_runs;
mod rotation_versions;
mod row;
mod seal;
mod seal_keys;
mod seal_rotation;
mod seal_rows;
mod service;
mod session;
mod session_rows;
mod settings;
mod state;
mod status;
mod task;
#[cfg(test)]
pub(crate) mod tests;
mod traffic;
mod usage;
mod user_settings;

pub use admin::{AdminChange, AdminError, AdminId, AdminView, NewAdmin, OneTimePassword, WhichAdmin};
pub use admin_idempotency::{IdempotentRequest, Repeated};
pub use admin_key::TokenKey;
pub use admin_login::{Credentials, LoginError, OwnError, RecoveryDigests};
pub use admin_role::RoleView;
pub use admin_session::{
    AdminSessionId, AdminSessionPlace, AdminSessionView, Begun, Caller, Duty, LogoutReason, SessionRefused,
    SignedIn,
};
pub use anomaly::{Anomaly, Look, Noted, Subject, SubjectKind};
pub use attach::{AttachedServer, Attachment};
pub use audit::{Actor, AuditEntry, RemoteAdmin};
pub use audit_chain::ChainHead;
pub use audit_verify::{AuditReport, Finding, verify_audit};
pub use block::{Block, BlockSeverity, BlockSource, NewBlock};
pub use challenge::{Answered, ChallengeId, ChallengeRecord, ChallengeType};
pub use channels::{ChannelHolder, PresenceRow};
pub use client_report::ClientReport;
pub use copy::{Cell, CellKind, Column, LoadError, Loading, Renewal, Renewed, Shape, Snapshot};
pub use device::{DeviceRecord, DeviceView, EnrolError, Enrolled, KeyStanding};
pub use dialect::{Database, InvalidUrl, PostgresOptions};
pub use event::{EventFilter, NewEvent, SecurityEvent, Severity, Source};
pub use expiry::KeyNewsFacts;
pub use factors::FactorRecord;
pub use facts::ServerRecord;
pub use flag::Flag;
pub use handover::{Claim, ClaimError, HandoverError, NewHandover};
pub use heartbeat::{
    Beat, BeatHistory, BeatOutcome, HeartbeatOptions, Heartbeats, RETENTION as BEAT_RETENTION,
};
pub use identity::{IdentityOutcome, Observation, is_own};
pub use ids::{ChannelLease, Cursor, LeaderEpoch, ReplicaId, Revision};
pub use keyset::{FreshKey, KeySetHolders, KeySetRotation, NewKeySet, NewKeySetRotation, StoredKeySet};
pub use leadership::LeaseOutcome;
pub use maintain::{Maintained, Retention};
pub use migrate::MigrationReport;
pub use notification::{Channel, Delivery, DeliveryCounts, NewNotification, Notification, Urgency, Way};
pub use notify::MAX_NOTICE;
pub use pages::{AuditFilter, DevicePage, EventPage, SessionPage};
pub use personal::PersonalSecret;
pub use registration::{IssueError, RegisterError, RegisterRequest, RegisteredServer};
pub use reissue::{SecretRotation, SecretsRotated};
pub use replicas::{Declaration, REPLICA_SILENT, ReplicaInfo, ReplicaRow};
pub use resources::{Assigned, Change, CommitError, Committed, Guard, ResourceNews};
pub use rotation::{Begun as BegunRotation, Confirmed, RotateError, Scheduled};
pub use rotation_delivery::KeyDates;
pub use rotation_history::{Rotated, RotationView};
pub use rotation_runs::{PolicyFigures, Run, RunProgress};
pub(crate) use seal::random;
pub use seal::{EnvelopeKey, SealError};
pub use seal_rotation::{
    ENVELOPE_CLASS, EnvelopePhase, EnvelopeRotation, EnvelopeState, NewEnvelopeRotation,
};
pub use seal_rows::{ResealCursor, Resealed};
pub use service::{Report, Service, ServiceNote, ServiceState, Summary};
pub use session::{EndReason, Ended, EndedBy, NewSession, SessionError, SessionOutcome, SessionStatus};
pub use session_rows::{SessionRow, SessionView};
pub use state::{AppliedState, StateNumber, StateNumbering};
pub use task::{Task, TaskSpec};
pub use traffic::{Moved, SessionLength};
pub use usage::{SessionMinute, SessionsApplied, Usage};
pub use user_settings::{SettingsDevice, SettingsView, WrappedKey};

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use thiserror::Error;

use crate::{
    keys::{Envelope, EnvelopeError},
    metrics::Metrics,
};
use dialect::query;
use hashing::Line;
use seal::Sealer;

/// How many Argon2id computations run at once; each takes 19 MiB and about 10 ms.
const HASHING_PERMITS: usize = 2;
/// How many wait for that: about a second's work of one core. More are sent away.
const HASHING_WAITING: usize = 100;
/// The same for passwords of administrators.
const PASSWORD_PERMITS: usize = 1;
/// How many more wait for that.
const PASSWORDS_WAITING: usize = 32;
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
    /// A data key cannot be wrapped or unwrapped.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The data keys are wrapped under another envelope key.
    #[error(
        "the data keys of the database are not wrapped under the envelope key {held}, which is what this controller has: the \
         envelope key was replaced since, or this is that of another database; take it from another replica, or restore keys and \
         database of the same time"
    )]
    OtherEnvelope {
        /// The id of what this controller has.
        held: String,
    },
    /// A database of before there were data keys, and no envelope key that is a file's.
    #[error(
        "the database is sealed under an envelope key of a file: start with that first, then run \
         `horizon-controller envelope rewrap`"
    )]
    FirstEnvelope,
    /// The envelope key is being replaced.
    #[error("the envelope key is being replaced by {0}: wait until every replica uses that")]
    EnvelopeChanges(String),
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
    /// The schema is older than this program, which may not change it itself.
    #[error(
        "the database has schema version {found}, this program needs {wanted}: run `horizon-controller migrate`"
    )]
    OldSchema {
        /// What was found; 0 when there is none.
        found: i64,
        /// What this program needs.
        wanted: i64,
    },
    /// The connection broke while a change was committed.
    #[error(
        "the connection to the database broke during a commit, so it is not known whether the change was made: {0}"
    )]
    Unknown(#[source] sqlx::Error),
    /// The database has another KeySet of a version than the keys.
    #[error(
        "KeySet {0} of the database is not the one of the keys: one of them was restored from an older backup and went \
         another way since; restore both of the same time"
    )]
    OtherKeySet(u64),
    /// Another replica leads since.
    #[error("another replica leads since: this one changes nothing any more")]
    Fenced,
    /// Another replica has the appliance's channel since, or nobody.
    #[error("another replica has the appliance's channel since")]
    LostChannel,
    /// Another appliance was registered for the server.
    #[error("another appliance was registered for the server")]
    Replaced,
    /// The store is being closed.
    #[error("the database is being closed")]
    Closed,
    /// Too many secrets wait to be looked at.
    #[error("too many secrets wait to be looked at: try again")]
    Busy,
}

/// The database. A clone is another handle on the same one.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    writer: dialect::Pool,
    readers: dialect::Pool,
    sealer: RwLock<Arc<Sealer>>,
    envelope: RwLock<Envelope>,
    hashing: Line,
    /// Apart from the above: whoever floods one with work does not keep the other from its own.
    passwords: Line,
    metrics: Metrics,
    watched: Mutex<Option<leadership::Watched>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// Opens a database. `envelope` opens what is sealed in it. A file of SQLite is made if need be, and its schema brought
    /// up to date; the schema of Postgres is [`Store::migrate`]'s, and must be the one this program knows or a newer one
    /// that works with it.
    pub async fn open(
        database: impl Into<Database>,
        envelope: impl Into<Envelope>,
        metrics: Metrics,
    ) -> Result<Self, StoreError> {
        let envelope = envelope.into();
        // What is wrong with hardware is said before what its key does not open.
        envelope.check().await?;
        let (writer, readers) = dialect::open(&database.into()).await?;
        let mut tx = writer.begin().await?;
        match tx.engine() {
            dialect::Engine::Sqlite => {
                migrate::run(&mut tx, &migrate::MIGRATIONS, jiff::Timestamp::now()).await?;
            }
            dialect::Engine::Postgres => migrate::verify(&mut tx, &migrate::MIGRATIONS).await?,
        }
        let sealer = seal_keys::bind(&mut tx, &envelope).await?;
        tx.commit().await?;
        let inner = Inner {
            writer,
            readers,
            sealer: RwLock::new(Arc::new(sealer)),
            envelope: RwLock::new(envelope),
            hashing: Line::new(HASHING_PERMITS, HASHING_WAITING),
            passwords: Line::new(PASSWORD_PERMITS, PASSWORDS_WAITING),
            metrics,
            watched: Mutex::new(None),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Brings the schema of a database up to date, in one transaction: if it fails, everything is as it was, and programs
    /// that run go on. On Postgres the user must own the tables, or may make them; what a running controller may do is
    /// granted to the role `horizon_run`, where that exists.
    pub async fn migrate(database: impl Into<Database>) -> Result<MigrationReport, StoreError> {
        let pool = dialect::open_for_migration(&database.into()).await?;
        let mut tx = pool.begin().await?;
        let applied = migrate::run(&mut tx, &migrate::MIGRATIONS, jiff::Timestamp::now()).await?;
        let missing_roles = migrate::grant(&mut tx).await?;
        tx.commit().await?;
        pool.close().await;
        let version = migrate::MIGRATIONS.last().map_or(0, |newest| newest.version);
        Ok(MigrationReport { applied, version, missing_roles })
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        query("SELECT 1").execute(self.readers()).await?;
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
        let since = std::time::Instant::now();
        let tx = self.inner.writer.begin().await?;
        let (open, idle) = self.inner.writer.connections();
        self.inner.metrics.store_connection(open, idle, since.elapsed());
        Ok(tx)
    }

    fn readers(&self) -> &dialect::Pool {
        &self.inner.readers
    }

    /// A stamp by which this controller, or another replica of it, knows again what it gave out.
    pub fn stamp(&self, text: &[u8]) -> [u8; 32] {
        self.sealer().stamp(text)
    }

    /// Whether a stamp is one of a text.
    pub fn is_stamp(&self, text: &[u8], stamp: &[u8]) -> bool {
        self.sealer().is_stamp(text, stamp)
    }

    /// What all replicas have in common and nobody else knows; what is in use first.
    pub fn shared_keys(&self) -> Vec<horizon_model::Secret> {
        self.sealer().shared().to_vec()
    }

    /// The envelope key that the data keys were opened with.
    pub fn envelope(&self) -> Envelope {
        // It is replaced as a whole, whatever thread panics.
        self.inner.envelope.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace_envelope(&self, envelope: Envelope) {
        *self.inner.envelope.write().unwrap_or_else(PoisonError::into_inner) = envelope;
    }

    fn sealer(&self) -> Arc<Sealer> {
        self.inner.sealer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn use_sealer(&self, sealer: Sealer) {
        *self.inner.sealer.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(sealer);
    }

    /// Counts an operation that is done again.
    fn retrying(&self, operation: &'static str) {
        self.inner.metrics.store_retry(operation);
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
