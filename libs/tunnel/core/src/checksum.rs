//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

use std::net::IpAddr;

use crate::packet::Packet;

/// Adds bytes to a running one's complement sum. Only the last slice added may have an odd length.
pub fn add(sum: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut sum = sum;
    for word in words {
        sum = add_word(sum, u64::from_be_bytes(*word));
    }
    let mut tail = [0; 8];
    tail[..rest.len()].copy_from_slice(rest);
    add_word(sum, u64::from_be_bytes(tail))
}

fn add_word(sum: u64, word: u64) -> u64 {
    let (sum, carry) = sum.overflowing_add(word);
    // After an overflow the sum is at most u64::MAX - 1, so the carry fits.
    sum + u64::from(carry)
}

/// Folds a running sum to 16 bits, not yet complemented.
pub fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    // Below 2^16: three folds of a number below 2^33 leave no carry.
    sum as u16
}

/// The checksum of `bytes`, complemented, as it is written into a header whose checksum field is zero.
pub fn checksum(bytes: &[u8]) -> u16 {
    !fold(add(0, bytes))
}

/// The folded sum of the pseudo header of TCP, UDP and ICMPv6, for an upper layer of `length` bytes. This is what the
/// kernel wants in the checksum field of a packet whose checksum it completes itself.
pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u16 {
    let sum = match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => add(add(0, &s.octets()), &d.octets()),
        (s, d) => add(add(0, &v6(s)), &v6(d)),
    };
    fold(u64::from(fold(sum)) + u64::from(protocol) + length as u64)
}

fn v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}

/// Where the checksum of TCP or UDP sits inside its header.
pub fn field_offset(protocol: u8) -> Option<usize> {
    match protocol {
        crate::packet::protocol::TCP => Some(16),
        crate::packet::protocol::UDP => Some(6),
        _ => None,
    }
}

/// Computes and writes the complete TCP or UDP checksum of a packet. Other protocols are left alone.
pub fn complete(bytes: &mut [u8], packet: &Packet) {
    let Some(field) = field_offset(packet.protocol).map(|offset| packet.l4 + offset) else { return };
    let Some(upper) = bytes.get_mut(packet.l4..packet.length) else { return };
    let at = field - packet.l4;
    if upper.len() < at + 2 {
        return;
    }
    upper[at..at + 2].fill(0);
    let pseudo = pseudo(packet.source, packet.destination, packet.protocol, upper.len());
    let sum = !fold(add(u64::from(pseudo), upper));
    // UDP over IPv4 reserves zero for "no checksum"; all ones means the same sum.
    upper[at..at + 2].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
}

/// The checksum after a 16-bit word changed from `old` to `new` (RFC 1624, equation 3).
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(u64::from(!checksum) + u64::from(!old) + u64::from(new))
}

/// Writes the header checksum of an IPv4 header of `header` bytes.
pub fn write_v4_header(bytes: &mut [u8], header: usize) {
    bytes[10..12].fill(0);
    let sum = checksum(&bytes[..header]);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn equals_the_naive_sum(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let fast = checksum(&bytes);
            let slow = naive(&bytes);
            // Zero and all ones are the same number in one's complement.
            prop_assert!(fast == slow || (fast ^ slow == 0xffff && (fast == 0 || slow == 0)));
        }

        #[test]
        fn update_equals_recomputing(mut bytes in prop::collection::vec(any::<u8>(), 2..100), new: u16) {
            let before = checksum(&bytes);
            let old = u16::from_be_bytes([bytes[0], bytes[1]]);
            bytes[..2].copy_from_slice(&new.to_be_bytes());
            let (updated, fresh) = (update(before, old, new), checksum(&bytes));
            prop_assert!(updated == fresh || (updated ^ fresh == 0xffff && (updated == 0 || fresh == 0)));
        }
    }
}
