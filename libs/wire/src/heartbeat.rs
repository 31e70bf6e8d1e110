//! Heartbeats and challenges under the verification secret, and how that secret moves on.
//!
//! Each acknowledged heartbeat ratchets the secret: both sides derive the next from the one that authenticated the beat
//! and a fresh nonce of the controller. The controller accepts the current and the previous secret, because an
//! acknowledgement may be lost. An appliance that was copied or rolled back falls behind and shows.

use aws_lc_rs::hmac;
use horizon_model::{Incarnation, Secret, ServerId};

const BEAT: &[u8] = b"horizon heartbeat v1\0";
const RATCHET: &[u8] = b"horizon ratchet v1\0";
const CHALLENGE: &[u8] = b"horizon challenge v1\0";

fn tag(secret: &Secret, label: &[u8], parts: &[&[u8]]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret.expose()));
    context.update(label);
    for part in parts {
        context.update(part);
    }
    context.sign()
}

/// The tag of a heartbeat's payload (RFC 2104, SHA-256).
pub fn sign(secret: &Secret, payload: &[u8]) -> Vec<u8> {
    tag(secret, BEAT, &[payload]).as_ref().to_vec()
}

/// Whether a heartbeat's tag is right, in constant time.
pub fn verify(secret: &Secret, payload: &[u8], claimed: &[u8]) -> bool {
    equal(tag(secret, BEAT, &[payload]).as_ref(), claimed)
}

/// The secret after an acknowledgement with `nonce`.
pub fn ratchet(secret: &Secret, nonce: &[u8; 32]) -> Secret {
    let mut next = [0; 32];
    next.copy_from_slice(tag(secret, RATCHET, &[nonce]).as_ref());
    Secret::new(next)
}

/// The answer to a challenge.
pub fn answer(
    secret: &Secret,
    id: &[u8; 16],
    nonce: &[u8; 32],
    server: ServerId,
    incarnation: Incarnation,
) -> Vec<u8> {
    tag(secret, CHALLENGE, &[id, nonce, server.as_bytes(), incarnation.as_bytes()]).as_ref().to_vec()
}

/// Whether an answer to a challenge is right, in constant time.
pub fn check_answer(
    secret: &Secret,
    id: &[u8; 16],
    nonce: &[u8; 32],
    server: ServerId,
    incarnation: Incarnation,
    claimed: &[u8],
) -> bool {
    equal(&answer(secret, id, nonce, server, incarnation), claimed)
}

/// Constant-time equality of two byte strings; their lengths are no secret.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn tags_bind_their_content_and_secret() {
        let (a, b) = (Secret::new([1; 32]), Secret::new([2; 32]));
        let beat = sign(&a, b"payload");
        assert!(verify(&a, b"payload", &beat));
        assert!(!verify(&b, b"payload", &beat));
        assert!(!verify(&a, b"payloae", &beat));
        assert!(!verify(&a, b"payload", &beat[..31]));
        let (server, run) = (ServerId(Uuid::from_u128(1)), Incarnation(Uuid::from_u128(2)));
        let response = answer(&a, &[1; 16], &[2; 32], server, run);
        assert!(check_answer(&a, &[1; 16], &[2; 32], server, run, &response));
        assert!(!check_answer(&a, &[1; 16], &[3; 32], server, run, &response));
        assert!(!check_answer(&a, &[1; 16], &[2; 32], server, Incarnation(Uuid::from_u128(3)), &response));
    }

    #[test]
    fn the_ratchet_moves_both_sides_alike() {
        let start = Secret::new([1; 32]);
        let one = ratchet(&start, &[5; 32]);
        assert_eq!(one.expose(), ratchet(&start, &[5; 32]).expose());
        assert_ne!(one.expose(), start.expose());
        assert_ne!(one.expose(), ratchet(&start, &[6; 32]).expose());
    }
}
