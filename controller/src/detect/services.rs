//! How the parts of the system do: the leader looks from time to time and writes it down; a part that fails or comes back is
//! an event.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    live::Live,
    metrics::Metrics,
    notify::Notify,
    replica::Leadership,
    stop::Stop,
    store::{REPLICA_SILENT, ReplicaRow, ServiceNote, ServiceState, Store},
};

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(10);
/// A part that was not looked at for so long is no more.
const GONE: SignedDuration = SignedDuration::from_hours(1);
/// A database that takes longer than this for nothing is slow.
const SLOW: Duration = Duration::from_millis(500);

/// What is looked at.
pub struct Services {
    /// The database.
    pub store: Store,
    /// The live layer, which knows how its bus does.
    pub live: Arc<dyn Live>,
    /// Whether this replica leads.
    pub leadership: Leadership,
    /// The ways to administrators.
    pub notify: Notify,
    /// The figures.
    pub metrics: Metrics,
    /// What is known of parts that only the program as a whole knows: the API server.
    pub others: Vec<Observed>,
}

/// Looks at a part.
pub type Observed = Arc<dyn Fn() -> ServiceNote + Send + Sync>;

/// Looks until it is to stop.
pub async fn watch_services(services: Services, mut stop: Stop) {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.requested() => return,
            _ = look.tick() => services.look().await,
        }
    }
}

impl Services {
    pub(super) async fn look(&self) {
        let now = Timestamp::now();
        let database = self.database().await;
        self.figures(std::slice::from_ref(&database));
        if database.state == ServiceState::Outage {
            return;
        }
        let mut notes = vec![database];
        if let Some(bus) = self.live.bus_health() {
            let (state, detail) = if bus.up {
                (ServiceState::Operational, String::new())
            } else {
                (ServiceState::Degraded, bus.text)
            };
            let name = if bus.by == "redis" { "redis" } else { "hints" };
            notes.push(ServiceNote { name: name.to_owned(), state, detail });
        }
        notes.extend(self.others.iter().map(|look| look()));
        match self.notify.health(&self.store).await {
            Ok(more) => notes.extend(more),
            Err(error) => tracing::debug!(%error, "how deliveries do could not be read"),
        }
        match self.store.replicas().await {
            Ok(replicas) => notes.extend(replicas.iter().map(replica)),
            Err(error) => tracing::debug!(%error, "the replicas could not be read"),
        }
        self.figures(&notes);
        // Every replica looks, for its figures; the leader alone writes it down.
        if self.leadership.leads().is_none() {
            return;
        }
        let written = async {
            self.store.note_services(&notes, now).await?;
            self.store.forget_services(now.checked_sub(GONE).unwrap_or(Timestamp::MIN)).await
        };
        if let Err(error) = written.await {
            tracing::debug!(%error, "how the parts do could not be written down");
        }
    }

    /// Replicas are one figure: whether all of them do as they should.
    fn figures(&self, notes: &[ServiceNote]) {
        const NAMES: [&str; 8] = [
            "database",
            "redis",
            "hints",
            "api_server",
            "envelope_key",
            "replica/",
            "notifications/webhook",
            "notifications/smtp",
        ];
        for name in NAMES {
            let mut of_it = notes.iter().filter(|note| note.name.starts_with(name)).peekable();
            if of_it.peek().is_some() {
                let up = of_it
                    .all(|note| matches!(note.state, ServiceState::Operational | ServiceState::Maintenance));
                self.metrics.service(name.trim_end_matches('/'), up);
            }
        }
    }

    async fn database(&self) -> ServiceNote {
        let since = std::time::Instant::now();
        let (state, detail) = match self.store.ping().await {
            Ok(()) if since.elapsed() > SLOW => {
                (ServiceState::Degraded, format!("it took {} ms to answer", since.elapsed().as_millis()))
            }
            Ok(()) => (ServiceState::Operational, String::new()),
            Err(error) => (ServiceState::Outage, error.to_string()),
        };
        ServiceNote { name: "database".into(), state, detail }
    }
}

fn replica(row: &ReplicaRow) -> ServiceNote {
    let (state, detail) = match (row.alive(), row.info.draining) {
        (false, _) => {
            let text = format!(
                "silent for {} s; one is missed after {} s",
                row.age.as_secs(),
                REPLICA_SILENT.as_secs()
            );
            (ServiceState::Outage, text)
        }
        (true, true) => (ServiceState::Maintenance, "it is about to end".to_owned()),
        (true, false) => (ServiceState::Operational, String::new()),
    };
    ServiceNote { name: format!("replica/{}", row.info.name), state, detail }
}
