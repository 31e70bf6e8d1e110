//! A small HTTP/1.1 server for a small audience: bounded connections, bounded waiting, graceful end. The API and the
//! metrics are served by it.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{Router, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    parties::Parties,
    patient::{Patient, WRITE_PATIENCE},
    stop::Stop,
};

/// The most connections at once; more wait in the socket's backlog.
pub const MAX_CONNECTIONS: usize = 64;
/// The most of them of one party at once, where parties are told apart.
const MAX_OF_PARTY: usize = 16;
/// How long a peer may take to send the head of a request, which also ends idle connections.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long open requests may take to finish once the server is asked to stop.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until it is to stop. `router` gives the routes for a connection, or `None` to hang up; `from` says whose it is, if
/// that is told.
pub async fn serve<L: Listener>(
    mut listener: L,
    router: impl Fn(&L::Io) -> Option<Router>,
    from: impl Fn(&L::Addr) -> Option<IpAddr>,
    mut stop: Stop,
) {
    let parties = Parties::new(MAX_OF_PARTY);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let stopped = stop.clone();
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let slot = slots.clone().acquire_owned().await.ok();
            (slot, listener.accept().await)
        };
        let (slot, (stream, peer)) = tokio::select! {
            accepted = accepted => accepted,
            () = stop.requested() => break,
            Some(_) = connections.join_next() => continue,
        };
        let Some(router) = router(&stream) else { continue };
        let place = match from(&peer) {
            Some(address) => match parties.enter(address) {
                Some(place) => Some(place),
                None => continue,
            },
            None => None,
        };
        let mut stopped = stopped.clone();
        connections.spawn(async move {
            let _places = (slot, place);
            let stream = TokioIo::new(Patient::new(stream, WRITE_PATIENCE));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(stream, TowerToHyperService::new(router));
            tokio::pin!(connection);
            let result = tokio::select! {
                result = connection.as_mut() => result,
                () = stopped.requested() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = result {
                tracing::debug!(%error, "an HTTP connection ended early");
            }
        });
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        tracing::warn!("some HTTP requests did not finish in time and are cut off");
    }
}
