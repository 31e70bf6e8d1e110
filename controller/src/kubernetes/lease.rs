//! The leader's Lease. As client-go does, a holder is believed for as long as this replica itself has watched the Lease
//! stay the same: what the clocks of others say does not matter, nor does setting them.

use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, api::PostParams};
use tokio::time::{Instant, timeout};

use super::{Cluster, FIELD_MANAGER, failure::Failure};
use crate::replica::{Attempt, ElectError, Elector};

/// The name of the Lease.
pub const LEASE: &str = "horizon-controller";

/// The Lease, as this replica sees it.
pub struct KubernetesLease {
    api: Api<Lease>,
    namespace: String,
    /// Who this replica is in the Lease: its name and the start of its process.
    identity: String,
    duration: Duration,
    /// The Lease as it was seen last, and when it was first seen so.
    seen: Option<(Lease, Instant)>,
}

impl std::fmt::Debug for KubernetesLease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesLease").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl KubernetesLease {
    /// The Lease in the controller's namespace, for the replica `identity`, which no other process ever calls itself.
    pub fn new(cluster: &Cluster, identity: String, duration: Duration) -> Self {
        let api = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        Self { api, namespace: cluster.namespace.clone(), identity, duration, seen: None }
    }

    async fn take(&mut self) -> Result<Attempt, kube::Error> {
        // One that holds the Lease need not read it again: a write over another version than the last is refused.
        let held =
            self.seen.as_ref().filter(|(lease, _)| self.is_mine(lease)).map(|(lease, _)| lease.clone());
        if let Some(lease) = held {
            match self.replace(lease).await {
                Err(error) if Failure::of(&error) == Failure::Conflict => {}
                Err(error) => return Err(error),
                Ok(attempt) => return Ok(attempt),
            }
        }
        let Some(lease) = self.api.get_opt(LEASE).await? else { return self.make().await };
        self.see(lease.clone());
        if self.is_mine(&lease) || self.is_free(&lease) {
            return match self.replace(lease).await {
                Err(error) if Failure::of(&error) == Failure::Conflict => Ok(Attempt::Other { name: None }),
                outcome => outcome,
            };
        }
        let holder = lease.spec.and_then(|spec| spec.holder_identity);
        Ok(Attempt::Other { name: holder.map(|holder| name_of(&holder).to_owned()) })
    }

    async fn make(&mut self) -> Result<Attempt, kube::Error> {
        let metadata = ObjectMeta {
            name: Some(LEASE.to_owned()),
            namespace: Some(self.namespace.clone()),
            ..ObjectMeta::default()
        };
        let lease = Lease { metadata, spec: Some(self.spec(None)) };
        match self.api.create(&params(), &lease).await {
            Ok(lease) => {
                self.see(lease);
                Ok(Attempt::Held(None))
            }
            Err(error) if Failure::of(&error) == Failure::Conflict => Ok(Attempt::Other { name: None }),
            Err(error) => Err(error),
        }
    }

    /// Writes this replica into the Lease, over the version that is known.
    async fn replace(&mut self, mut lease: Lease) -> Result<Attempt, kube::Error> {
        lease.spec = Some(self.spec(lease.spec.as_ref()));
        lease.metadata.managed_fields = None;
        match self.api.replace(LEASE, &params(), &lease).await {
            Ok(lease) => {
                self.see(lease);
                Ok(Attempt::Held(None))
            }
            Err(error) => {
                if matches!(Failure::of(&error), Failure::Conflict | Failure::Missing) {
                    self.seen = None;
                }
                Err(error)
            }
        }
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        let before = before.cloned().unwrap_or_default();
        let mine = before.holder_identity.as_deref() == Some(&*self.identity);
        let seconds = i32::try_from(self.duration.as_millis().div_ceil(1000)).unwrap_or(i32::MAX);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(seconds.max(1)),
            acquire_time: if mine { before.acquire_time.clone() } else { now.clone() },
            renew_time: now,
            lease_transitions: Some(
                before.lease_transitions.unwrap_or_default().saturating_add(i32::from(!mine)),
            ),
            ..before
        }
    }

    /// Notes the Lease; the time only when it is another than before.
    fn see(&mut self, lease: Lease) {
        let same = self.seen.as_ref().is_some_and(|(seen, _)| seen.spec == lease.spec);
        match &mut self.seen {
            Some((seen, _)) if same => *seen = lease,
            seen => *seen = Some((lease, Instant::now())),
        }
    }

    fn is_mine(&self, lease: &Lease) -> bool {
        holder(lease) == Some(&*self.identity)
    }

    /// Whether nobody holds it, or its holder has not renewed it for as long as it says, watched from here.
    fn is_free(&self, lease: &Lease) -> bool {
        if holder(lease).is_none_or(str::is_empty) {
            return true;
        }
        let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        let theirs = Duration::from_secs(seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or_default());
        self.seen.as_ref().is_some_and(|(_, since)| since.elapsed() >= theirs.max(self.duration))
    }

    async fn give_up(&mut self) -> Result<(), kube::Error> {
        let Some((mut lease, _)) = self.seen.take() else { return Ok(()) };
        if !self.is_mine(&lease) {
            return Ok(());
        }
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        lease.metadata.managed_fields = None;
        match self.api.replace(LEASE, &params(), &lease).await {
            // Somebody else took it meanwhile.
            Err(error) if matches!(Failure::of(&error), Failure::Conflict | Failure::Missing) => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}

impl Elector for KubernetesLease {
    fn attempt(&mut self) -> BoxFuture<'_, Result<Attempt, ElectError>> {
        Box::pin(async move {
            let patience = self.duration;
            match timeout(patience, self.take()).await {
                Ok(outcome) => outcome.map_err(ElectError::new),
                Err(_) => {
                    // What was sent may have been done: only reading the Lease tells.
                    self.seen = self.seen.take().filter(|(lease, _)| holder(lease) != Some(&*self.identity));
                    Err(ElectError::new("the API server did not answer in time"))
                }
            }
        })
    }

    fn release(&mut self) -> BoxFuture<'_, Result<(), ElectError>> {
        Box::pin(async move {
            let patience = self.duration;
            match timeout(patience, self.give_up()).await {
                Ok(outcome) => outcome.map_err(ElectError::new),
                Err(_) => Err(ElectError::new("the API server did not answer in time")),
            }
        })
    }

    fn duration(&self) -> Option<Duration> {
        Some(self.duration)
    }
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref()
}

/// The name of a replica in an identity `NAME_PROCESS`.
fn name_of(identity: &str) -> &str {
    identity.rsplit_once('_').map_or(identity, |(name, _)| name)
}

fn params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}
