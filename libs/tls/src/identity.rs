//! Who an end is.

use std::fmt;

use aws_lc_rs::{
    encoding::AsBigEndian,
    hmac,
    signature::{Ed25519KeyPair, KeyPair},
};
use zeroize::Zeroizing;

/// The Ed25519 key pair that proves who an end is. Wiped when dropped; `Debug` shows the public key only.
#[derive(Clone)]
pub struct Identity {
    pkcs8: Zeroizing<Vec<u8>>,
    public_key: [u8; 32],
}

/// The bytes are not an Ed25519 private key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are not an Ed25519 private key in PKCS#8 form")]
pub struct IdentityError;

impl Identity {
    /// Takes a private key in PKCS#8 DER form (RFC 8410), version 1 or 2.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, IdentityError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).map_err(|_| IdentityError)?;
        Self::from_pair(&pair)
    }

    /// Takes the 32-byte seed of a private key (RFC 8032).
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, IdentityError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| IdentityError)?;
        Self::from_pair(&pair)
    }

    fn from_pair(pair: &Ed25519KeyPair) -> Result<Self, IdentityError> {
        const PREFIX: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        let seed = pair.seed().map_err(|_| IdentityError)?;
        let seed = seed.as_be_bytes().map_err(|_| IdentityError)?;
        let mut pkcs8 = Zeroizing::new(PREFIX.to_vec());
        pkcs8.extend_from_slice(seed.as_ref());
        let public_key = pair.public_key().as_ref().try_into().map_err(|_| IdentityError)?;
        Ok(Self { pkcs8, public_key })
    }

    /// The public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.public_key
    }

    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// A key for one purpose, the same after every restart.
    pub fn derive(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.pkcs8);
        let mut out = Zeroizing::new([0; 32]);
        out.copy_from_slice(hmac::sign(&key, purpose.as_bytes()).as_ref());
        out
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}
