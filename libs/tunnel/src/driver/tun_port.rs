//! The attached TUN device with what it needs for reading and writing.

use std::os::fd::{AsFd, BorrowedFd};

use bytes::Bytes;
use horizon_tunnel_core::{
    offload::{Coalescer, VIRTIO_NET_HDR_LEN},
    packet::Packet,
};
use rustix::io::Errno;

use crate::TunDevice;

/// Room for the largest super-packet with its virtio_net_hdr.
const READ_BUFFER: usize = VIRTIO_NET_HDR_LEN + 65_536;

pub(super) struct TunPort {
    pub(super) device: TunDevice,
    pub(super) buffer: Vec<u8>,
    coalescer: Coalescer,
    pub(super) writer: WriteState,
}

/// What became of the writes.
#[derive(Debug, Default)]
pub(super) struct WriteState {
    pub(super) writes: u64,
    pub(super) refused: u64,
    /// The device is gone.
    pub(super) lost: Option<Errno>,
}

impl TunPort {
    pub(super) fn new(device: TunDevice) -> Self {
        let coalescer = Coalescer::new(device.framing());
        Self { device, buffer: vec![0; READ_BUFFER], coalescer, writer: WriteState::default() }
    }

    /// Writes a packet, now or with the ones that follow it.
    pub(super) fn push(&mut self, packet: &Bytes, info: &Packet, partial_checksum: bool) {
        let Self { device, coalescer, writer, .. } = self;
        coalescer.push(packet, info, partial_checksum, &mut |slices| writer.note(device.write(slices)));
    }

    /// Writes what is held back.
    pub(super) fn flush(&mut self) {
        let Self { device, coalescer, writer, .. } = self;
        coalescer.flush(&mut |slices| writer.note(device.write(slices)));
    }
}

impl WriteState {
    fn note(&mut self, result: rustix::io::Result<usize>) {
        match result {
            Ok(_) => self.writes += 1,
            Err(Errno::BADFD) => self.lost = Some(Errno::BADFD),
            // The interface is down, or the packet displeased the kernel.
            Err(error) => {
                self.refused += 1;
                tracing::trace!(%error, "TUN write refused");
            }
        }
    }
}

impl AsFd for TunPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
