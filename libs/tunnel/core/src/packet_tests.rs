use super::*;
use crate::test_packets::{echo, ip, tcp, udp};
use proptest::prelude::*;

#[test]
fn reads_both_versions() {
    let bytes = tcp(("10.0.0.1", 1), ("10.0.0.2", 443), tcp::SYN, 1, &[2, 4, 5, 180], b"x");
    let packet = Packet::parse(&bytes).unwrap();
    assert_eq!((packet.l4, packet.length, packet.dont_fragment), (20, bytes.len(), true));
    let Upper::Tcp { destination_port: 443, flags: tcp::SYN, header: 24, .. } = packet.upper else {
        panic!("{packet:?}")
    };
    let packet = Packet::parse(&udp(("fd00::1", 7), ("fd00::2", 53), b"query")).unwrap();
    assert_eq!(packet.ports(), Some((7, 53)));
    assert_eq!(packet.destination, "fd00::2".parse::<IpAddr>().unwrap());
    let packet = Packet::parse(&echo("fd00::1", "fd00::2", 128, 9)).unwrap();
    assert_eq!(packet.upper, Upper::Icmp { kind: 128, code: 0, identifier: 9 });
}

#[test]
fn follows_extension_headers_and_fragments() {
    let mut upper = vec![44, 0, 0, 0, 0, 0, 0, 0]; // hop-by-hop, then fragment
    upper.extend([17, 0, 0, 1, 0, 0, 0, 5]); // first fragment with more to come, then UDP
    upper.extend([0, 7, 0, 53, 0, 20, 0, 0]);
    let packet = Packet::parse(&ip("fd00::1", "fd00::2", 0, &upper)).unwrap();
    assert_eq!(packet.fragment, Some(IpFragment { id: 5, offset: 0, more: true }));
    assert_eq!((packet.protocol, packet.l4, packet.ports()), (17, 56, Some((7, 53))));

    upper[10..12].copy_from_slice(&[0, 16]); // the same as a later fragment
    let packet = Packet::parse(&ip("fd00::1", "fd00::2", 0, &upper)).unwrap();
    assert!(packet.is_later_fragment());
    assert_eq!(packet.upper, Upper::Opaque);
}

#[test]
fn refuses_what_contradicts_itself() {
    let good = udp(("10.0.0.1", 7), ("10.0.0.2", 53), b"query");
    assert_eq!(Packet::parse(&good[..good.len() - 1]), Err(ParseError::Truncated));
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        Packet::parse(&bytes)
    };
    assert_eq!(with(0, 0x44), Err(ParseError::Inconsistent));
    assert_eq!(with(0, 0x55), Err(ParseError::Version(5)));
    assert_eq!(with(3, 10), Err(ParseError::Inconsistent));
    assert_eq!(with(3, 24), Err(ParseError::Truncated));
    assert_eq!(Packet::parse(&[]), Err(ParseError::Truncated));
    let endless: Vec<u8> = [60, 0, 0, 0, 0, 0, 0, 0].repeat(20);
    assert_eq!(Packet::parse(&ip("fd00::1", "fd00::2", 60, &endless)), Err(ParseError::TooManyExtensions));
}

#[test]
fn a_tcp_header_may_not_be_split_over_fragments() {
    let mut bytes = tcp(("10.0.0.1", 1), ("10.0.0.2", 443), tcp::SYN, 1, &[], b"");
    bytes.truncate(36);
    bytes[3] = 36;
    bytes[6] = 0x20;
    assert_eq!(Packet::parse(&bytes), Err(ParseError::Truncated));
}

proptest! {
    #[test]
    fn never_panics(bytes: Vec<u8>) {
        let _ = Packet::parse(&bytes);
        let _ = Packet::parse_quoted(&bytes);
    }

    #[test]
    fn never_panics_on_damaged_packets(at in 0usize..70, value: u8, cut in 0usize..70, v6: bool) {
        let mut bytes = match v6 {
            true => tcp(("fd00::1", 1), ("fd00::2", 2), 0x10, 1, &[1, 1, 1, 0], b"data"),
            false => tcp(("10.0.0.1", 1), ("10.0.0.2", 2), 0x10, 1, &[1, 1, 1, 0], b"data"),
        };
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        bytes.truncate(cut);
        if let Ok(packet) = Packet::parse(&bytes) {
            prop_assert!(packet.l4 <= packet.length && packet.length <= bytes.len());
        }
        let _ = Packet::parse_quoted(&bytes);
    }
}
