//! The controller's side of the channel.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use horizon_model::{PublicKey, Secret};
use horizon_wire::{
    frame::{MAX_FROM_DEVICE, MAX_FROM_STRANGER, MAX_HELLO},
    key::SigningKey,
    proto::{self, from_controller, to_controller},
    refusal::Refusal,
};
use thiserror::Error;
use tokio::time::timeout;

use crate::{
    PROBE_PREFIX,
    frames::{ReceiveError, Receiver, Sender},
    tls,
};

/// How long a peer may take from its first packet to its Hello.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a refusal may take to reach the peer.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);
/// How much may wait in the socket each way, in bytes, as far as the system allows it: thousands of peers may come at once.
const SOCKET_BUFFER: usize = 8 << 20;

/// Why a connection did not become a peer.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// It took too long.
    #[error("the peer said nothing for {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout,
    /// QUIC or TLS failed.
    #[error("the handshake failed: {0}")]
    Connection(#[from] quinn::ConnectionError),
    /// The first frame cannot be read.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// The first message is not a Hello, or the peer has no key.
    #[error("the peer did not open with a Hello")]
    NoHello,
}

/// A controller's listening socket.
#[derive(Debug)]
pub struct Listener {
    endpoint: quinn::Endpoint,
    socket: UdpSocket,
    common: Secret,
}

impl Listener {
    /// Listens on a UDP address under the controller's TLS key. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(address: SocketAddr, tls_key: &SigningKey) -> io::Result<Self> {
        Self::bind_replica(address, tls_key, tls_key.seed())
    }

    /// The same for one of several replicas. What they derive for packets comes of `common`, which all of them have and which
    /// stays as it is when the TLS key changes.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind_replica(address: SocketAddr, tls_key: &SigningKey, common: &Secret) -> io::Result<Self> {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        widen(&socket);
        let endpoint = quinn::Endpoint::new(
            tls::endpoint_config(common),
            Some(tls::server_config(tls_key, common).map_err(io::Error::other)?),
            socket.try_clone()?,
            Arc::new(quinn::TokioRuntime),
        )?;
        Ok(Self { endpoint, socket, common: common.clone() })
    }

    /// Proves another TLS key from now on. Connections that stand are not touched.
    ///
    /// # Errors
    /// When the crypto library cannot sign with the key; nothing changes then.
    pub fn set_key(&self, tls_key: &SigningKey) -> io::Result<()> {
        let config = tls::server_config(tls_key, &self.common).map_err(io::Error::other)?;
        self.endpoint.set_server_config(Some(config));
        Ok(())
    }

    /// The address that was bound.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The next connection; `None` after [`Listener::close`].
    pub async fn accept(&self) -> Option<Incoming> {
        self.endpoint.accept().await.map(|inner| Incoming { inner })
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.endpoint.open_connections()
    }

    /// Sends a dial-back probe to an appliance's tunnel port.
    pub fn send_probe(&self, to: SocketAddr, nonce: &[u8; 16]) -> io::Result<()> {
        let to = match (self.socket.local_addr()?, to) {
            (SocketAddr::V6(_), SocketAddr::V4(v4)) => {
                SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())
            }
            _ => to,
        };
        self.socket.send_to(&[&PROBE_PREFIX[..], nonce].concat(), to).map(|_| ())
    }

    /// Ends all connections with a reason that peers see, and waits until they were told.
    pub async fn close(&self, reason: &str) {
        self.endpoint.close(0u32.into(), reason.as_bytes());
        self.endpoint.wait_idle().await;
    }
}

/// A connection that was not looked at yet.
#[derive(Debug)]
pub struct Incoming {
    inner: quinn::Incoming,
}

impl Incoming {
    /// Where it comes from, with IPv4 addresses in their own form.
    pub fn remote(&self) -> SocketAddr {
        canonical(self.inner.remote_address())
    }

    /// Whether the address is known to be the sender's own.
    pub fn address_validated(&self) -> bool {
        self.inner.remote_address_validated()
    }

    /// Asks the peer to prove its address (RFC 9000, section 8.1.2); under load, before any cryptography.
    pub fn retry(self) {
        // Only an incoming connection that was retried already cannot be; it is dropped then.
        let _ = self.inner.retry();
    }

    /// Drops it without an answer.
    pub fn ignore(self) {
        self.inner.ignore();
    }

    /// Completes TLS and reads the Hello. Nothing is answered yet.
    pub async fn handshake(self) -> Result<Peer, HandshakeError> {
        let remote = self.remote();
        let opening = async {
            let connection = self.inner.accept()?.await?;
            let key = tls::peer_key(&connection).ok_or(HandshakeError::NoHello)?;
            let (send, receive) = connection.accept_bi().await?;
            let mut receiver = Receiver::new(receive, MAX_HELLO);
            let Some(proto::ToController { message: Some(to_controller::Message::Hello(hello)), .. }) =
                receiver.next().await?
            else {
                return Err(HandshakeError::NoHello);
            };
            receiver.set_limit(match hello.role() {
                proto::Role::Appliance => MAX_FROM_STRANGER,
                proto::Role::Device | proto::Role::Unspecified => MAX_FROM_DEVICE,
            });
            Ok(Peer { key, remote, hello, sender: Sender::new(send), receiver, connection })
        };
        timeout(HANDSHAKE_TIMEOUT, opening).await.map_err(|_| HandshakeError::Timeout)?
    }
}

/// A peer that proved its key and said Hello.
#[derive(Debug)]
pub struct Peer {
    /// The key it proved.
    pub key: PublicKey,
    /// Where it is.
    pub remote: SocketAddr,
    /// What it said first.
    pub hello: proto::Hello,
    /// Toward it.
    pub sender: Sender,
    /// From it.
    pub receiver: Receiver,
    /// The connection.
    pub connection: quinn::Connection,
}

impl Peer {
    /// Says why there will be no conversation, and ends the connection.
    pub async fn refuse(mut self, request: u64, refusal: Refusal) {
        let message = from_controller::Message::Refused(refusal.into());
        let sent = self.sender.send(&proto::FromController { request, message: Some(message) }).await;
        if sent.is_ok() {
            // The peer may never acknowledge; then the connection's own end is its answer.
            let _ = timeout(REFUSAL_TIMEOUT, self.sender.finish()).await;
        }
        self.connection.close(1u32.into(), b"refused");
    }
}

/// Gives the socket room; what the system refuses costs packets under load and nothing else.
fn widen(socket: &UdpSocket) {
    use nix::sys::socket::{setsockopt, sockopt};
    // Beyond the system's limit where privileges allow it, up to the limit elsewhere.
    let received = setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BUFFER)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &SOCKET_BUFFER));
    let sent = setsockopt(socket, sockopt::SndBufForce, &SOCKET_BUFFER)
        .or_else(|_| setsockopt(socket, sockopt::SndBuf, &SOCKET_BUFFER));
    if let Err(error) = received.and(sent) {
        tracing::debug!(%error, "the socket's buffers stay as they are");
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
