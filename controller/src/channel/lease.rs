//! How a connection becomes the one that speaks for its server: by the lease of the server's channel, which the store gives to
//! one connection of one replica at a time.

use std::time::Duration;

use horizon_model::{Incarnation, ServerId};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};
use uuid::Uuid;

use super::{
    Context,
    appliance::internal,
    arrivals::Turn,
    clones::{self, Arrival, Verdict},
    leave::Holding,
    questions::Asker,
    refusals,
    wire::End,
};
use crate::{
    live::Hint,
    store::{AttachedServer, Attachment, ChannelHolder, NewEvent, ServerRecord, Severity, Source},
};

/// How often a question to another replica is repeated: hints are lost at times.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How often the lease may be lost to others who arrive at the same time.
const TRIES: u32 = 8;

impl Context {
    /// The hold on a server's channel, which `holder` was seen to have, once it is clear that the newcomer is not a clone. The
    /// turn is given up while another appliance is asked.
    pub(super) async fn hold(
        &self,
        record: &ServerRecord,
        holder: Option<ChannelHolder>,
        mut attachment: Attachment,
        mut turn: Option<Turn<'_>>,
        request: u64,
    ) -> Result<(Holding, AttachedServer), End> {
        let (server, incarnation) = (attachment.server, attachment.incarnation);
        let mut known = Some(holder);
        for _ in 0..TRIES {
            let holder = match known.take() {
                Some(holder) => holder,
                None => self.store.channel_of(server).await.map_err(internal(request))?,
            };
            if let Some(holder) = &holder
                && clones::arrival(holder.incarnation, incarnation) == Arrival::AskTheOther
            {
                drop(turn.take());
                if clones::verdict(self.lives(server, holder).await) == Verdict::RefuseNewcomer {
                    self.clone_came(server, record, incarnation).await;
                    return Err(End::refuse(request, refusals::clone_of(&record.name)));
                }
                // It took its time, for a reason that has nothing to do with how many come.
                turn = self.turn(request, Instant::now()).await?;
            }
            attachment.expected = holder.map(|holder| holder.lease);
            let attached = self.store.attach(&attachment, self.now()).await.map_err(internal(request))?;
            let Some(attached) = attached else { continue };
            let lease = attached.lease;
            let Some(seat) = self.registry.take_seat(server, lease) else { continue };
            if holder.is_some_and(|holder| holder.replica != self.replica) {
                self.live.publish(Hint::MakeWay { server, lease });
            }
            return Ok((self.leaver.hold(seat), attached));
        }
        Err(End::refuse(request, refusals::contended(&record.name)))
    }

    /// The turn of an appliance that arrives, whose attempt began at `since`; an end when it would come too late.
    pub(super) async fn turn(&self, request: u64, since: Instant) -> Result<Option<Turn<'_>>, End> {
        self.arrivals.turn(since).await.map_err(|away| End::refuse(request, refusals::crowded(away)))
    }

    /// Whether the connection that holds a server's channel has an appliance that lives. One that says nothing does not.
    async fn lives(&self, server: ServerId, holder: &ChannelHolder) -> bool {
        let patience = self.settings.clone_patience;
        if holder.replica == self.replica {
            let (reply, answer) = oneshot::channel();
            self.registry.ask(server, holder.lease, Asker::Here(reply));
            return matches!(timeout(patience, answer).await, Ok(Ok(true)));
        }
        if !holder.replica_alive {
            return false;
        }
        let mut question = self.questions.put(Uuid::new_v4());
        let deadline = Instant::now() + patience;
        loop {
            self.live.publish(Hint::ProveAlive { server, lease: holder.lease, question: question.number });
            let left = deadline.saturating_duration_since(Instant::now());
            if let Ok(answer) = timeout(ASK_AGAIN.min(left), &mut question.answer).await {
                return answer.unwrap_or(false);
            }
            // Its replica may have died, or it may have gone.
            let there = self.store.channel_of(server).await.ok().flatten();
            let there = there.is_some_and(|now| now.lease == holder.lease && now.replica_alive);
            if !there || Instant::now() >= deadline {
                return false;
            }
        }
    }

    async fn clone_came(&self, server: ServerId, record: &ServerRecord, incarnation: Incarnation) {
        let event = NewEvent {
            kind: "clone",
            severity: Severity::Critical,
            source: Source::Server(server),
            address: None,
            description: format!(
                "server {}/{}: a second running copy of its appliance connected and was refused",
                record.namespace, record.name
            ),
            data: serde_json::json!({ "incarnation": incarnation }),
        };
        self.record(&event).await;
    }
}
