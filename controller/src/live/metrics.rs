//! Figures of the live layer.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::metrics::NameLabel;

/// The figures of the live layer. A clone counts and shows the same.
#[derive(Clone, Debug)]
pub struct LiveMetrics {
    /// Whether Redis is used: 0 closed, it is; 1 half-open, it is tried; 2 open, it is not.
    pub redis_breaker: Gauge,
    /// Uses of Redis, by outcome (`ok`, `unreachable`, `refused`, `avoided`).
    pub redis_operations: Family<NameLabel, Counter>,
    /// How long a use of Redis took, in seconds.
    pub redis_seconds: Histogram,
    /// Found in a cache, by cache.
    pub cache_hits: Family<NameLabel, Counter>,
    /// Not found in a cache, by cache.
    pub cache_misses: Family<NameLabel, Counter>,
    /// Hints, by direction (`sent`, `received`, `dropped`), and messages that no replica wrote (`malformed`).
    pub hints: Family<NameLabel, Counter>,
    /// How often hints were lost on the way from others, so that everything was looked at.
    pub hints_lost: Counter,
    /// From the sending of a message to its arrival here, in seconds, as seen by its sender.
    pub bus_seconds: Histogram,
}

impl Default for LiveMetrics {
    fn default() -> Self {
        // From 100 µs to 3 s.
        let seconds =
            || Histogram::new(std::iter::successors(Some(0.0001), |bound| Some(bound * 2.0)).take(16));
        Self {
            redis_breaker: Gauge::default(),
            redis_operations: Family::default(),
            redis_seconds: seconds(),
            cache_hits: Family::default(),
            cache_misses: Family::default(),
            hints: Family::default(),
            hints_lost: Counter::default(),
            bus_seconds: seconds(),
        }
    }
}

impl LiveMetrics {
    /// Counts a use of Redis.
    pub(super) fn redis_operation(&self, outcome: &'static str) {
        self.redis_operations.get_or_create(&NameLabel { name: outcome }).inc();
    }

    /// Counts a look into a cache.
    pub(super) fn cache_lookup(&self, cache: &'static str, hit: bool) {
        let counts = if hit { &self.cache_hits } else { &self.cache_misses };
        counts.get_or_create(&NameLabel { name: cache }).inc();
    }

    /// Counts hints.
    pub(super) fn count_hints(&self, direction: &'static str, count: usize) {
        self.hints.get_or_create(&NameLabel { name: direction }).inc_by(count as u64);
    }

    /// Adds the figures to a registry.
    pub fn register(&self, registry: &mut Registry) {
        let r = registry;
        r.register(
            "redis_breaker_state",
            "0: Redis is used, 1: tried, 2: not used",
            self.redis_breaker.clone(),
        );
        r.register("redis_operations", "Uses of Redis", self.redis_operations.clone());
        r.register("redis_latency_seconds", "Duration of a use of Redis", self.redis_seconds.clone());
        r.register("cache_hits", "Found in a cache", self.cache_hits.clone());
        r.register("cache_misses", "Not found in a cache", self.cache_misses.clone());
        r.register("hints", "Hints between replicas", self.hints.clone());
        r.register("hints_lost", "Times that hints of other replicas were lost", self.hints_lost.clone());
        r.register("bus_seconds", "From sending to hearing a message", self.bus_seconds.clone());
    }
}
