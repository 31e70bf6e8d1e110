//! Detection: facts come in from the conversations, detectors look at them, and what they find is recorded and answered.
//!
//! Whoever sees a fact hands it over and goes on: [`Detect::note`] never waits. One task of each replica takes facts in, each
//! with one small transaction per detector, so that the cost follows what happens and not how much there is. Wrong secrets,
//! of which there may be many, are counted first and taken in once a second.

mod blocks;
mod facts;
mod failures;
mod run;
mod services;
mod tasks;
#[cfg(test)]
mod tests;

pub use blocks::Blocks;
pub use facts::{Arrived, Attached, Fact, Who};
pub use failures::Door;
pub use run::{DetectOptions, run};
pub use services::{Observed, Services, watch_services};
pub use tasks::{Schedule, keep_schedule};

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use horizon_controller_core::payload::Hit;
use tokio::sync::mpsc;
use uuid::Uuid;

use failures::Failures;

/// How many facts wait; what comes when so many do is let go, and counted.
const MOST_WAITING: usize = 4096;

/// Where facts are handed over. A clone is the same; the default one drops them.
#[derive(Clone, Default)]
pub struct Detect(Option<Arc<Inner>>);

struct Inner {
    facts: mpsc::Sender<Fact>,
    failures: Mutex<Failures>,
}

/// The facts that were handed over, for [`run`].
pub struct Facts {
    queue: mpsc::Receiver<Fact>,
    inner: Arc<Inner>,
}

impl Detect {
    /// A place to hand facts over, and what takes them in.
    pub fn new() -> (Self, Facts) {
        let (facts, queue) = mpsc::channel(MOST_WAITING);
        let inner = Arc::new(Inner { facts, failures: Mutex::default() });
        (Self(Some(inner.clone())), Facts { queue, inner })
    }

    /// Hands a fact over. When too many wait it is let go: what happens often is seen in what remains.
    pub fn note(&self, fact: Fact) {
        let Some(inner) = &self.0 else { return };
        if inner.facts.try_send(fact).is_err() {
            tracing::debug!("a fact was let go: too many wait to be looked at");
        }
    }

    /// Counts a wrong secret, or a try of an address that is locked out.
    pub fn wrong_secret(&self, from: IpAddr) {
        let Some(inner) = &self.0 else { return };
        // Each change is one step, so the counts are whole whatever thread panics.
        inner.failures.lock().unwrap_or_else(PoisonError::into_inner).at(from);
    }

    /// Counts a body or a text that the payload rules refused.
    pub fn refused_payload(&self, from: IpAddr, door: Door, hit: Hit) {
        let Some(inner) = &self.0 else { return };
        inner.failures.lock().unwrap_or_else(PoisonError::into_inner).payload(from, door, hit);
    }

    /// Counts a wrong secret of a key.
    pub fn wrong_key(&self, from: IpAddr, key: Uuid) {
        let Some(inner) = &self.0 else { return };
        inner.failures.lock().unwrap_or_else(PoisonError::into_inner).of(key, from);
    }
}
