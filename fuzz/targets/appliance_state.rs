//! A delta of desired state, as an appliance applies it after its signature was found good.
#![no_main]

use horizon_model::ServerId;
use horizon_wire::convert::{decode_entry, encode_entry};
use horizon_wire::state::{Numbered, apply};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(entry) = decode_entry(data) {
        assert_eq!(decode_entry(&encode_entry(&entry)).as_ref(), Ok(&entry), "an entry that was read can be written");
    }
    let Some(audience) = data.first_chunk::<16>().and_then(|id| ServerId::from_slice(id)) else { return };
    if let Ok(state) = apply(&Numbered::default(), audience, &data[16..]) {
        let _ = state.entries.decode();
    }
});
