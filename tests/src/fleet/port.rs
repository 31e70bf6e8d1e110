//! The UDP socket of a fleet: every appliance speaks from a loopback address of its own through it.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use bytes::BytesMut;
use quinn_proto::EcnCodepoint;
use quinn_udp::{RecvMeta, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

/// Kernel buffers asked for, in bytes: a whole fleet may be answered at once.
const KERNEL_BUFFER: usize = 64 << 20;
/// Messages taken in one call.
const BATCH: usize = 16;
/// Room for one message: the most the kernel coalesces.
const MESSAGE: usize = 65_536;

/// One received datagram.
pub(super) struct Received {
    pub(super) remote: SocketAddr,
    pub(super) ecn: Option<EcnCodepoint>,
    pub(super) data: BytesMut,
}

pub(super) struct Port {
    socket: UdpSocket,
    state: UdpSocketState,
    buffers: Vec<Box<[u8]>>,
    /// Datagrams that the kernel did not take.
    pub(super) unsent: u64,
}

impl Port {
    /// A socket that may send from every loopback address.
    pub(super) fn bind() -> io::Result<Self> {
        // Only loopback addresses are ever named as source or destination.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        // Beyond the system's limit where privileges allow it, up to the limit elsewhere.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, KERNEL_BUFFER)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, KERNEL_BUFFER));
        let _ = sockopt::set_socket_send_buffer_size_force(&socket, KERNEL_BUFFER)
            .or_else(|_| sockopt::set_socket_send_buffer_size(&socket, KERNEL_BUFFER));
        let state = UdpSocketState::new((&socket).into())?;
        let buffers = (0..BATCH).map(|_| vec![0; MESSAGE].into_boxed_slice()).collect();
        Ok(Self { socket, state, buffers, unsent: 0 })
    }

    pub(super) fn max_segments(&self) -> usize {
        self.state.max_gso_segments().clamp(1, 10)
    }

    /// Receives what is there, up to a batch. Returns whether there may be more.
    pub(super) fn receive(&mut self, mut take: impl FnMut(Received)) -> bool {
        let mut metas = [RecvMeta::default(); BATCH];
        let mut slices: Vec<_> = self.buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let Ok(count) = self.state.recv((&self.socket).into(), &mut slices, &mut metas) else {
            // Nothing is there, or an error of an earlier send is reported: QUIC finds out by itself.
            return false;
        };
        for (meta, buffer) in metas.iter().zip(&self.buffers).take(count) {
            let ecn = meta.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8));
            for data in buffer[..meta.len].chunks(meta.stride.max(1)) {
                take(Received { remote: meta.addr, ecn, data: data.into() });
            }
        }
        count == BATCH
    }

    /// Sends what QUIC wrote for one appliance. What the kernel does not take is lost, as on any network.
    pub(super) fn send(&mut self, from: Ipv4Addr, transmit: &quinn_proto::Transmit, contents: &[u8]) {
        let out = quinn_udp::Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn.and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8)),
            contents: &contents[..transmit.size],
            segment_size: transmit.segment_size,
            src_ip: Some(IpAddr::V4(from)),
        };
        if self.state.try_send((&self.socket).into(), &out).is_err() {
            self.unsent += 1;
        }
    }

    /// Waits for something to receive.
    pub(super) fn wait(&self, longest: Duration) -> io::Result<()> {
        let timeout = Timespec {
            tv_sec: i64::try_from(longest.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: longest.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The loopback address of the appliance with a number: no two below 15 million share one.
pub(super) fn address(number: usize) -> Ipv4Addr {
    const LAST: usize = 250;
    let octet = |value: usize| (value % LAST + 1) as u8;
    // 127.0.x.y is left to what else a machine runs.
    Ipv4Addr::new(127, octet(number / (LAST * LAST)), octet(number / LAST), octet(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_appliance_has_an_address_of_its_own() {
        let all: std::collections::HashSet<_> = (0..200_000).map(address).collect();
        assert_eq!(all.len(), 200_000);
        assert!(all.iter().all(|address| address.is_loopback() && address.octets()[1] > 0));
    }
}
