//! Cutting what a TUN device returned into packets, each in a datagram of its own.

use bytes::{BufMut, Bytes, BytesMut};

use super::{ChecksumState, Gso, GsoKind, VirtioNetHeader};
use crate::{
    checksum,
    header::{DatagramHeader, WHOLE_LEN},
    ids::NetworkId,
    packet::{Packet, Upper, be16, be32, tcp},
};

/// Memory taken at a time for datagrams.
const ARENA_CHUNK: usize = 256 * 1024;

/// Why a super-packet could not be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// The virtio_net_hdr does not describe this packet.
    #[error("super-packet does not match its virtio_net_hdr")]
    Mismatch,
}

/// Cuts a packet or super-packet into datagrams, header included, and hands each to `sink`.
///
/// Checksums of TCP and UDP that the kernel left open, or has verified, are left to the receiver: QUIC protects what
/// lies between. `packet` describes `bytes`, which begin after the virtio_net_hdr.
pub fn split(
    bytes: &mut [u8],
    virtio: &VirtioNetHeader,
    packet: &Packet,
    network: NetworkId,
    arena: &mut BytesMut,
    mut sink: impl FnMut(Bytes),
) -> Result<(), SplitError> {
    let bytes = bytes.get_mut(..packet.length).ok_or(SplitError::Mismatch)?;
    match virtio.gso {
        Some(gso) => split_super(bytes, gso, packet, network, arena, sink),
        None => {
            let partial = prepare_single(bytes, virtio, packet);
            ensure(arena, WHOLE_LEN + bytes.len());
            arena.put_slice(&DatagramHeader::encode_whole(network, partial));
            arena.put_slice(bytes);
            sink(arena.split().freeze());
            Ok(())
        }
    }
}

/// Decides whether the checksum stays open, and completes it otherwise.
fn prepare_single(bytes: &mut [u8], virtio: &VirtioNetHeader, packet: &Packet) -> bool {
    let transport =
        packet.fragment.is_none() && matches!(packet.upper, Upper::Tcp { .. } | Upper::Udp { .. });
    match virtio.checksum {
        ChecksumState::Partial if transport && usize::from(virtio.checksum_start) == packet.l4 => true,
        ChecksumState::Partial => {
            complete_at(bytes, virtio.checksum_start.into(), virtio.checksum_offset.into());
            false
        }
        // A UDP checksum of zero means that the sender wanted none.
        ChecksumState::Verified => {
            transport
                && checksum::field_offset(packet.protocol).is_some_and(|at| be16(bytes, packet.l4 + at) != 0)
        }
        ChecksumState::Unknown => false,
    }
}

/// Completes a checksum whose field holds the sum of its pseudo header.
fn complete_at(bytes: &mut [u8], start: usize, offset: usize) {
    let Some(part) = bytes.get_mut(start..) else { return };
    if part.len() < offset + 2 {
        return;
    }
    let sum = !checksum::fold(checksum::add(0, part));
    part[offset..offset + 2].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
}

fn split_super(
    bytes: &[u8],
    gso: Gso,
    packet: &Packet,
    network: NetworkId,
    arena: &mut BytesMut,
    mut sink: impl FnMut(Bytes),
) -> Result<(), SplitError> {
    let transport = match (gso.kind, packet.upper, packet.source.is_ipv4()) {
        (GsoKind::TcpV4, Upper::Tcp { header, .. }, true) => header,
        (GsoKind::TcpV6, Upper::Tcp { header, .. }, false) => header,
        (GsoKind::Udp, Upper::Udp { .. }, _) => 8,
        _ => return Err(SplitError::Mismatch),
    };
    let headers = packet.l4 + transport;
    if packet.fragment.is_some() || bytes.len() <= headers {
        return Err(SplitError::Mismatch);
    }
    let (head, payload) = bytes.split_at(headers);
    let size = usize::from(gso.size);
    let count = payload.len().div_ceil(size);
    ensure(arena, payload.len() + count * (WHOLE_LEN + headers));
    for (index, part) in payload.chunks(size).enumerate() {
        arena.put_slice(&DatagramHeader::encode_whole(network, true));
        arena.put_slice(head);
        arena.put_slice(part);
        let mut datagram = arena.split();
        let segment = Segment { index, offset: index * size, last: index + 1 == count };
        segment.fix_headers(&mut datagram[WHOLE_LEN..], packet);
        sink(datagram.freeze());
    }
    Ok(())
}

/// Takes a fresh chunk when the current one cannot hold what comes; cutting a super-packet then never copies.
fn ensure(arena: &mut BytesMut, length: usize) {
    if arena.capacity() < length {
        arena.reserve(length.max(ARENA_CHUNK));
    }
}

struct Segment {
    index: usize,
    offset: usize,
    last: bool,
}

impl Segment {
    fn fix_headers(&self, bytes: &mut [u8], packet: &Packet) {
        let length = bytes.len();
        if packet.source.is_ipv4() {
            let id = be16(bytes, 4).wrapping_add(self.index as u16);
            bytes[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            bytes[4..6].copy_from_slice(&id.to_be_bytes());
            checksum::write_v4_header(bytes, packet.l4);
        } else {
            bytes[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
        }
        let l4 = packet.l4;
        match packet.upper {
            Upper::Tcp { .. } => {
                let sequence = be32(bytes, l4 + 4).wrapping_add(self.offset as u32);
                bytes[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
                let flags = &mut bytes[l4 + 13];
                if !self.last {
                    *flags &= !(tcp::FIN | tcp::PSH);
                }
                if self.index > 0 {
                    *flags &= !tcp::CWR;
                }
            }
            _ => bytes[l4 + 4..l4 + 6].copy_from_slice(&((length - l4) as u16).to_be_bytes()),
        }
    }
}
