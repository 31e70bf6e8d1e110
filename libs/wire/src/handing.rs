//! Handing a personal key to a device: what the device signs to be sealed to, what binds a sealed key to its place, and the
//! proof that it arrived.

use aws_lc_rs::hmac;
use horizon_model::{DeviceId, KeyId, PublicKey, TaggedSecret};

use crate::key::{self, SigningKey};

/// What a personal key is sealed for (`info` of RFC 9180).
pub const KEY_INFO: &[u8] = b"horizon personal key v1";
/// What a key that is handed over to a person is sealed for.
pub const HANDOVER_INFO: &[u8] = b"horizon handed over key v1";
/// The longest code of a hand-over that is accepted, in bytes.
pub const MAX_CODE_BYTES: usize = 64;

const WRAPPING: &[u8] = b"horizon wrapping key v1\0";
const TAKEN: &[u8] = b"horizon key taken v1\0";

/// A device's signature over its wrapping key. With it nobody who alters the database can have keys sealed to themselves.
pub fn sign_wrapping_key(device: &SigningKey, wrapping: &[u8; 32]) -> Vec<u8> {
    device.sign(&[WRAPPING, wrapping].concat())
}

/// Whether a device signed a wrapping key.
pub fn verify_wrapping_key(device: &PublicKey, wrapping: &[u8; 32], signature: &[u8]) -> bool {
    key::verify(device, &[WRAPPING, wrapping].concat(), signature)
}

/// What binds a sealed key to the device and to the version of the key that it is (`aad` of RFC 9180).
pub fn place(device: DeviceId, version: KeyId) -> [u8; 32] {
    let mut place = [0; 32];
    place[..16].copy_from_slice(device.as_bytes());
    place[16..].copy_from_slice(version.as_bytes());
    place
}

/// Proves that a device has opened a version of its key. Of one device and one version: elsewhere it proves nothing.
pub fn proof(secret: &TaggedSecret, device: DeviceId, version: KeyId) -> [u8; 32] {
    let under = hmac::Key::new(hmac::HMAC_SHA256, secret.expose());
    let tag = hmac::sign(&under, &[TAKEN, &place(device, version)].concat());
    let mut proof = [0; 32];
    proof.copy_from_slice(tag.as_ref());
    proof
}

#[cfg(test)]
mod tests {
    use horizon_model::Secret;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_wrapping_key_is_signed_by_its_device() {
        let device = SigningKey::from_seed(Secret::new([1; 32]));
        let other = SigningKey::from_seed(Secret::new([2; 32]));
        let signature = sign_wrapping_key(&device, &[7; 32]);
        assert!(verify_wrapping_key(&device.public(), &[7; 32], &signature));
        assert!(!verify_wrapping_key(&device.public(), &[8; 32], &signature));
        assert!(!verify_wrapping_key(&other.public(), &[7; 32], &signature));
        assert!(!verify_wrapping_key(&device.public(), &[7; 32], &[]));
    }

    #[test]
    fn a_proof_is_of_one_device_and_version() {
        let id = |n: u128| Uuid::from_u128(n);
        let secret = TaggedSecret::new(&[1; 32], [2; 4]);
        let all = [
            proof(&secret, DeviceId(id(1)), KeyId(id(2))),
            proof(&secret, DeviceId(id(2)), KeyId(id(2))),
            proof(&secret, DeviceId(id(1)), KeyId(id(3))),
            proof(&TaggedSecret::new(&[1; 32], [3; 4]), DeviceId(id(1)), KeyId(id(2))),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }
}
