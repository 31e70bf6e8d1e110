//! Metrics and health over HTTP: `/metrics`, `/healthz` (the process runs) and `/readyz` (it can serve).

use std::{collections::BTreeMap, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch, time::timeout};

use super::render;
use crate::{http, stop::Stop};

/// What must be so before the controller can serve, and whether it is. A clone speaks of the same controller.
#[derive(Clone, Debug)]
pub struct Health(Arc<watch::Sender<BTreeMap<&'static str, Result<(), String>>>>);

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeMap::new())))
    }
}

/// Asks a part whose readiness can change at any time.
pub type Probe = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync>;

/// The right to say whether one part is ready; it is not ready until it says so.
#[derive(Debug)]
pub struct Ready {
    health: Health,
    part: &'static str,
}

impl Health {
    /// Adds a part that must be ready.
    pub fn part(&self, part: &'static str) -> Ready {
        let ready = Ready { health: self.clone(), part };
        ready.not_yet("starting");
        ready
    }

    /// The parts that are not ready and why; empty when the controller can serve.
    pub fn missing(&self) -> Vec<(&'static str, String)> {
        let parts = self.0.borrow();
        parts.iter().filter_map(|(part, state)| Some((*part, state.as_ref().err()?.clone()))).collect()
    }

    /// Waits until every part is ready, but not longer than `patience`.
    pub async fn wait(&self, patience: Duration) {
        let mut parts = self.0.subscribe();
        // Whether it came to an end or not is for the caller to see.
        let _ = timeout(patience, parts.wait_for(|parts| parts.values().all(Result::is_ok))).await;
    }
}

impl Ready {
    /// Says that the part is ready.
    pub fn ready(&self) {
        self.set(Ok(()));
    }

    /// Says that the part is not ready (any more) and why.
    pub fn not_yet(&self, why: impl Into<String>) {
        self.set(Err(why.into()));
    }

    fn set(&self, state: Result<(), String>) {
        self.health.0.send_modify(|parts| {
            parts.insert(self.part, state);
        });
    }
}

#[derive(Clone)]
struct Shown {
    registry: Arc<Registry>,
    health: Health,
    store: Probe,
}

/// Serves until it is to stop. `store` asks the database, each time somebody asks for readiness.
pub async fn serve(listener: TcpListener, registry: Arc<Registry>, health: Health, store: Probe, stop: Stop) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness))
        .with_state(Shown { registry, health, store });
    http::serve(listener, |_| Some(router.clone()), |from: &SocketAddr| Some(from.ip()), stop).await;
}

async fn metrics(State(shown): State<Shown>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], render(&shown.registry))
}

async fn readiness(State(shown): State<Shown>) -> impl IntoResponse {
    let mut missing = shown.health.missing();
    if let Err(why) = (shown.store)().await {
        missing.push(("controller", why));
    }
    if missing.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let text = missing.iter().map(|(part, why)| format!("{part}: {why}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, text)
}
