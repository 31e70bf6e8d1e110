//! ICMP messages that answer packets which cannot be carried (RFC 792, RFC 1191, RFC 1812, RFC 4443).
//!
//! The source of an answer is the destination of the packet: the tunnel has no address of its own, and this one is
//! known to be routed through it.

use std::net::IpAddr;

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    checksum,
    packet::{Packet, protocol},
};

/// Most of the refused packet that is quoted on IPv4.
const QUOTE_V4: usize = 548;
/// Most of the refused packet that is quoted on IPv6, so that the answer stays within 1280 bytes.
const QUOTE_V6: usize = 1232;
const TTL: u8 = 64;

/// Why a packet was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is larger than the tunnel can carry; packets up to this many bytes fit.
    TooBig {
        /// Largest packet that fits, in bytes.
        mtu: u16,
    },
    /// The destination is forbidden to the sender.
    AdminProhibited,
}

/// Builds the answer to a refused packet, or nothing where none may be sent: for ICMP errors, later fragments, and
/// senders or destinations that are not single hosts.
pub fn answer(bytes: &[u8], packet: &Packet, refusal: Refusal) -> Option<Bytes> {
    let answerable = !packet.is_icmp_error()
        && !packet.is_later_fragment()
        && is_host(packet.source)
        && is_host(packet.destination);
    if !answerable {
        return None;
    }
    let packet_bytes = bytes.get(..packet.length)?;
    match (packet.destination, packet.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let (kind, code, rest) = match refusal {
                Refusal::TooBig { mtu } => (3, 4, u32::from(mtu)),
                Refusal::AdminProhibited => (3, 13, 0),
            };
            let quote = &packet_bytes[..packet_bytes.len().min(QUOTE_V4)];
            let length = 28 + quote.len();
            let mut out = BytesMut::with_capacity(length);
            out.put_slice(&[0x45, 0]);
            out.put_u16(length as u16);
            out.put_slice(&[0, 0, 0, 0, TTL, protocol::ICMP, 0, 0]);
            out.put_slice(&from.octets());
            out.put_slice(&to.octets());
            checksum::write_v4_header(&mut out, 20);
            put_message(&mut out, kind, code, rest, quote);
            let sum = checksum::checksum(&out[20..]);
            out[22..24].copy_from_slice(&sum.to_be_bytes());
            Some(out.freeze())
        }
        (from @ IpAddr::V6(from_v6), to @ IpAddr::V6(to_v6)) => {
            let (kind, code, rest) = match refusal {
                Refusal::TooBig { mtu } => (2, 0, u32::from(mtu)),
                Refusal::AdminProhibited => (1, 1, 0),
            };
            let quote = &packet_bytes[..packet_bytes.len().min(QUOTE_V6)];
            let length = 8 + quote.len();
            let mut out = BytesMut::with_capacity(40 + length);
            out.put_slice(&[0x60, 0, 0, 0]);
            out.put_u16(length as u16);
            out.put_slice(&[protocol::ICMPV6, TTL]);
            out.put_slice(&from_v6.octets());
            out.put_slice(&to_v6.octets());
            put_message(&mut out, kind, code, rest, quote);
            let pseudo = checksum::pseudo(from, to, protocol::ICMPV6, length);
            let sum = !checksum::fold(checksum::add(u64::from(pseudo), &out[40..]));
            out[42..44].copy_from_slice(&sum.to_be_bytes());
            Some(out.freeze())
        }
        _ => None,
    }
}

fn put_message(out: &mut BytesMut, kind: u8, code: u8, rest: u32, quote: &[u8]) {
    out.put_slice(&[kind, code, 0, 0]);
    out.put_u32(rest);
    out.put_slice(quote);
}

fn is_host(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(a) if a.is_broadcast());
    !address.is_multicast() && !address.is_unspecified() && !address.is_loopback() && !broadcast
}

#[cfg(test)]
#[path = "icmp_tests.rs"]
mod tests;
