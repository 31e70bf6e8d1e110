//! Reading IP packets: addresses, protocol, ports and fragment information (RFC 791, RFC 8200).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocol numbers this crate looks into.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// TCP flag bits.
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Ends a connection at once.
    pub const RST: u8 = 0x04;
    /// Hand the data to the application.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// Congestion window reduced (RFC 3168).
    pub const CWR: u8 = 0x80;
}

/// Extension headers followed before a packet is refused.
const MAX_EXTENSIONS: usize = 8;

/// What was read from the front of an IP packet. Offsets are inside the bytes it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol above IP; of a fragment, that of the whole packet.
    pub protocol: u8,
    /// Length of the IP header with its options or extension headers: where the protocol above begins.
    pub l4: usize,
    /// Length of the whole packet by its own header; bytes after it are padding.
    pub length: usize,
    /// IPv4's "do not fragment"; always true of IPv6.
    pub dont_fragment: bool,
    /// Set when this is a fragment of a larger packet.
    pub fragment: Option<IpFragment>,
    /// The protocol above, as far as it matters here.
    pub upper: Upper,
}

/// An IP fragment (not a fragment of the tunnel's own).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpFragment {
    /// Identification field.
    pub id: u32,
    /// Offset in bytes.
    pub offset: usize,
    /// Whether more fragments follow.
    pub more: bool,
}

/// The protocol above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upper {
    /// A TCP segment.
    Tcp {
        /// Source port.
        source_port: u16,
        /// Destination port.
        destination_port: u16,
        /// Flag bits, see [`tcp`].
        flags: u8,
        /// Length of the TCP header with options.
        header: usize,
    },
    /// A UDP datagram.
    Udp {
        /// Source port.
        source_port: u16,
        /// Destination port.
        destination_port: u16,
    },
    /// An ICMP or ICMPv6 message.
    Icmp {
        /// Type field.
        kind: u8,
        /// Code field.
        code: u8,
        /// Identifier field, of echo messages.
        identifier: u16,
    },
    /// Another protocol, or a fragment that is not the first one.
    Opaque,
}

/// Why bytes are not an IP packet this tunnel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Too short for a header or for the length it states.
    #[error("packet ends inside its headers or before its stated length")]
    Truncated,
    /// Neither IPv4 nor IPv6.
    #[error("IP version {0} is neither 4 nor 6")]
    Version(u8),
    /// A length or offset that contradicts itself.
    #[error("packet headers contradict themselves")]
    Inconsistent,
    /// More IPv6 extension headers than are followed.
    #[error("more than {MAX_EXTENSIONS} IPv6 extension headers")]
    TooManyExtensions,
}

impl Packet {
    /// Reads a whole packet.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let packet = Self::parse_network(bytes, true)?;
        packet.with_upper(&bytes[..packet.length], true)
    }

    /// Reads the beginning of a packet as quoted by an ICMP error, which may cut it short after eight bytes of the
    /// protocol above IP.
    pub fn parse_quoted(bytes: &[u8]) -> Result<Self, ParseError> {
        let packet = Self::parse_network(bytes, false)?;
        let end = packet.length.min(bytes.len());
        packet.with_upper(&bytes[..end], false)
    }

    fn parse_network(bytes: &[u8], whole: bool) -> Result<Self, ParseError> {
        let packet = match bytes.first().ok_or(ParseError::Truncated)? >> 4 {
            4 => Self::parse_v4(bytes)?,
            6 => Self::parse_v6(bytes)?,
            version => return Err(ParseError::Version(version)),
        };
        if packet.length < packet.l4 {
            return Err(ParseError::Inconsistent);
        }
        if bytes.len() < packet.l4 || whole && bytes.len() < packet.length {
            return Err(ParseError::Truncated);
        }
        Ok(packet)
    }

    fn parse_v4(bytes: &[u8]) -> Result<Self, ParseError> {
        let header: &[u8; 20] = bytes.first_chunk().ok_or(ParseError::Truncated)?;
        let l4 = usize::from(header[0] & 0x0f) * 4;
        if l4 < header.len() {
            return Err(ParseError::Inconsistent);
        }
        let flags = be16(header, 6);
        let (offset, more) = (usize::from(flags & 0x1fff) * 8, flags & 0x2000 != 0);
        Ok(Self {
            source: Ipv4Addr::from_octets(array(header, 12)).into(),
            destination: Ipv4Addr::from_octets(array(header, 16)).into(),
            protocol: header[9],
            l4,
            length: be16(header, 2).into(),
            dont_fragment: flags & 0x4000 != 0,
            fragment: (offset > 0 || more).then(|| IpFragment { id: be16(header, 4).into(), offset, more }),
            upper: Upper::Opaque,
        })
    }

    fn parse_v6(bytes: &[u8]) -> Result<Self, ParseError> {
        let header: &[u8; 40] = bytes.first_chunk().ok_or(ParseError::Truncated)?;
        let mut packet = Self {
            source: Ipv6Addr::from_octets(array(header, 8)).into(),
            destination: Ipv6Addr::from_octets(array(header, 24)).into(),
            protocol: header[6],
            l4: header.len(),
            length: header.len() + usize::from(be16(header, 4)),
            dont_fragment: true,
            fragment: None,
            upper: Upper::Opaque,
        };
        for _ in 0..=MAX_EXTENSIONS {
            if packet.fragment.is_some_and(|f| f.offset > 0) {
                return Ok(packet);
            }
            let extension = bytes.get(packet.l4..).unwrap_or_default();
            let length = match packet.protocol {
                // Hop-by-hop options, routing, destination options: length in units of 8 bytes after the first.
                0 | 43 | 60 => 8 + usize::from(*extension.get(1).ok_or(ParseError::Truncated)?) * 8,
                // Authentication header (RFC 4302): length in units of 4 bytes, less 2.
                51 => 8 + usize::from(*extension.get(1).ok_or(ParseError::Truncated)?) * 4,
                44 => {
                    let header: &[u8; 8] = extension.first_chunk().ok_or(ParseError::Truncated)?;
                    if packet.fragment.is_some() {
                        return Err(ParseError::Inconsistent);
                    }
                    let at = be16(header, 2);
                    let (offset, more) = (usize::from(at & !7), at & 1 != 0);
                    packet.fragment = Some(IpFragment { id: be32(header, 4), offset, more });
                    header.len()
                }
                _ => return Ok(packet),
            };
            packet.protocol = extension[0];
            packet.l4 += length;
        }
        Err(ParseError::TooManyExtensions)
    }

    fn with_upper(mut self, bytes: &[u8], whole: bool) -> Result<Self, ParseError> {
        if self.fragment.is_some_and(|f| f.offset > 0) {
            return Ok(self);
        }
        let upper = &bytes[self.l4..];
        let v6 = self.source.is_ipv6();
        self.upper = match self.protocol {
            protocol::TCP => {
                if whole && upper.len() < 20 {
                    return Err(ParseError::Truncated);
                }
                let ports: &[u8; 4] = upper.first_chunk().ok_or(ParseError::Truncated)?;
                let header = upper.get(12).map_or(20, |b| usize::from(b >> 4) * 4);
                if header < 20 {
                    return Err(ParseError::Inconsistent);
                }
                if whole && upper.len() < header {
                    return Err(ParseError::Truncated);
                }
                Upper::Tcp {
                    source_port: be16(ports, 0),
                    destination_port: be16(ports, 2),
                    flags: upper.get(13).copied().unwrap_or(0),
                    header,
                }
            }
            protocol::UDP => {
                let header: &[u8; 8] = upper.first_chunk().ok_or(ParseError::Truncated)?;
                Upper::Udp { source_port: be16(header, 0), destination_port: be16(header, 2) }
            }
            protocol::ICMP | protocol::ICMPV6 if v6 == (self.protocol == protocol::ICMPV6) => {
                let header: &[u8; 8] = upper.first_chunk().ok_or(ParseError::Truncated)?;
                Upper::Icmp { kind: header[0], code: header[1], identifier: be16(header, 4) }
            }
            _ => Upper::Opaque,
        };
        Ok(self)
    }

    /// Whether this is a fragment that carries no header of the protocol above IP.
    pub fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|f| f.offset > 0)
    }

    /// Whether this is an ICMP or ICMPv6 error message, which must never be answered with another one.
    pub fn is_icmp_error(&self) -> bool {
        match (self.upper, self.source) {
            (Upper::Icmp { kind, .. }, IpAddr::V4(_)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
            (Upper::Icmp { kind, .. }, IpAddr::V6(_)) => kind < 128,
            _ => false,
        }
    }

    /// Source and destination ports of TCP and UDP.
    pub fn ports(&self) -> Option<(u16, u16)> {
        match self.upper {
            Upper::Tcp { source_port, destination_port, .. }
            | Upper::Udp { source_port, destination_port } => Some((source_port, destination_port)),
            Upper::Icmp { .. } | Upper::Opaque => None,
        }
    }
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

/// The `N` bytes at `at`. The caller has checked that they exist.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;
