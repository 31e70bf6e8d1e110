//! The service's side of the socket: who connects is checked, lines are read within their limits, requests go to the
//! service one at a time, and its messages go back.

use std::{io, os::unix::fs::FileTypeExt, path::Path, sync::Arc, time::Duration};

use horizon_client_core::{
    failure::{Failure, FailureKind},
    ipc::{self, Lines, MAX_REQUEST_LINE, Message, Request},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::access::Access;

/// Front ends that may be connected at a time.
const MAX_CONNECTIONS: usize = 32;
/// How long a service that was killed may take to let go of its socket.
const LAST_BREATH: Duration = Duration::from_secs(2);
/// Messages that may wait for a front end; progress that does not fit is left out.
pub(super) const MESSAGES: usize = 16;

/// A request and where its messages go. The last message is `Done` or `Failed`.
#[derive(Debug)]
pub(super) struct Call {
    /// What is asked.
    pub(super) request: Request,
    /// Where the answer goes.
    pub(super) answer: mpsc::Sender<Message>,
}

/// Makes the socket. A socket that a former run left is replaced; one that somebody listens on is not.
pub(super) async fn bind(path: &Path, access: Access) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            if is_alive(path).await {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another service listens there"));
            }
            match std::fs::remove_file(path) {
                // A service that stops takes its socket along.
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it exists and is no socket")),
        Err(_) => {}
    }
    // Between binding and the right mode nobody else may connect.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = listener?;
    access.apply(path)?;
    Ok(listener)
}

/// Whether somebody serves the socket. One who was killed a moment ago may still hold it, but hangs up soon.
async fn is_alive(path: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(path).await else { return false };
    match timeout(LAST_BREATH, stream.read(&mut [0; 1])).await {
        Ok(Ok(0) | Err(_)) => false,
        Ok(Ok(_)) | Err(_) => true,
    }
}

/// Serves front ends until the service goes away.
pub(super) async fn serve(listener: UnixListener, access: Access, calls: mpsc::Sender<Call>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a front end could not be accepted");
                    tokio::task::yield_now().await;
                    continue;
                }
            },
            () = calls.closed() => return,
        };
        let calls = calls.clone();
        tokio::spawn(async move {
            if let Err(error) = converse(stream, access, calls).await {
                tracing::debug!(%error, "a front end went away");
            }
            drop(place);
        });
    }
}

async fn converse(mut stream: UnixStream, access: Access, calls: mpsc::Sender<Call>) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    if !access.allows(peer.uid(), peer.gid()) {
        tracing::warn!(uid = peer.uid(), gid = peer.gid(), "a user without access was turned away");
        let failure = Failure::new(
            FailureKind::Refused,
            format!("the user {} may not use the Horizon service of this machine", peer.uid()),
            "use sudo, or start the service with --owner USER or --group GROUP",
        );
        return write(&mut stream, &Message::Failed(failure)).await;
    }
    let mut lines = Lines::new(MAX_REQUEST_LINE);
    loop {
        match lines.read::<Request>() {
            Ok(Some(request)) if !access.grants(peer.uid(), &request) => {
                let failure = Failure::new(
                    FailureKind::Refused,
                    "a personal key is given to root and to the owner of the service alone",
                    "start the service with --owner USER",
                );
                write(&mut stream, &Message::Failed(failure)).await?;
            }
            Ok(Some(request)) => answer(&mut stream, &mut lines, &calls, request).await?,
            Ok(None) => {
                if !receive(&mut stream, &mut lines).await? {
                    return Ok(());
                }
            }
            Err(error) => {
                let failure = Failure::new(FailureKind::Usage, error.to_string(), "update the older side");
                return write(&mut stream, &Message::Failed(failure)).await;
            }
        }
    }
}

/// Takes what the front end sent; false when it has hung up.
async fn receive(stream: &mut UnixStream, lines: &mut Lines) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    let count = stream.read(&mut buffer).await?;
    lines.push(&buffer[..count]);
    zeroize::Zeroize::zeroize(&mut buffer[..count]);
    Ok(count > 0)
}

/// Passes a request on and its messages back. A front end that hangs up while it waits for a connection ends this, which
/// the service notices.
async fn answer(
    stream: &mut UnixStream,
    lines: &mut Lines,
    calls: &mpsc::Sender<Call>,
    request: Request,
) -> io::Result<()> {
    let (answer, mut messages) = mpsc::channel(MESSAGES);
    let is_connect = matches!(request, Request::Connect { .. });
    let mut open = true;
    if calls.send(Call { request, answer }).await.is_ok() {
        loop {
            let message = tokio::select! {
                message = messages.recv() => message,
                received = receive(stream, lines), if open && !lines.is_full() => {
                    open = received?;
                    if !open && is_connect {
                        return Err(io::ErrorKind::ConnectionAborted.into());
                    }
                    continue;
                }
            };
            let Some(message) = message else { break };
            write(stream, &message).await?;
            if !matches!(message, Message::Progress(_)) {
                return Ok(());
            }
        }
    }
    write(stream, &Message::Failed(Failure::failed("the service is stopping", "start it again"))).await
}

async fn write(stream: &mut UnixStream, message: &Message) -> io::Result<()> {
    let line = ipc::encode(message).map_err(io::Error::other)?;
    stream.write_all(&line).await
}
