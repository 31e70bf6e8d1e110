//! The controller's own look at a live session of an appliance, from time to time: both ends are asked for a report at once,
//! and what they say is held against each other. What only one end knows ends, when it stays so.

use std::time::Duration;

use horizon_controller_core::live_check::{
    Answers, Consequence, Said, compare_answers, consequence, next_look, pick,
};
use horizon_model::SessionId;
use horizon_wire::proto::{self, from_controller::Message as Say};
use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    appliance::{Appliance, internal},
    wire::{End, Wire},
};
use crate::{
    live::Hint,
    store::{EndReason, EndedBy, NewEvent, SessionStatus, Severity, Source, StoreError, random},
};

/// How long both ends may take to answer.
const ANSWERS: Duration = Duration::from_secs(10);

/// When a session is looked at, and the look that is under way.
#[derive(Debug)]
pub(super) struct Looks {
    next: Instant,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    session: SessionId,
    /// Whether this is the second time, because the answers did not fit the first time.
    again: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Both are asked at this time.
    Waits(Instant),
    /// Both were asked then; what they said is looked at at that time. Whether the appliance reported since.
    Asked { at: Timestamp, until: Instant, reported: bool },
}

impl Looks {
    pub(super) fn new(interval: Duration) -> Self {
        Self { next: Instant::now() + next_look(interval, u32::from_be_bytes(random())), open: None }
    }

    /// When there is something to do.
    pub(super) fn deadline(&self) -> Instant {
        match &self.open {
            Some(
                Open { stage: Stage::Waits(at), .. } | Open { stage: Stage::Asked { until: at, .. }, .. },
            ) => *at,
            None => self.next,
        }
    }

    /// A report of the appliance was taken in.
    pub(super) fn reported(&mut self) {
        if let Some(Open { stage: Stage::Asked { reported, .. }, .. }) = &mut self.open {
            *reported = true;
        }
    }
}

impl Appliance<'_> {
    /// Does what is due.
    pub(super) async fn look_on_time(&mut self, wire: &mut Wire, now: Instant) -> Result<(), End> {
        if self.looks.deadline() > now {
            return Ok(());
        }
        let policy = self.context.policies.of(&*self.context.desired, &self.namespace);
        let interval = self.context.settings.look_pace.unwrap_or_else(|| policy.challenge_interval.get());
        self.looks.next = now + next_look(interval, u32::from_be_bytes(random()));
        match self.looks.open.take() {
            None => {
                let chosen = pick(self.sent_sessions.iter().copied(), u32::from_be_bytes(random()));
                let Some(session) = chosen.filter(|_| self.verified) else { return Ok(()) };
                self.ask_both(wire, session, false).await
            }
            Some(Open { session, again, stage: Stage::Waits(_) }) => {
                self.ask_both(wire, session, again).await
            }
            Some(Open { session, again, stage: Stage::Asked { at, reported, .. } }) => {
                self.judge_look(session, again, at, reported).await.map_err(internal(0))
            }
        }
    }

    async fn ask_both(&mut self, wire: &mut Wire, session: SessionId, again: bool) -> Result<(), End> {
        let found = self.context.store.live_session(session).await.map_err(internal(0))?;
        let (at, patience) = (self.context.now(), self.context.settings.look_patience);
        // One that just began may be known to one end before the other.
        let settled = |since: Timestamp| since.checked_add(patience).is_ok_and(|settled| settled <= at);
        let Some(row) = found.filter(|row| row.activated.is_some_and(settled)) else { return Ok(()) };
        self.context.live.publish(Hint::CheckSession { session, device: row.device });
        let asked = proto::CheckSession { session: session.as_bytes().to_vec() };
        wire.send(0, Say::CheckSession(asked)).await?;
        let until = Instant::now() + ANSWERS.min(patience);
        let stage = Stage::Asked { at, until, reported: false };
        self.looks.open = Some(Open { session, again, stage });
        Ok(())
    }

    async fn judge_look(
        &mut self,
        session: SessionId,
        again: bool,
        asked: Timestamp,
        reported: bool,
    ) -> Result<(), StoreError> {
        let (context, now) = (self.context, self.context.now());
        let Some(said) = context.store.said_since(session, asked).await? else { return Ok(()) };
        // A report that does not name the session says that the appliance carries none.
        let appliance = match said.appliance {
            Said::Nothing if reported => Said::Not,
            other => other,
        };
        let answers = compare_answers(appliance, said.device_said);
        let reachable = said.device_reports && context.live.is_device_online(said.device);
        let follows = consequence(answers, again, reachable);
        if follows == Consequence::AskAgain {
            let stage = Stage::Waits(Instant::now() + context.settings.look_patience);
            self.looks.open = Some(Open { session, again: true, stage });
            return Ok(());
        }
        context.store.note_look(session, answers, now).await?;
        context
            .metrics
            .session_looks
            .get_or_create(&crate::metrics::NameLabel { name: answers.as_str() })
            .inc();
        match follows {
            Consequence::None | Consequence::AskAgain => Ok(()),
            Consequence::Tell => {
                self.tell_look(session, answers, Severity::Low, "session_unanswered").await;
                Ok(())
            }
            Consequence::End => {
                self.tell_look(session, answers, Severity::High, "session_one_sided").await;
                let reason = EndReason {
                    status: SessionStatus::Interrupted,
                    by: EndedBy::Broker,
                    reason: format!("only one of its ends knows it: {}", answers.words()),
                };
                match context.store.live_session(session).await? {
                    Some(row) => context.end(&row, &reason).await.map(drop),
                    None => Ok(()),
                }
            }
        }
    }

    async fn tell_look(&self, session: SessionId, answers: Answers, severity: Severity, kind: &'static str) {
        let event = NewEvent {
            kind,
            severity,
            source: Source::Session(session),
            address: None,
            description: format!(
                "session {session} on server {}/{}: {}",
                self.namespace,
                self.name,
                answers.words()
            ),
            data: serde_json::json!({ "answers": answers.as_str() }),
        };
        self.context.record(&event).await;
    }
}
