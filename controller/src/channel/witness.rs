//! Appliances as witnesses of the audit trail: they are given its newest checkpoints, keep a few, and return them when they
//! attach. A chain that is another one than they saw was altered.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use horizon_crds::Name;
use horizon_model::ServerId;
use horizon_wire::{audit, proto};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Context;
use crate::store::{NewEvent, Severity, Source};

/// How often it is looked whether there is a newer checkpoint.
const LOOK: Duration = Duration::from_secs(5);
/// The most witnesses that are taken from an appliance.
const MAX_WITNESSES: usize = 16;
/// How often it is said at most that a witness saw another chain: thousands may have seen the same.
const SAY_AGAIN: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
struct Known {
    /// The newest, with the number of its link.
    newest: Option<(u64, proto::Envelope)>,
    /// When it was last said that a witness saw another chain.
    said: Option<Instant>,
}

/// What is known of checkpoints.
#[derive(Debug, Default)]
pub(super) struct Checkpoint(Mutex<Known>);

impl Checkpoint {
    fn lock(&self) -> MutexGuard<'_, Known> {
        // Each change is one step, so it is whole whatever thread panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest, if it is newer than what was given before.
    pub(super) fn after(&self, given: u64) -> Option<(u64, proto::Envelope)> {
        self.lock().newest.as_ref().filter(|(link, _)| *link > given).cloned()
    }

    fn is_newest(&self, envelope: &proto::Envelope) -> bool {
        self.lock().newest.as_ref().is_some_and(|(_, newest)| newest == envelope)
    }

    fn set(&self, newest: Option<(u64, proto::Envelope)>) {
        self.lock().newest = newest;
    }

    /// Whether it is time to say it again.
    fn says_again(&self) -> bool {
        let mut known = self.lock();
        let due = known.said.is_none_or(|said| said.elapsed() >= SAY_AGAIN);
        if due {
            known.said = Some(Instant::now());
        }
        due
    }
}

/// Looks for newer checkpoints until the task is ended.
pub(super) async fn run(context: Arc<Context>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match context.store.newest_checkpoint().await {
            Ok(newest) => context.checkpoint.set(newest),
            Err(error) => {
                tracing::debug!(%error, "the newest checkpoint of the audit trail could not be read")
            }
        }
    }
}

impl Context {
    /// Compares the newest that an appliance witnessed with the chain, which covers all that came before it. Returns its link.
    pub(super) async fn hear_witnesses(
        &self,
        server: ServerId,
        name: &Name,
        witnesses: &[proto::Envelope],
    ) -> u64 {
        let keys = self.keys.now();
        let witnesses = witnesses.iter().rev().take(MAX_WITNESSES);
        // Whoever says something that no key of ours signed says nothing.
        let mut said = witnesses.filter_map(|envelope| {
            audit::open_checkpoint(envelope, |key| keys.signed_states(key)).ok().map(|said| (envelope, said))
        });
        let Some((envelope, said)) = said.next() else { return 0 };
        if self.checkpoint.is_newest(envelope) {
            return said.link;
        }
        match self.store.has_link(said.link, &said.digest).await {
            Ok(true) => said.link,
            Ok(false) => {
                if self.checkpoint.says_again() {
                    self.say_altered(server, name, said.link).await;
                }
                0
            }
            Err(error) => {
                tracing::debug!(%error, "a witness could not be compared");
                0
            }
        }
    }

    async fn say_altered(&self, server: ServerId, name: &Name, link: u64) {
        let description = format!(
            "the appliance of server {name} witnessed link {link} of the audit trail, which the database does not have: the \
             trail was altered, or a backup was restored; run `horizon-controller audit verify`"
        );
        tracing::error!(server = %server, link, "{description}");
        let event = NewEvent {
            kind: "audit_trail_altered",
            severity: Severity::Critical,
            source: Source::Server(server),
            address: None,
            description,
            data: serde_json::json!({ "link": link }),
        };
        self.record(&event).await;
    }
}
