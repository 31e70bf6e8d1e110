//! A packet from the far end or from the TUN device: parsed, judged, answered, adjusted.
#![no_main]

use horizon_tunnel_core::packet::Packet;
use horizon_tunnel_core::{checksum, icmp, mss};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = Packet::parse_quoted(data);
    let Ok(packet) = Packet::parse(data) else { return };
    assert!(packet.length <= data.len());
    for refusal in [icmp::Refusal::TooBig { mtu: 1280 }, icmp::Refusal::AdminProhibited] {
        if let Some(answer) = icmp::answer(data, &packet, refusal) {
            let answer = Packet::parse(&answer).expect("our own packets can be read");
            assert_eq!((answer.source, answer.destination), (packet.destination, packet.source));
            assert!(answer.is_icmp_error());
        }
    }
    let mut copy = data.to_vec();
    mss::clamp(&mut copy, &packet, 1280, true);
    checksum::complete(&mut copy, &packet);
    assert!(Packet::parse(&copy).is_ok(), "adjusting keeps a packet whole");
});
