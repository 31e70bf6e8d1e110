//! What only the leader knows and does, for replicas that do not lead: its report, and the confirmation of removals that
//! wait. Both go through notes in the database, so that it does not matter which replica somebody asks.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{PutError, Told, report::held_digest, task::Task};
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
    /// What is confirmed, as the leader told it.
    held_digest: String,
    /// When, by the clock of the database.
    asked_at: Timestamp,
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
    let account = match actor {
        Actor::Admin(account) => account,
        Actor::Account(remote) => &remote.name,
        _ => return Err(PutError::NoLeader(leader())),
    };
    let waits = told(store).await?;
    if waits.held.is_empty() {
        return Ok(0);
    }
    let request = Request {
        id: Uuid::new_v4(),
        account: account.clone(),
        held_digest: waits.held_digest,
        asked_at: store.clock().await?,
    };
    write(store, REQUEST, Some(&request), None).await?;
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        sleep(LOOK).await;
        match read::<Answer>(store, ANSWER).await? {
            Some(answer) if answer.id == request.id => return answer.outcome.map_err(PutError::AtLeader),
            _ => {}
        }
    }
    // Nobody waits for it any more: whoever leads next is not to take it up.
    if read::<Request>(store, REQUEST).await?.is_some_and(|left| left.id == request.id) {
        write::<Request>(store, REQUEST, None, None).await?;
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
        let store = self.parts.store.clone();
        if store.note(REQUEST).await?.is_some() {
            let request = read::<Request>(&store, REQUEST).await?;
            // Taken away whatever comes of it: it is not to speak of what waits another time.
            write::<Request>(&store, REQUEST, None, Some(epoch)).await?;
            if let Some(request) = request {
                let outcome = self.answer(&request, store.clock().await?).await;
                let answer = Answer { id: request.id, outcome };
                write(&store, ANSWER, Some(&answer), Some(epoch)).await?;
            }
        }
        let told = self.shared.report().told();
        if self.told.as_ref() != Some(&told) {
            write(&self.parts.store, REPORT, Some(&told), Some(epoch)).await?;
            self.told = Some(told);
        }
        Ok(())
    }
}

impl Task {
    /// Carries out what was confirmed, if it is still what waits, and somebody waits for the answer.
    async fn answer(&mut self, request: &Request, now: Timestamp) -> Result<usize, String> {
        let held = self.held.as_ref().map(held_digest).unwrap_or_default();
        let age = Duration::try_from(now.duration_since(request.asked_at)).unwrap_or_default();
        if held != request.held_digest || age > PATIENCE {
            return Err("what waits for a confirmation has changed since: look at it again".to_owned());
        }
        let outcome = self.confirm_prune(&Actor::Admin(request.account.clone())).await;
        outcome.map_err(|error| error.to_string())
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
