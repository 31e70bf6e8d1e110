//! The keeper: looks at sessions when something changed that may end them, wakes the connections that are concerned, and
//! ends what has timed out.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use horizon_controller_core::ServerStanding;
use horizon_model::ServerId;
use jiff::Timestamp;
use tokio::{
    sync::broadcast::{
        Receiver,
        error::{RecvError, TryRecvError},
    },
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{Context, accept, compose, registry::EndNote};
use crate::{
    live::Hint,
    store::{
        BEAT_RETENTION, EndReason, EndedBy, NewEvent, SessionRow, SessionStatus, Severity, Source, StoreError,
    },
};

/// How often heartbeats that are too old are forgotten.
const PRUNE: Duration = Duration::from_secs(600);
/// How soon what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What a batch of hints asks for.
#[derive(Default)]
struct Work {
    /// Whose sessions are looked at and who is woken.
    servers: BTreeSet<ServerId>,
    /// Whose sessions are looked at.
    sweep: BTreeSet<ServerId>,
    everything: bool,
}

/// Listens until the controller stops.
pub(super) async fn run(context: Arc<Context>, mut hints: Receiver<Hint>) {
    let mut stop = context.stop.clone();
    context.count_sessions().await;
    context.check_keyset().await;
    let mut sweep = interval_at(Instant::now() + context.settings.sweep, context.settings.sweep);
    let mut prune = interval_at(Instant::now() + PRUNE, PRUNE);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    prune.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What could not be carried out is tried again with what comes next, or after a while.
    let mut work = Work::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(RETRY), if work.waits() => {}
            () = stop.requested() => return,
            hint = hints.recv() => match hint {
                Ok(hint) => work.take(&context, hint),
                Err(RecvError::Lagged(missed)) => {
                    tracing::info!(missed, "hints were lost; every server is looked at");
                    work.everything = true;
                }
                Err(RecvError::Closed) => return,
            },
            _ = sweep.tick() => {
                context.count_sessions().await;
                if let Err(error) = context.end_timed_out().await {
                    tracing::error!(%error, "sessions that timed out could not be ended");
                }
                // Keys expire without anybody changing anything.
                work.sweep.extend(context.store.all_servers_with_sessions().await.unwrap_or_default());
            }
            _ = prune.tick() => context.prune().await,
        }
        loop {
            match hints.try_recv() {
                Ok(hint) => work.take(&context, hint),
                Err(TryRecvError::Lagged(_)) => work.everything = true,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        context.tell_blocked();
        match context.carry_out(&work).await {
            Ok(()) => work = Work::default(),
            Err(error) => tracing::error!(%error, "sessions could not be looked at; it is tried again"),
        }
    }
}

impl Work {
    fn waits(&self) -> bool {
        self.everything || !self.servers.is_empty() || !self.sweep.is_empty()
    }

    fn take(&mut self, context: &Context, hint: Hint) {
        match hint {
            Hint::ServerChanged(server) => {
                self.servers.insert(server);
            }
            Hint::SessionEnded { session, device, reason } => {
                context.registry.tell_device(device, &EndNote { session, reason });
            }
            Hint::StatusDirty(_) | Hint::StateApplied { .. } => {}
        }
    }
}

impl Context {
    /// Lets open conversations know which networks are blocked, if that changed.
    fn tell_blocked(&self) {
        let networks: Vec<_> = accept::blocked_networks(&self.desired.index()).collect();
        self.blocked.send_if_modified(|before| {
            let changed = *before != networks;
            *before = networks;
            changed
        });
    }

    async fn carry_out(&self, work: &Work) -> Result<(), StoreError> {
        let mut servers = work.servers.clone();
        if work.everything {
            servers.extend(self.store.all_servers_with_sessions().await?);
        }
        for server in work.sweep.difference(&servers) {
            self.check_sessions(*server).await?;
        }
        for server in &servers {
            self.check_sessions(*server).await?;
            self.registry.wake(*server);
        }
        if work.everything {
            self.registry.wake_all();
        }
        Ok(())
    }

    /// Ends the sessions of a server that may not go on.
    async fn check_sessions(&self, server: ServerId) -> Result<(), StoreError> {
        let sessions = self.store.sessions_of_server(server).await?;
        if sessions.is_empty() {
            return Ok(());
        }
        let now = self.now();
        let index = self.desired.index();
        let standing =
            self.store.server(server).await?.map_or(ServerStanding::Revoked, |record| record.standing());
        for session in sessions {
            if let Err(why) = compose::judge(&index, standing, &session, now) {
                self.end(&session, &EndReason::broker(why)).await?;
            }
        }
        Ok(())
    }

    /// Ends a session and tells everybody concerned. Returns whether it was live.
    pub(super) async fn end(&self, session: &SessionRow, reason: &EndReason) -> Result<bool, StoreError> {
        let Some(ended) = self.store.end_session(session.id, reason, self.now()).await? else {
            return Ok(false);
        };
        tracing::info!(session = %ended.session, server = %ended.server, "a session ended: {}", ended.reason);
        self.live.publish(Hint::SessionEnded {
            session: ended.session,
            device: ended.device,
            reason: ended.reason.into(),
        });
        self.registry.wake(ended.server);
        self.count_sessions().await;
        Ok(true)
    }

    async fn end_timed_out(&self) -> Result<(), StoreError> {
        let now = self.now();
        for session in self.store.stale_requests(before(now, self.settings.session_patience * 3)).await? {
            let reason = EndReason {
                status: SessionStatus::Failed,
                by: EndedBy::Broker,
                reason: "the appliance did not take it in".into(),
            };
            self.end(&session, &reason).await?;
        }
        for session in self.store.idle_sessions(before(now, self.settings.session_idle)).await? {
            if self.live.is_device_online(session.device) {
                continue;
            }
            let reason = EndReason {
                status: SessionStatus::Timeout,
                by: EndedBy::Broker,
                reason: format!(
                    "nothing used it for {} minutes",
                    self.settings.session_idle.as_secs().div_ceil(60)
                ),
            };
            self.end(&session, &reason).await?;
        }
        Ok(())
    }

    /// Raises an event when the keys are older than those that were in use before: peers that hold the newer KeySet will
    /// not follow.
    async fn check_keyset(&self) {
        let version = self.keys.keyset.version;
        match self.store.note_keyset(version, self.now()).await {
            Ok(newest) if newest > version => {
                tracing::error!(
                    version,
                    newest,
                    "the key directory is older than the database: restore its backup"
                );
                let event = NewEvent {
                    kind: "keyset_rolled_back",
                    severity: Severity::Critical,
                    source: Source::System,
                    address: None,
                    description: format!(
                        "the controller has KeySet {version}; KeySet {newest} was in use before"
                    ),
                    data: serde_json::Value::Null,
                };
                self.record(&event).await;
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "the version of the KeySet could not be noted"),
        }
    }

    /// Shows how many sessions there are.
    pub(super) async fn count_sessions(&self) {
        match self.store.count_sessions().await {
            Ok(count) => {
                self.metrics.sessions.set(i64::from(count));
            }
            Err(error) => tracing::debug!(%error, "sessions could not be counted"),
        }
    }

    async fn prune(&self) {
        let retention = Duration::try_from(BEAT_RETENTION).unwrap_or_default();
        if let Err(error) = self.store.prune_beats(before(self.now(), retention)).await {
            tracing::error!(%error, "old heartbeats could not be removed");
        }
        if let Err(error) = self.store.prune_history(self.now()).await {
            tracing::error!(%error, "old challenges and events could not be removed");
        }
    }
}

fn before(now: Timestamp, span: Duration) -> Timestamp {
    now.checked_sub(span).unwrap_or(Timestamp::MIN)
}
