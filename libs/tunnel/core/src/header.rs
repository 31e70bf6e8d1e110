//! The header in front of every packet in a QUIC datagram.
//!
//! ```text
//!  byte 0   flags: bit 0 the layer 4 checksum is left to the receiver, bit 1 fragment; the others must be zero
//!  1..3     network id, big endian
//!  3..5     only fragments: id of the packet they belong to
//!  5..7     only fragments: bit 15 last fragment, bits 0..15 offset in bytes
//! ```

use crate::ids::NetworkId;

/// Bytes of a header in front of a whole packet.
pub const WHOLE_LEN: usize = 3;
/// Bytes of a header in front of a fragment.
pub const FRAGMENT_LEN: usize = 7;
/// Largest offset a fragment can have.
pub const MAX_OFFSET: usize = 0x7fff;

const PARTIAL_CHECKSUM: u8 = 0b01;
const FRAGMENT: u8 = 0b10;
const LAST: u16 = 0x8000;

/// A parsed datagram header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramHeader {
    /// The TCP or UDP checksum was not computed: the receiver completes it or leaves it to its kernel.
    pub partial_checksum: bool,
    /// The network the packet belongs to.
    pub network: NetworkId,
    /// Set when the datagram carries a part of a packet.
    pub fragment: Option<FragmentHeader>,
}

/// Which part of which packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentHeader {
    /// Same for all parts of one packet.
    pub id: u16,
    /// Where this part begins, in bytes, up to [`MAX_OFFSET`].
    pub offset: u16,
    /// Whether the packet ends with this part.
    pub last: bool,
}

/// Why a datagram header was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Shorter than its header.
    #[error("datagram of {0} bytes is shorter than its header")]
    Truncated(usize),
    /// Flag bits that no version defines.
    #[error("unknown datagram flags {0:#04x}")]
    UnknownFlags(u8),
}

impl DatagramHeader {
    /// A header for a whole packet.
    pub fn whole(network: NetworkId, partial_checksum: bool) -> Self {
        Self { partial_checksum, network, fragment: None }
    }

    /// Reads the header; the packet or fragment begins at the returned offset.
    pub fn parse(datagram: &[u8]) -> Result<(Self, usize), HeaderError> {
        let truncated = HeaderError::Truncated(datagram.len());
        let [flags, high, low, rest @ ..] = datagram else { return Err(truncated) };
        if flags & !(PARTIAL_CHECKSUM | FRAGMENT) != 0 {
            return Err(HeaderError::UnknownFlags(*flags));
        }
        let mut header =
            Self::whole(NetworkId(u16::from_be_bytes([*high, *low])), flags & PARTIAL_CHECKSUM != 0);
        if flags & FRAGMENT == 0 {
            return Ok((header, WHOLE_LEN));
        }
        let [id0, id1, at0, at1, ..] = rest else { return Err(truncated) };
        let at = u16::from_be_bytes([*at0, *at1]);
        header.fragment = Some(FragmentHeader {
            id: u16::from_be_bytes([*id0, *id1]),
            offset: at & !LAST,
            last: at & LAST != 0,
        });
        Ok((header, FRAGMENT_LEN))
    }

    /// Writes the header of a whole packet.
    pub fn encode_whole(network: NetworkId, partial_checksum: bool) -> [u8; WHOLE_LEN] {
        let [high, low] = network.0.to_be_bytes();
        [if partial_checksum { PARTIAL_CHECKSUM } else { 0 }, high, low]
    }

    /// Writes the header of a fragment.
    pub fn encode_fragment(
        network: NetworkId,
        partial_checksum: bool,
        fragment: FragmentHeader,
    ) -> [u8; FRAGMENT_LEN] {
        let [flags, n0, n1] = Self::encode_whole(network, partial_checksum);
        let [i0, i1] = fragment.id.to_be_bytes();
        let last = if fragment.last { LAST } else { 0 };
        let [o0, o1] = (fragment.offset & !LAST | last).to_be_bytes();
        [flags | FRAGMENT, n0, n1, i0, i1, o0, o1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whole_round_trips(network: u16, partial: bool) {
            let bytes = DatagramHeader::encode_whole(NetworkId(network), partial);
            let (header, at) = DatagramHeader::parse(&bytes).unwrap();
            prop_assert_eq!((header, at), (DatagramHeader::whole(NetworkId(network), partial), WHOLE_LEN));
        }

        #[test]
        fn fragment_round_trips(network: u16, partial: bool, id: u16, offset in 0u16..0x8000, last: bool) {
            let fragment = FragmentHeader { id, offset, last };
            let bytes = DatagramHeader::encode_fragment(NetworkId(network), partial, fragment);
            let (header, at) = DatagramHeader::parse(&bytes).unwrap();
            prop_assert_eq!(at, FRAGMENT_LEN);
            prop_assert_eq!(header.fragment, Some(fragment));
            prop_assert_eq!(header.partial_checksum, partial);
        }

        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = DatagramHeader::parse(&bytes);
        }
    }

    #[test]
    fn undefined_flags_are_refused() {
        assert_eq!(DatagramHeader::parse(&[0x80, 0, 0]), Err(HeaderError::UnknownFlags(0x80)));
        assert_eq!(DatagramHeader::parse(&[2, 0, 0, 1]), Err(HeaderError::Truncated(4)));
    }
}
