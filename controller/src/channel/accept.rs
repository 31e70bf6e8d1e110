//! The accept loop: bounded in every way before anything costs.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use horizon_channel::Incoming;
use horizon_controller_core::Index;
use horizon_crds::{KindName, Name, Resource, SecurityPolicySpec};
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{Context, opening};
use crate::live::{Counted, Limit, Lockout};

/// The namespace whose security policy holds for peers that have not said who they are.
const DEFAULT_NAMESPACE: &str = horizon_crds::DEFAULT_NAMESPACE;

/// Accepts until the listener is closed.
pub(super) async fn run(context: Arc<Context>) {
    let handshakes = Arc::new(Semaphore::new(context.settings.handshakes_at_once));
    while let Some(incoming) = context.listener.accept().await {
        let leaving = context.stop.is_requested() || context.draining.load(Ordering::Relaxed);
        let admission = if leaving { Admission::Ignore } else { admission(&context, &incoming) };
        match admission {
            Admission::Serve => {}
            Admission::Ignore => {
                incoming.ignore();
                continue;
            }
            Admission::ProveAddress => {
                incoming.retry();
                continue;
            }
        }
        // Under load a peer first proves its address, which costs this side nothing.
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            if incoming.address_validated() {
                incoming.ignore()
            } else {
                incoming.retry()
            }
            continue;
        };
        tokio::spawn(shake_hands(context.clone(), incoming, permit));
    }
}

/// Completes a handshake. The conversation that follows is a task of its own: it lasts, and takes less room.
async fn shake_hands(context: Arc<Context>, incoming: Incoming, _permit: OwnedSemaphorePermit) {
    let _counted = context.metrics.channel_open("handshake");
    let since = Instant::now();
    match incoming.handshake().await {
        Ok(peer) => {
            context.metrics.handshakes.inc();
            tokio::spawn(opening::serve(context.clone(), peer, since));
        }
        Err(error) => {
            context.metrics.handshakes_failed.inc();
            tracing::debug!(%error, "a handshake came to nothing");
        }
    }
}

/// What becomes of a first packet.
enum Admission {
    Serve,
    /// Its sender must show that the address is its own: whoever forges addresses cannot use up the rate of others.
    ProveAddress,
    Ignore,
}

fn admission(context: &Context, incoming: &Incoming) -> Admission {
    let (address, now) = (incoming.remote().ip(), context.now());
    if context.listener.connections() >= context.settings.connections {
        if context.full_warning.lock().is_ok_and(|mut told| warn_now(&mut told, now)) {
            tracing::warn!(limit = context.settings.connections, "the limit of connections is reached");
        }
        return Admission::Ignore;
    }
    let index = context.desired.index();
    if blocked_networks(&index).any(|network| network.contains(&address))
        || context.blocks.refuse(address, now)
    {
        return Admission::Ignore;
    }
    let limit = Limit::per_minute(policy(&index).rate_limits.handshakes_per_minute);
    let proved = incoming.address_validated();
    let counted = if proved { Counted::Handshake(address) } else { Counted::FirstPacket(address) };
    match (context.live.allow(counted, limit, now), proved) {
        (true, _) => Admission::Serve,
        (false, false) => Admission::ProveAddress,
        (false, true) => Admission::Ignore,
    }
}

/// Whether a warning is due: once a second at most.
fn warn_now(told: &mut Option<Timestamp>, now: Timestamp) -> bool {
    match Limit::new(1, Duration::from_secs(1)).count(*told, now) {
        Some(used) => {
            *told = Some(used);
            true
        }
        None => false,
    }
}

/// Limits how many of something become events: so many a second in the long run, and counts those left out in between.
#[derive(Default)]
pub(crate) struct Told(std::sync::Mutex<(Option<Timestamp>, u64)>);

impl Told {
    /// Events of one kind in ten seconds.
    const IN_TEN_SECONDS: u32 = 100;

    /// Whether one is due, and how many were left out since the last.
    pub(crate) fn due(&self, now: Timestamp) -> (bool, u64) {
        // Each change is one step, so it is whole whatever thread panics.
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match Limit::new(Self::IN_TEN_SECONDS, Duration::from_secs(10)).count(state.0, now) {
            Some(used) => {
                state.0 = Some(used);
                (true, std::mem::take(&mut state.1))
            }
            None => {
                state.1 += 1;
                (false, 0)
            }
        }
    }
}

/// The security policy for peers that have not said who they are.
pub(crate) fn policy(index: &Index) -> SecurityPolicySpec {
    index.security_policy(DEFAULT_NAMESPACE)
}

/// The lockout of a security policy.
pub(crate) fn lockout(policy: &SecurityPolicySpec) -> Lockout {
    Lockout {
        threshold: policy.lockout.threshold.into(),
        window: policy.lockout.window.get(),
        duration: policy.lockout.duration.get(),
    }
}

/// The networks that the security policy of any namespace blocks.
pub(crate) fn blocked_networks(index: &Index) -> impl Iterator<Item = IpNet> {
    index.all(KindName::SecurityPolicy).iter().flat_map(|stored| match &*stored.resource {
        Resource::SecurityPolicy(document) => {
            document.spec.blocked_networks.iter().map(|n| n.get()).collect()
        }
        _ => Vec::new(),
    })
}

/// Whether a namespace's security policy blocks an address.
pub(super) fn blocked_in(index: &Index, namespace: &Name, address: IpAddr) -> bool {
    index.security_policy(namespace).blocked_networks.iter().any(|network| network.get().contains(&address))
}
