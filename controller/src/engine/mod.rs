//! The reconcile engine: one task that owns what is in force. At every replica it follows what is committed, whoever did,
//! hands out the new index, and tells the channels of this process whom it concerns; it also brings into force what the
//! controller's own interface asks for. At the leader it takes what the source declares as well, plans, commits to the
//! store, and writes statuses.

mod confirm;
mod follow;
mod hints;
mod reconcile;
#[cfg(test)]
mod replica_tests;
mod report;
mod sink;
mod statuses;
mod task;
#[cfg(test)]
mod tests;

pub use report::{Report, Told, ToldProblem};
pub use sink::{Shown, StatusSink, StatusWrite};

use std::sync::{Arc, RwLock};

use horizon_controller_core::{Index, PruneHeld, PruneLimit, Stored};
use horizon_crds::{Issue, Problem, Resource};
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{
    live::Live,
    metrics::{Metrics, Ready},
    replica::{Leadership, Standing},
    source::Declare,
    stop::Stop,
    store::{Actor, CommitError, Revision, Store, StoreError},
};
use task::{Command, Task};

/// The most requests of the interface that wait.
const MAX_COMMANDS: usize = 64;

/// How the engine works.
#[derive(Clone)]
pub struct EngineOptions {
    /// What declares resources.
    pub source: Arc<dyn Declare>,
    /// How many resources may go without a question.
    pub limit: PruneLimit,
    /// Whether other replicas work on the same database.
    pub shared: bool,
}

/// What the engine works with.
pub struct EngineParts {
    /// The database.
    pub store: Store,
    /// The live layer.
    pub live: Arc<dyn Live>,
    /// Whether this replica leads.
    pub leadership: Leadership,
    /// Where statuses go besides the store.
    pub statuses: Option<Arc<dyn StatusSink>>,
    /// The figures.
    pub metrics: Metrics,
    /// Told when this replica serves what is declared: a leader when everything declared is in force for the first time,
    /// a follower when it follows.
    pub ready: Ready,
    /// The word to stop.
    pub stop: Stop,
}

/// Why a change that was asked for is not in force.
#[derive(Debug, Error)]
pub enum PutError {
    /// The resource is wrong, or contradicts what is in force.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Issue>),
    /// The store failed.
    #[error(transparent)]
    Failed(#[from] CommitError),
    /// Other replicas changed resources each time this one tried.
    #[error("other replicas change resources all the time: try again")]
    Busy,
    /// It is for the leader to do, and none did.
    #[error("{}: try again in some seconds", match .0 {
        Some(name) => format!("replica '{name}' leads, and did not take it up in time"),
        None => "no replica leads now".to_owned(),
    })]
    NoLeader(Option<String>),
    /// The leader was asked, and could not.
    #[error("{0}")]
    AtLeader(String),
    /// The controller is stopping.
    #[error("the controller is stopping: try again when it runs")]
    Stopped,
}

impl From<StoreError> for PutError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.into())
    }
}

/// What is in force.
#[derive(Clone, Debug)]
pub struct InForce {
    /// The resources.
    pub index: Arc<Index>,
    /// Which version of them.
    pub revision: Revision,
}

/// A handle on the engine. A clone is another one.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    store: Store,
    leadership: Leadership,
    alone: bool,
}

/// What the task shows to everybody.
struct Shared {
    in_force: watch::Sender<InForce>,
    report: RwLock<Report>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

impl Engine {
    /// Loads what is in force, and starts to follow it. What is in force can be read at once; what is declared is in force
    /// when the leader's engine says that it is ready.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn start(
        options: EngineOptions,
        parts: EngineParts,
    ) -> Result<(Self, JoinHandle<()>), StoreError> {
        // Listened to before anything is looked at, so that nothing is missed.
        let hints = parts.live.subscribe();
        let (resources, revision) = parts.store.load_resources().await?;
        let in_force = InForce { index: Arc::new(Index::new(resources)), revision };
        let shared = Arc::new(Shared {
            in_force: watch::Sender::new(in_force),
            report: RwLock::new(Report::default()),
        });
        let (commands, receiver) = mpsc::channel(MAX_COMMANDS);
        let engine = Self {
            shared: shared.clone(),
            commands,
            store: parts.store.clone(),
            leadership: parts.leadership.clone(),
            alone: !options.shared,
        };
        let task = Task::new(options, parts, shared);
        let handle = tokio::spawn(task.run(receiver, hints));
        Ok((engine, handle))
    }

    /// What is in force now.
    pub fn index(&self) -> Arc<Index> {
        self.shared.in_force.borrow().index.clone()
    }

    /// What is in force now, and which version of it.
    pub fn in_force(&self) -> InForce {
        self.shared.in_force.borrow().clone()
    }

    /// What is in force, whenever it changes.
    pub fn subscribe(&self) -> watch::Receiver<InForce> {
        self.shared.in_force.subscribe()
    }

    /// What is wrong with what is declared, as the leader knows it; nothing elsewhere.
    pub fn problems(&self) -> Arc<Vec<Problem>> {
        self.shared.report().problems.clone()
    }

    /// Removals that wait for a confirmation, as the leader knows them; nothing elsewhere.
    pub fn held(&self) -> Option<PruneHeld> {
        self.shared.report().held.clone()
    }

    /// What is wrong and what waits, at whichever replica it is known.
    ///
    /// # Errors
    /// When the leader's word cannot be read.
    pub async fn report(&self) -> Result<Told, StoreError> {
        if self.leads_or_alone() {
            return Ok(self.shared.report().told());
        }
        confirm::told(&self.store).await
    }

    /// What this replica is.
    pub fn standing(&self) -> Standing {
        self.leadership.standing()
    }

    /// Brings a resource into force that nothing declares. It is durable when this returns.
    ///
    /// # Errors
    /// Why it is not in force.
    pub async fn put(&self, resource: Resource, actor: Actor) -> Result<Arc<Stored>, PutError> {
        self.ask(|reply| Command::Put { resource: Arc::new(resource), actor, reply }).await?
    }

    /// Carries out the removals that wait, here or at the leader. Returns how many resources went.
    ///
    /// # Errors
    /// Why they are still in force.
    pub async fn confirm_prune(&self, actor: Actor) -> Result<usize, PutError> {
        if self.leads_or_alone() {
            return self.ask(|reply| Command::ConfirmPrune { actor, reply }).await?;
        }
        confirm::ask_leader(&self.store, &self.leadership, &actor).await
    }

    fn leads_or_alone(&self) -> bool {
        self.alone || self.leadership.leads().is_some()
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, PutError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| PutError::Stopped)?;
        answer.await.map_err(|_| PutError::Stopped)
    }
}

impl Shared {
    fn index(&self) -> Arc<Index> {
        self.in_force.borrow().index.clone()
    }

    fn current(&self) -> Revision {
        self.in_force.borrow().revision
    }

    /// Hands out what is in force now.
    fn hand_out(&self, index: Arc<Index>, revision: Revision) {
        self.in_force.send_replace(InForce { index, revision });
    }

    fn report(&self) -> std::sync::RwLockReadGuard<'_, Report> {
        // A report is replaced as a whole, so it is right whatever thread panicked.
        self.report.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn set_report(&self, report: Report) {
        *self.report.write().unwrap_or_else(std::sync::PoisonError::into_inner) = report;
    }
}
