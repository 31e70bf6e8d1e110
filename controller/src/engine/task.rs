//! The engine's task: what it waits for, and what it does then.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use horizon_controller_core::{Desired, PruneHeld, PruneLimit, Stored, declared_by, everything};
use horizon_crds::{KindName, Problem, Resource, ResourceId};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::Instant,
};

use super::{EngineParts, PutError, Shared, report::ByResource, statuses::Statuses};
use crate::{
    live::Hint,
    source::{Changes, Source},
    store::Actor,
};

/// When to try again what the store refused.
const RETRY: Duration = Duration::from_secs(1);

/// What the interface asks for.
pub(super) enum Command {
    /// Bring a resource into force.
    Put { resource: Arc<Resource>, actor: Actor, reply: oneshot::Sender<Result<Arc<Stored>, PutError>> },
    /// Carry out the removals that wait.
    ConfirmPrune { actor: Actor, reply: oneshot::Sender<Result<usize, PutError>> },
}

/// The engine's task.
pub(super) struct Task {
    pub(super) limit: PruneLimit,
    pub(super) parts: EngineParts,
    pub(super) shared: Arc<Shared>,
    pub(super) statuses: Statuses,
    /// What the directory declares.
    pub(super) desired: Desired,
    /// What is wrong with the directory as such.
    pub(super) directory: Vec<Problem>,
    /// Documents that could not come into force, by resource.
    pub(super) rejected: BTreeMap<ResourceId, Vec<Problem>>,
    /// Removals that wait.
    pub(super) held: Option<PruneHeld>,
    /// What is wrong, by resource.
    pub(super) problems: ByResource,
    /// Removals of the last while.
    pub(super) recent: VecDeque<(Instant, KindName, usize)>,
    /// What is still to be planned because the store refused it, and when.
    pub(super) retry: Option<(Instant, BTreeSet<ResourceId>)>,
    /// Whether everything was planned once.
    started: bool,
}

impl Task {
    pub(super) fn new(limit: PruneLimit, parts: EngineParts, shared: Arc<Shared>) -> Self {
        Self {
            limit,
            parts,
            shared,
            statuses: Statuses::default(),
            desired: Desired::new(),
            directory: Vec::new(),
            rejected: BTreeMap::new(),
            held: None,
            problems: ByResource::new(),
            recent: VecDeque::new(),
            retry: None,
            started: false,
        }
    }

    pub(super) async fn run(
        mut self,
        source: Source,
        mut changes: mpsc::Receiver<Changes>,
        mut commands: mpsc::Receiver<Command>,
        mut hints: broadcast::Receiver<Hint>,
    ) {
        let mut stop = self.parts.stop.clone();
        loop {
            let wake = self.next_wake();
            tokio::select! {
                biased;
                () = stop.requested() => break,
                Some(command) = commands.recv() => self.command(command).await,
                Some(changes) = changes.recv() => self.changes(changes).await,
                hint = hints.recv() => self.hint(&hint),
                () = tokio::time::sleep_until(wake) => self.due().await,
            }
        }
        drop(source);
        self.statuses.flush_all(&self.parts, &self.shared, &self.problems).await;
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Put { resource, actor, reply } => {
                // Nobody may be waiting any more; the change holds all the same.
                let _ = reply.send(self.put(resource, &actor).await);
            }
            Command::ConfirmPrune { actor, reply } => {
                let _ = reply.send(self.confirm_prune(&actor).await);
            }
        }
    }

    async fn changes(&mut self, changes: Changes) {
        let paths = changes.files.iter().map(|(path, _)| path.clone()).collect();
        let mut touched = declared_by(&self.shared.index.borrow(), &paths);
        for (path, file) in changes.files {
            touched.extend(self.desired.set_file(&path, file));
        }
        let completed = changes.complete && !self.desired.is_complete();
        self.desired.set_complete(changes.complete);
        self.directory = changes.problems;
        if completed || !self.started {
            touched.extend(everything(&self.shared.index.borrow(), &self.desired));
        }
        self.reconcile(touched).await;
        if !self.started && self.retry.is_none() {
            self.started = true;
            self.parts.ready.ready();
            // What was known before this start may have changed meanwhile.
            self.statuses.mark_all(&self.shared.index.borrow());
        }
    }

    fn hint(&mut self, hint: &Result<Hint, broadcast::error::RecvError>) {
        let index = self.shared.index.borrow().clone();
        match hint {
            Ok(Hint::StatusDirty(uid)) => self.statuses.mark(index.by_uid(*uid).map(|stored| stored.id())),
            Ok(Hint::ServerChanged(server)) => {
                self.statuses.watch_server(*server, index.by_uid(server.0).map(|stored| stored.id()));
            }
            Ok(Hint::StateApplied { server, .. }) => {
                self.statuses.server_applied(*server, index.by_uid(server.0).map(|stored| stored.id()));
            }
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(_)) => self.statuses.mark_all(&index),
            // The live layer is kept alive by this task, so its channel does not close before.
            Err(broadcast::error::RecvError::Closed) => {}
        }
    }

    fn next_wake(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let retry = self.retry.as_ref().map(|(at, _)| *at);
        [retry, self.statuses.next_wake()].into_iter().flatten().fold(far, Instant::min)
    }

    async fn due(&mut self) {
        if self.retry.as_ref().is_some_and(|(at, _)| *at <= Instant::now())
            && let Some((_, touched)) = self.retry.take()
        {
            self.reconcile(touched).await;
            if !self.started && self.retry.is_none() {
                self.started = true;
                self.parts.ready.ready();
                self.statuses.mark_all(&self.shared.index.borrow());
            }
        }
        self.statuses.work(&self.parts, &self.shared, &self.problems).await;
    }

    /// Keeps what could not be committed for another try.
    pub(super) fn try_again(&mut self, touched: BTreeSet<ResourceId>) {
        let mut all = self.retry.take().map(|(_, touched)| touched).unwrap_or_default();
        all.extend(touched);
        self.retry = Some((Instant::now() + RETRY, all));
    }
}
