//! Figures about the API server.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// What a request was.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// `list`, `watch`, `get`, `create`, `update`, `patch`, `delete` or `other`.
    pub verb: &'static str,
    /// The resource in the plural, as addresses have it.
    pub resource: String,
    /// The status of the answer; `none` when there was none.
    pub code: String,
}

/// A label with the plural of a kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResourceLabel {
    /// `servers`, `users`, …
    pub resource: &'static str,
}

/// A label with what became of something.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    /// One word.
    pub outcome: &'static str,
}

/// Every figure of this module. A clone counts the same.
#[derive(Clone, Debug, Default)]
pub struct KubernetesMetrics {
    /// Requests to the API server, each attempt for itself.
    pub requests: Family<RequestLabels, Counter>,
    /// Watches that had to be begun again, by how: `resumed`, `listed`.
    pub watch_restarts: Family<ResourceLabel, Counter>,
    /// Objects known now, by kind.
    pub objects: Family<ResourceLabel, Gauge>,
    /// Whether every kind is synced: 1 or 0.
    pub synced: Gauge,
    /// Writes of statuses, by outcome: `written`, `unchanged`, `superseded`, `conflict`, `retried`, `cut`, `failed`.
    pub status_writes: Family<OutcomeLabel, Counter>,
    /// Statuses that wait to be written.
    pub status_queue: Gauge,
    /// Events for administrators, by outcome: `written`, `failed`, `dropped`.
    pub events: Family<OutcomeLabel, Counter>,
}

impl KubernetesMetrics {
    /// Makes the figures known, with names that begin with `kubernetes_` after the registry's own prefix.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("kubernetes");
        registry.register("requests", "Requests to the API server", self.requests.clone());
        registry.register("watch_restarts", "Watches begun again", self.watch_restarts.clone());
        registry.register("objects", "Objects known", self.objects.clone());
        registry.register("synced", "Whether every kind is synced", self.synced.clone());
        registry.register("status_writes", "Statuses written, by outcome", self.status_writes.clone());
        registry.register("status_queue", "Statuses that wait to be written", self.status_queue.clone());
        registry.register("events", "Events for administrators, by outcome", self.events.clone());
    }

    pub(super) fn wrote(&self, outcome: &'static str) {
        self.status_writes.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(super) fn event(&self, outcome: &'static str) {
        self.events.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}
