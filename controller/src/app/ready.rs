//! Whether the database answers, for readiness.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, timeout};

use crate::{metrics::Probe, store::Store};

/// How long one question may take.
const ASK: Duration = Duration::from_secs(2);
/// For how long a database that others share may be away before this replica counts as not ready: it may be about to
/// move, and every replica would be gone from the balancer at once.
const AWAY: Duration = Duration::from_secs(5);

/// Watches whether the database answers. A clone is the same.
#[derive(Clone)]
pub struct DatabaseWatch {
    store: Store,
    patience: Duration,
    answered: Arc<Mutex<Instant>>,
}

impl DatabaseWatch {
    /// Of a database that answered just now.
    pub(super) fn new(store: Store, shared: bool) -> Self {
        let patience = if shared { AWAY } else { Duration::ZERO };
        Self { store, patience, answered: Arc::new(Mutex::new(Instant::now())) }
    }

    /// Whether the database answers now; an error says why not.
    ///
    /// # Errors
    /// Why it does not, in a sentence.
    pub async fn ask(&self) -> Result<(), String> {
        match timeout(ASK, self.store.ping()).await {
            Ok(Ok(())) => {
                *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                Ok(())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("the database did not answer within {} s", ASK.as_secs())),
        }
    }

    /// Asks, for readiness: a database that is away for a moment does not count; who is about to end is not ready.
    pub(super) fn probe(&self, draining: Arc<AtomicBool>) -> Probe {
        let watch = self.clone();
        Arc::new(move || {
            let (watch, draining) = (watch.clone(), draining.load(Ordering::Acquire));
            Box::pin(async move {
                if draining {
                    return Err("the controller is about to end".to_owned());
                }
                let Err(why) = watch.ask().await else { return Ok(()) };
                let answered = *watch.answered.lock().unwrap_or_else(PoisonError::into_inner);
                if answered.elapsed() < watch.patience { Ok(()) } else { Err(why) }
            })
        })
    }
}
