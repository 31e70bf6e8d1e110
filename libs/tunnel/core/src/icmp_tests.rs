use super::*;
use crate::{
    packet::Upper,
    test_packets::{assert_checksums, echo, udp},
};

#[test]
fn answers_are_well_formed() {
    for (us, them) in [("10.9.0.2", "192.0.2.7"), ("fd00::2", "2001:db8::7")] {
        for refusal in [Refusal::TooBig { mtu: 1300 }, Refusal::AdminProhibited] {
            let sent = udp((us, 7), (them, 9), &[0xab; 1400]);
            let answer = answer(&sent, &Packet::parse(&sent).unwrap(), refusal).unwrap();
            assert_checksums(&answer);
            let packet = Packet::parse(&answer).unwrap();
            assert!(packet.is_icmp_error());
            assert_eq!(packet.source, them.parse::<IpAddr>().unwrap());
            assert_eq!(packet.destination, us.parse::<IpAddr>().unwrap());
            assert!(answer.len() <= if us.contains(':') { 1280 } else { 576 });
            let quoted = Packet::parse_quoted(&answer[packet.l4 + 8..]).unwrap();
            assert_eq!(quoted.ports(), Some((7, 9)));
            let Upper::Icmp { kind, code, .. } = packet.upper else { panic!() };
            let expected = match (refusal, us.contains(':')) {
                (Refusal::TooBig { .. }, false) => (3, 4),
                (Refusal::AdminProhibited, false) => (3, 13),
                (Refusal::TooBig { .. }, true) => (2, 0),
                (Refusal::AdminProhibited, true) => (1, 1),
            };
            assert_eq!((kind, code), expected);
            if matches!(refusal, Refusal::TooBig { .. }) {
                assert_eq!(answer[packet.l4 + 4..packet.l4 + 8], 1300u32.to_be_bytes());
            }
        }
    }
}

#[test]
fn some_packets_are_never_answered() {
    let silent =
        |bytes: &[u8]| answer(bytes, &Packet::parse(bytes).unwrap(), Refusal::AdminProhibited).is_none();
    let sent = udp(("10.9.0.2", 7), ("192.0.2.7", 9), &[0; 64]);
    let error = answer(&sent, &Packet::parse(&sent).unwrap(), Refusal::AdminProhibited).unwrap();
    assert!(silent(&error), "an ICMP error");
    let mut later = sent;
    later[7] = 2;
    assert!(silent(&later), "a later fragment");
    assert!(silent(&udp(("10.9.0.2", 7), ("224.0.0.251", 5353), b"")), "to a group");
    assert!(silent(&udp(("0.0.0.0", 68), ("192.0.2.7", 67), b"")), "from nobody");
    assert!(!silent(&echo("10.9.0.2", "192.0.2.7", 8, 1)), "a ping is answered");
}
