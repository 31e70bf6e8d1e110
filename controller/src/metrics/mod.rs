//! What can be seen of a running controller: the figures themselves, and the small HTTP server that shows them with the
//! health of the process.

mod server;

use std::{sync::Arc, time::Duration};

use horizon_crds::KindName;
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

pub use server::{Health, Probe, Ready, serve};

use crate::{kubernetes::KubernetesMetrics, live::LiveMetrics};

/// A label with the kind of a resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// `Server`, `User`, …
    pub kind: &'static str,
}

/// A label with the name of a thing from a small fixed set, given in the source code and never by a peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NameLabel {
    /// The name.
    pub name: &'static str,
}

/// A label with who holds which KeySet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HolderLabel {
    /// `appliance` or `device`.
    pub role: &'static str,
    /// `newest` or `older`.
    pub held: &'static str,
}

/// Every figure of the controller. A clone shows and counts the same figures, and all of them may be used from any thread.
/// `Metrics::default()` is enough for tests.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Resources in force, by kind.
    pub resources: Family<KindLabel, Gauge>,
    /// Problems in the resource files now.
    pub problems: Gauge,
    /// Passes of the reconcile engine.
    pub reconciles: Counter,
    /// How long a pass took from the change seen to everything written and handed out, in seconds.
    pub reconcile_seconds: Histogram,
    /// Servers whose state a pass changed.
    pub servers_touched: Counter,
    /// Control channels open now, by role (`appliance`, `device`, `handshake`).
    pub channels: Family<NameLabel, Gauge>,
    /// Control channels accepted since the start.
    pub handshakes: Counter,
    /// Handshakes that came to nothing.
    pub handshakes_failed: Counter,
    /// States pushed to appliances, by form (`delta`, `snapshot`).
    pub pushes: Family<NameLabel, Counter>,
    /// Bytes of those states.
    pub push_bytes: Counter,
    /// From a push to the report that it is applied, in seconds.
    pub apply_seconds: Histogram,
    /// The newest KeySet in force here.
    pub keyset_version: Gauge,
    /// Peers connected here, by their role and by whether they hold the newest KeySet.
    pub keyset_peers: Family<HolderLabel, Gauge>,
    /// Sessions requested or active now.
    pub sessions: Gauge,
    /// Sessions that became active.
    pub sessions_granted: Counter,
    /// Sessions that ended, by how (`terminated`, `failed`, `timeout`, `interrupted`).
    pub sessions_ended: Family<NameLabel, Counter>,
    /// Heartbeats acknowledged.
    pub heartbeats: Counter,
    /// Challenges sent.
    pub challenges: Counter,
    /// Security events recorded, by name.
    pub security_events: Family<NameLabel, Counter>,
    /// Looks at live sessions that the controller took by itself, by what they came to.
    pub session_looks: Family<NameLabel, Counter>,
    /// Whether a part does as it should (1 or 0), by name (`database`, `redis`, `hints`, `api_server`, `replicas`, …).
    pub services: Family<NameLabel, Gauge>,
    /// Refusals sent to peers, by code (`policy`, `used`, `limit`, …).
    pub refusals: Family<NameLabel, Counter>,
    /// How long the store took, by operation, in seconds, waiting for its turn included.
    pub store_seconds: Family<NameLabel, Histogram, fn() -> Histogram>,
    /// Operations of the store that were done again, by operation.
    pub store_retries: Family<NameLabel, Counter>,
    /// Connections to the database now, by what they do (`busy`, `idle`).
    pub store_connections: Family<NameLabel, Gauge>,
    /// How long operations waited for a connection, in seconds.
    pub store_wait_seconds: Histogram,
    /// How many items wait now, by queue.
    pub queue_depth: Family<NameLabel, Gauge>,
    /// Requests to the API, by outcome (`ok`, `refused`, `failed`).
    pub api_requests: Family<NameLabel, Counter>,
    /// How long the API took to answer, in seconds.
    pub api_seconds: Histogram,
    /// 1 while this replica leads, 0 otherwise.
    pub leader: Gauge,
    /// The epoch under which this replica leads or led last.
    pub leader_epoch: Gauge,
    /// How often this replica became the leader.
    pub leader_changes: Counter,
    /// Replicas that live, this one included.
    pub replicas: Gauge,
    /// The version of the resources that this replica serves.
    pub index_revision: Gauge,
    /// How many versions of the resources this replica knows of and does not serve yet.
    pub index_behind: Gauge,
    /// 1 while the database answers, 0 otherwise.
    pub database_up: Gauge,
    /// Those of the live layer.
    pub live: LiveMetrics,
    /// Those about the API server of Kubernetes.
    pub kubernetes: KubernetesMetrics,
}

/// From 100 µs to 13 s, each bucket double the last.
fn seconds() -> Histogram {
    Histogram::new(std::iter::successors(Some(0.0001), |bound| Some(bound * 2.0)).take(18))
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            resources: Family::default(),
            problems: Gauge::default(),
            reconciles: Counter::default(),
            reconcile_seconds: seconds(),
            servers_touched: Counter::default(),
            channels: Family::default(),
            handshakes: Counter::default(),
            handshakes_failed: Counter::default(),
            pushes: Family::default(),
            push_bytes: Counter::default(),
            apply_seconds: seconds(),
            keyset_version: Gauge::default(),
            keyset_peers: Family::default(),
            sessions: Gauge::default(),
            sessions_granted: Counter::default(),
            sessions_ended: Family::default(),
            heartbeats: Counter::default(),
            challenges: Counter::default(),
            security_events: Family::default(),
            session_looks: Family::default(),
            services: Family::default(),
            refusals: Family::default(),
            store_seconds: Family::new_with_constructor(seconds as fn() -> Histogram),
            store_retries: Family::default(),
            store_connections: Family::default(),
            store_wait_seconds: seconds(),
            queue_depth: Family::default(),
            api_requests: Family::default(),
            api_seconds: seconds(),
            leader: Gauge::default(),
            leader_epoch: Gauge::default(),
            leader_changes: Counter::default(),
            replicas: Gauge::default(),
            index_revision: Gauge::default(),
            index_behind: Gauge::default(),
            database_up: Gauge::default(),
            live: LiveMetrics::default(),
            kubernetes: KubernetesMetrics::default(),
        }
    }
}

impl Metrics {
    /// Says how many resources of a kind are in force.
    pub fn set_resources(&self, kind: KindName, count: usize) {
        self.resources.get_or_create(&KindLabel { kind: kind.as_str() }).set(gauge(count));
    }

    /// Says how many items wait in a queue.
    pub fn set_queue_depth(&self, queue: &'static str, count: usize) {
        self.queue_depth.get_or_create(&NameLabel { name: queue }).set(gauge(count));
    }

    /// Counts a state pushed to an appliance.
    pub fn pushed(&self, form: &'static str, bytes: usize) {
        self.pushes.get_or_create(&NameLabel { name: form }).inc();
        self.push_bytes.inc_by(bytes as u64);
    }

    /// Counts a refusal.
    pub fn refused(&self, code: &'static str) {
        self.refusals.get_or_create(&NameLabel { name: code }).inc();
    }

    /// Counts the end of a session, by how it ended.
    pub fn session_ended(&self, how: &'static str) {
        self.sessions_ended.get_or_create(&NameLabel { name: how }).inc();
    }

    /// Counts a security event.
    pub fn security_event(&self, name: &'static str) {
        self.security_events.get_or_create(&NameLabel { name }).inc();
    }

    /// Says whether a part does as it should.
    pub fn service(&self, name: &'static str, up: bool) {
        self.services.get_or_create(&NameLabel { name }).set(i64::from(up));
    }

    /// Counts an operation of the store that is done again.
    pub fn store_retry(&self, name: &'static str) {
        self.store_retries.get_or_create(&NameLabel { name }).inc();
    }

    /// Says how many connections to the database are open and idle, and how long one was waited for.
    pub fn store_connection(&self, open: usize, idle: usize, waited: Duration) {
        let set = |name, count| self.store_connections.get_or_create(&NameLabel { name }).set(gauge(count));
        set("busy", open.saturating_sub(idle));
        set("idle", idle);
        self.store_wait_seconds.observe(waited.as_secs_f64());
    }

    /// Counts an operation of the store.
    pub fn store_operation(&self, name: &'static str, took: Duration) {
        self.store_seconds.get_or_create(&NameLabel { name }).observe(took.as_secs_f64());
    }

    /// Counts a channel as open until the returned guard is dropped.
    #[must_use]
    pub fn channel_open(&self, role: &'static str) -> OpenChannel {
        let gauge = self.channels.get_or_create_owned(&NameLabel { name: role });
        gauge.inc();
        OpenChannel(gauge)
    }

    /// The registry from which the figures are written out.
    pub fn registry(&self) -> Arc<Registry> {
        let mut registry = Registry::with_prefix("horizon_controller");
        let r = &mut registry;
        r.register("resources", "Resources in force", self.resources.clone());
        r.register("problems", "Problems in the resource files now", self.problems.clone());
        r.register("reconciles", "Passes of the reconcile engine", self.reconciles.clone());
        r.register("reconcile_seconds", "Duration of a reconcile pass", self.reconcile_seconds.clone());
        r.register("servers_touched", "Servers whose state a pass changed", self.servers_touched.clone());
        r.register("channels", "Control channels open now", self.channels.clone());
        r.register("handshakes", "Control channels accepted", self.handshakes.clone());
        r.register("handshakes_failed", "Handshakes that came to nothing", self.handshakes_failed.clone());
        r.register("pushes", "States pushed to appliances", self.pushes.clone());
        r.register("push_bytes", "Bytes of the states pushed", self.push_bytes.clone());
        r.register("apply_seconds", "From a push to its report as applied", self.apply_seconds.clone());
        r.register("keyset_version", "Newest KeySet in force here", self.keyset_version.clone());
        r.register(
            "keyset_peers",
            "Peers connected here, by the KeySet they hold",
            self.keyset_peers.clone(),
        );
        r.register("sessions", "Sessions requested or active now", self.sessions.clone());
        r.register("sessions_granted", "Sessions that became active", self.sessions_granted.clone());
        r.register("sessions_ended", "Sessions that ended", self.sessions_ended.clone());
        r.register("heartbeats", "Heartbeats acknowledged", self.heartbeats.clone());
        r.register("challenges", "Challenges sent", self.challenges.clone());
        r.register("security_events", "Security events recorded", self.security_events.clone());
        r.register(
            "session_looks",
            "Looks at live sessions, by what both ends said",
            self.session_looks.clone(),
        );
        r.register("service_up", "Whether a part does as it should", self.services.clone());
        r.register("refusals", "Refusals sent to peers", self.refusals.clone());
        r.register("store_seconds", "Duration of store operations", self.store_seconds.clone());
        r.register("store_retries", "Store operations done again", self.store_retries.clone());
        r.register("store_connections", "Connections to the database now", self.store_connections.clone());
        r.register(
            "store_wait_seconds",
            "Time that operations waited for a connection",
            self.store_wait_seconds.clone(),
        );
        r.register("queue_depth", "Items waiting in a queue now", self.queue_depth.clone());
        r.register("api_requests", "Requests to the API", self.api_requests.clone());
        r.register("api_seconds", "Duration of API requests", self.api_seconds.clone());
        r.register("leader", "1 while this replica leads", self.leader.clone());
        r.register("leader_epoch", "Epoch under which this replica leads or led", self.leader_epoch.clone());
        r.register("leader_changes", "How often this replica became leader", self.leader_changes.clone());
        r.register("replicas", "Replicas that live", self.replicas.clone());
        r.register("index_revision", "Version of the resources served", self.index_revision.clone());
        r.register("index_behind", "Versions known of and not served yet", self.index_behind.clone());
        r.register("database_up", "1 while the database answers", self.database_up.clone());
        self.live.register(r);
        self.kubernetes.register(r);
        Arc::new(registry)
    }
}

/// Counts one open channel for as long as it lives.
#[derive(Debug)]
pub struct OpenChannel(Gauge);

impl Drop for OpenChannel {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The figures in the OpenMetrics text format.
pub fn render(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = text::encode(&mut text, registry);
    text
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_shown_under_their_names() {
        let metrics = Metrics::default();
        let registry = metrics.registry();
        metrics.set_resources(KindName::Server, 3);
        metrics.pushed("delta", 120);
        metrics.refused("policy");
        metrics.store_operation("enrol", Duration::from_millis(2));
        let open = metrics.channel_open("device");
        let text = render(&registry);
        for line in [
            "horizon_controller_resources{kind=\"Server\"} 3",
            "horizon_controller_pushes_total{name=\"delta\"} 1",
            "horizon_controller_push_bytes_total 120",
            "horizon_controller_refusals_total{name=\"policy\"} 1",
            "horizon_controller_store_seconds_count{name=\"enrol\"} 1",
            "horizon_controller_channels{name=\"device\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        drop(open);
        assert!(render(&registry).contains("horizon_controller_channels{name=\"device\"} 0"));
    }
}
