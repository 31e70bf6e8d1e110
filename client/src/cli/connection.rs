//! A front end's side of the socket.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use horizon_client_core::{
    failure::Failure,
    ipc::{self, Lines, MAX_LINE, Message, Progress, Reply, Request},
};

/// Asks the service and waits for its answer; `progress` hears how far it is.
pub(super) fn ask(socket: &Path, request: &Request, progress: impl Fn(&Progress)) -> Result<Reply, Failure> {
    let mut stream = UnixStream::connect(socket).map_err(|e| unreachable(socket, &e))?;
    let line = ipc::encode(request).map(zeroize::Zeroizing::new);
    let line = line.map_err(|e| Failure::failed(e.to_string(), ""))?;
    let broken = |e: &dyn std::fmt::Display| {
        Failure::failed(
            format!("the conversation with the service broke off: {e}"),
            "look at the service's log",
        )
    };
    // A service that turns this user away answers before it reads; its answer says more than the write's error.
    let written = stream.write_all(&line);
    let mut lines = Lines::new(MAX_LINE);
    let mut buffer = [0; 16 * 1024];
    loop {
        match lines.read().map_err(|e| broken(&e))? {
            Some(Message::Progress(step)) => progress(&step),
            Some(Message::Done(reply)) => return Ok(reply),
            Some(Message::Failed(failure)) => return Err(failure),
            None => match (stream.read(&mut buffer), &written) {
                (Ok(0), Err(e)) => return Err(broken(e)),
                (Ok(0), Ok(())) => return Err(broken(&"it was closed")),
                (Ok(count), _) => lines.push(&buffer[..count]),
                (Err(e), _) if e.kind() == io::ErrorKind::Interrupted => {}
                (Err(e), _) => return Err(broken(&e)),
            },
        }
    }
}

fn unreachable(socket: &Path, error: &io::Error) -> Failure {
    let shown = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Failure::failed(
            format!("the Horizon service is not running (nothing listens on {shown})"),
            "start it: sudo systemctl start horizon-client, or: sudo horizon service run",
        ),
        io::ErrorKind::PermissionDenied => Failure::failed(
            format!("you may not use the Horizon service of this machine ({shown})"),
            "use sudo, or start the service with --owner USER or --group GROUP",
        ),
        _ => Failure::failed(format!("cannot reach the Horizon service on {shown}: {error}"), ""),
    }
}
