//! What a stranger sends to an appliance's UDP port: sorted before any cryptography.
#![no_main]

use horizon_tunnel_core::cid::Sighting;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = Sighting::of(data);
});
