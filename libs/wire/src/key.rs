//! Ed25519 keys (RFC 8032).

use aws_lc_rs::{
    digest,
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use horizon_model::{Digest, PublicKey, RootId, Secret};

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
    fn signatures_are_of_one_key_and_message() {
        let key = SigningKey::from_seed(Secret::new([3; 32]));
        let signature = key.sign(b"message");
        assert!(verify(&key.public(), b"message", &signature));
        assert!(!verify(&key.public(), b"massage", &signature));
        assert!(!verify(&SigningKey::from_seed(Secret::new([4; 32])).public(), b"message", &signature));
    }
}
