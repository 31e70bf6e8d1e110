//! The running appliance: it keeps the host at the state that it holds, whoever changes either.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use horizon_appliance_core::{Action, Backoff, Desired, HostAddress, Reachability, plan, shut, teardown};
use horizon_hostnet::{Events, NetError};
use horizon_model::{
    EntryId, EntryProblem, Factor, Incarnation, ProblemCode, PublicKey, SessionId, SessionUsage,
    ViolationKind,
};
use horizon_tunnel::Identity;
use horizon_wire::{keyset::KeySet, state::Numbered};
use jiff::Timestamp;
use thiserror::Error;
use tokio::{
    net::UnixListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep_until},
};

use crate::{
    facts::HostFacts,
    host::{Host, HostError},
    link::{Heard, Held, Link},
    outbox::Outbox,
    privilege,
    prove::Prover,
    signals::{Pending, Signals},
    status::{self, ControllerStatus, StateStatus, Status, StatusError},
    store::{Enrolment, Lock, Store, StoreError},
};

mod desire;
mod probes;
mod report;

pub(crate) use probes::Announced;
use probes::Probes;

/// How long changes of the host may settle before they are looked at.
const SETTLE: Duration = Duration::from_millis(20);
/// How many repairs in a row are made without delay. Another program that undoes them again and again is met slower.
const PROMPT_REPAIRS: u32 = 8;
/// The longest that repeated repairs are put off.
const LONGEST_SETTLE: Duration = Duration::from_millis(1500);
/// How often everything is looked at unasked.
const SWEEP: Duration = Duration::from_secs(60);
/// The same where changes of the packet filter are not noticed.
const BLIND_SWEEP: Duration = Duration::from_millis(1500);
/// How often sessions are reported while there are any.
const REPORT: Duration = Duration::from_secs(10);
/// How soon a report follows when sessions come and go.
const SOON: Duration = Duration::from_millis(500);
/// The packets' mark on the tunnel's and the channel's sockets.
const FWMARK: u32 = 0x485a;
/// Messages of the channel that wait for the agent.
const HEARD: usize = 16;

/// How the appliance runs.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Where it keeps what it must not forget.
    pub state_dir: PathBuf,
    /// The name of the TUN device, at most 15 bytes.
    pub tun: String,
    /// Addresses to tell clients before all others.
    pub advertise: Vec<SocketAddr>,
    /// Where facts about the host are found.
    pub host: HostFacts,
    /// Where its TPM is, if there is one.
    pub tpm: PathBuf,
}

/// Why the appliance cannot run.
#[derive(Debug, Error)]
pub enum RunError {
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It belongs to nobody.
    #[error(
        "this appliance is not enrolled; run: horizon-appliance enroll TOKEN (horizon-controller token SERVER prints one)"
    )]
    NotEnrolled,
    /// It may not configure the network.
    #[error("the network cannot be configured: CAP_NET_ADMIN is missing; {}", privilege::REMEDY)]
    Privileges,
    /// Its key is gone.
    #[error("the key in {} is missing or unusable; enrol again with a new token", .0.display())]
    NoKey(PathBuf),
    /// The host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Notice of changes.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The status socket.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// Signals.
    #[error("cannot wait for signals: {0}")]
    Signals(std::io::Error),
}

/// Runs until the process is asked to stop, and leaves the host as it was found.
pub async fn run(options: RunOptions) -> Result<(), RunError> {
    let mut agent = Agent::open(options).await?;
    let outcome = agent.serve().await;
    agent.leave().await;
    outcome
}

struct Agent {
    options: RunOptions,
    store: Store,
    _lock: Lock,
    enrolment: Enrolment,
    key: PublicKey,
    incarnation: Incarnation,
    started: Timestamp,
    host: Host,
    signals: Arc<Signals>,
    events: Events,
    stop: [Signal; 3],
    socket: UnixListener,

    numbered: Numbered,
    desired: Desired,
    /// Entries of the state that cannot be in force.
    invalid: Vec<EntryProblem>,
    /// Entries that the system refused at the last attempt.
    refused: BTreeMap<EntryId, String>,
    /// Why the newest state is not in force, or would not outlast a restart.
    unkept: Option<EntryProblem>,
    keyset: Option<KeySet>,
    factors: Vec<Factor>,
    host_addresses: Vec<HostAddress>,
    advertised: Vec<SocketAddr>,
    public_address: Option<std::net::IpAddr>,

    held: watch::Sender<Held>,
    heard: mpsc::Receiver<Heard>,
    outbox: Arc<Outbox>,
    moved: Arc<Notify>,
    link: Option<Link>,

    /// When to look at the host.
    look: Option<Instant>,
    sweep: Instant,
    /// Looks in a row that found something to do.
    busy: u32,
    /// When what the system refused is tried again.
    retry: Backoff,
    report_at: Option<Instant>,
    reported: report::Reported,
    /// The session that the last report ended with.
    last_reported: Option<SessionId>,
    violations: HashMap<(SessionId, ViolationKind), u64>,
    probes: Probes,
    controller: ControllerStatus,
    applied: Option<Timestamp>,
    repairs: u64,
    last_repair: Option<String>,
}

impl Agent {
    async fn open(options: RunOptions) -> Result<Self, RunError> {
        let store = Store::existing(&options.state_dir).map_err(|e| match e {
            StoreError::Io { cause, .. } if cause.kind() == std::io::ErrorKind::NotFound => {
                RunError::NotEnrolled
            }
            other => other.into(),
        })?;
        let lock = store.lock()?;
        let enrolment = store.enrolment()?.ok_or(RunError::NotEnrolled)?;
        if privilege::net_admin() == Some(false) {
            return Err(RunError::Privileges);
        }
        let identity = store.key()?.ok_or_else(|| RunError::NoKey(store.dir().to_owned()))?;
        let incarnation = Incarnation(uuid::Uuid::new_v4());
        let signals = Arc::new(Signals::default());
        let unusable = |_| RunError::NoKey(store.dir().to_owned());
        let tunnel_identity = Identity::from_seed(identity.seed().expose()).map_err(unusable)?;
        let host =
            Host::open(store.clone(), options.tun.clone(), tunnel_identity, Some(FWMARK), signals.clone())?;
        let handle = |kind| signal(kind).map_err(RunError::Signals);
        let stop = [
            handle(SignalKind::terminate())?,
            handle(SignalKind::interrupt())?,
            handle(SignalKind::hangup())?,
        ];
        let (held, watched) = watch::channel(Held::default());
        let (tell, heard) = mpsc::channel(HEARD);
        let (outbox, moved) = (Arc::new(Outbox::default()), Arc::new(Notify::new()));
        let key = identity.public();
        let link = Link {
            store: store.clone(),
            enrolment: enrolment.clone(),
            prover: Prover { identity, host: options.host.clone(), tpm: options.tpm.clone() },
            incarnation,
            fwmark: Some(FWMARK),
            held: watched,
            outbox: outbox.clone(),
            heard: tell,
            moved: moved.clone(),
        };
        let numbered = match store.state(enrolment.server_id) {
            Err(error @ StoreError::Damaged { .. }) => {
                tracing::error!(%error, "starting without it; the controller sends another");
                store.set_state_aside()?;
                Numbered::default()
            }
            other => other?,
        };
        let mut agent = Self {
            socket: status::listen(store.dir())?,
            _lock: lock,
            keyset: store.keyset()?,
            enrolment,
            key,
            incarnation,
            started: Timestamp::now(),
            host,
            signals,
            events: Events::open()?,
            stop,
            numbered,
            desired: Desired::default(),
            invalid: Vec::new(),
            refused: BTreeMap::new(),
            unkept: None,
            factors: Vec::new(),
            host_addresses: Vec::new(),
            advertised: Vec::new(),
            public_address: None,
            held,
            heard,
            outbox,
            moved,
            link: Some(link),
            look: None,
            sweep: Instant::now(),
            busy: 0,
            retry: Backoff::new(LONGEST_SETTLE, SWEEP),
            report_at: None,
            reported: report::Reported::default(),
            last_reported: None,
            violations: HashMap::new(),
            probes: Probes::default(),
            controller: ControllerStatus::default(),
            applied: None,
            repairs: 0,
            last_repair: None,
            store,
            options,
        };
        agent.take_up();
        Ok(agent)
    }

    async fn serve(&mut self) -> Result<(), RunError> {
        // The last good state is in force before any controller is asked.
        self.reconcile(false).await;
        self.observe_addresses().await;
        self.observe_facts().await;
        let link = self.link.take().map(|link| tokio::spawn(link.run()));
        let outcome = self.turn().await;
        if let Some(link) = link {
            // It ends when nobody listens any more.
            self.heard.close();
            let _ = link.await;
        }
        outcome
    }

    async fn turn(&mut self) -> Result<(), RunError> {
        loop {
            let due = [self.look, Some(self.sweep), self.report_at, self.probes.deadline()];
            let due = due.into_iter().flatten().min().unwrap_or(self.sweep);
            let [terminate, interrupt, hangup] = &mut self.stop;
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                _ = hangup.recv() => return Ok(()),
                changes = self.events.next() => {
                    let changes = changes?;
                    if changes.nftables {
                        self.host.doubt_table();
                    }
                    if changes.links || changes.addresses || changes.routes || changes.settings || changes.nftables {
                        self.look_after(SETTLE);
                    }
                }
                pending = self.signals.next() => self.tunnel_said(pending),
                Some(heard) = self.heard.recv() => self.hear(heard).await,
                Ok((stream, _)) = self.socket.accept() => {
                    tokio::spawn(status::tell(stream, self.status()));
                }
                () = sleep_until(due) => self.on_time().await,
            }
        }
    }

    async fn on_time(&mut self) {
        let now = Instant::now();
        let sweep = self.sweep <= now;
        if sweep {
            self.host.doubt_table();
        }
        if sweep || self.look.is_some_and(|at| at <= now) {
            self.look = None;
            self.sweep = now + if self.events.sees_nftables() { SWEEP } else { BLIND_SWEEP };
            self.reconcile(true).await;
            self.observe_addresses().await;
        }
        if sweep {
            self.observe_facts().await;
        }
        if self.probes.expire(now) {
            tracing::warn!("{}", self.probes.state().words(self.port()));
        }
        if self.report_at.is_some_and(|at| at <= now) {
            self.report(false);
        }
    }

    /// Has the host looked at soon; later, the longer it does not come to rest.
    fn look_after(&mut self, settle: Duration) {
        let tired = self.busy.saturating_sub(PROMPT_REPAIRS);
        let delay = settle.saturating_mul(2u32.saturating_pow(tired)).min(LONGEST_SETTLE);
        let at = Instant::now() + delay;
        self.look = Some(self.look.map_or(at, |planned| planned.min(at)));
    }

    /// Leads the host to what is desired. With `drift`, what there is to do was done by another hand.
    async fn reconcile(&mut self, drift: bool) {
        let observed = match self.host.observe().await {
            Ok(observed) => observed,
            Err(error) => return self.refuse([(EntryId::tunnel(), error.to_string())].into()),
        };
        let actions = plan(&self.desired, &observed);
        let mut refused = BTreeMap::new();
        for action in &actions {
            let done = self.perform(action, drift, &mut refused).await;
            if !done && matches!(action, Action::ApplyRuleset(_)) {
                // Nothing is opened without the packet filter.
                for action in shut(&actions, &observed) {
                    self.perform(&action, drift, &mut refused).await;
                }
                for late in actions.iter().filter(|a| matches!(a, Action::UpsertSession(_))) {
                    let waits = || "it waits for the packet filter".to_owned();
                    refused.entry(late.entry()).or_insert_with(waits);
                }
                break;
            }
        }
        if actions.iter().any(|a| matches!(a, Action::UpsertSession(_))) {
            for session in self.host.untaken() {
                let full = "the tunnel does not take it: it has as many sessions as it can".to_owned();
                refused.entry(EntryId::session(session)).or_insert(full);
            }
        }
        if actions.is_empty() {
            self.busy = 0;
        } else {
            self.busy = (self.busy + 1).min(32);
        }
        if drift && !actions.is_empty() && refused.is_empty() {
            self.repairs += 1;
            self.last_repair = actions.first().map(ToString::to_string);
        }
        self.refuse(refused);
    }

    /// Takes one step, and notes when it was refused.
    async fn perform(
        &mut self,
        action: &Action,
        drift: bool,
        refused: &mut BTreeMap<EntryId, String>,
    ) -> bool {
        match self.host.perform(action).await {
            Ok(()) => {
                tracing::info!(drift, "{action}");
                true
            }
            Err(error) => {
                tracing::debug!(%error, "could not {action}");
                refused.entry(action.entry()).or_insert_with(|| error.to_string());
                false
            }
        }
    }

    /// Remembers what the system refused, tells it once, and has it tried again.
    fn refuse(&mut self, refused: BTreeMap<EntryId, String>) {
        if refused.is_empty() {
            self.retry.reset();
        } else {
            // Nothing may happen by itself that would have it tried again.
            let at = Instant::now() + self.retry.next(u32::MAX);
            self.look = Some(self.look.map_or(at, |planned| planned.min(at)));
        }
        if self.refused != refused {
            for (entry, message) in &refused {
                tracing::warn!(%entry, "not in force: {message}");
            }
            self.refused = refused;
            self.report(true);
        }
    }

    fn tunnel_said(&mut self, pending: Pending) {
        if pending.device {
            self.look_after(SETTLE);
        }
        if pending.sessions {
            self.report_within(SOON);
        }
        for nonce in pending.probes {
            if self.probes.arrived(nonce, Instant::now()) {
                self.outbox.seen(nonce);
            }
        }
    }

    /// Ends everything and puts back what was changed.
    async fn leave(&mut self) {
        tracing::info!("stopping: leaving the host as it was found");
        self.host.doubt_table();
        let actions = match self.host.observe().await {
            Ok(observed) => teardown(&observed),
            Err(error) => {
                tracing::error!(%error, "cannot look at the host; only closing the tunnel");
                Vec::new()
            }
        };
        for action in &actions {
            match self.host.perform(action).await {
                Ok(()) => tracing::info!("{action}"),
                Err(error) => tracing::error!(%error, "could not {action}"),
            }
        }
        self.host.close();
        // A socket that nobody serves would look like a running appliance.
        let _ = std::fs::remove_file(self.store.dir().join(status::SOCKET));
    }

    fn port(&self) -> u16 {
        self.desired.tunnel.as_ref().map_or(0, |t| t.port)
    }

    fn problems(&self) -> Vec<EntryProblem> {
        let refused = self.refused.iter().map(|(entry, message)| EntryProblem {
            entry: entry.clone(),
            code: ProblemCode::System,
            message: message.clone(),
        });
        self.unkept.iter().chain(&self.invalid).cloned().chain(refused).collect()
    }

    fn status(&self) -> Status {
        let usages = self.usages();
        let usage = |id: &SessionId| usages.iter().find(|u| u.session == *id);
        let sessions = self.desired.sessions.values().map(|session| {
            let usage = usage(&session.id);
            status::SessionStatus {
                id: session.id,
                connected: usage.is_some_and(|u| u.connected),
                addresses: session.networks.iter().flat_map(|n| n.addresses.iter().copied()).collect(),
                bytes_sent: usage.map_or(0, |u| u.bytes_sent),
                bytes_received: usage.map_or(0, |u| u.bytes_received),
                rtt_micros: usage.map_or(0, |u| u.rtt_micros),
            }
        });
        let attached = self.host.snapshot().is_some_and(|s| s.tun_attached);
        let reach: Reachability = self.probes.state();
        Status {
            server_name: self.enrolment.server_name.clone(),
            server_id: self.enrolment.server_id,
            key: self.key,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            incarnation: self.incarnation,
            started: self.started,
            memory_bytes: crate::metrics::resident_bytes().unwrap_or(0),
            controller: self.controller.clone(),
            state: StateStatus {
                epoch: self.numbered.epoch,
                generation: self.numbered.generation,
                digest: self.digest(),
                applied: self.applied,
                problems: self.problems(),
                repairs: self.repairs,
                last_repair: self.last_repair.clone(),
            },
            tunnel: self.desired.tunnel.as_ref().map(|t| status::TunnelStatus {
                port: t.port,
                device: self.options.tun.clone(),
                device_attached: attached,
                mtu: t.mtu,
                addresses: t.addresses.iter().copied().collect(),
                reached_at: self.advertised.clone(),
                reachability: reach.name().to_owned(),
                reachability_words: reach.words(t.port),
            }),
            sessions: sessions.collect(),
        }
    }

    fn usages(&self) -> Vec<SessionUsage> {
        let snapshot = self.host.snapshot();
        snapshot.iter().flat_map(|s| &s.sessions).map(crate::tunnel::usage).collect()
    }
}
