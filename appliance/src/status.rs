//! What the agent tells of itself over its Unix socket, to whom the directory's permissions let in.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use horizon_model::{Digest, EntryProblem, Incarnation, PublicKey, ServerId, SessionId};
use ipnet::IpNet;
use jiff::Timestamp;
use rustix::{
    fs::Mode,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    time::timeout,
};

/// The socket's name in the state directory.
pub const SOCKET: &str = "appliance.sock";
/// How many askers wait to be taken.
const BACKLOG: i32 = 16;
const MAX_BYTES: u64 = 16 * 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(5);

/// How the appliance is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The server's name.
    pub server_name: String,
    /// The server's id.
    pub server_id: ServerId,
    /// The appliance's public key.
    pub key: PublicKey,
    /// The program's version.
    pub version: String,
    /// This start of the process.
    pub incarnation: Incarnation,
    /// Since when it runs.
    pub started: Timestamp,
    /// Memory in use, in bytes.
    pub memory_bytes: u64,
    /// The conversation with a controller.
    pub controller: ControllerStatus,
    /// The state in force.
    pub state: StateStatus,
    /// The tunnel.
    pub tunnel: Option<TunnelStatus>,
    /// Sessions that are admitted.
    pub sessions: Vec<SessionStatus>,
}

/// The conversation with a controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControllerStatus {
    /// Whether a controller is connected.
    pub connected: bool,
    /// Which, now or last.
    pub address: Option<SocketAddr>,
    /// Since when it is so.
    pub since: Option<Timestamp>,
    /// Why there is none.
    pub reason: Option<String>,
    /// When the next attempt is.
    pub next_attempt: Option<Timestamp>,
    /// The last heartbeat that was acknowledged.
    pub last_heartbeat: Option<Timestamp>,
    /// What the controller refused last, since the last acknowledged heartbeat.
    pub refused: Option<String>,
}

/// The state in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StateStatus {
    /// Its epoch.
    pub epoch: u64,
    /// Its number; 0 before the first.
    pub generation: u64,
    /// Its digest.
    pub digest: Option<Digest>,
    /// When it took effect in this process.
    pub applied: Option<Timestamp>,
    /// Entries that are not in force.
    pub problems: Vec<EntryProblem>,
    /// How often drift was repaired since the start.
    pub repairs: u64,
    /// What was repaired last.
    pub last_repair: Option<String>,
}

/// The tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelStatus {
    /// The UDP port.
    pub port: u16,
    /// The TUN device.
    pub device: String,
    /// Whether the device is there and given to the tunnel.
    pub device_attached: bool,
    /// The inner MTU, in bytes.
    pub mtu: u16,
    /// Its overlay addresses.
    pub addresses: Vec<IpNet>,
    /// Where clients reach it, best first.
    pub reached_at: Vec<SocketAddr>,
    /// Whether the controller could reach it: `unknown`, `awaited`, `reached`, `missed`.
    pub reachability: String,
    /// The same in a sentence, with what to do.
    pub reachability_words: String,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionStatus {
    /// Which.
    pub id: SessionId,
    /// Whether a connection carries it.
    pub connected: bool,
    /// The peer's addresses in the tunnel.
    pub addresses: Vec<IpNet>,
    /// Bytes toward the peer.
    pub bytes_sent: u64,
    /// Bytes from the peer.
    pub bytes_received: u64,
    /// Round-trip time in microseconds, 0 when unknown.
    pub rtt_micros: u64,
}

/// Why there is no status.
#[derive(Debug, Error)]
pub enum StatusError {
    /// Nothing listens.
    #[error("no appliance runs with the state directory {}; start it with: horizon-appliance run", .0.display())]
    NotRunning(PathBuf),
    /// Not allowed.
    #[error("not permitted to ask the appliance at {}; run it as the user that runs the appliance (usually root)", .0.display())]
    Permission(PathBuf),
    /// The system refused.
    #[error("cannot use the socket {}: {cause}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The answer cannot be read.
    #[error("the running appliance answers in another form; is it of another version?")]
    Unreadable,
}

/// Opens the socket, for its owner only. The caller holds the directory's lock, so a socket that is there is left over.
pub(crate) fn listen(dir: &Path) -> Result<UnixListener, StatusError> {
    let path = dir.join(SOCKET);
    let failed = |cause| StatusError::Io { path: path.clone(), cause };
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    bind(&path).map_err(failed)
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux gives the file the mode of the socket, so that it is never there with a wider one.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
}

/// Tells one asker.
pub(crate) async fn tell(mut stream: UnixStream, status: Status) {
    let Ok(mut text) = serde_json::to_vec(&status) else { return };
    text.push(b'\n');
    // An asker that went away or does not read is no concern.
    let _ = timeout(PATIENCE, async {
        stream.write_all(&text).await?;
        stream.shutdown().await
    })
    .await;
}

/// Asks the running appliance.
pub async fn ask(dir: &Path) -> Result<Status, StatusError> {
    let path = dir.join(SOCKET);
    let failed = |cause: io::Error| match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => StatusError::NotRunning(dir.to_owned()),
        io::ErrorKind::PermissionDenied => StatusError::Permission(dir.to_owned()),
        _ => StatusError::Io { path: path.clone(), cause },
    };
    let stream = UnixStream::connect(&path).await.map_err(failed)?;
    let mut text = Vec::new();
    let mut stream = stream.take(MAX_BYTES);
    let read = timeout(PATIENCE, stream.read_to_end(&mut text));
    read.await.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?.map_err(failed)?;
    serde_json::from_slice(&text).map_err(|_| StatusError::Unreadable)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[tokio::test]
    async fn the_socket_is_its_owners_and_takes_the_place_of_a_left_one() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            drop(listen(dir.path()).unwrap());
            assert_eq!(fs::metadata(dir.path().join(SOCKET)).unwrap().mode() & 0o777, 0o600);
        }
    }
}
