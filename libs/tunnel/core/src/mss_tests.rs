use super::*;
use crate::test_packets::{assert_checksums, tcp};
use proptest::prelude::*;

const SYN_OPTIONS: [u8; 8] = [1, 1, 1, 1, 2, 4, 5, 180]; // four times nothing, then 1460

fn clamped(mut bytes: Vec<u8>, mtu: usize) -> Vec<u8> {
    let packet = Packet::parse(&bytes).unwrap();
    clamp(&mut bytes, &packet, mtu, true);
    bytes
}

#[test]
fn lowers_the_segment_size_of_syns_only() {
    for (us, them, mtu, expected) in
        [("10.0.0.1", "10.0.0.2", 1300, 1260u16), ("fd00::1", "fd00::2", 1300, 1240)]
    {
        let at = if us.contains(':') { 66 } else { 46 };
        let syn = clamped(tcp((us, 1), (them, 2), tcp::SYN, 1, &SYN_OPTIONS, b""), mtu);
        assert_eq!(be16(&syn, at), expected);
        assert_checksums(&syn);
        let ack = tcp((us, 1), (them, 2), tcp::ACK, 1, &SYN_OPTIONS, b"");
        assert_eq!(clamped(ack.clone(), mtu), ack);
    }
}

#[test]
fn never_raises_it_and_keeps_a_floor() {
    let syn = tcp(("10.0.0.1", 1), ("10.0.0.2", 2), tcp::SYN, 1, &SYN_OPTIONS, b"");
    assert_eq!(clamped(syn.clone(), 9000), syn);
    assert_eq!(be16(&clamped(syn, 100), 46), MIN_MSS);
}

#[test]
fn a_checksum_that_is_still_open_is_left_alone() {
    let mut syn = tcp(("10.0.0.1", 1), ("10.0.0.2", 2), tcp::SYN, 1, &SYN_OPTIONS, b"");
    let (packet, before) = (Packet::parse(&syn).unwrap(), be16(&syn, 36));
    clamp(&mut syn, &packet, 1300, false);
    assert_eq!((be16(&syn, 46), be16(&syn, 36)), (1260, before));
}

proptest! {
    #[test]
    fn any_options_leave_a_right_checksum(words in prop::collection::vec(any::<[u8; 4]>(), 0..10), mtu in 500usize..1500) {
        let options: Vec<u8> = words.concat();
        let syn = tcp(("10.0.0.1", 1), ("10.0.0.2", 2), tcp::SYN, 1, &options, b"data");
        assert_checksums(&clamped(syn, mtu));
    }
}
