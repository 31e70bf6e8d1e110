//! The task that stands for election, again and again.

use std::time::Duration;

use tokio::time::timeout;

use super::{
    Leadership,
    election::{Election, Moment},
    elector::{Attempt, ElectError, Elector},
    leadership::now,
};
use crate::{
    metrics::Metrics,
    stop::Stop,
    store::{LeaderEpoch, ReplicaId, Store},
};

/// The longest time that giving up a lease may take.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);
/// The longest time without looking at the clock.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// A replica that stands for election.
pub struct Campaign {
    elector: Box<dyn Elector>,
    /// The database, which fences earlier leaders.
    store: Store,
    replica: ReplicaId,
    name: String,
    leadership: Leadership,
    metrics: Metrics,
    /// Whether the last question had no answer, which is said once.
    unanswered: bool,
}

impl Campaign {
    /// The replica of this id and name, which asks `elector`. Everybody sees the outcome in `leadership`.
    pub fn new(
        elector: Box<dyn Elector>,
        store: Store,
        (replica, name): (ReplicaId, String),
        leadership: Leadership,
        metrics: Metrics,
    ) -> Self {
        Self { elector, store, replica, name, leadership, metrics, unanswered: false }
    }

    /// Stands for election until it is to withdraw; then gives up the lease, so that another replica leads at once.
    pub async fn run(mut self, mut withdraw: Stop) {
        let mut election = Election::new(self.elector.duration(), now());
        let mut epoch = None;
        loop {
            let sleep = now().until(election.wake_at()).min(LONGEST_SLEEP);
            tokio::select! {
                biased;
                () = withdraw.requested() => break,
                () = self.leadership.deposed() => {
                    election.deposed(now());
                    epoch = None;
                }
                () = tokio::time::sleep(sleep) => {}
            }
            if !election.step_down_if_over(now()) && epoch.take().is_some() {
                tracing::warn!("the lease of leadership is over: this replica leads no more");
                self.follow(None);
            }
            if election.is_due(now()) {
                self.ask(&mut election, &mut epoch).await;
            }
        }
        self.follow(None);
        // Nobody is harmed when it stays: it ends by itself.
        match timeout(RELEASE_PATIENCE, self.give_up()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the lease of leadership could not be given up"),
            Err(_) => tracing::warn!("the lease of leadership could not be given up in time"),
        }
    }

    /// Gives up the lease, and the leadership that the database knows: who is elected elsewhere has both.
    async fn give_up(&mut self) -> Result<(), ElectError> {
        self.elector.release().await?;
        self.store.release_lease(self.replica).await.map_err(ElectError::new)
    }

    async fn ask(&mut self, election: &mut Election, epoch: &mut Option<LeaderEpoch>) {
        let asked = now();
        let answer = match election.patience() {
            None => self.attempt(*epoch).await,
            Some(patience) => match timeout(patience, self.attempt(*epoch)).await {
                Ok(answer) => answer,
                Err(_) => Err(ElectError::new(format!("no answer within {patience:?}"))),
            },
        };
        if answer.is_ok() && std::mem::take(&mut self.unanswered) {
            tracing::info!("the lease of leadership can be asked for again");
        }
        match answer {
            Ok(Ok(held)) => {
                if !election.held(asked, now()) {
                    return;
                }
                let until = election.until().unwrap_or_default();
                self.lead(*epoch, held, until);
                *epoch = Some(held);
            }
            Ok(Err(name)) => {
                election.other(now());
                if epoch.take().is_some() {
                    tracing::warn!(leader = name.as_deref(), "another replica leads by now");
                }
                self.follow(name);
            }
            Err(error) => {
                election.failed(now());
                if !std::mem::replace(&mut self.unanswered, true) {
                    tracing::warn!(%error, "the lease of leadership could not be asked for; trying again");
                }
                if epoch.is_none() {
                    self.follow(None);
                }
            }
        }
    }

    /// Asks for the lease, and, when this replica newly holds one that is not kept in the database, fences earlier
    /// leaders there. Returns the epoch, or the name of the replica that leads.
    async fn attempt(
        &mut self,
        epoch: Option<LeaderEpoch>,
    ) -> Result<Result<LeaderEpoch, Option<String>>, ElectError> {
        let held = match self.elector.attempt().await? {
            Attempt::Other { name } => return Ok(Err(name)),
            Attempt::Held(held) => held.or(epoch),
        };
        Ok(Ok(match held {
            Some(held) => held,
            None => {
                let taken = self.store.take_leadership(self.replica, &self.name, jiff::Timestamp::now());
                taken.await.map_err(ElectError::new)?
            }
        }))
    }

    fn lead(&self, before: Option<LeaderEpoch>, epoch: LeaderEpoch, until: Moment) {
        self.leadership.leading(epoch, until);
        if before != Some(epoch) {
            tracing::info!(%epoch, "this replica leads");
            self.metrics.leader.set(1);
            self.metrics.leader_epoch.set(epoch.0);
            self.metrics.leader_changes.inc();
        }
    }

    fn follow(&self, leader: Option<String>) {
        self.leadership.following(leader);
        self.metrics.leader.set(0);
    }
}
