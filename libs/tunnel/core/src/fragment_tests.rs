use super::*;
use proptest::prelude::*;

const NETWORK: NetworkId = NetworkId(9);

fn parts(datagrams: &[Bytes]) -> Vec<(FragmentHeader, Bytes)> {
    datagrams
        .iter()
        .map(|datagram| {
            let (header, start) = DatagramHeader::parse(datagram).unwrap();
            assert_eq!((header.network, header.partial_checksum), (NETWORK, true));
            (header.fragment.unwrap(), datagram.slice(start..))
        })
        .collect()
}

#[test]
fn decides_by_size_and_time() {
    assert_eq!(fit(1000, 1003, true, true), Fit::Whole);
    assert_eq!(fit(1001, 1003, true, true), Fit::Fragment);
    assert_eq!(fit(1281, 1203, true, true), Fit::TooBig { mtu: 1280 });
    assert_eq!(fit(1400, 1303, true, true), Fit::TooBig { mtu: 1300 });
    assert_eq!(fit(1400, 1303, true, false), Fit::Fragment);
    assert_eq!(fit(1400, 1303, false, true), Fit::Fragment);
}

proptest! {
    #[test]
    fn parts_join_in_any_order(
        packet in prop::collection::vec(any::<u8>(), 1..6000),
        max in 200usize..1500,
        seed: u64,
        repeated: bool,
    ) {
        let cut = Fragmenter::default().cut(&packet, NETWORK, true, max);
        prop_assert!(!cut.is_empty());
        prop_assert!(cut.iter().all(|datagram| datagram.len() <= max));
        let mut parts = parts(&cut);
        // A shuffle that depends on nothing but the seed.
        let mut state = seed | 1;
        for at in (1..parts.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            parts.swap(at, (state >> 33) as usize % (at + 1));
        }
        let (mut reassembler, now) = (Reassembler::default(), Instant::now());
        let last = parts.len() - 1;
        for (index, (header, part)) in parts.into_iter().enumerate() {
            if repeated && index < last {
                prop_assert_eq!(reassembler.insert(now, NETWORK, header, &part), Ok(None));
            }
            let joined = reassembler.insert(now, NETWORK, header, &part).unwrap();
            prop_assert_eq!(joined.is_some(), index == last);
            if let Some(joined) = joined {
                prop_assert_eq!(&joined[..], &packet[..]);
            }
        }
        prop_assert_eq!(reassembler.bytes, 0);
    }

    #[test]
    fn anything_goes_in_within_bounds(
        steps in prop::collection::vec((0u16..40, 0u16..0x7fff, any::<bool>(), 0usize..4000), 1..200),
    ) {
        let (mut reassembler, now) = (Reassembler::default(), Instant::now());
        for (id, offset, last, length) in steps {
            let header = FragmentHeader { id, offset, last };
            let _ = reassembler.insert(now, NETWORK, header, &vec![1; length]);
            prop_assert!(reassembler.pending.len() <= MAX_PENDING && reassembler.bytes <= MAX_PENDING_BYTES);
            let kept: usize = reassembler.pending.iter().map(|p| p.parts.iter().map(|(_, b)| b.len()).sum::<usize>()).sum();
            prop_assert_eq!(kept, reassembler.bytes);
        }
    }
}

#[test]
fn contradictions_end_a_packet() {
    let now = Instant::now();
    let part = |offset, last| FragmentHeader { id: 1, offset, last };
    let mut reassembler = Reassembler::default();
    assert_eq!(reassembler.insert(now, NETWORK, part(0, false), &[0; 100]), Ok(None));
    let overlap = reassembler.insert(now, NETWORK, part(50, true), &[1; 100]);
    assert_eq!(overlap, Err(ReassemblyError::Contradiction));
    assert_eq!(reassembler.bytes, 0, "the rest of the packet is gone too");
    let empty = reassembler.insert(now, NETWORK, part(0, true), &[]);
    assert_eq!(empty, Err(ReassemblyError::Extent));
}

#[test]
fn parts_do_not_wait_for_ever_and_networks_do_not_mix() {
    let now = Instant::now();
    let first = FragmentHeader { id: 1, offset: 0, last: false };
    let second = FragmentHeader { id: 1, offset: 100, last: true };
    let mut reassembler = Reassembler::default();
    assert_eq!(reassembler.insert(now, NETWORK, first, &[0; 100]), Ok(None));
    assert_eq!(reassembler.insert(now, NetworkId(1), second, &[1; 100]), Ok(None));
    let late = now + REASSEMBLY_TIMEOUT;
    assert_eq!(reassembler.insert(late, NETWORK, second, &[1; 100]), Ok(None));
}

#[test]
fn parts_that_wait_do_not_keep_the_memory_they_came_in() {
    let chunk = Bytes::from(vec![7; 64 * 1024]);
    let first = FragmentHeader { id: 1, offset: 0, last: false };
    let mut reassembler = Reassembler::default();
    assert_eq!(reassembler.insert(Instant::now(), NETWORK, first, &chunk[9..109]), Ok(None));
    let kept = &reassembler.pending[0].parts[0].1;
    assert!(!chunk.as_ptr_range().contains(&kept.as_ptr()));
}
