//! The UDP socket: many packets a call both ways, with the kernel's segmentation and coalescing.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use bytes::BytesMut;
use quinn_proto::Transmit;
use quinn_udp::{RecvMeta, UdpSocketState};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{AddressFamily, SocketFlags, SocketType, sockopt},
};

/// Kernel buffers asked for, in bytes, both ways.
const KERNEL_BUFFER: usize = 8 << 20;
/// Messages taken in one call.
const BATCH: usize = 4;
/// Room for one message: the most the kernel coalesces.
const MESSAGE: usize = 65_536;
/// Memory taken at a time for received packets.
const ARENA: usize = 4 * MESSAGE;
/// Most packets handed to the kernel in one call: what fits the largest UDP payload with packets of 1472 bytes.
const MAX_SEGMENTS: usize = 44;

pub(crate) struct UdpPort {
    socket: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    arenas: [BytesMut; BATCH],
    /// What QUIC wants to send; filled by the caller.
    pub(crate) out: Vec<u8>,
    /// Describes `out` when the socket took no more.
    blocked: Option<Transmit>,
}

/// One received UDP payload, or several of one sender with equal length.
pub(crate) struct Received {
    pub(crate) remote: SocketAddr,
    pub(crate) local_ip: Option<IpAddr>,
    pub(crate) ecn: Option<quinn_proto::EcnCodepoint>,
    pub(crate) stride: usize,
    pub(crate) data: BytesMut,
}

impl UdpPort {
    pub(crate) fn bind(listen: SocketAddr, fwmark: Option<u32>) -> io::Result<Self> {
        let socket = match bind(listen) {
            // A machine without IPv6.
            Err(error) if listen.ip() == IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED) => {
                tracing::debug!(%error, "no dual-stack socket; IPv4 only");
                bind((Ipv4Addr::UNSPECIFIED, listen.port()).into())?
            }
            other => other?,
        };
        if let Some(mark) = fwmark {
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Mark, &mark)?;
        }
        // Beyond the system's limit where privileges allow it, up to the limit elsewhere.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, KERNEL_BUFFER)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, KERNEL_BUFFER));
        let _ = sockopt::set_socket_send_buffer_size_force(&socket, KERNEL_BUFFER)
            .or_else(|_| sockopt::set_socket_send_buffer_size(&socket, KERNEL_BUFFER));
        let state = UdpSocketState::new((&socket).into())?;
        let local = socket.local_addr()?;
        let arenas = Default::default();
        Ok(Self { socket, state, local, arenas, out: Vec::with_capacity(MESSAGE), blocked: None })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        canonical(self.local)
    }

    /// Whether datagrams may be cut on their way, which makes MTU discovery pointless.
    pub(crate) fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    pub(crate) fn segmentation(&self) -> bool {
        self.state.max_gso_segments() > 1
    }

    /// How many packets QUIC may put into `out` at a time.
    pub(crate) fn max_segments(&self) -> usize {
        self.state.max_gso_segments().clamp(1, MAX_SEGMENTS)
    }

    /// An address in the form this socket wants.
    pub(crate) fn to_socket(&self, address: SocketAddr) -> SocketAddr {
        match (self.local, address) {
            (SocketAddr::V6(_), SocketAddr::V4(v4)) => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            _ => address,
        }
    }

    /// Receives what is there, up to a batch. Returns whether there may be more.
    pub(crate) fn receive(&mut self, mut take: impl FnMut(Received)) -> bool {
        for arena in &mut self.arenas {
            if arena.capacity() < MESSAGE {
                // What lies in it belongs to nobody: a fresh chunk, or the old one if all of it was given back.
                arena.clear();
                arena.reserve(ARENA);
            }
            // Only what the last message took is new, so only that is cleared.
            arena.resize(MESSAGE, 0);
        }
        let mut metas = [RecvMeta::default(); BATCH];
        let count = {
            let mut slices = self.arenas.each_mut().map(|arena| IoSliceMut::new(&mut arena[..]));
            match self.state.recv((&self.socket).into(), &mut slices, &mut metas) {
                Ok(count) => count,
                // Errors of earlier sends are reported here too; QUIC finds out by itself.
                Err(_) => return false,
            }
        };
        for (arena, meta) in self.arenas.iter_mut().zip(&metas[..count]) {
            let data = arena.split_to(meta.len.min(MESSAGE));
            let ecn = meta.ecn.and_then(|ecn| quinn_proto::EcnCodepoint::from_bits(ecn as u8));
            take(Received {
                remote: meta.addr,
                local_ip: meta.dst_ip,
                ecn,
                stride: meta.stride.max(1),
                data,
            });
        }
        count == BATCH
    }

    /// Sends `out` as `transmit` describes it. When the socket takes no more, it is kept: see [`Self::retry`].
    pub(crate) fn send(&mut self, transmit: Transmit) {
        if self.try_send(&transmit, &self.out) {
            return;
        }
        self.blocked = Some(transmit);
    }

    /// Sends something apart from `out`, or drops it.
    pub(crate) fn send_once(&self, transmit: &Transmit, contents: &[u8]) {
        self.try_send(transmit, contents);
    }

    /// Whether something waits for the socket, and nothing else may be sent.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// Waits until the socket takes more.
    pub(crate) fn wait_writable(&self, at_most: Duration) {
        let timeout = Timespec { tv_sec: 0, tv_nsec: at_most.subsec_nanos().into() };
        // Interrupted or not, the caller looks again.
        let _ = poll(&mut [PollFd::from_borrowed_fd(self.as_fd(), PollFlags::OUT)], Some(&timeout));
    }

    /// Tries again to send what waits.
    pub(crate) fn retry(&mut self) {
        if let Some(transmit) = self.blocked.take() {
            self.send(transmit);
        }
    }

    /// Returns false when the socket takes no more now. Other errors look like loss to QUIC.
    fn try_send(&self, transmit: &Transmit, contents: &[u8]) -> bool {
        let transmit = quinn_udp::Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn.and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8)),
            contents: &contents[..transmit.size.min(contents.len())],
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        match self.state.try_send((&self.socket).into(), &transmit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => {
                tracing::debug!(%error, "UDP send failed");
                true
            }
            Ok(()) => true,
        }
    }
}

impl AsFd for UdpPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// An IPv4 address as such, not as IPv6.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn bind(listen: SocketAddr) -> io::Result<UdpSocket> {
    let family = if listen.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    if listen.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, !listen.ip().is_unspecified())?;
    }
    rustix::net::bind(&socket, &listen)?;
    Ok(socket.into())
}
