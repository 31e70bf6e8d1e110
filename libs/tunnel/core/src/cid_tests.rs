use super::*;
use proptest::prelude::*;

fn key(byte: u8) -> InitialKey {
    InitialKey::new(&Secret32::new([byte; 32]))
}

fn initial(cid: &[u8], length: usize) -> Vec<u8> {
    let mut payload = vec![0xc0, 0, 0, 0, 1, cid.len() as u8];
    payload.extend(cid);
    payload.resize(length, 0);
    payload
}

#[test]
fn a_first_packet_names_and_proves_its_session() {
    let cid = key(1).issue([1, 2, 3, 4]);
    let Sighting::First { locator, cid: seen } = Sighting::of(&initial(&cid, 1200)) else { panic!() };
    assert_eq!((locator, seen), (key(1).locator(), cid));
    assert!(key(1).verify(&cid));
    assert!(!key(2).verify(&cid));
    for at in 0..INITIAL_LEN {
        let mut forged = cid;
        forged[at] ^= 1;
        assert!(!key(1).verify(&forged));
    }
    assert_ne!(key(1).issue([0; 4]), cid);
}

#[test]
fn issued_ids_carry_shard_and_slot() {
    let issued = IssuedKey::new(&[7; 32]);
    let cid = issued.issue(IssuedCid { shard: 3, slot: 70_000 }, [1, 2, 3, 4]);
    assert_eq!(issued.verify(&cid), Some(IssuedCid { shard: 3, slot: 70_000 }));
    assert_eq!(IssuedKey::new(&[8; 32]).verify(&cid), None);
    assert_eq!(issued.verify(&cid[1..]), None);
    let mut forged = cid;
    forged[0] ^= 1;
    assert_eq!(issued.verify(&forged), None);
}

#[test]
fn what_is_none_of_ours_is_foreign() {
    let cid = key(1).issue([0; 4]);
    assert_eq!(Sighting::of(&initial(&cid, 1199)), Sighting::Foreign, "too short for a first packet");
    assert_eq!(Sighting::of(&initial(&cid[..8], 1200)), Sighting::Foreign, "another length of id");
    let mut other = initial(&cid, 1200);
    other[4] = 2;
    assert_eq!(Sighting::of(&other), Sighting::Foreign, "another version");
    let mut handshake = initial(&cid, 1200);
    handshake[0] = 0xe0;
    assert_eq!(Sighting::of(&handshake), Sighting::Foreign, "only first packets have such ids");
    assert_eq!(Sighting::of(&[0x40; ISSUED_LEN]), Sighting::Foreign);
    assert_eq!(Sighting::of(&[0x40; ISSUED_LEN + 1]), Sighting::Short);
    assert_eq!(Sighting::of(&[0x00; 100]), Sighting::Foreign, "without the fixed bit");
}

#[test]
fn a_probe_is_its_prefix_and_a_nonce() {
    let probe = [&PROBE_PREFIX[..], &[5; PROBE_NONCE_LEN]].concat();
    assert_eq!(Sighting::of(&probe), Sighting::Probe([5; PROBE_NONCE_LEN]));
    assert_eq!(Sighting::of(&probe[..23]), Sighting::Foreign);
    assert_eq!(Sighting::of(&[&probe[..], &[0]].concat()), Sighting::Foreign);
}

proptest! {
    #[test]
    fn never_panics(payload: Vec<u8>) {
        let _ = Sighting::of(&payload);
        let _ = IssuedKey::new(&[0; 32]).verify(&payload);
    }
}
