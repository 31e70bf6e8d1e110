//! Doing an operation again: whole, a few times, after a pause that grows and is random, when the database could not do it
//! for a reason that passes: two transactions in each other's way, a connection that broke.

use std::time::Duration;

use super::{
    AdminError, ClaimError, CommitError, EnrolError, HandoverError, IssueError, LoginError, OwnError,
    RegisterError, RotateError, SessionError, SessionRefused, Store, StoreError, seal::random,
};

/// The most times an operation is tried.
const TRIES: u32 = 8;
/// The longest pause before the second try; each further one may be twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(8);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(700);

/// What may be hoped for after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hope {
    /// Nothing was changed, and the same may work now.
    Again,
    /// Nobody knows whether it was changed: the connection broke during the commit.
    Unknown,
    /// The same will fail again.
    None,
}

/// An error of an operation, as far as it is the database's.
pub(super) trait Fault {
    fn database(&self) -> Option<&StoreError>;
}

impl Fault for StoreError {
    fn database(&self) -> Option<&StoreError> {
        Some(self)
    }
}

macro_rules! faults {
    ($($error:ty),+) => {
        $(impl Fault for $error {
            fn database(&self) -> Option<&StoreError> {
                match self {
                    Self::Store(error) => Some(error),
                    _ => None,
                }
            }
        })+
    };
}

faults!(
    CommitError,
    EnrolError,
    IssueError,
    RegisterError,
    SessionError,
    AdminError,
    LoginError,
    OwnError,
    SessionRefused,
    RotateError,
    HandoverError,
    ClaimError
);

/// What may be hoped for after an error of sqlx.
fn hope(error: &StoreError) -> Hope {
    // Codes of Postgres (appendix A of its manual): serialisation failure, deadlock, lock not available, what a
    // server that stops or starts says, a transaction that idled for too long, a connection that is gone, and a row that
    // another inserted since this transaction looked for it.
    const PASSING: [&str; 10] =
        ["40001", "40P01", "55P03", "57P01", "57P02", "57P03", "25P03", "08006", "08003", "23505"];
    match error {
        StoreError::Unknown(_) => Hope::Unknown,
        StoreError::Database(sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed) => {
            Hope::Again
        }
        StoreError::Database(sqlx::Error::Database(error)) => match error.code() {
            Some(code) if PASSING.contains(&&*code) => Hope::Again,
            _ => Hope::None,
        },
        _ => Hope::None,
    }
}

/// Whether other data keys may help: a value does not open, or one was sealed under a key that is gone.
fn is_of_keys(error: &StoreError) -> bool {
    match error {
        StoreError::Seal(_) => true,
        StoreError::Database(sqlx::Error::Database(error)) => error.is_foreign_key_violation(),
        _ => false,
    }
}

impl Store {
    /// Runs an operation, which is one transaction, again as long as its changes surely were not made.
    pub(super) async fn retried<T, E, F, Fut>(&self, operation: &'static str, attempt: F) -> Result<T, E>
    where
        E: Fault,
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        self.run(operation, Hope::Again, attempt).await
    }

    /// The same for an operation that may be done twice: also when nobody knows whether it was done.
    pub(super) async fn repeatable<T, E, F, Fut>(&self, operation: &'static str, attempt: F) -> Result<T, E>
    where
        E: Fault,
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        self.run(operation, Hope::Unknown, attempt).await
    }

    async fn run<T, E, F, Fut>(&self, operation: &'static str, bold: Hope, attempt: F) -> Result<T, E>
    where
        E: Fault,
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let (mut tries, mut refreshed) = (1, false);
        loop {
            let result = attempt().await;
            let (hope, of_keys) = match result.as_ref().map_err(Fault::database) {
                Ok(_) => return result,
                Err(fault) => (fault.map_or(Hope::None, hope), fault.is_some_and(is_of_keys)),
            };
            if of_keys
                && !std::mem::replace(&mut refreshed, true)
                && self.refresh_data_keys().await.unwrap_or(false)
            {
                continue;
            }
            let again = hope == Hope::Again || hope == Hope::Unknown && bold == Hope::Unknown;
            if !again || tries >= TRIES {
                return result;
            }
            self.retrying(operation);
            tokio::time::sleep(pause(tries, u32::from_be_bytes(random()))).await;
            tries += 1;
        }
    }
}

/// How long to wait before the next try.
fn pause(tries: u32, random: u32) -> Duration {
    let most = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(tries - 1)).min(LONGEST_PAUSE);
    most.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound() {
        assert_eq!(pause(1, u32::MAX), FIRST_PAUSE);
        assert_eq!(pause(3, u32::MAX), FIRST_PAUSE * 4);
        assert_eq!(pause(60, u32::MAX), LONGEST_PAUSE);
        assert_eq!(pause(60, 0), Duration::ZERO);
    }

    #[test]
    fn only_what_passes_is_tried_again() {
        let broken = || sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        assert_eq!(hope(&StoreError::Database(broken())), Hope::Again);
        assert_eq!(hope(&StoreError::Unknown(broken())), Hope::Unknown);
        assert_eq!(hope(&StoreError::Database(sqlx::Error::PoolTimedOut)), Hope::None);
        assert_eq!(hope(&StoreError::Replaced), Hope::None);
    }
}
