//! The accept loop: bounded in every way before anything costs.

use std::{net::IpAddr, sync::Arc};

use horizon_channel::Incoming;
use horizon_controller_core::Index;
use horizon_crds::{KindName, Resource, SecurityPolicySpec};
use tokio::sync::Semaphore;

use super::{Context, opening};
use crate::live::{Counted, Limit, Lockout};

/// The namespace whose security policy holds for peers that have not said who they are.
const DEFAULT_NAMESPACE: &str = horizon_crds::DEFAULT_NAMESPACE;

/// Accepts until the listener is closed.
pub(super) async fn run(context: Arc<Context>) {
    let handshakes = Arc::new(Semaphore::new(context.settings.handshakes_at_once));
    while let Some(incoming) = context.listener.accept().await {
        if context.stop.is_requested() || !admitted(&context, &incoming) {
            incoming.ignore();
            continue;
        }
        // Under load a peer first proves its address, which costs this side nothing.
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            if incoming.address_validated() { incoming.ignore() } else { incoming.retry() }
            continue;
        };
        let context = context.clone();
        tokio::spawn(async move {
            let counted = context.metrics.channel_open("handshake");
            match incoming.handshake().await {
                Ok(peer) => {
                    drop((permit, counted));
                    context.metrics.handshakes.inc();
                    opening::serve(context, peer).await;
                }
                Err(error) => {
                    context.metrics.handshakes_failed.inc();
                    tracing::debug!(%error, "a handshake came to nothing");
                }
            }
        });
    }
}

fn admitted(context: &Context, incoming: &Incoming) -> bool {
    let address = incoming.remote().ip();
    if context.listener.connections() >= context.settings.connections {
        tracing::warn!(limit = context.settings.connections, "the limit of connections is reached");
        return false;
    }
    let index = context.desired.index();
    if is_blocked(&index, address) {
        return false;
    }
    let policy = policy(&index);
    let limit = Limit::per_minute(policy.rate_limits.handshakes_per_minute);
    context.live.allow(Counted::Handshake(address), limit, context.now())
}

/// The security policy for peers that have not said who they are.
pub(super) fn policy(index: &Index) -> SecurityPolicySpec {
    index.security_policy(DEFAULT_NAMESPACE)
}

/// The lockout of a security policy.
pub(super) fn lockout(policy: &SecurityPolicySpec) -> Lockout {
    Lockout {
        threshold: policy.lockout.threshold.into(),
        window: policy.lockout.window.get(),
        duration: policy.lockout.duration.get(),
    }
}

/// Whether the security policy of any namespace blocks an address.
fn is_blocked(index: &Index, address: IpAddr) -> bool {
    index.all(KindName::SecurityPolicy).iter().any(|stored| match &*stored.resource {
        Resource::SecurityPolicy(document) => {
            document.spec.blocked_networks.iter().any(|network| network.get().contains(&address))
        }
        _ => false,
    })
}

