//! The sweep: what changed in the store since it was last looked at. It finds what hints should have said and did not.

use std::{collections::HashSet, sync::Arc};

use tokio::time::{MissedTickBehavior, interval};

use super::{Context, registry::EndNote};
use crate::store::{Cursor, StoreError};

/// Looks every now and then until the task is ended.
pub(super) async fn run(context: Arc<Context>) {
    let mut ticks = interval(context.settings.changes);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut cursor = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = context.sweep_now.notified() => {}
        }
        match context.sweep(cursor.as_ref()).await {
            Ok(next) => cursor = Some(next),
            Err(error) => tracing::debug!(%error, "what changed could not be looked for"),
        }
    }
}

impl Context {
    /// Wakes the appliances whose servers changed, and tells devices of sessions that ended. Returns up to where it looked.
    async fn sweep(&self, cursor: Option<&Cursor>) -> Result<Cursor, StoreError> {
        let (servers, next) = self.store.servers_changed(cursor).await?;
        for server in &servers {
            self.registry.wake(*server);
        }
        let servers: HashSet<_> = servers.into_iter().collect();
        for (device, granted) in self.registry.grants() {
            if !servers.contains(&granted.server) {
                continue;
            }
            if let Some(reason) = self.store.session_end(granted.session).await? {
                let note = EndNote { session: granted.session, reason: reason.into() };
                self.registry.tell_device(device, &note);
            }
        }
        Ok(next)
    }
}
