//! The engine's task: what it waits for, and what it does then.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use horizon_controller_core::{Counted, Desired, PruneHeld, Stored, declared_by, everything};
use horizon_crds::{Problem, Resource, ResourceId};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{
    EngineOptions, EngineParts, PutError, Report, Shared, Told,
    hints::{self, Became, Heard, Inbox},
    report::ByResource,
    statuses::{self, Statuses},
};
use crate::{
    live::Hint,
    replica::Standing,
    source::{Changes, Declared},
    store::{Actor, LeaderEpoch, Revision},
};

/// When to try again what the store refused.
const RETRY: Duration = Duration::from_secs(1);
/// How often to look without a hint whether somebody else committed something.
const SWEEP: Duration = Duration::from_secs(2);

/// What the interface asks for.
pub(super) enum Command {
    /// Bring a resource into force.
    Put { resource: Arc<Resource>, actor: Actor, reply: oneshot::Sender<Result<Arc<Stored>, PutError>> },
    /// Carry out the removals that wait.
    ConfirmPrune { actor: Actor, reply: oneshot::Sender<Result<usize, PutError>> },
}

/// The engine's task.
pub(super) struct Task {
    pub(super) options: EngineOptions,
    pub(super) parts: EngineParts,
    pub(super) shared: Arc<Shared>,
    pub(super) statuses: Statuses,
    /// Under which epoch the source is watched; `None` when this replica does not lead.
    pub(super) term: Option<LeaderEpoch>,
    source: Option<Declared>,
    /// What the source declares.
    pub(super) desired: Desired,
    /// What is wrong with the source as such.
    pub(super) directory: Vec<Problem>,
    /// Documents that could not come into force, by resource.
    pub(super) rejected: BTreeMap<ResourceId, Vec<Problem>>,
    /// Removals that wait.
    pub(super) held: Option<PruneHeld>,
    /// What is wrong, by resource.
    pub(super) problems: ByResource,
    /// Removals of the last while.
    pub(super) recent: VecDeque<(Instant, Counted, usize)>,
    /// What is still to be planned because the store refused it, and when.
    pub(super) retry: Option<(Instant, BTreeSet<ResourceId>)>,
    /// Whether everything was planned once in this term.
    pub(super) listed: bool,
    /// When to start the source again that could not be started, or ended.
    restart_at: Option<Instant>,
    /// Whether what others committed could not be read the last time.
    pub(super) behind: bool,
    /// The newest revision that is known of.
    pub(super) hinted: Revision,
    /// What other replicas were told in this term.
    pub(super) told: Option<Told>,
}

impl Task {
    pub(super) fn new(options: EngineOptions, parts: EngineParts, shared: Arc<Shared>) -> Self {
        let hinted = shared.current();
        Self {
            options,
            parts,
            shared,
            statuses: Statuses::default(),
            term: None,
            source: None,
            desired: Desired::new(),
            directory: Vec::new(),
            rejected: BTreeMap::new(),
            held: None,
            problems: ByResource::new(),
            recent: VecDeque::new(),
            retry: None,
            listed: false,
            restart_at: None,
            behind: false,
            hinted,
            told: None,
        }
    }

    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        hints: broadcast::Receiver<Hint>,
    ) {
        let inbox = Arc::new(Inbox::default());
        // It ends with this task.
        let mut listener = JoinSet::new();
        listener.spawn(hints::listen(hints, inbox.clone()));
        let mut stop = self.parts.stop.clone();
        let mut standing = self.parts.leadership.subscribe();
        let now = standing.borrow_and_update().clone();
        self.hand_out(&self.shared.index(), self.shared.current());
        self.stand(&now).await;
        let mut sweep = interval_at(Instant::now() + SWEEP, SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wake = self.next_wake();
            tokio::select! {
                biased;
                () = stop.requested() => break,
                Ok(()) = standing.changed() => {
                    let now = standing.borrow_and_update().clone();
                    self.stand(&now).await;
                }
                Some(command) = commands.recv() => self.command(command).await,
                _ = sweep.tick() => {
                    self.follow().await;
                    self.serve_replicas().await;
                }
                changes = next_changes(&mut self.source) => self.changes(changes).await,
                heard = inbox.next() => self.heard(heard).await,
                () = tokio::time::sleep_until(wake) => self.due().await,
            }
        }
        self.source = None;
        if self.listed {
            let declared = statuses::Declared { problems: &self.problems, desired: &self.desired };
            self.statuses.flush_all(&self.parts, &self.shared, declared).await;
        }
    }

    /// Starts to lead, or ends it.
    async fn stand(&mut self, standing: &Standing) {
        match standing.epoch() {
            Some(epoch) if self.term == Some(epoch) => {}
            Some(epoch) => {
                self.step_down();
                self.term = Some(epoch);
                self.follow().await;
                self.start_source();
            }
            None => {
                self.step_down();
                if *standing != Standing::Undecided {
                    self.parts.ready.ready();
                }
            }
        }
    }

    /// Forgets what only a leader knows.
    fn step_down(&mut self) {
        self.term = None;
        self.source = None;
        self.restart_at = None;
        self.retry = None;
        self.listed = false;
        self.told = None;
        self.desired = Desired::new();
        self.directory = Vec::new();
        self.rejected.clear();
        self.held = None;
        self.problems.clear();
        self.recent.clear();
        self.statuses = Statuses::default();
        self.shared.set_report(Report::default());
        self.parts.metrics.problems.set(0);
        self.parts.metrics.set_queue_depth("statuses", 0);
    }

    fn start_source(&mut self) {
        match self.options.source.start() {
            Ok(source) => (self.source, self.restart_at) = (Some(source), None),
            Err(error) => {
                tracing::error!(%error, "what is declared cannot be watched; trying again");
                self.restart_at = Some(Instant::now() + RETRY);
            }
        }
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

    async fn changes(&mut self, changes: Option<Changes>) {
        let Some(changes) = changes else {
            tracing::error!("the watch of what is declared ended by itself; starting it again");
            self.source = None;
            self.restart_at = Some(Instant::now() + RETRY);
            return;
        };
        let paths = changes.files.iter().map(|(path, _)| path.clone()).collect();
        let mut touched = declared_by(&self.shared.index(), &paths);
        for (path, file) in changes.files {
            touched.extend(self.desired.set_file(&path, file));
        }
        let completed = changes.complete && !self.desired.is_complete();
        self.desired.set_complete(changes.complete);
        self.directory = changes.problems;
        if completed || !self.listed {
            touched.extend(everything(&self.shared.index(), &self.desired));
        }
        if self.parts.statuses.is_some() {
            // An object that means the same as before may be a later version, which its status is to say.
            self.statuses.mark(touched.iter().cloned());
            self.statuses.mark(declared_by(&self.shared.index(), &changes.overwritten));
        }
        self.reconcile(touched).await;
        self.first_pass_is_over();
    }

    /// Everything declared was planned once: this replica serves it, and looks at every status.
    fn first_pass_is_over(&mut self) {
        if self.listed || self.retry.is_some() || self.parts.leadership.leads().is_none() {
            return;
        }
        self.listed = true;
        self.parts.ready.ready();
        // What was known before this term may have changed meanwhile.
        self.statuses.mark_all(&self.shared.index());
    }

    async fn heard(&mut self, heard: Heard) {
        if let Some(revision) = heard.revision {
            self.hinted = self.hinted.max(revision);
            self.parts.metrics.index_behind.set(self.hinted.0 - self.shared.current().0);
        }
        if heard.everything || self.hinted > self.shared.current() {
            self.follow().await;
        }
        // The rest is about statuses.
        if self.term.is_none() {
            return;
        }
        let index = self.shared.index();
        let id = |uid| index.by_uid(uid).map(|stored| stored.id());
        for (server, became) in heard.servers {
            match became {
                Became::Behind => self.statuses.watch_server(server, id(server.0)),
                Became::Applied => self.statuses.server_applied(server, id(server.0)),
            }
        }
        self.statuses.mark(heard.dirty.into_iter().filter_map(id));
        if heard.everything {
            self.statuses.mark_all(&index);
        }
    }

    fn next_wake(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let retry = self.retry.as_ref().map(|(at, _)| *at);
        let statuses = match (self.listed, self.parts.leadership.leads()) {
            (false, _) => None,
            (true, Some(_)) => self.statuses.next_wake(),
            // The lease is over, and this task is about to hear it.
            (true, None) => Some(Instant::now() + RETRY),
        };
        [retry, self.restart_at, statuses].into_iter().flatten().fold(far, Instant::min)
    }

    async fn due(&mut self) {
        if self.restart_at.is_some_and(|at| at <= Instant::now()) {
            self.start_source();
        }
        if self.retry.as_ref().is_some_and(|(at, _)| *at <= Instant::now())
            && let Some((_, touched)) = self.retry.take()
        {
            self.reconcile(touched).await;
            self.first_pass_is_over();
        }
        if self.listed {
            let declared = statuses::Declared { problems: &self.problems, desired: &self.desired };
            self.statuses.work(&self.parts, &self.shared, declared).await;
        }
    }

    /// Keeps what could not be committed for another try.
    pub(super) fn try_again(&mut self, touched: BTreeSet<ResourceId>) {
        let mut all = self.retry.take().map(|(_, touched)| touched).unwrap_or_default();
        all.extend(touched);
        self.retry = Some((Instant::now() + RETRY, all));
    }
}

/// What changes next; nothing while there is no source. `None` when the source ended by itself.
async fn next_changes(source: &mut Option<Declared>) -> Option<Changes> {
    match source {
        Some(source) => source.changes.recv().await,
        None => std::future::pending().await,
    }
}
