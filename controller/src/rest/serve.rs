//! Connections: bounded in number, in all and of each party, and in every way in which a peer may be slow.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::tls::Certificate;
use crate::{
    parties::{Parties, Place},
    patient::{Patient, WRITE_PATIENCE},
    stop::Stop,
};

/// The most connections at once; more wait in the socket's backlog.
const MAX_CONNECTIONS: usize = 1024;
/// The most connections of one party at once: an address, or the /64 of an IPv6 one.
const MAX_OF_PARTY: usize = 32;
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer may take to send the head of a request, which also ends idle connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may last, whatever it does: whoever was let in is looked at anew then.
const LONGEST: Duration = Duration::from_secs(3600);
/// The largest head of a request, in bytes, and the most headers.
const MAX_HEAD: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// How long open requests may take to finish once the server is asked to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Remote(pub(super) SocketAddr);

/// Serves until it is to stop: over TLS with a certificate, else in the clear.
pub(super) async fn serve(
    listener: TcpListener,
    certificate: Option<Certificate>,
    router: Router,
    mut stop: Stop,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let parties = Parties::new(MAX_OF_PARTY);
    let mut connections = JoinSet::new();
    let stopped = stop.clone();
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let slot = slots.clone().acquire_owned().await.ok();
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = stop.requested() => break,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: others end soon.
                tracing::debug!(%error, "a connection to the REST API could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(place) = parties.enter(remote.ip()) else { continue };
        let tls = certificate.as_ref().map(|certificate| TlsAcceptor::from(certificate.config()));
        let router = router.clone().layer(Extension(Remote(remote)));
        connections.spawn(connection(stream, tls, router, stopped.clone(), (slot, place)));
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        tracing::debug!("some requests of the REST API did not finish in time and are cut off");
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    stop: Stop,
    _places: (Option<OwnedSemaphorePermit>, Place),
) {
    // Small answers go at once.
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = tls else { return talk(stream, router, stop).await };
    match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => talk(stream, router, stop).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake came to nothing"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router, mut stop: Stop) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(
            TokioIo::new(Patient::new(stream, WRITE_PATIENCE)),
            TowerToHyperService::new(router),
        );
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = tokio::time::sleep(LONGEST) => {
            connection.as_mut().graceful_shutdown();
            timeout(DRAIN_TIMEOUT, connection).await.unwrap_or(Ok(()))
        }
        () = stop.requested() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection to the REST API ended early");
    }
}
