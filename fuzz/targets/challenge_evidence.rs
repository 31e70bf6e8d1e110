//! What an appliance gives in answer to a challenge: evidence, the factors in it, and the structures of a TPM 2.0.
#![no_main]

use horizon_controller_core::identity::quote::{read_key, read_quote, read_signature};
use horizon_model::{Incarnation, Secret, ServerId};
use horizon_wire::challenge::Asked;
use horizon_wire::proto::{ChallengeEvidence, ChallengeKind, ChallengeResponse, HeartbeatBody};
use horizon_wire::{convert, heartbeat};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let structures = |key: &[u8], attested: &[u8], signature: &[u8]| {
        let _ = read_key(key);
        if let Ok(quote) = read_quote(attested) {
            assert!(quote.extra.len() + quote.qualified_signer.len() < attested.len());
        }
        let _ = read_signature(signature);
    };
    structures(data, data, data);
    if let Ok(evidence) = ChallengeEvidence::decode(data) {
        if let Some(quote) = &evidence.quote {
            structures(&quote.key, &quote.attested, &quote.signature);
        }
        if let Ok(factors) = convert::decode_factors(evidence.factors) {
            let again = convert::decode_factors(convert::encode_factors(&factors));
            assert_eq!(again.as_ref(), Ok(&factors), "factors that were read can be written");
        }
    }
    let secret = Secret::new([7; 32]);
    if let Ok(answer) = ChallengeResponse::decode(data) {
        let (server, incarnation) = (ServerId(Default::default()), Incarnation(Default::default()));
        for kind in [ChallengeKind::Unspecified, ChallengeKind::PublicKey, ChallengeKind::Identity] {
            let asked = Asked { id: &[1; 16], nonce: &[2; 32], kind, server, incarnation };
            assert!(!asked.check(&secret, &answer.payload, &answer.tag), "no tag is found by chance");
        }
    }
    assert!(!heartbeat::verify(&secret, data, data));
    let _ = HeartbeatBody::decode(data);
});
