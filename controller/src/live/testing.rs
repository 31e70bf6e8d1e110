//! Live layers of several replicas in one process, for tests of what replicas do together.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use horizon_model::{DeviceId, Incarnation, ServerId};
use jiff::Timestamp;
use tokio::sync::broadcast;
use uuid::Uuid;

use super::{BusHealth, Counted, Hint, InProcess, Limit, Live, Lockout, Presence};
use crate::store::ChannelLease;

/// One replica's live layer, joined with those of the others without any delay.
pub(crate) struct Joined {
    all: Arc<Vec<InProcess>>,
    lossy: Arc<AtomicBool>,
    mine: usize,
}

/// The live layers of so many replicas. With `lossy`, no hint reaches another replica; presences do.
pub(crate) fn bus(replicas: usize, lossy: bool) -> Vec<Arc<Joined>> {
    let all: Arc<Vec<InProcess>> = Arc::new((0..replicas).map(|_| InProcess::default()).collect());
    let lossy = Arc::new(AtomicBool::new(lossy));
    (0..replicas).map(|mine| Arc::new(Joined { all: all.clone(), lossy: lossy.clone(), mine })).collect()
}

impl Joined {
    /// Whether hints for others are lost from now on.
    pub(crate) fn set_lossy(&self, lossy: bool) {
        self.lossy.store(lossy, Ordering::Relaxed);
    }

    fn here(&self) -> &InProcess {
        &self.all[self.mine]
    }

    fn tell_others(&self, hint: &Hint) {
        if !self.lossy.load(Ordering::Relaxed) {
            let others = self.all.iter().enumerate().filter(|(number, _)| *number != self.mine);
            others.for_each(|(_, other)| other.publish(hint.clone()));
        }
    }
}

impl Live for Joined {
    fn server_online(&self, server: ServerId, incarnation: Incarnation, lease: ChannelLease, now: Timestamp) {
        self.here().server_online(server, incarnation, lease, now);
        self.tell_others(&Hint::PresenceChanged { server });
    }

    fn server_seen(&self, server: ServerId, now: Timestamp) {
        self.here().server_seen(server, now);
    }

    fn server_offline(&self, server: ServerId, lease: ChannelLease, now: Timestamp) {
        self.here().server_offline(server, lease, now);
        self.tell_others(&Hint::PresenceChanged { server });
    }

    fn presence(&self, server: ServerId) -> Option<Presence> {
        self.all.iter().filter_map(|live| live.presence(server)).max_by_key(|presence| presence.lease)
    }

    fn online_servers(&self) -> usize {
        self.all.iter().map(InProcess::online_servers).sum()
    }

    fn device_online(&self, device: DeviceId, online: bool) {
        self.here().device_online(device, online);
    }

    fn is_device_online(&self, device: DeviceId) -> bool {
        self.all.iter().any(|live| live.is_device_online(device))
    }

    fn publish(&self, hint: Hint) {
        self.tell_others(&hint);
        self.here().publish(hint);
    }

    fn publish_here(&self, hint: Hint) {
        self.here().publish(hint);
    }

    fn bus_health(&self) -> Option<BusHealth> {
        let up = !self.lossy.load(Ordering::Relaxed);
        Some(BusHealth { by: "memory", up, text: "replicas of one process".into() })
    }

    fn subscribe(&self) -> broadcast::Receiver<Hint> {
        self.here().subscribe()
    }

    fn allow(&self, what: Counted, limit: Limit, now: Timestamp) -> bool {
        self.here().allow(what, limit, now)
    }

    fn note_failure(&self, from: IpAddr, lockout: Lockout, now: Timestamp) -> bool {
        self.here().note_failure(from, lockout, now)
    }

    fn locked_out_until(&self, from: IpAddr, now: Timestamp) -> Option<Timestamp> {
        self.here().locked_out_until(from, now)
    }

    fn locked_out(&self, now: Timestamp) -> usize {
        self.here().locked_out(now)
    }

    fn kill_token(&self, token: Uuid, left: Duration, now: Timestamp) {
        self.all.iter().for_each(|live| live.kill_token(token, left, now));
    }

    fn is_token_dead(&self, token: Uuid, now: Timestamp) -> bool {
        self.here().is_token_dead(token, now)
    }
}
