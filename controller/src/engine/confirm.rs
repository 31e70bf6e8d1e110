//! What only the leader knows and does, for replicas that do not lead: its report, and the confirmation of removals that
//! wait. Both go through notes in the database, so that it does not matter which replica somebody asks.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{PutError, Told, task::Task};
use crate::{
    replica::{Leadership, Standing},
    store::{Actor, LeaderEpoch, Store, StoreError},
};

const REPORT: &str = "leader.report";
const REQUEST: &str = "leader.prune_request";
const ANSWER: &str = "leader.prune_answer";
/// How long the leader's answer is waited for.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(250);

/// Asks the leader to let go what waits.
#[derive(Serialize, Deserialize)]
struct Request {
    id: Uuid,
    /// The account that confirms.
    account: String,
}

/// What the leader did.
#[derive(Serialize, Deserialize)]
struct Answer {
    id: Uuid,
    outcome: Result<usize, String>,
}

/// What the leader said last of what is wrong and what waits.
pub(super) async fn told(store: &Store) -> Result<Told, StoreError> {
    Ok(read(store, REPORT).await?.unwrap_or_default())
}

/// Has the leader carry out the removals that wait.
pub(super) async fn ask_leader(
    store: &Store,
    leadership: &Leadership,
    actor: &Actor,
) -> Result<usize, PutError> {
    let leader = || match leadership.standing() {
        Standing::Follower { leader } => leader,
        _ => None,
    };
    let Actor::Admin(account) = actor else { return Err(PutError::NoLeader(leader())) };
    if told(store).await?.held.is_empty() {
        return Ok(0);
    }
    let request = Request { id: Uuid::new_v4(), account: account.clone() };
    write(store, REQUEST, Some(&request), None).await?;
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        sleep(LOOK).await;
        match read::<Answer>(store, ANSWER).await? {
            Some(answer) if answer.id == request.id => return answer.outcome.map_err(PutError::AtLeader),
            _ => {}
        }
    }
    Err(PutError::NoLeader(leader()))
}

impl Task {
    /// Tells other replicas what they cannot know, and takes up what they ask.
    pub(super) async fn serve_replicas(&mut self) {
        let Some(epoch) = self.parts.leadership.leads().filter(|_| self.options.shared && self.listed) else {
            return;
        };
        if let Err(error) = self.tell_replicas(epoch).await {
            tracing::warn!(%error, "what is wrong could not be told to other replicas; trying again");
        }
    }

    async fn tell_replicas(&mut self, epoch: LeaderEpoch) -> Result<(), StoreError> {
        if self.held.is_some()
            && let Some(request) = read::<Request>(&self.parts.store, REQUEST).await?
        {
            write::<Request>(&self.parts.store, REQUEST, None, Some(epoch)).await?;
            let outcome = self.confirm_prune(&Actor::Admin(request.account)).await;
            let answer = Answer { id: request.id, outcome: outcome.map_err(|error| error.to_string()) };
            write(&self.parts.store, ANSWER, Some(&answer), Some(epoch)).await?;
        }
        let told = self.shared.report().told();
        if self.told.as_ref() != Some(&told) {
            write(&self.parts.store, REPORT, Some(&told), Some(epoch)).await?;
            self.told = Some(told);
        }
        Ok(())
    }
}

/// A note; one that cannot be read counts as none.
async fn read<T: DeserializeOwned>(store: &Store, name: &str) -> Result<Option<T>, StoreError> {
    Ok(store.note(name).await?.and_then(|value| serde_json::from_value(value).ok()))
}

async fn write<T: Serialize>(
    store: &Store,
    name: &str,
    value: Option<&T>,
    leader: Option<LeaderEpoch>,
) -> Result<(), StoreError> {
    // Strings, numbers and lists: nothing that JSON lacks.
    let value = value.map(|value| serde_json::to_value(value).unwrap_or_default());
    store.put_note(name, value.as_ref(), Timestamp::now(), leader).await
}
