//! The parts that watch: detection, notifications, scheduled tasks, and how the other parts do.

use std::sync::Arc;

use super::{Parts, RunError, world::World};
use crate::{
    channel::Desired,
    config::Config,
    detect::{self, Blocks, Detect, DetectOptions, Facts, Observed, Schedule, Services},
    geo::Geo,
    metrics::Metrics,
    notify::{Notify, NotifySettings},
    replica::Leadership,
    stop::Stop,
    store::{Retention, ServiceNote, ServiceState, Store},
};

/// What is handed to those who see facts and who turn away whom is blocked.
pub(super) struct Vigil {
    pub(super) detect: Detect,
    pub(super) blocks: Blocks,
    facts: Facts,
    notify: Notify,
    retention: Retention,
}

/// What it watches over.
pub(super) struct Watched<'a> {
    pub(super) store: &'a Store,
    pub(super) desired: Arc<dyn Desired>,
    pub(super) world: &'a World,
    pub(super) geo: &'a Geo,
    pub(super) leadership: &'a Leadership,
    pub(super) metrics: &'a Metrics,
}

impl Vigil {
    /// Reads how administrators are to be notified.
    ///
    /// # Errors
    /// When that cannot be used.
    pub(super) fn new(config: &Config) -> Result<Self, RunError> {
        let settings = config.notifications_file.as_deref().map(NotifySettings::read).transpose()?;
        let notify = settings.map(Notify::new).transpose()?.unwrap_or_default();
        let (detect, facts) = Detect::new();
        Ok(Self { detect, blocks: Blocks::default(), facts, notify, retention: config.retention })
    }

    /// Starts the parts.
    pub(super) fn start(self, watched: &Watched<'_>, parts: &mut Parts, stop: &Stop) -> (Detect, Blocks) {
        let Self { detect, blocks, facts, notify, retention } = self;
        let Watched { store, desired, world, geo, leadership, metrics } = watched;
        let options = DetectOptions {
            store: (*store).clone(),
            live: world.live.clone(),
            desired: desired.clone(),
            geo: (*geo).clone(),
            blocks: blocks.clone(),
        };
        parts.add("detection", detect::run(options, facts, stop.clone()));
        let schedule = Schedule {
            store: (*store).clone(),
            desired: desired.clone(),
            leadership: (*leadership).clone(),
            notify: notify.clone(),
            retention,
        };
        parts.add("scheduled tasks", detect::keep_schedule(schedule, stop.clone()));
        let services = Services {
            store: (*store).clone(),
            live: world.live.clone(),
            leadership: (*leadership).clone(),
            notify: notify.clone(),
            metrics: (*metrics).clone(),
            others: api_server(world).into_iter().chain(hardware(world, store)).collect(),
        };
        parts.add("service status", detect::watch_services(services, stop.clone()));
        parts.add("notifications", notify.run((*store).clone(), (*leadership).clone(), stop.clone()));
        (detect, blocks)
    }
}

/// How the envelope key does, where it is in hardware.
fn hardware(world: &World, store: &Store) -> Option<Observed> {
    store.envelope().key().is_none().then(|| world.envelope.observed())
}

/// How the API server does, where resources are declared there: whether what is read from it is whole.
fn api_server(world: &World) -> Option<Observed> {
    let events = world.telling.as_ref()?.events.clone();
    Some(Arc::new(move || {
        let (state, detail) = match events.synced() {
            true => (ServiceState::Operational, String::new()),
            false => (ServiceState::Degraded, "not every kind of object is synced with it".to_owned()),
        };
        ServiceNote { name: "api_server".into(), state, detail }
    }))
}
