//! Joining consecutive packets of one flow into a super-packet, so that the kernel takes them in one write.

use std::io::IoSlice;

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use super::{ChecksumState, Gso, GsoKind, VIRTIO_NET_HDR_LEN, VirtioNetHeader};
use crate::{
    checksum,
    packet::{Packet, Upper, be16, be32, protocol, tcp},
};

/// Most packets in one super-packet (the kernel accepts 64 UDP segments on its older versions).
const MAX_PARTS: usize = 60;
/// Most bytes in one super-packet: IP lengths end at 65535.
const MAX_LEN: usize = 65_000;
const URG: u8 = 0x20;

/// What a TUN device was found able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunFraming {
    /// Plain IP packets, with complete checksums.
    Plain,
    /// A virtio_net_hdr before every packet; TCP super-packets both ways.
    Offload {
        /// UDP super-packets too.
        udp: bool,
    },
}

/// Collects packets for one TUN device and writes them, joined where that is possible. Order is kept.
#[derive(Debug)]
pub struct Coalescer {
    framing: TunFraming,
    run: Option<Run>,
    /// Payloads of the run. Kept here so that their memory is reused.
    parts: Vec<Bytes>,
}

/// Consecutive packets of one flow.
#[derive(Debug)]
struct Run {
    /// Room for the virtio_net_hdr, then the headers of the first packet.
    head: SmallVec<[u8; 128]>,
    info: Packet,
    /// Length of the headers of each packet.
    headers: usize,
    /// Payload bytes of each packet but the last.
    size: usize,
    total: usize,
    next_sequence: u32,
    closed: bool,
}

impl Coalescer {
    /// An empty collector for a device.
    pub fn new(framing: TunFraming) -> Self {
        Self { framing, run: None, parts: Vec::new() }
    }

    /// Takes a packet that `info` describes. `partial_checksum` says that its checksum was left to the receiver. Calls
    /// `write` for everything that cannot be joined with what comes next.
    pub fn push(
        &mut self,
        packet: &Bytes,
        info: &Packet,
        partial_checksum: bool,
        write: &mut impl FnMut(&[IoSlice<'_>]),
    ) {
        let packet = packet.slice(..info.length.min(packet.len()));
        let TunFraming::Offload { udp } = self.framing else {
            return write_plain(&packet, info, partial_checksum, write);
        };
        let headers = if partial_checksum { mergeable_headers(&packet, info) } else { None };
        let Some(headers) = headers else {
            self.flush(write);
            let header = VirtioNetHeader::default().encode();
            return write(&[IoSlice::new(&header), IoSlice::new(&packet)]);
        };
        if let Some(run) = &mut self.run {
            let kind_merges = udp || info.protocol == protocol::TCP;
            let room = self.parts.len() < MAX_PARTS;
            if kind_merges && room && run.continues_with(&packet, info, headers) {
                run.append(&packet, info);
                self.parts.push(packet.slice(headers..));
                return;
            }
        }
        self.flush(write);
        self.run = Some(Run::begin(&packet, info, headers));
        self.parts.push(packet.slice(headers..));
    }

    /// Writes what is held back.
    pub fn flush(&mut self, write: &mut impl FnMut(&[IoSlice<'_>])) {
        if let Some(run) = self.run.take() {
            run.write(&self.parts, write);
            self.parts.clear();
        }
    }
}

fn write_plain(
    packet: &Bytes,
    info: &Packet,
    partial_checksum: bool,
    write: &mut impl FnMut(&[IoSlice<'_>]),
) {
    if partial_checksum && info.fragment.is_none() {
        let mut completed = BytesMut::from(&packet[..]);
        checksum::complete(&mut completed, info);
        write(&[IoSlice::new(&completed)]);
    } else {
        write(&[IoSlice::new(packet)]);
    }
}

/// Length of all headers of a packet whose checksum the kernel can complete.
fn mergeable_headers(packet: &Bytes, info: &Packet) -> Option<usize> {
    if info.fragment.is_some() {
        return None;
    }
    match info.upper {
        Upper::Tcp { header, .. } => Some(info.l4 + header),
        Upper::Udp { .. } => {
            let stated = usize::from(be16(packet, info.l4 + 4));
            (info.l4 + stated == packet.len()).then_some(info.l4 + 8)
        }
        Upper::Icmp { .. } | Upper::Opaque => None,
    }
}

fn tcp_flags(info: &Packet) -> Option<u8> {
    match info.upper {
        Upper::Tcp { flags, .. } => Some(flags),
        _ => None,
    }
}

impl Run {
    fn begin(packet: &Bytes, info: &Packet, headers: usize) -> Self {
        let mut head = SmallVec::from_elem(0, VIRTIO_NET_HDR_LEN);
        head.extend_from_slice(&packet[..headers]);
        let size = packet.len() - headers;
        let flags = tcp_flags(info);
        let ends = flags.is_some_and(|f| f & (tcp::FIN | tcp::SYN | tcp::RST | tcp::PSH | URG) != 0);
        Self {
            head,
            info: *info,
            headers,
            size,
            total: size,
            next_sequence: match flags {
                Some(_) => be32(packet, info.l4 + 4).wrapping_add(size as u32),
                None => 0,
            },
            closed: size == 0 || ends,
        }
    }

    fn continues_with(&self, packet: &Bytes, info: &Packet, headers: usize) -> bool {
        let size = packet.len() - headers;
        if self.closed
            || size == 0
            || size > self.size
            || headers != self.headers
            || info.l4 != self.info.l4
            || info.protocol != self.info.protocol
            || info.source.is_ipv4() != self.info.source.is_ipv4()
            || self.headers + self.total + size > MAX_LEN
        {
            return false;
        }
        let (first, l4) = (&self.head[VIRTIO_NET_HDR_LEN..], info.l4);
        let same = |from: usize, to: usize| first[from..to] == packet[from..to];
        // Everything but lengths, IPv4 identification and checksum.
        let ip = if info.source.is_ipv4() {
            same(0, 2) && same(6, 10) && same(12, l4)
        } else {
            same(0, 4) && same(6, l4)
        };
        let ports = same(l4, l4 + 4);
        let transport = match tcp_flags(info) {
            Some(flags) => {
                let ours = first[l4 + 13] & !tcp::PSH;
                be32(packet, l4 + 4) == self.next_sequence
                    && same(l4 + 8, l4 + 13)
                    && ours == flags & !(tcp::PSH | tcp::FIN)
                    && same(l4 + 14, l4 + 16)
                    && same(l4 + 20, headers)
            }
            None => true,
        };
        ip && ports && transport
    }

    fn append(&mut self, packet: &Bytes, info: &Packet) {
        let size = packet.len() - self.headers;
        if let Some(flags) = tcp_flags(info) {
            let ending = flags & (tcp::PSH | tcp::FIN);
            self.head[VIRTIO_NET_HDR_LEN + info.l4 + 13] |= ending;
            self.closed |= ending != 0;
            self.next_sequence = self.next_sequence.wrapping_add(size as u32);
        }
        self.closed |= size < self.size;
        self.total += size;
    }

    fn write(mut self, parts: &[Bytes], write: &mut impl FnMut(&[IoSlice<'_>])) {
        let (l4, length) = (self.info.l4, self.headers + self.total);
        let tcp = tcp_flags(&self.info).is_some();
        let kind = match (tcp, self.info.source.is_ipv4()) {
            (true, true) => GsoKind::TcpV4,
            (true, false) => GsoKind::TcpV6,
            (false, _) => GsoKind::Udp,
        };
        let field = if tcp { 16 } else { 6 };
        let virtio = VirtioNetHeader {
            checksum: ChecksumState::Partial,
            gso: (parts.len() > 1).then_some(Gso { kind, size: self.size as u16 }),
            header_len: self.headers as u16,
            checksum_start: l4 as u16,
            checksum_offset: field as u16,
        };
        let (front, packet) = self.head.split_at_mut(VIRTIO_NET_HDR_LEN);
        front.copy_from_slice(&virtio.encode());
        if self.info.source.is_ipv4() {
            packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            checksum::write_v4_header(packet, l4);
        } else {
            packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
        }
        if !tcp {
            packet[l4 + 4..l4 + 6].copy_from_slice(&((length - l4) as u16).to_be_bytes());
        }
        let pseudo =
            checksum::pseudo(self.info.source, self.info.destination, self.info.protocol, length - l4);
        packet[l4 + field..l4 + field + 2].copy_from_slice(&pseudo.to_be_bytes());
        let slices: SmallVec<[IoSlice<'_>; 64]> = std::iter::once(IoSlice::new(&self.head))
            .chain(parts.iter().map(|part| IoSlice::new(part)))
            .collect();
        write(&slices);
    }
}
