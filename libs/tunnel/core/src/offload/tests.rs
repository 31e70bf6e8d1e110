use std::io::IoSlice;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::{
    checksum,
    header::{DatagramHeader, WHOLE_LEN},
    ids::NetworkId,
    packet::{Packet, Upper, tcp},
    test_packets::{assert_checksums, tcp as tcp_packet, udp as udp_packet},
};

const OFFLOAD: TunFraming = TunFraming::Offload { udp: true };

/// What a kernel would hand over: headers of the first packet, the whole payload, checksum left open.
fn super_packet(mut bytes: Vec<u8>, gso: Gso) -> (VirtioNetHeader, Vec<u8>) {
    let packet = Packet::parse(&bytes).unwrap();
    let field = checksum::field_offset(packet.protocol).unwrap();
    let pseudo =
        checksum::pseudo(packet.source, packet.destination, packet.protocol, packet.length - packet.l4);
    bytes[packet.l4 + field..][..2].copy_from_slice(&pseudo.to_be_bytes());
    let header = VirtioNetHeader {
        checksum: ChecksumState::Partial,
        gso: Some(gso),
        header_len: 0,
        checksum_start: packet.l4 as u16,
        checksum_offset: field as u16,
    };
    (header, bytes)
}

fn cut(header: &VirtioNetHeader, mut bytes: Vec<u8>) -> Vec<Bytes> {
    let packet = Packet::parse(&bytes).unwrap();
    let (mut arena, mut out) = (BytesMut::new(), Vec::new());
    split(&mut bytes, header, &packet, NetworkId(5), &mut arena, |datagram| out.push(datagram)).unwrap();
    out
}

/// Puts datagrams through a coalescer; returns what is written, as (virtio header, packet).
fn join(framing: TunFraming, datagrams: &[Bytes]) -> Vec<Vec<u8>> {
    let mut writes = Vec::new();
    let mut write = |slices: &[IoSlice<'_>]| writes.push(slices.iter().flat_map(|s| s.to_vec()).collect());
    let mut coalescer = Coalescer::new(framing);
    for datagram in datagrams {
        let (header, start) = DatagramHeader::parse(datagram).unwrap();
        let packet = datagram.slice(start..);
        let info = Packet::parse(&packet).unwrap();
        coalescer.push(&packet, &info, header.partial_checksum, &mut write);
    }
    coalescer.flush(&mut write);
    writes
}

/// What the kernel does with a packet whose checksum is open.
fn kernel_completes(write: &[u8]) -> Vec<u8> {
    let header = VirtioNetHeader::parse(write).unwrap();
    let mut packet = write[VIRTIO_NET_HDR_LEN..].to_vec();
    if header.checksum == ChecksumState::Partial {
        let start = usize::from(header.checksum_start);
        let field = start + usize::from(header.checksum_offset);
        let sum = !checksum::fold(checksum::add(0, &packet[start..]));
        packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

fn payload_of(packet: &[u8]) -> &[u8] {
    let info = Packet::parse(packet).unwrap();
    match info.upper {
        Upper::Tcp { header, .. } => &packet[info.l4 + header..info.length],
        _ => &packet[info.l4 + 8..info.length],
    }
}

fn addresses(v6: bool) -> (&'static str, &'static str) {
    if v6 { ("fd00::1", "fd00::2") } else { ("10.0.0.1", "10.0.0.2") }
}

proptest! {
    #[test]
    fn splitting_then_merging_changes_nothing(
        v6: bool,
        is_tcp: bool,
        length in 2usize..20_000,
        size in 500u16..1400,
        sequence: u32,
        options in prop_oneof![Just(vec![]), Just(vec![1u8, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])],
        push: bool,
    ) {
        let (from, to) = addresses(v6);
        let payload: Vec<u8> = (0..length).map(|n| (n * 7 % 251) as u8).collect();
        let (kind, bytes) = if is_tcp {
            let flags = if push { tcp::ACK | tcp::PSH } else { tcp::ACK };
            let kind = if v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
            (kind, tcp_packet((from, 1), (to, 2), flags, sequence, &options, &payload))
        } else {
            (GsoKind::Udp, udp_packet((from, 1), (to, 2), &payload))
        };
        let expected = bytes.clone();
        let (header, bytes) = super_packet(bytes, Gso { kind, size });
        let datagrams = cut(&header, bytes);
        prop_assert_eq!(datagrams.len(), length.div_ceil(usize::from(size)));

        // Every packet stands for itself: an end without offloads gets right checksums and the payload in order.
        let mut received = Vec::new();
        for packet in join(TunFraming::Plain, &datagrams) {
            assert_checksums(&packet);
            received.extend_from_slice(payload_of(&packet));
        }
        prop_assert_eq!(&received, &payload);

        // And joined again they are what was cut.
        let writes = join(OFFLOAD, &datagrams);
        prop_assert_eq!(writes.len(), 1);
        let whole = kernel_completes(&writes[0]);
        assert_checksums(&whole);
        prop_assert_eq!(&whole, &expected);
        let written = VirtioNetHeader::parse(&writes[0]).unwrap();
        if datagrams.len() > 1 {
            prop_assert_eq!(written.gso, Some(Gso { kind, size }));
        } else {
            prop_assert_eq!(written.gso, None);
        }
    }

    #[test]
    fn mixed_flows_keep_order_and_content(flows in prop::collection::vec((0u16..3, 1usize..1200, any::<bool>()), 1..60)) {
        let mut sequences = [0u32; 3];
        let mut datagrams = Vec::new();
        let mut expected: Vec<Vec<u8>> = vec![Vec::new(); 3];
        for (flow, length, partial) in flows {
            let sequence = &mut sequences[usize::from(flow)];
            let payload = vec![(*sequence % 251) as u8; length];
            let packet = tcp_packet(("10.0.0.1", flow), ("10.0.0.2", 9), tcp::ACK, *sequence, &[], &payload);
            *sequence += length as u32;
            expected[usize::from(flow)].extend(&payload);
            let mut datagram = DatagramHeader::encode_whole(NetworkId(0), partial).to_vec();
            datagram.extend(packet);
            datagrams.push(datagram.into());
        }
        let mut received = vec![Vec::new(); 3];
        for write in join(OFFLOAD, &datagrams) {
            let packet = kernel_completes(&write);
            assert_checksums(&packet);
            let (flow, _) = Packet::parse(&packet).unwrap().ports().unwrap();
            received[usize::from(flow)].extend_from_slice(payload_of(&packet));
        }
        prop_assert_eq!(received, expected);
    }

    #[test]
    fn nothing_panics_on_what_a_peer_may_send(mut bytes: Vec<u8>, at in 0usize..60, value: u8, partial: bool) {
        let good = tcp_packet(("10.0.0.1", 1), ("10.0.0.2", 2), tcp::ACK, 1, &[1, 1, 1, 1], b"payload");
        for mut packet in [good, std::mem::take(&mut bytes)] {
            if let Some(byte) = packet.get_mut(at) {
                *byte = value;
            }
            for framing in [OFFLOAD, TunFraming::Plain, TunFraming::Offload { udp: false }] {
                if let Ok(info) = Packet::parse(&packet) {
                    let mut coalescer = Coalescer::new(framing);
                    coalescer.push(&packet.clone().into(), &info, partial, &mut |_| ());
                    coalescer.push(&packet.clone().into(), &info, partial, &mut |_| ());
                    coalescer.flush(&mut |_| ());
                }
            }
        }
    }

    #[test]
    fn nothing_panics_on_what_a_device_may_return(header in any::<[u8; VIRTIO_NET_HDR_LEN]>(), length in 0usize..4000, v6: bool) {
        let (from, to) = addresses(v6);
        let mut bytes = tcp_packet((from, 1), (to, 2), tcp::ACK, 1, &[], &vec![3; length]);
        if let Ok(virtio) = VirtioNetHeader::parse(&header) {
            let packet = Packet::parse(&bytes).unwrap();
            let _ = split(&mut bytes, &virtio, &packet, NetworkId(0), &mut BytesMut::new(), |datagram| {
                assert!(datagram.len() > WHOLE_LEN);
            });
        }
    }
}

#[test]
fn the_header_round_trips() {
    let header = VirtioNetHeader {
        checksum: ChecksumState::Partial,
        gso: Some(Gso { kind: GsoKind::TcpV6, size: 1340 }),
        header_len: 72,
        checksum_start: 40,
        checksum_offset: 16,
    };
    assert_eq!(VirtioNetHeader::parse(&header.encode()), Ok(header));
    assert_eq!(VirtioNetHeader::parse(&[0; 9]), Err(VirtioError::Truncated(9)));
    assert_eq!(VirtioNetHeader::parse(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), Err(VirtioError::UnknownGso(3)));
}

#[test]
fn flags_stay_where_they_belong() {
    let all = tcp::ACK | tcp::PSH | tcp::FIN | tcp::CWR;
    let bytes = tcp_packet(("10.0.0.1", 1), ("10.0.0.2", 2), all, 1, &[], &[0; 2500]);
    let (header, bytes) = super_packet(bytes, Gso { kind: GsoKind::TcpV4, size: 1000 });
    let flags: Vec<u8> = cut(&header, bytes).iter().map(|datagram| datagram[WHOLE_LEN + 33]).collect();
    assert_eq!(flags, [tcp::ACK | tcp::CWR, tcp::ACK, tcp::ACK | tcp::PSH | tcp::FIN]);
}

#[test]
fn checksums_the_kernel_verified_are_left_open_and_others_kept() {
    let packet = udp_packet(("10.0.0.1", 1), ("10.0.0.2", 2), b"data");
    let partial = |state, packet: Vec<u8>| {
        let datagrams = cut(&VirtioNetHeader { checksum: state, ..Default::default() }, packet);
        DatagramHeader::parse(&datagrams[0]).unwrap().0.partial_checksum
    };
    assert!(partial(ChecksumState::Verified, packet.clone()));
    assert!(!partial(ChecksumState::Unknown, packet.clone()));
    let mut without = packet;
    without[26..28].fill(0);
    assert!(!partial(ChecksumState::Verified, without), "UDP without a checksum stays without");
}

#[test]
fn a_header_for_another_packet_is_refused() {
    let mut bytes = udp_packet(("10.0.0.1", 1), ("10.0.0.2", 2), &[0; 3000]);
    let packet = Packet::parse(&bytes).unwrap();
    let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1000 });
    let header = VirtioNetHeader { gso, ..Default::default() };
    let refused = split(&mut bytes, &header, &packet, NetworkId(0), &mut BytesMut::new(), |_| ());
    assert_eq!(refused, Err(SplitError::Mismatch));
}
