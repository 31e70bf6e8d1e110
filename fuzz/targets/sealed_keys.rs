//! Keys on their way to devices: what is sealed, what it is sealed to, who signed that, and what people paste.
#![no_main]

use horizon_model::PublicKey;
use horizon_tls::hpke::{ENCAPSULATED_BYTES, Sealed, TAG_BYTES, WrappingKey, seal};
use horizon_wire::handing::{HANDOVER_INFO, KEY_INFO, verify_wrapping_key};
use horizon_wire::token::Handover;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let own = WrappingKey::of_device(&[7; 32]);
    let (encapsulated, ciphertext) = data.split_at(data.len().min(ENCAPSULATED_BYTES));
    let sealed = Sealed { encapsulated: encapsulated.to_vec(), ciphertext: ciphertext.to_vec() };
    for info in [KEY_INFO, HANDOVER_INFO] {
        assert!(own.open(info, b"place", &sealed).is_none(), "nothing is sealed by chance");
    }
    if let Some((key, rest)) = data.split_first_chunk::<32>() {
        assert!(!verify_wrapping_key(&PublicKey(*key), &own.public(), rest));
        // Whatever the point is: it is refused, or what was sealed to it is not the text.
        if let Ok(sealed) = seal(key, KEY_INFO, b"place", rest) {
            assert_eq!(sealed.ciphertext.len(), rest.len() + TAG_BYTES);
            assert!(own.open(KEY_INFO, b"place", &sealed).is_none() || *key == own.public());
        }
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(handover) = Handover::decode(text)
    {
        let again = Handover::decode(&handover.encode()).expect("what was read can be written");
        assert_eq!((again.id, again.controllers), (handover.id, handover.controllers));
    }
});
