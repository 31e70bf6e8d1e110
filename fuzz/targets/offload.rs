//! Super-packets: what a TUN device returned is cut into datagrams, and what arrives in datagrams is joined for a TUN device.
#![no_main]

use bytes::{Bytes, BytesMut};
use horizon_tunnel_core::header::DatagramHeader;
use horizon_tunnel_core::ids::NetworkId;
use horizon_tunnel_core::offload::{Coalescer, TunFraming, VIRTIO_NET_HDR_LEN, VirtioNetHeader, split};
use horizon_tunnel_core::packet::Packet;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The checksum of a packet may be left open by anybody at the far end.
    let mut joined = Coalescer::new(TunFraming::Offload { udp: data.len() % 2 == 0 });
    let mut plain = Coalescer::new(TunFraming::Plain);
    for at in (0..data.len()).step_by(64) {
        if let Ok(packet) = Packet::parse(&data[at..]) {
            let bytes = Bytes::copy_from_slice(&data[at..]);
            joined.push(&bytes, &packet, at % 128 == 0, &mut |_| {});
            plain.push(&bytes, &packet, true, &mut |_| {});
        }
    }
    joined.flush(&mut |_| {});

    let Ok(header) = VirtioNetHeader::parse(data) else { return };
    let mut bytes = data[VIRTIO_NET_HDR_LEN..].to_vec();
    let Ok(packet) = Packet::parse(&bytes) else { return };
    let mut coalescer = Coalescer::new(TunFraming::Offload { udp: true });
    let mut arena = BytesMut::new();
    let _ = split(&mut bytes, &header, &packet, NetworkId(1), &mut arena, |datagram| {
        let (header, at) = DatagramHeader::parse(&datagram).expect("our own datagrams can be read");
        // A header that points its checksum at the addresses makes another packet; the far end judges that one.
        let Ok(packet) = Packet::parse(&datagram[at..]) else { return };
        coalescer.push(&datagram.slice(at..), &packet, header.partial_checksum, &mut |_| {});
    });
    coalescer.flush(&mut |_| {});
});
