//! The tunnel's datagrams: headers, fragments in any order, connection ids.
#![no_main]

use std::time::{Duration, Instant};

use horizon_tunnel_core::cid::IssuedKey;
use horizon_tunnel_core::fragment::{Fragmenter, Reassembler};
use horizon_tunnel_core::header::DatagramHeader;
use horizon_tunnel_core::ids::NetworkId;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let start = Instant::now();
    let mut reassembler = Reassembler::default();
    // Datagrams of up to 255 bytes, each behind its length.
    let (mut rest, mut count) = (data, 0);
    while let Some((&length, tail)) = rest.split_first() {
        let (datagram, tail) = tail.split_at(usize::from(length).min(tail.len()));
        rest = tail;
        count += 1;
        if let Ok((header, at)) = DatagramHeader::parse(datagram) {
            if let Some(fragment) = header.fragment {
                let now = start + Duration::from_millis(count);
                let _ = reassembler.insert(now, header.network, fragment, &datagram[at..]);
            }
        }
    }

    let mut whole = None;
    let mut reassembler = Reassembler::default();
    for part in Fragmenter::default().cut(data, NetworkId(1), false, 1200) {
        let (header, at) = DatagramHeader::parse(&part).expect("our own datagrams can be read");
        let fragment = header.fragment.expect("a fragment");
        whole = reassembler.insert(start, header.network, fragment, &part[at..]).expect("in order");
    }
    if let Some(whole) = whole {
        assert_eq!(whole, data, "what was cut is put together again");
    }

    assert!(IssuedKey::new(&[7; 32]).verify(data).is_none(), "no connection id is guessed");
});
