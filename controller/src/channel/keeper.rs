//! The keeper: looks at sessions when something changed that may end them, and ends what has timed out. On every replica it
//! runs; what one replica does for all of them is the leader's.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use horizon_controller_core::ServerStanding;
use horizon_model::ServerId;
use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use super::{Context, accept, compose, ear::Work};
use crate::{
    detect::Fact,
    live::Hint,
    store::{EndReason, Ended, EndedBy, NewEvent, SessionRow, SessionStatus, Severity, Source, StoreError},
};

/// How soon what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How soon a change of the number of sessions shows.
const COUNT: Duration = Duration::from_millis(500);
/// How many appliances are woken at once when all are, and how much later the next ones.
const WAKE: (usize, Duration) = (200, Duration::from_millis(50));

/// Works until the task is ended.
pub(super) async fn run(context: Arc<Context>) {
    context.count_sessions().await;
    context.check_keyset().await;
    let mut sweep = interval_at(Instant::now() + context.settings.sweep, context.settings.sweep);
    let mut count = interval_at(Instant::now() + COUNT, COUNT);
    for ticks in [&mut sweep, &mut count] {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    // What could not be carried out is tried again with what comes next, or after a while.
    let mut work = Work::default();
    loop {
        tokio::select! {
            () = sleep(RETRY), if work.waits() => {}
            more = context.inbox.next() => work.add(more),
            _ = sweep.tick() => {
                context.count_sessions().await;
                if context.leads() {
                    if let Err(error) = context.end_timed_out().await {
                        tracing::error!(%error, "sessions that timed out could not be ended");
                    }
                    // Keys expire without anybody changing anything.
                    work.servers.extend(context.store.all_servers_with_sessions().await.unwrap_or_default());
                }
            }
            _ = count.tick() => {
                context.certain(Duration::ZERO);
                if context.recount.swap(false, Ordering::Relaxed) {
                    context.count_sessions().await;
                }
            }
        }
        context.tell_blocked();
        if std::mem::take(&mut work.appliances) {
            context.wake_everybody().await;
        }
        match context.carry_out(&work).await {
            Ok(()) => work = Work::default(),
            Err(error) => tracing::error!(%error, "sessions could not be looked at; it is tried again"),
        }
    }
}

impl Work {
    fn waits(&self) -> bool {
        self.everything || !self.servers.is_empty()
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

    /// Whether this replica leads. Each appliance's own task ends the sessions that may not go on; the leader looks after
    /// those of appliances that are connected nowhere.
    fn leads(&self) -> bool {
        self.leadership.leads().is_some()
    }

    async fn carry_out(&self, work: &Work) -> Result<(), StoreError> {
        let mut servers = work.servers.clone();
        if work.everything && self.leads() {
            servers.extend(self.store.all_servers_with_sessions().await?);
        }
        for server in servers {
            if self.leads() {
                self.check_sessions(server).await?;
            }
        }
        Ok(())
    }

    /// Has every appliance's task look whether its appliance holds what it should, some at a time.
    async fn wake_everybody(&self) {
        for some in self.registry.servers().chunks(WAKE.0) {
            for server in some {
                self.registry.wake(*server);
            }
            sleep(WAKE.1).await;
        }
    }

    /// Ends the sessions of a server that may not go on.
    async fn check_sessions(&self, server: ServerId) -> Result<(), StoreError> {
        let sessions = self.store.sessions_of_server(server).await?;
        if sessions.is_empty() {
            return Ok(());
        }
        let now = self.now();
        let index = self.desired.index();
        let standing = self.store.server_standing(server).await?.unwrap_or(ServerStanding::Revoked);
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
        self.tell_end(&ended);
        Ok(true)
    }

    /// Tells everybody concerned that a session ended.
    pub(super) fn tell_end(&self, ended: &Ended) {
        tracing::info!(session = %ended.session, server = %ended.server, "a session ended: {}", ended.reason);
        self.detect.note(Fact::SessionEnded(ended.session));
        self.live.publish(Hint::SessionEnded {
            session: ended.session,
            device: ended.device,
            reason: ended.reason.as_str().into(),
        });
        self.live.publish(Hint::ServerChanged(ended.server));
        self.sessions_moved();
    }

    /// The number of sessions may have changed.
    pub(super) fn sessions_moved(&self) {
        self.recount.store(true, Ordering::Relaxed);
    }

    /// So much of a span up to now as is certain, should somebody have set the clock.
    pub(super) fn certain(&self, span: Duration) -> Duration {
        let at = Instant::now();
        if let Some(by) = self.clock.look(at, self.now()) {
            tracing::warn!(seconds = by.as_secs(), "the clock was set: nothing times out for a while");
        }
        self.clock.certain(span, at)
    }

    async fn end_timed_out(&self) -> Result<(), StoreError> {
        let now = self.now();
        // Reports renew the times in the database well within that.
        let patience = self.settings.session_idle.max(self.settings.session_patience * 3);
        if self.certain(patience) < patience {
            return Ok(());
        }
        for session in self.store.stale_requests(before(now, self.settings.session_patience * 3)).await? {
            let reason = EndReason {
                status: SessionStatus::Failed,
                by: EndedBy::Broker,
                reason: "the appliance did not take it in".into(),
            };
            self.end(&session, &reason).await?;
        }
        for session in self.store.silent_sessions(before(now, self.settings.session_idle)).await? {
            if self.live.is_device_online(session.device) {
                continue;
            }
            let minutes = self.settings.session_idle.as_secs().div_ceil(60);
            let reason = EndReason {
                status: SessionStatus::Interrupted,
                by: EndedBy::Broker,
                reason: format!("neither its device nor its appliance said anything for {minutes} minutes"),
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
        let version = self.keys.now().keyset.version;
        match self.store.note_keyset(version, self.now()).await {
            // What the database has of them is about to be followed.
            Ok(newest) if newest > version && !self.follows(version).await => {
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

    /// Whether the database has newer KeySets, or it is not known.
    async fn follows(&self, version: u64) -> bool {
        self.store.keysets_after(version).await.map_or(true, |newer| !newer.is_empty())
    }

    /// Shows how many sessions there are.
    async fn count_sessions(&self) {
        match self.store.count_sessions().await {
            Ok(count) => {
                self.metrics.sessions.set(i64::from(count));
            }
            Err(error) => tracing::debug!(%error, "sessions could not be counted"),
        }
    }
}

fn before(now: Timestamp, span: Duration) -> Timestamp {
    now.checked_sub(span).unwrap_or(Timestamp::MIN)
}
