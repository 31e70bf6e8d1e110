//! What the tunnel's thread says, merged until the agent looks. Nothing here grows with what peers do.

use std::sync::{Mutex, MutexGuard, PoisonError};

use horizon_tunnel::{TunnelEvent, ViolationKind};
use tokio::sync::Notify;

use crate::tunnel;

/// How many probes are remembered; a controller sends one at a time.
const MAX_PROBES: usize = 16;

/// From the tunnel's thread to the agent.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    pending: Mutex<Pending>,
    changed: Notify,
}

/// What happened since the last look.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Sessions came, went or moved, or did what they may not.
    pub(crate) sessions: bool,
    /// The TUN device is gone.
    pub(crate) device: bool,
    /// Nonces of the dial-back probes that arrived.
    pub(crate) probes: Vec<[u8; 16]>,
}

impl Signals {
    /// Takes an event, on the tunnel's thread.
    pub(crate) fn take(&self, event: TunnelEvent) {
        let mut pending = self.lock();
        match event {
            TunnelEvent::SessionUp { id, remote, mtu, replaced } => {
                tracing::info!(session = %tunnel::model_id(id), mtu, replaced, "session connected");
                tracing::debug!(session = %tunnel::model_id(id), %remote, "session connected from");
                pending.sessions = true;
            }
            TunnelEvent::SessionDown { id, reason } => {
                tracing::info!(session = %tunnel::model_id(id), %reason, "session disconnected");
                pending.sessions = true;
            }
            TunnelEvent::PathChanged { id, remote, mtu } => {
                tracing::debug!(session = %tunnel::model_id(id), %remote, mtu, "session moved");
                return;
            }
            TunnelEvent::AttemptFailed { id, remote, reason } => {
                tracing::debug!(session = %tunnel::model_id(id), %remote, %reason, "connection attempt failed");
                return;
            }
            TunnelEvent::SessionRefused { id, reason } => {
                tracing::warn!(session = %tunnel::model_id(id), %reason, "the tunnel refused a session");
                pending.sessions = true;
            }
            TunnelEvent::TunLost { error } => {
                tracing::warn!(%error, "the TUN device is gone");
                pending.device = true;
            }
            TunnelEvent::Violation { session, kind } => {
                let session = tunnel::model_id(session);
                match kind {
                    // Everyday life under a policy.
                    ViolationKind::ForbiddenDestination | ViolationKind::UnsolicitedInbound => {
                        tracing::debug!(%session, ?kind, "a packet was dropped");
                    }
                    _ => tracing::warn!(%session, ?kind, "a peer did what it may not"),
                }
                pending.sessions = true;
            }
            TunnelEvent::Probe { nonce, .. } => {
                if pending.probes.len() >= MAX_PROBES {
                    return;
                }
                pending.probes.push(nonce);
            }
        }
        drop(pending);
        self.changed.notify_one();
    }

    /// Waits until something happened, and takes all of it.
    pub(crate) async fn next(&self) -> Pending {
        loop {
            self.changed.notified().await;
            let pending = std::mem::take(&mut *self.lock());
            if pending.sessions || pending.device || !pending.probes.is_empty() {
                return pending;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        // The fields are whole between any two statements, so a panic elsewhere does not spoil them.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
