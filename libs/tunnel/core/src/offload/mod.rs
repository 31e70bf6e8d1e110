//! The virtio_net_hdr in front of packets on a TUN device with offloads, and the super-packets it describes
//! (Linux `include/uapi/linux/virtio_net.h`, OASIS VIRTIO 1.2 section 5.1.6).

mod merge;
mod split;

pub use merge::{Coalescer, TunFraming};
pub use split::{SplitError, split};

/// Length of the header, without the optional buffer count.
pub const VIRTIO_NET_HDR_LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// A virtio_net_hdr. Its numbers are in the byte order of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioNetHeader {
    /// How far the checksum is.
    pub checksum: ChecksumState,
    /// Set for a super-packet.
    pub gso: Option<Gso>,
    /// Length of all headers of a super-packet.
    pub header_len: u16,
    /// Where the checksummed part begins.
    pub checksum_start: u16,
    /// Where the checksum field is, counted from `checksum_start`.
    pub checksum_offset: u16,
}

/// How far the TCP or UDP checksum of a packet is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChecksumState {
    /// Written, and nobody has looked at it.
    #[default]
    Unknown,
    /// The field holds the sum of the pseudo header; the rest is left to the receiver.
    Partial,
    /// The kernel has verified it.
    Verified,
}

/// How a super-packet is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Into what.
    pub kind: GsoKind,
    /// Payload bytes of each packet but the last, at least one.
    pub size: u16,
}

/// Kinds of super-packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP segments over IPv4.
    TcpV4,
    /// TCP segments over IPv6.
    TcpV6,
    /// UDP datagrams over either.
    Udp,
}

/// Why a virtio_net_hdr was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VirtioError {
    /// Shorter than the header.
    #[error("{0} bytes are too few for a virtio_net_hdr")]
    Truncated(usize),
    /// A kind of super-packet that was not asked for.
    #[error("unknown kind of super-packet {0:#04x}")]
    UnknownGso(u8),
}

impl VirtioNetHeader {
    /// Reads the header from the front of what a TUN device returned.
    pub fn parse(bytes: &[u8]) -> Result<Self, VirtioError> {
        let bytes: &[u8; VIRTIO_NET_HDR_LEN] =
            bytes.first_chunk().ok_or(VirtioError::Truncated(bytes.len()))?;
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let checksum = match bytes[0] & (NEEDS_CSUM | DATA_VALID) {
            0 => ChecksumState::Unknown,
            DATA_VALID => ChecksumState::Verified,
            _ => ChecksumState::Partial,
        };
        let kind = match bytes[1] & !GSO_ECN {
            0 => None,
            GSO_TCPV4 => Some(GsoKind::TcpV4),
            GSO_TCPV6 => Some(GsoKind::TcpV6),
            GSO_UDP_L4 => Some(GsoKind::Udp),
            kind => return Err(VirtioError::UnknownGso(kind)),
        };
        let size = word(4);
        Ok(Self {
            checksum,
            gso: kind.filter(|_| size > 0).map(|kind| Gso { kind, size }),
            header_len: word(2),
            checksum_start: word(6),
            checksum_offset: word(8),
        })
    }

    /// Writes the header.
    pub fn encode(&self) -> [u8; VIRTIO_NET_HDR_LEN] {
        let mut out = [0; VIRTIO_NET_HDR_LEN];
        out[0] = match self.checksum {
            ChecksumState::Unknown => 0,
            ChecksumState::Partial => NEEDS_CSUM,
            ChecksumState::Verified => DATA_VALID,
        };
        out[1] = match self.gso.map(|gso| gso.kind) {
            None => 0,
            Some(GsoKind::TcpV4) => GSO_TCPV4,
            Some(GsoKind::TcpV6) => GSO_TCPV6,
            Some(GsoKind::Udp) => GSO_UDP_L4,
        };
        let words =
            [self.header_len, self.gso.map_or(0, |gso| gso.size), self.checksum_start, self.checksum_offset];
        for (field, word) in out[2..].chunks_exact_mut(2).zip(words) {
            field.copy_from_slice(&word.to_ne_bytes());
        }
        out
    }
}

#[cfg(test)]
mod tests;
