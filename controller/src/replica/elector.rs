//! Who keeps the lease of leadership: each keeper is asked one thing at a time; when it is asked is decided in
//! [`super::election`].

use std::time::Duration;

use futures_util::future::BoxFuture;
use thiserror::Error;

use crate::store::LeaderEpoch;

/// Keeps the lease of leadership somewhere that every replica sees.
pub trait Elector: Send + 'static {
    /// Takes the lease for this replica, or renews it. The lease counts from the moment before the call, so the answer is
    /// [`Attempt::Held`] only when it is held for its whole duration from then on.
    fn attempt(&mut self) -> BoxFuture<'_, Result<Attempt, ElectError>>;

    /// Gives the lease up before it ends, so that another replica need not wait. Not to hold it is no error.
    fn release(&mut self) -> BoxFuture<'_, Result<(), ElectError>>;

    /// For how long the lease is held without renewing; `None` for good.
    fn duration(&self) -> Option<Duration>;
}

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// This replica holds the lease; with the fencing epoch when the keeper of the lease is the database, which raises it
    /// in the same breath.
    Held(Option<LeaderEpoch>),
    /// Another replica holds it.
    Other {
        /// Its name, when that is known.
        name: Option<String>,
    },
}

/// Why the keeper of the lease gave no answer.
#[derive(Debug, Error)]
#[error(transparent)]
pub struct ElectError(Box<dyn std::error::Error + Send + Sync>);

impl ElectError {
    /// For this reason.
    pub fn new(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(why.into())
    }
}

/// The lease of a controller that has its database for itself: the lock on its data directory keeps others out.
#[derive(Debug)]
pub struct Alone;

impl Elector for Alone {
    fn attempt(&mut self) -> BoxFuture<'_, Result<Attempt, ElectError>> {
        Box::pin(async { Ok(Attempt::Held(None)) })
    }

    fn release(&mut self) -> BoxFuture<'_, Result<(), ElectError>> {
        Box::pin(async { Ok(()) })
    }

    fn duration(&self) -> Option<Duration> {
        None
    }
}
