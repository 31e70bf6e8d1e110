//! Following what is committed, whoever did: at the cost of what changed.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use horizon_controller_core::{Index, Scope};
use horizon_crds::{KindName, ResourceId};
use horizon_model::ServerId;

use super::{statuses::Statuses, task::Task};
use crate::{
    live::Hint,
    store::{ResourceNews, Revision, Store, StoreError},
};

impl Task {
    /// Looks whether somebody committed something, and follows. A leader also looks what follows from it.
    pub(super) async fn follow(&mut self) {
        match self.catch_up().await {
            Ok(changed) if !changed.is_empty() && self.term.is_some() && self.listed => {
                self.reconcile(changed).await;
            }
            Ok(_) => {}
            // The database is away, which others say too.
            Err(error) if self.behind => tracing::debug!(%error, "still not to be read"),
            Err(error) => {
                self.behind = true;
                tracing::warn!(%error, "what other replicas changed cannot be read; trying again");
            }
        }
    }

    /// Takes in what was committed since the index in force. Returns what differs.
    pub(super) async fn catch_up(&mut self) -> Result<BTreeSet<ResourceId>, StoreError> {
        let current = self.shared.current();
        let index = self.shared.index();
        let mut news = self.parts.store.resources_since(current).await?;
        let went_back = news.revision < current;
        if went_back {
            tracing::error!(
                revision = %news.revision, before = %current,
                "the database went back to an earlier version: what is in force is read anew"
            );
            news = everything_anew(&self.parts.store, &index).await?;
        }
        self.behind = false;
        // Whatever was heard of: this is the newest there is.
        self.hinted = news.revision;
        if news.revision == current && !went_back {
            self.parts.metrics.index_behind.set(0);
            return Ok(BTreeSet::new());
        }
        let mut next = (*index).clone();
        let mut changed = BTreeSet::new();
        for (id, uid) in news.removed {
            // A newer resource may have the name already.
            if next.by_id(&id).is_some_and(|stored| stored.uid == uid) {
                next.remove(&id);
                changed.insert(id);
            }
        }
        for stored in news.put {
            let id = stored.id();
            if next.by_id(&id).is_none_or(|old| **old != stored) {
                next.insert(Arc::new(stored));
                changed.insert(id);
            }
        }
        let next = Arc::new(next);
        for old in changed.iter().filter_map(|id| index.by_id(id)) {
            if next.by_uid(old.uid).is_none() {
                self.statuses.forget(old.uid, &old.id());
            }
        }
        if went_back {
            self.statuses = Statuses::default();
        }
        self.hand_out(&next, news.revision);
        let scope = Scope::of(&index, &next, &changed);
        self.tell(&scope, &next).await;
        if went_back && self.term.is_some() {
            self.statuses.mark_all(&next);
        }
        if self.term.is_some() {
            changed.iter().filter_map(|id| next.by_id(id)).for_each(|stored| self.desired.share(stored));
        }
        tracing::debug!(revision = %news.revision, resources = changed.len(), "followed what was committed");
        Ok(changed)
    }

    /// Shows everybody what is in force now.
    pub(super) fn hand_out(&mut self, next: &Arc<Index>, revision: Revision) {
        self.shared.hand_out(next.clone(), revision);
        self.hinted = self.hinted.max(revision);
        let metrics = &self.parts.metrics;
        metrics.index_revision.set(revision.0);
        metrics.index_behind.set(self.hinted.0 - revision.0);
        for kind in KindName::ALL {
            metrics.set_resources(kind, next.all(kind).len());
        }
    }

    /// Tells the channels of this process whose state and sessions are concerned, and marks statuses. Other replicas tell
    /// theirs when they follow: earlier they would look at an older index.
    pub(super) async fn tell(&mut self, scope: &Scope, next: &Index) {
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
        self.tell_servers(servers);
        // Devices hear of their keys.
        let keys = scope.statuses.iter().filter(|id| id.kind == KindName::PersonalKey);
        for key in keys.filter_map(|id| next.by_id(id)) {
            self.parts.live.publish_here(Hint::StatusDirty(key.uid));
        }
        if self.term.is_some() {
            self.statuses.mark(scope.statuses.iter().cloned());
        }
    }

    fn tell_servers(&self, servers: impl IntoIterator<Item = ServerId>) {
        for server in servers {
            self.parts.live.publish_here(Hint::ServerChanged(server));
        }
    }
}

/// What is in force, and what of an index is not.
async fn everything_anew(store: &Store, index: &Index) -> Result<ResourceNews, StoreError> {
    let (put, revision) = store.load_resources().await?;
    let uids: HashSet<_> = put.iter().map(|stored| stored.uid).collect();
    let gone = index.iter().filter(|stored| !uids.contains(&stored.uid));
    let removed = gone.map(|stored| (stored.id(), stored.uid)).collect();
    Ok(ResourceNews { revision, put, removed })
}
