//! Lowering the maximum segment size that a TCP SYN announces, so that segments fit the tunnel (RFC 6691).

use crate::{
    checksum,
    packet::{Packet, Upper, be16, tcp},
};

/// Smallest segment size ever written (the IPv4 default, RFC 9293).
pub const MIN_MSS: u16 = 536;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;

/// Lowers the segment size in a SYN so that packets of at most `mtu` bytes result. `complete_checksum` says that the
/// checksum covers the segment already and must follow the change.
pub fn clamp(bytes: &mut [u8], packet: &Packet, mtu: usize, complete_checksum: bool) {
    let Upper::Tcp { flags, header, .. } = packet.upper else { return };
    if flags & tcp::SYN == 0 {
        return;
    }
    let ip = if packet.source.is_ipv4() { 20 } else { 40 };
    let limit = u16::try_from(mtu.saturating_sub(ip + 20)).unwrap_or(u16::MAX).max(MIN_MSS);
    let Some(segment) = bytes.get_mut(packet.l4..packet.l4 + header) else { return };
    let Some(at) = find_mss(segment) else { return };
    let old = be16(segment, at);
    if old <= limit {
        return;
    }
    segment[at..at + 2].copy_from_slice(&limit.to_be_bytes());
    if complete_checksum {
        let sum = be16(segment, 16);
        // A value at an odd offset counts with its bytes exchanged.
        let (old, new) = if at % 2 == 0 { (old, limit) } else { (old.swap_bytes(), limit.swap_bytes()) };
        segment[16..18].copy_from_slice(&checksum::update(sum, old, new).to_be_bytes());
    }
}

fn find_mss(segment: &[u8]) -> Option<usize> {
    let mut at = 20;
    loop {
        match *segment.get(at)? {
            OPTION_END => return None,
            OPTION_NOP => at += 1,
            kind => {
                let length = usize::from(*segment.get(at + 1)?);
                if kind == OPTION_MSS && length == 4 && at + 4 <= segment.len() {
                    return Some(at + 2);
                }
                if length < 2 {
                    return None;
                }
                at += length;
            }
        }
    }
}

#[cfg(test)]
#[path = "mss_tests.rs"]
mod tests;
