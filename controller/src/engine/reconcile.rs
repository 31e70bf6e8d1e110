//! One pass: plan, commit, hand out, tell whom it concerns.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use horizon_controller_core::{Index, Plan, Recent, Scope, Stored, Wish, apply, plan, plan_put};
use horizon_crds::{KindName, Resource, ResourceId};
use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    PutError,
    report::{Report, differing},
    task::Task,
};
use crate::{
    live::Hint,
    store::{Actor, Change, CommitError},
};

/// For how long a removal counts against the limit of later ones.
const RECENT: Duration = Duration::from_secs(60);

impl Task {
    /// Brings what the directory declares about `touched` into force.
    pub(super) async fn reconcile(&mut self, mut touched: BTreeSet<ResourceId>) {
        // What could not come into force, or go, may be possible now.
        touched.extend(self.rejected.keys().cloned());
        touched.extend(self.held.iter().flat_map(|held| held.resources.iter().cloned()));
        if let Err(error) = self.pass(&touched, &BTreeSet::new(), &Actor::File("resources".into())).await {
            tracing::error!(%error, "changes of the resource files could not be stored; trying again");
            self.try_again(touched);
        }
    }

    /// Carries out the removals that wait.
    pub(super) async fn confirm_prune(&mut self, actor: &Actor) -> Result<usize, PutError> {
        let confirmed = self.held.as_ref().map(|held| held.resources.clone()).unwrap_or_default();
        let removed = self.pass(&confirmed, &confirmed, actor).await?;
        Ok(removed)
    }

    /// Plans and commits; returns how many resources went.
    async fn pass(
        &mut self,
        touched: &BTreeSet<ResourceId>,
        confirmed: &BTreeSet<ResourceId>,
        actor: &Actor,
    ) -> Result<usize, CommitError> {
        let started = Instant::now();
        let index = self.shared.index.borrow().clone();
        let recent = self.recent_removals(started);
        let wish = Wish { desired: &self.desired, limit: self.limit, recent: &recent, confirmed };
        let mut plan = plan(&index, wish, touched);
        let next = self.commit(&index, &plan, actor).await?;

        let mut counts = Recent::new();
        for id in plan.removals.iter().filter(|id| !confirmed.contains(*id)) {
            *counts.entry(id.kind).or_default() += 1;
        }
        self.recent.extend(counts.into_iter().map(|(kind, count)| (started, kind, count)));
        // Every held removal and every rejected document was looked at again.
        self.rejected.retain(|id, _| !touched.contains(id));
        self.rejected.append(&mut plan.rejected);
        if plan.held != self.held {
            if let Some(held) = &plan.held {
                tracing::warn!(resources = held.resources.len(), "{}", held.message);
            }
            self.held.clone_from(&plan.held);
        }
        self.tell(&plan.scope, &next).await;
        self.show();
        // What is in force as it is written shares its memory with the document.
        touched.iter().filter_map(|id| next.by_id(id)).for_each(|stored| self.desired.share(stored));
        if !plan.is_empty() {
            self.parts.metrics.reconciles.inc();
            self.parts.metrics.reconcile_seconds.observe(started.elapsed().as_secs_f64());
        }
        Ok(plan.removals.len())
    }

    /// Brings a resource into force that the interface asks for.
    pub(super) async fn put(
        &mut self,
        resource: Arc<Resource>,
        actor: &Actor,
    ) -> Result<Arc<Stored>, PutError> {
        let id = resource.id();
        let index = self.shared.index.borrow().clone();
        let plan = plan_put(&index, resource).map_err(PutError::Refused)?;
        let next = self.commit(&index, &plan, actor).await?;
        self.tell(&plan.scope, &next).await;
        // Documents may have waited for it.
        self.reconcile(BTreeSet::new()).await;
        next.by_id(&id).cloned().ok_or(PutError::Stopped)
    }

    /// Writes a plan to the store in one transaction and hands out the index it leads to.
    async fn commit(
        &mut self,
        index: &Arc<Index>,
        plan: &Plan,
        actor: &Actor,
    ) -> Result<Arc<Index>, CommitError> {
        if plan.is_empty() {
            return Ok(index.clone());
        }
        let puts = plan
            .puts
            .values()
            .map(|put| Change::Put { resource: put.resource.clone(), origin: put.origin.clone() });
        let changes: Vec<_> = puts.chain(plan.removals.iter().cloned().map(Change::Remove)).collect();
        let committed = self.parts.store.commit_resources(&changes, actor, Timestamp::now()).await?;
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
        self.shared.index.send_replace(next.clone());
        for id in &plan.removals {
            if let Some(old) = index.by_id(id) {
                self.statuses.forget(old.uid, id);
            }
        }
        for server in committed.servers {
            self.parts.live.publish(Hint::ServerChanged(server));
        }
        for kind in KindName::ALL {
            self.parts.metrics.set_resources(kind, next.all(kind).len());
        }
        tracing::info!(put = plan.puts.len(), removed = plan.removals.len(), "resources changed");
        Ok(next)
    }

    /// Tells the live layer whose state and sessions are concerned, and marks statuses.
    async fn tell(&mut self, scope: &Scope, next: &Index) {
        let mut servers = scope.servers.clone();
        if !scope.users.is_empty() || !scope.devices.is_empty() {
            let users: Vec<_> = scope.users.iter().copied().collect();
            let devices: Vec<_> = scope.devices.iter().copied().collect();
            match self.parts.store.servers_with_sessions(&users, &devices).await {
                Ok(found) => servers.extend(found),
                Err(error) => {
                    // Nobody is missed: every server looks at its sessions again.
                    tracing::error!(%error, "the sessions that a change concerns could not be found");
                    servers.extend(next.all(KindName::Server).iter().map(|server| server.server_id()));
                }
            }
        }
        self.parts.metrics.servers_touched.inc_by(servers.len() as u64);
        for server in servers {
            self.parts.live.publish(Hint::ServerChanged(server));
        }
        self.statuses.mark(scope.statuses.iter().cloned());
    }

    /// Shows what is wrong now.
    fn show(&mut self) {
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

    /// How many resources of each kind went in the last while.
    fn recent_removals(&mut self, now: Instant) -> Recent {
        while self.recent.front().is_some_and(|(at, _, _)| now.duration_since(*at) > RECENT) {
            self.recent.pop_front();
        }
        let mut recent = BTreeMap::new();
        for (_, kind, count) in &self.recent {
            *recent.entry(*kind).or_default() += count;
        }
        recent
    }
}

fn new_problems<'a>(
    before: &'a [horizon_crds::Problem],
    after: &'a [horizon_crds::Problem],
) -> impl Iterator<Item = &'a horizon_crds::Problem> {
    after.iter().filter(|problem| !before.contains(problem))
}
