//! The reconcile engine: one task that owns what is in force. It takes what the directory declares and what the
//! controller's own interface asks for, plans, commits to the store, hands out the new index, tells the live layer whom it
//! concerns, and writes statuses.

mod reconcile;
mod report;
mod statuses;
mod task;
#[cfg(test)]
mod tests;

pub use report::Report;

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
    source::{Source, SourceOptions},
    stop::Stop,
    store::{Actor, CommitError, Store, StoreError},
};
use task::{Command, Task};

/// The most requests of the interface that wait.
const MAX_COMMANDS: usize = 64;

/// How the engine works.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The directory that declares resources.
    pub source: SourceOptions,
    /// How many resources may go without a question.
    pub limit: PruneLimit,
}

/// What the engine works with.
pub struct EngineParts {
    /// The database.
    pub store: Store,
    /// The live layer.
    pub live: Arc<dyn Live>,
    /// The figures.
    pub metrics: Metrics,
    /// Told when everything declared is in force for the first time.
    pub ready: Ready,
    /// The word to stop.
    pub stop: Stop,
}

/// Why the engine did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No thread for the directory.
    #[error("the directory source cannot be started: {0}")]
    Source(#[from] std::io::Error),
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
    /// The controller is stopping.
    #[error("the controller is stopping: try again when it runs")]
    Stopped,
}

/// A handle on the engine. A clone is another one.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

/// What the task shows to everybody.
struct Shared {
    index: watch::Sender<Arc<Index>>,
    report: RwLock<Report>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

impl Engine {
    /// Loads what is in force, and starts to watch and to reconcile. What is in force can be read at once; what the
    /// directory declares is in force when the engine says that it is ready.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn start(
        options: EngineOptions,
        parts: EngineParts,
    ) -> Result<(Self, JoinHandle<()>), StartError> {
        let index = Arc::new(Index::new(parts.store.load_resources().await?));
        let shared =
            Arc::new(Shared { index: watch::Sender::new(index), report: RwLock::new(Report::default()) });
        let (commands, receiver) = mpsc::channel(MAX_COMMANDS);
        // Listened to before anything is looked at, so that nothing is missed.
        let hints = parts.live.subscribe();
        let (source, changes) = Source::start(options.source)?;
        let task = Task::new(options.limit, parts, shared.clone());
        let handle = tokio::spawn(task.run(source, changes, receiver, hints));
        Ok((Self { shared, commands }, handle))
    }

    /// What is in force now.
    pub fn index(&self) -> Arc<Index> {
        self.shared.index.borrow().clone()
    }

    /// What is in force, whenever it changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Index>> {
        self.shared.index.subscribe()
    }

    /// What is wrong with what the directory declares.
    pub fn problems(&self) -> Arc<Vec<Problem>> {
        self.shared.report().problems.clone()
    }

    /// Removals that wait for a confirmation.
    pub fn held(&self) -> Option<PruneHeld> {
        self.shared.report().held.clone()
    }

    /// Brings a resource into force that no file declares. It is durable when this returns.
    ///
    /// # Errors
    /// Why it is not in force.
    pub async fn put(&self, resource: Resource, actor: Actor) -> Result<Arc<Stored>, PutError> {
        self.ask(|reply| Command::Put { resource: Arc::new(resource), actor, reply }).await?
    }

    /// Carries out the removals that wait. Returns how many resources went.
    ///
    /// # Errors
    /// Why they are still in force.
    pub async fn confirm_prune(&self, actor: Actor) -> Result<usize, PutError> {
        self.ask(|reply| Command::ConfirmPrune { actor, reply }).await?
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, PutError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| PutError::Stopped)?;
        answer.await.map_err(|_| PutError::Stopped)
    }
}

impl Shared {
    fn report(&self) -> std::sync::RwLockReadGuard<'_, Report> {
        // A report is replaced as a whole, so it is right whatever thread panicked.
        self.report.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn set_report(&self, report: Report) {
        *self.report.write().unwrap_or_else(std::sync::PoisonError::into_inner) = report;
    }
}
