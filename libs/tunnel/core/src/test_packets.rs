//! Packets for tests, built independently of the code under test.

use std::net::IpAddr;

/// One's complement sum over 16-bit words, slow and plain.
pub(crate) fn slow_sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(0, |sum, pair| {
        let sum = sum + u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        (sum & 0xffff) + (sum >> 16)
    })
}

pub(crate) fn ip(source: &str, destination: &str, protocol: u8, upper: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match (source.parse().unwrap(), destination.parse().unwrap()) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            out.extend([0x45, 0]);
            out.extend((20 + upper.len() as u16).to_be_bytes());
            out.extend([0x12, 0x34, 0x40, 0, 64, protocol, 0, 0]);
            out.extend(s.octets());
            out.extend(d.octets());
            let sum = !(slow_sum(&out) as u16);
            out[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            out.extend([0x60, 0, 0, 0]);
            out.extend((upper.len() as u16).to_be_bytes());
            out.extend([protocol, 64]);
            out.extend(s.octets());
            out.extend(d.octets());
        }
        _ => panic!("mixed families"),
    }
    out.extend(upper);
    out
}

pub(crate) fn udp(source: (&str, u16), destination: (&str, u16), payload: &[u8]) -> Vec<u8> {
    let mut upper = Vec::new();
    upper.extend(source.1.to_be_bytes());
    upper.extend(destination.1.to_be_bytes());
    upper.extend((8 + payload.len() as u16).to_be_bytes());
    upper.extend([0, 0]);
    upper.extend(payload);
    finish(source.0, destination.0, 17, upper, 6)
}

pub(crate) fn tcp(
    source: (&str, u16),
    destination: (&str, u16),
    flags: u8,
    sequence: u32,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    assert_eq!(options.len() % 4, 0);
    let mut upper = Vec::new();
    upper.extend(source.1.to_be_bytes());
    upper.extend(destination.1.to_be_bytes());
    upper.extend(sequence.to_be_bytes());
    upper.extend(7u32.to_be_bytes());
    upper.extend([(((20 + options.len()) / 4) << 4) as u8, flags, 0xff, 0xff, 0, 0, 0, 0]);
    upper.extend(options);
    upper.extend(payload);
    finish(source.0, destination.0, 6, upper, 16)
}

pub(crate) fn echo(source: &str, destination: &str, kind: u8, identifier: u16) -> Vec<u8> {
    let v6 = source.contains(':');
    let mut upper = vec![kind, 0, 0, 0];
    upper.extend(identifier.to_be_bytes());
    upper.extend([0, 1, 1, 2, 3, 4]);
    finish(source, destination, if v6 { 58 } else { 1 }, upper, 2)
}

/// Fills in the checksum of the upper layer.
fn finish(source: &str, destination: &str, protocol: u8, mut upper: Vec<u8>, field: usize) -> Vec<u8> {
    let sum = !upper_sum(&ip(source, destination, protocol, &upper));
    upper[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    ip(source, destination, protocol, &upper)
}

/// Sum over the upper layer and, but for ICMPv4, its pseudo header: all ones in a packet whose checksum is right.
/// Without extension headers.
pub(crate) fn upper_sum(packet: &[u8]) -> u16 {
    let (addresses, protocol, upper) = match packet[0] >> 4 {
        4 => (&packet[12..20], packet[9], &packet[20..]),
        _ => (&packet[8..40], packet[6], &packet[40..]),
    };
    let mut all = Vec::new();
    if protocol != 1 {
        all.extend(addresses);
        all.extend((upper.len() as u32).to_be_bytes());
        all.extend([0, 0, 0, protocol]);
    }
    all.extend(upper);
    slow_sum(&all) as u16
}

pub(crate) fn assert_checksums(packet: &[u8]) {
    assert_eq!(upper_sum(packet), 0xffff, "checksum above IP");
    if packet[0] >> 4 == 4 {
        assert_eq!(slow_sum(&packet[..20]), 0xffff, "checksum of the IP header");
    }
}
