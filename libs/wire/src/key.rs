//! Ed25519 keys (RFC 8032) and their form as TLS raw public keys (RFC 7250).

use aws_lc_rs::{
    digest,
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use horizon_model::{Digest, PublicKey, RootId, Secret};

/// The DER prefix of an Ed25519 SubjectPublicKeyInfo (RFC 8410, section 4); the 32 key bytes follow.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// The DER prefix of an Ed25519 private key in PKCS #8 version 1 (RFC 8410, section 7); the 32 seed bytes follow.
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A private key. The seed is wiped when dropped.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    seed: Secret,
    public: PublicKey,
}

impl SigningKey {
    /// The key of a 32-byte seed.
    pub fn from_seed(seed: Secret) -> Self {
        // Every 32-byte string is a valid Ed25519 seed.
        let pair =
            Ed25519KeyPair::from_seed_unchecked(seed.expose()).expect("any 32 bytes are an Ed25519 seed");
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        Self { pair, seed, public: PublicKey(public) }
    }

    /// The seed, to be stored with care.
    pub fn seed(&self) -> &Secret {
        &self.seed
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs a message.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }

    /// The private key in PKCS #8, for the TLS library.
    pub fn pkcs8(&self) -> zeroize::Zeroizing<Vec<u8>> {
        zeroize::Zeroizing::new([&PKCS8_PREFIX[..], self.seed.expose()].concat())
    }
}

impl Clone for SigningKey {
    fn clone(&self) -> Self {
        Self::from_seed(self.seed.clone())
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey(of {})", self.public)
    }
}

/// Whether `signature` is `key`'s over `message`.
pub fn verify(key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, key.as_bytes()).verify(message, signature).is_ok()
}

/// The SubjectPublicKeyInfo of a key, as TLS carries it.
pub fn to_spki(key: &PublicKey) -> Vec<u8> {
    [&SPKI_PREFIX[..], key.as_bytes()].concat()
}

/// The key of a SubjectPublicKeyInfo; `None` when it is not an Ed25519 key.
pub fn from_spki(der: &[u8]) -> Option<PublicKey> {
    der.strip_prefix(&SPKI_PREFIX).and_then(PublicKey::from_slice)
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> Digest {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    Digest(out)
}

/// The id of a root key.
pub fn root_id(root: &PublicKey) -> RootId {
    RootId(sha256(root.as_bytes()).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spki_and_pkcs8_are_what_the_crypto_library_reads() {
        let key = SigningKey::from_seed(Secret::new([3; 32]));
        assert_eq!(from_spki(&to_spki(&key.public())), Some(key.public()));
        let again = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&key.pkcs8()).unwrap();
        assert_eq!(again.public_key().as_ref(), key.public().as_bytes());
        let signature = key.sign(b"message");
        assert!(verify(&key.public(), b"message", &signature));
        assert!(!verify(&key.public(), b"massage", &signature));
        assert!(from_spki(&to_spki(&key.public())[1..]).is_none());
    }
}
