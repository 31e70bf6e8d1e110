//! Signed documents and the strings people paste.
#![no_main]

use horizon_model::RootId;
use horizon_wire::keyset::{Anchor, walk};
use horizon_wire::proto::{Envelope, SignedKeySet};
use horizon_wire::token::{PersonalKey, RegistrationToken};
use horizon_wire::{convert, envelope};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let _ = convert::decode_ticket(data);
    if let Ok(sealed) = Envelope::decode(data) {
        let opened = envelope::open(envelope::Context::State, &sealed, |_| true);
        assert!(opened.is_err(), "no signature is found by chance");
    }
    if let Ok(signed) = SignedKeySet::decode(data) {
        assert!(walk(&Anchor::Root(RootId([0; 32])), &[signed]).is_err());
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = RegistrationToken::decode(text);
        let _ = PersonalKey::decode(text);
    }
});
