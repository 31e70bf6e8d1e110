//! Sealing something to the holder of a key who is not there: Hybrid Public Key Encryption (RFC 9180) in base mode with
//! DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and AES-256-GCM, as rustls and AWS-LC have it.

use aws_lc_rs::{
    agreement::{PrivateKey, X25519},
    hkdf::{HKDF_SHA256, KeyType, Salt},
};
use rustls::crypto::{
    aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE,
    hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey},
};
use thiserror::Error;
use zeroize::Zeroizing;

/// Bytes of an encapsulated key: an X25519 public key.
pub const ENCAPSULATED_BYTES: usize = 32;
/// By how many bytes a sealed text is longer than the text: the tag of AES-GCM.
pub const TAG_BYTES: usize = 16;

/// Nothing can be sealed to a key: it is no point of the curve that anybody can hold the private half of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("nothing can be sealed to this key: it is not a usable X25519 public key")]
pub struct HpkeError;

/// What only the holder of the private key opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The encapsulated key (`enc` of RFC 9180).
    pub encapsulated: Vec<u8>,
    /// The text and its tag (`ct`).
    pub ciphertext: Vec<u8>,
}

/// The private half of a wrapping key. Wiped when dropped; `Debug` shows the public half.
pub struct WrappingKey {
    private: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl WrappingKey {
    /// The wrapping key of a device, which follows from the seed of its Ed25519 key: there is nothing more to keep, and what
    /// protects the one protects the other.
    pub fn of_device(seed: &[u8; 32]) -> Self {
        Self::derive(b"horizon device wrapping key v1", seed)
    }

    /// The key that opens backups, from random bytes that are kept for nothing else.
    pub fn of_backups(seed: &[u8; 32]) -> Self {
        Self::derive(b"horizon backup wrapping key v1", seed)
    }

    fn derive(salt: &[u8], seed: &[u8; 32]) -> Self {
        struct Bytes32;
        impl KeyType for Bytes32 {
            fn len(&self) -> usize {
                32
            }
        }
        let mut private = Zeroizing::new([0; 32]);
        Salt::new(HKDF_SHA256, salt)
            .extract(seed)
            .expand(&[b"X25519"], Bytes32)
            .and_then(|okm| okm.fill(&mut *private))
            .expect("HKDF-SHA256 gives 32 bytes");
        Self::from_private(private)
    }

    fn from_private(private: Zeroizing<[u8; 32]>) -> Self {
        let mut public = [0; 32];
        let key =
            PrivateKey::from_private_key(&X25519, &*private).expect("any 32 bytes are an X25519 private key");
        public
            .copy_from_slice(key.compute_public_key().expect("every private key has a public one").as_ref());
        Self { private, public }
    }

    /// The public half, to be given to those who seal.
    pub fn public(&self) -> [u8; 32] {
        self.public
    }

    /// Opens what was sealed to this key with the same `info` and `aad`; `None` for everything else.
    pub fn open(&self, info: &[u8], aad: &[u8], sealed: &Sealed) -> Option<Zeroizing<Vec<u8>>> {
        if sealed.encapsulated.len() != ENCAPSULATED_BYTES {
            return None;
        }
        let key = HpkePrivateKey::from(self.private.to_vec());
        let encapsulated = EncapsulatedSecret(sealed.encapsulated.clone());
        SUITE.open(&encapsulated, info, aad, &sealed.ciphertext, &key).ok().map(Zeroizing::new)
    }
}

impl std::fmt::Debug for WrappingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WrappingKey").field("public", &self.public).finish_non_exhaustive()
    }
}

/// Seals a text to the holder of a public key. `info` says what for, `aad` binds it to its place; both are needed to open it.
///
/// # Errors
/// When nobody can hold the private half of the key.
pub fn seal(to: &[u8; 32], info: &[u8], aad: &[u8], text: &[u8]) -> Result<Sealed, HpkeError> {
    let sealed = SUITE.seal(info, aad, text, &HpkePublicKey(to.to_vec()));
    let (EncapsulatedSecret(encapsulated), ciphertext) = sealed.map_err(|_| HpkeError)?;
    Ok(Sealed { encapsulated, ciphertext })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_holder_opens_and_only_in_its_place() {
        let key = WrappingKey::of_device(&[7; 32]);
        let sealed = seal(&key.public(), b"info", b"aad", b"text").unwrap();
        assert_eq!(key.open(b"info", b"aad", &sealed).unwrap()[..], b"text"[..]);
        assert_eq!(sealed.ciphertext.len(), 4 + TAG_BYTES);
        assert_ne!(seal(&key.public(), b"info", b"aad", b"text").unwrap(), sealed, "every seal is another");
        assert!(key.open(b"other", b"aad", &sealed).is_none());
        assert!(key.open(b"info", b"other", &sealed).is_none());
        assert!(WrappingKey::of_device(&[8; 32]).open(b"info", b"aad", &sealed).is_none());
        for cut in [0, 3, sealed.ciphertext.len() - 1] {
            let short = Sealed { ciphertext: sealed.ciphertext[..cut].to_vec(), ..sealed.clone() };
            assert!(key.open(b"info", b"aad", &short).is_none());
        }
        let short = Sealed { encapsulated: sealed.encapsulated[..31].to_vec(), ..sealed.clone() };
        assert!(key.open(b"info", b"aad", &short).is_none());
        let mut changed = sealed;
        changed.encapsulated[0] ^= 1;
        assert!(key.open(b"info", b"aad", &changed).is_none());
    }

    #[test]
    fn the_key_follows_from_the_seed_and_shows_nothing_of_it() {
        let key = WrappingKey::of_device(&[7; 32]);
        assert_eq!(key.public(), WrappingKey::of_device(&[7; 32]).public());
        assert_ne!(key.public(), WrappingKey::of_device(&[8; 32]).public());
        assert!(!format!("{key:?}").contains("private"));
        assert_eq!(seal(&[0; 32], b"", b"", b"text"), Err(HpkeError), "a point of small order");
    }

    /// The keys of appendix A.1 of RFC 9180, whose KEM is this one.
    #[test]
    fn public_keys_are_those_of_rfc_9180() {
        let hex = |text: &str| {
            let mut bytes = [0; 32];
            for (i, byte) in bytes.iter_mut().enumerate() {
                *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap();
            }
            bytes
        };
        let private = hex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8");
        let public = hex("3948cfe0ad1ddb695d780e59077195da6c56506b027329794ab02bca80815c4d");
        assert_eq!(WrappingKey::from_private(Zeroizing::new(private)).public(), public);
    }
}
