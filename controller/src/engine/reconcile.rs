//! One pass: plan, commit, hand out, tell whom it concerns.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use horizon_controller_core::{Index, Plan, Recent, Stored, Wish, apply, plan, plan_put, status::Notice};
use horizon_crds::{Resource, ResourceId};
use jiff::Timestamp;
use thiserror::Error;
use tokio::time::Instant;

use super::{
    PutError,
    report::{Report, differing},
    task::Task,
};
use crate::{
    live::Hint,
    store::{Actor, Change, CommitError, Guard, StoreError},
};

/// For how long a removal counts against the limit of later ones.
const RECENT: Duration = Duration::from_secs(60);
/// For how long a plan is made anew because somebody else committed in between.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest pause before the next try, so that those that were in each other's way are not again.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Why a pass came to nothing.
#[derive(Debug, Error)]
pub(super) enum PassError {
    /// This replica does not lead (any more).
    #[error("this replica does not lead")]
    NotLeading,
    /// Somebody else committed each time.
    #[error("other replicas change resources all the time")]
    Busy,
    /// The store failed.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl From<StoreError> for PassError {
    fn from(error: StoreError) -> Self {
        Self::Commit(error.into())
    }
}

impl Task {
    /// Brings what is declared about `touched` into force.
    pub(super) async fn reconcile(&mut self, mut touched: BTreeSet<ResourceId>) {
        // What could not come into force, or go, may be possible now.
        touched.extend(self.rejected.keys().cloned());
        touched.extend(self.held.iter().flat_map(|held| held.resources.iter().cloned()));
        let actor = self.options.source.actor();
        match self.pass(touched.clone(), &BTreeSet::new(), &actor).await {
            // Whoever leads next plans everything.
            Ok(_) | Err(PassError::NotLeading) => {}
            Err(error) => {
                tracing::error!(%error, "changes of what is declared could not be stored; trying again");
                self.try_again(touched);
            }
        }
    }

    /// Carries out the removals that wait.
    pub(super) async fn confirm_prune(&mut self, actor: &Actor) -> Result<usize, PutError> {
        let confirmed = self.held.as_ref().map(|held| held.resources.clone()).unwrap_or_default();
        match self.pass(confirmed.clone(), &confirmed, actor).await {
            Ok(removed) => {
                if removed > 0 {
                    let message = format!("the removal of {removed} resources was confirmed");
                    self.notice(Notice { reason: "PruneConfirmed".into(), warning: false, message });
                }
                Ok(removed)
            }
            Err(PassError::NotLeading) => Err(PutError::NoLeader(None)),
            Err(PassError::Busy) => Err(PutError::Busy),
            Err(PassError::Commit(error)) => Err(error.into()),
        }
    }

    /// Plans and commits, again while somebody else commits in between; returns how many resources went.
    async fn pass(
        &mut self,
        mut touched: BTreeSet<ResourceId>,
        confirmed: &BTreeSet<ResourceId>,
        actor: &Actor,
    ) -> Result<usize, PassError> {
        let started = Instant::now();
        let mut removed = 0;
        while started.elapsed() < PATIENCE {
            let epoch = self.parts.leadership.leads().ok_or(PassError::NotLeading)?;
            let index = self.shared.index();
            let claimed = self.desired.unknown_identities(&index, &touched);
            if !claimed.is_empty() {
                let found = self.parts.store.identities(&claimed).await?;
                self.desired.learn_identities(&claimed, &found);
            }
            let recent = self.recent_removals(started);
            let wish = Wish { desired: &self.desired, limit: self.options.limit, recent: &recent, confirmed };
            let mut plan = plan(&index, wish, &touched);
            let again = std::mem::take(&mut plan.again);
            let guard = Guard { expected: Some(self.shared.current()), leader: Some(epoch) };
            match self.commit(&index, &plan, actor, guard).await {
                Ok(next) => {
                    removed += self.passed(plan, &next, &touched, confirmed, started).await;
                    if again.is_empty() {
                        return Ok(removed);
                    }
                    // Other objects have the names of what went.
                    touched = again;
                }
                Err(CommitError::Behind { .. }) => {
                    pause().await;
                    touched.extend(self.catch_up().await?);
                }
                Err(CommitError::Fenced) => {
                    tracing::warn!(%epoch, "another replica leads by now: this one steps down");
                    self.parts.leadership.fenced(epoch);
                    return Err(PassError::NotLeading);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(PassError::Busy)
    }

    fn notice(&self, notice: Notice) {
        if let Some(sink) = &self.parts.statuses {
            sink.notice(notice);
        }
    }

    /// Notes what a pass led to. Returns how many resources went.
    async fn passed(
        &mut self,
        mut plan: Plan,
        next: &Arc<Index>,
        touched: &BTreeSet<ResourceId>,
        confirmed: &BTreeSet<ResourceId>,
        started: Instant,
    ) -> usize {
        let mut counts = Recent::new();
        for id in plan.removals.iter().filter(|id| !confirmed.contains(*id)) {
            *counts.entry((id.kind, id.namespace.clone())).or_default() += 1;
        }
        self.recent.extend(counts.into_iter().map(|(of, count)| (started, of, count)));
        // Every held removal and every rejected document was looked at again.
        self.rejected.retain(|id, _| !touched.contains(id));
        self.rejected.append(&mut plan.rejected);
        if plan.held != self.held {
            if let Some(held) = &plan.held {
                tracing::warn!(resources = held.resources.len(), "{}", held.message);
                self.notice(Notice {
                    reason: "PruneHeld".into(),
                    warning: true,
                    message: held.message.clone(),
                });
            }
            self.held.clone_from(&plan.held);
        }
        self.tell(&plan.scope, next).await;
        self.show();
        // What is in force as it is written shares its memory with the document.
        touched.iter().filter_map(|id| next.by_id(id)).for_each(|stored| self.desired.share(stored));
        if !plan.is_empty() {
            self.parts.metrics.reconciles.inc();
            self.parts.metrics.reconcile_seconds.observe(started.elapsed().as_secs_f64());
        }
        plan.removals.len()
    }

    /// Brings a resource into force that the interface asks for, at whichever replica.
    pub(super) async fn put(
        &mut self,
        resource: Arc<Resource>,
        actor: &Actor,
    ) -> Result<Arc<Stored>, PutError> {
        let (id, started) = (resource.id(), Instant::now());
        while started.elapsed() < PATIENCE {
            // What it refers to may be new.
            let changed = self.catch_up().await?;
            let index = self.shared.index();
            let plan = plan_put(&index, resource.clone()).map_err(PutError::Refused)?;
            let guard = Guard { expected: Some(self.shared.current()), leader: None };
            let next = match self.commit(&index, &plan, actor, guard).await {
                Ok(next) => next,
                Err(CommitError::Behind { .. }) => {
                    pause().await;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            self.tell(&plan.scope, &next).await;
            if self.term.is_some() && self.listed {
                // Documents may have waited for it.
                self.reconcile(changed).await;
            }
            return next.by_id(&id).cloned().ok_or(PutError::Stopped);
        }
        Err(PutError::Busy)
    }

    /// Writes a plan to the store in one transaction and hands out the index it leads to.
    async fn commit(
        &mut self,
        index: &Arc<Index>,
        plan: &Plan,
        actor: &Actor,
        guard: Guard,
    ) -> Result<Arc<Index>, CommitError> {
        if plan.is_empty() {
            return Ok(index.clone());
        }
        let puts = plan.puts.values().map(|put| Change::Put {
            resource: put.resource.clone(),
            origin: put.origin.clone(),
            actor: put.author.as_ref().map(|author| Actor::Kubernetes(author.to_string())),
        });
        let removals = plan.removals.iter().map(|id| Change::Remove { id: id.clone(), actor: None });
        let changes: Vec<_> = puts.chain(removals).collect();
        let committed = self.parts.store.commit_resources(&changes, actor, Timestamp::now(), guard).await?;
        let stored = committed.assigned.into_iter().filter_map(|assigned| {
            let put = plan.puts.get(&assigned.id)?;
            Some(Stored {
                resource: put.resource.clone(),
                uid: assigned.uid,
                generation: assigned.generation,
                origin: put.origin.clone(),
                number: assigned.number,
                created_at: assigned.created_at,
            })
        });
        let next = Arc::new(apply(index, plan, stored.collect::<Vec<_>>()));
        self.hand_out(&next, committed.revision);
        self.parts.live.publish(Hint::ResourcesChanged(committed.revision));
        for id in &plan.removals {
            if let Some(old) = index.by_id(id) {
                self.statuses.forget(old.uid, id);
            }
        }
        for server in committed.servers {
            self.parts.live.publish(Hint::ServerChanged(server));
        }
        tracing::info!(put = plan.puts.len(), removed = plan.removals.len(), "resources changed");
        Ok(next)
    }

    /// Shows what is wrong now.
    pub(super) fn show(&mut self) {
        let (report, problems) =
            Report::gather(&self.directory, &self.desired, &self.rejected, self.held.as_ref());
        for problem in new_problems(&self.shared.report().problems, &report.problems) {
            tracing::warn!("{problem}");
        }
        self.parts.metrics.problems.set(i64::try_from(report.problems.len()).unwrap_or(i64::MAX));
        self.statuses.mark(differing(&self.problems, &problems));
        self.problems = problems;
        self.shared.set_report(report);
    }

    /// How many resources of each kind and namespace went in the last while.
    fn recent_removals(&mut self, now: Instant) -> Recent {
        while self.recent.front().is_some_and(|(at, _, _)| now.duration_since(*at) > RECENT) {
            self.recent.pop_front();
        }
        let mut recent = BTreeMap::new();
        for (_, of, count) in &self.recent {
            *recent.entry(of.clone()).or_default() += count;
        }
        recent
    }
}

/// Waits for a moment of random length.
async fn pause() {
    let [random, ..]: [u8; 16] = uuid::Uuid::new_v4().into_bytes();
    tokio::time::sleep(LONGEST_PAUSE.mul_f64(f64::from(random) / 256.0)).await;
}

fn new_problems<'a>(
    before: &'a [horizon_crds::Problem],
    after: &'a [horizon_crds::Problem],
) -> impl Iterator<Item = &'a horizon_crds::Problem> {
    after.iter().filter(|problem| !before.contains(problem))
}
