//! Postgres: one pool for everything.

use std::time::Duration;

use sqlx::{ConnectOptions as _, Connection as _, postgres::PgPoolOptions};

use super::{Pool, PostgresOptions};

/// Connections of one controller at the same time. Postgres has 100 by default: room for six replicas.
pub(in crate::store) const POOL: u32 = 14;
/// How long an operation waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection that nobody uses stays open.
const IDLE: Duration = Duration::from_secs(300);
/// How long after it was tested a connection is believed to work.
const FRESH: Duration = Duration::from_secs(1);
/// How long a connection is used at most, so that replicas spread over a database that moved.
const LIFETIME: Duration = Duration::from_secs(3600);
/// Statements that a connection keeps prepared.
const STATEMENTS: usize = 200;
/// What a connection of a running controller waits for at most. A transaction that stands still, as that of a frozen
/// process, gives its locks back before a new leader gives up on them.
const RUNNING: [(&str, &str); 4] = [
    ("statement_timeout", "30s"),
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "2s"),
    ("timezone", "UTC"),
];
/// The same for migrations, which may take long but wait for nobody for long.
const MIGRATING: [(&str, &str); 4] = [
    ("statement_timeout", "0"),
    ("lock_timeout", "10s"),
    ("idle_in_transaction_session_timeout", "60s"),
    ("timezone", "UTC"),
];

/// The same for copies, which read all there is and wait for the file they are written to.
const COPYING: [(&str, &str); 4] = [
    ("statement_timeout", "0"),
    ("lock_timeout", "10s"),
    ("idle_in_transaction_session_timeout", "10min"),
    ("timezone", "UTC"),
];

/// Opens a pool, and makes a first connection so that what is wrong shows.
pub(super) async fn open(options: &PostgresOptions) -> Result<Pool, sqlx::Error> {
    pool(options, "horizon-controller", &RUNNING, POOL).await
}

/// Opens a pool of one connection for migrations.
pub(super) async fn open_for_migration(options: &PostgresOptions) -> Result<Pool, sqlx::Error> {
    pool(options, "horizon-controller migrate", &MIGRATING, 1).await
}

/// Opens a pool of one connection for a copy.
pub(super) async fn open_for_copy(options: &PostgresOptions) -> Result<Pool, sqlx::Error> {
    pool(options, "horizon-controller backup", &COPYING, 1).await
}

async fn pool(
    options: &PostgresOptions,
    name: &str,
    settings: &[(&'static str, &'static str)],
    most: u32,
) -> Result<Pool, sqlx::Error> {
    let connect = options
        .connect()
        .application_name(name)
        .statement_cache_capacity(STATEMENTS)
        .options(settings.iter().copied())
        // Operations are measured; their texts are long, and nobody's to read.
        .disable_statement_logging();
    let pool = PgPoolOptions::new()
        .max_connections(most)
        .min_connections(0)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(IDLE)
        .max_lifetime(LIFETIME)
        // Each is tested when it is given back; again only when it has lain there since.
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move {
                if meta.idle_for >= FRESH {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_with(connect)
        .await?;
    Ok(Pool::Postgres(pool))
}
