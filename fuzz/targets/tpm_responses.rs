//! What a TPM, or whatever sits at its place, answers an appliance.
#![no_main]

use horizon_appliance_core::tpm::{
    HEADER_BYTES, MAX_RESPONSE_BYTES, asks_again, read_flush, read_primary, read_quote, response_length,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(header) = data.first_chunk::<HEADER_BYTES>()
        && let Ok(length) = response_length(header)
    {
        assert!((HEADER_BYTES..=MAX_RESPONSE_BYTES).contains(&length), "room is made for no more");
    }
    let _ = (asks_again(data), read_flush(data));
    if let Ok(key) = read_primary(data) {
        assert!(key.public.len() < data.len());
    }
    if let Ok(quoted) = read_quote(data) {
        assert!(quoted.attested.len() + quoted.signature.len() < data.len());
    }
});
