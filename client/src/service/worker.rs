//! Performs what changes the host, one job after the other, so that putting back never overtakes changing.

use std::{collections::BTreeSet, error::Error, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use horizon_client_core::{
    failure::Failure,
    journal::{Journal, ResolverChange},
    plan::{self, Change},
    resolv::{self, Original},
};
use horizon_hostnet::Net;
use horizon_model::Ticket;
use horizon_tunnel::{TunDevice, TunnelHandle};
use horizon_wire::key::SigningKey;
use tokio::sync::{mpsc, watch};

use super::{
    data::{DataPlane, PathState},
    host, resolver,
    store::Store,
};

/// Jobs that may wait. The state machine has at most a start, a renewal and a stop under way.
const QUEUE: usize = 8;

/// What is to be done.
#[derive(Debug)]
pub(super) enum Job {
    /// Dial the server and change the host, sparing the far end of the user's SSH login.
    Start(Arc<Ticket>, Option<IpAddr>),
    /// Dial with a fresh ticket; change the host again only where the ticket asks for something else.
    Renew(Arc<Ticket>),
    /// Make the TUN device and the host's changes again: somebody deleted the device.
    Repair,
    /// Put the host back and end the tunnel.
    Stop,
}

/// What was done.
pub(super) enum Done {
    /// The tunnel runs; ask it for counters here.
    Dialling(TunnelHandle),
    /// The host is changed, or could not be.
    Host(Result<(), Failure>),
    /// The host is as it was, or as near as possible.
    Stopped,
}

/// Where the worker finds things.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// The resolver's file.
    pub(super) resolv_conf: PathBuf,
    /// The name of the TUN device.
    pub(super) device: String,
}

/// The worker.
pub(super) struct Worker {
    store: Store,
    key: SigningKey,
    places: Places,
    net: Net,
    path: watch::Sender<PathState>,
    done: mpsc::Sender<Done>,
    active: Option<Active>,
    /// What stays of a session while the next takes its place, so that nothing leaves beside both. The journal on disk
    /// names it.
    barrier: Option<Journal>,
    ssh_peer: Option<IpAddr>,
}

struct Active {
    plane: DataPlane,
    ticket: Arc<Ticket>,
    journal: Journal,
}

impl Worker {
    /// Starts the worker. Its jobs go in at the sender.
    pub(super) fn start(
        store: Store,
        key: SigningKey,
        places: Places,
        net: Net,
        path: watch::Sender<PathState>,
        done: mpsc::Sender<Done>,
    ) -> mpsc::Sender<Job> {
        let (jobs, mut inbox) = mpsc::channel(QUEUE);
        let mut worker =
            Self { store, key, places, net, path, done, active: None, barrier: None, ssh_peer: None };
        tokio::spawn(async move {
            while let Some(job) = inbox.recv().await {
                let done = worker.perform(job).await;
                if worker.done.send(done).await.is_err() {
                    break;
                }
            }
            worker.stop().await;
        });
        jobs
    }

    async fn perform(&mut self, job: Job) -> Done {
        match job {
            Job::Start(ticket, ssh_peer) => {
                self.ssh_peer = ssh_peer;
                Done::Host(self.begin(ticket).await)
            }
            Job::Renew(ticket) => Done::Host(self.renew(ticket).await),
            Job::Repair => Done::Host(self.repair().await),
            Job::Stop => {
                self.stop().await;
                Done::Stopped
            }
        }
    }

    async fn begin(&mut self, ticket: Arc<Ticket>) -> Result<(), Failure> {
        self.stop().await;
        self.open(ticket).await
    }

    async fn open(&mut self, ticket: Arc<Ticket>) -> Result<(), Failure> {
        // The handshake goes on in the tunnel's thread while the host is being changed.
        let plane = DataPlane::start(&self.key, &ticket, self.path.clone())?;
        let handle = plane.handle();
        self.active = Some(Active { plane, ticket: ticket.clone(), journal: Journal::new(Vec::new(), None) });
        // Nobody listens any more only when the service ends.
        let _ = self.done.send(Done::Dialling(handle)).await;
        self.change(&ticket).await
    }

    async fn renew(&mut self, ticket: Arc<Ticket>) -> Result<(), Failure> {
        let Some(active) = &mut self.active else { return self.begin(ticket).await };
        let same = active.ticket.networks == ticket.networks
            && active.ticket.dns == ticket.dns
            && active.ticket.mtu == ticket.mtu;
        if !same {
            self.end(true).await;
            return self.open(ticket).await;
        }
        active.plane.dial(&ticket)?;
        active.ticket = ticket;
        Ok(())
    }

    async fn repair(&mut self) -> Result<(), Failure> {
        let Some(active) = &self.active else { return Ok(()) };
        tracing::warn!(device = %self.places.device, "the TUN device was taken away; making it again");
        active.plane.attach(self.device(&active.ticket).await?)?;
        host::make(&self.net, &active.journal.changes).await?;
        self.path.send_modify(|p| p.device_lost = false);
        Ok(())
    }

    async fn change(&mut self, ticket: &Ticket) -> Result<(), Failure> {
        let mut observed = host::observe(&self.net).await?;
        observed.ssh_peer = self.ssh_peer;
        let changes = plan::plan(ticket, &observed, &self.places.device);
        let path = &self.places.resolv_conf;
        let resolver = if ticket.dns.is_empty() {
            None
        } else {
            let found = resolver::read(path).map_err(|e| host::resolver_error(path, e))?;
            let barrier = self.barrier.as_ref().and_then(|b| b.resolver.as_ref());
            let original = barrier.filter(|_| is_ours(&found)).map_or(found, |b| b.original.clone());
            Some(ResolverChange { path: path.clone(), original })
        };
        let journal = Journal::new(changes, resolver);
        let stale = self.barrier.as_ref().map(|b| without(b, &journal));
        let mut all = journal.clone();
        if let Some(stale) = &stale {
            all.changes.extend_from_slice(&stale.changes);
            all.resolver = all.resolver.or_else(|| stale.resolver.clone());
        }
        self.store.set_journal(Some(&all)).map_err(host::HostError::from)?;
        let device = self.device(ticket).await?;
        let Some(active) = &mut self.active else { return Ok(()) };
        active.journal = journal;
        active.plane.attach(device)?;
        host::make(&self.net, &active.journal.changes).await?;
        if let Some(change) = &active.journal.resolver {
            resolver::take_over(path, &change.original, &ticket.dns)
                .map_err(|e| host::resolver_error(path, e))?;
        }
        if let Some(stale) = stale {
            host::put_back(&self.net, &stale).await?;
            self.store.set_journal(Some(&active.journal)).map_err(host::HostError::from)?;
            self.barrier = None;
        }
        Ok(())
    }

    /// Makes the TUN device. One that a killed process held takes a moment to vanish.
    async fn device(&self, ticket: &Ticket) -> Result<TunDevice, Failure> {
        const TRIES: u32 = 100;
        const PAUSE: Duration = Duration::from_millis(10);
        let mut tries = 0;
        loop {
            match TunDevice::create(&self.places.device, ticket.mtu, true) {
                Ok(device) => return Ok(device),
                Err(error) if tries < TRIES && is_busy(&error) => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(Failure::failed(error.to_string(), "")),
            }
            tries += 1;
        }
    }

    async fn stop(&mut self) {
        self.end(false).await;
    }

    /// Ends the tunnel and puts the host back; of a session that another follows at once, the barrier stays.
    async fn end(&mut self, another_follows: bool) {
        let (plane, mut journal) = match self.active.take() {
            Some(Active { plane, journal, .. }) => (Some(plane), journal),
            None if self.barrier.is_none() => return,
            None => (None, Journal::new(Vec::new(), None)),
        };
        if let Some(former) = self.barrier.take() {
            journal.changes.extend(former.changes);
            // The former one knows what was there before either session.
            journal.resolver = former.resolver.or(journal.resolver);
        }
        // The tunnel takes its device along.
        journal.changes.retain(|c| !matches!(c, Change::Device { .. }));
        if another_follows {
            let changes = journal.changes.iter().filter(|c| is_barrier(c)).cloned().collect();
            self.barrier = Some(Journal::new(changes, journal.resolver.take()));
            journal.changes.retain(|c| !is_barrier(c));
        }
        let put_back = host::put_back(&self.net, &journal).await;
        if let Some(plane) = plane
            && tokio::task::spawn_blocking(|| plane.shutdown()).await.is_err()
        {
            tracing::error!("the tunnel did not end well");
        }
        match put_back.and_then(|()| Ok(self.store.set_journal(self.barrier.as_ref())?)) {
            Ok(()) if another_follows => tracing::info!("the session changes"),
            Ok(()) => tracing::info!("the host is as it was"),
            // The journal stays, and the next start tries again.
            Err(error) => tracing::error!(%error, "the host could not be put back completely"),
        }
        self.path.send_replace(PathState::default());
    }
}

/// Whether a change keeps traffic in the tunnel, or from leaving, without the tunnel's device.
fn is_barrier(change: &Change) -> bool {
    matches!(change, Change::Rule { .. } | Change::Route { device: None, .. })
}

/// What a barrier has and the journal that follows it has not.
fn without(barrier: &Journal, journal: &Journal) -> Journal {
    let planned: BTreeSet<&Change> = journal.changes.iter().collect();
    let changes = barrier.changes.iter().filter(|c| !planned.contains(c)).cloned().collect();
    Journal::new(changes, barrier.resolver.clone().filter(|_| journal.resolver.is_none()))
}

fn is_ours(found: &Original) -> bool {
    matches!(found, Original::File { content, .. } if resolv::is_ours(content))
}

fn is_busy(error: &dyn Error) -> bool {
    let cause = error.source().and_then(|e| e.downcast_ref::<std::io::Error>());
    cause.is_some_and(|e| e.kind() == std::io::ErrorKind::ResourceBusy)
}
