//! Sealing: secrets that the database must keep are encrypted with AES-256-GCM (NIST SP 800-38D) under a key that is not in
//! the database. Each is bound to its place, so that a sealed value moved to another row does not open.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    hmac,
};
use horizon_model::{KeyId, Secret, TaggedSecret};
use thiserror::Error;

/// The key that everything sealed in the database hangs on. It lies in a file of its own.
#[derive(Clone, Debug)]
pub struct EnvelopeKey(pub Secret);

/// A sealed value does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "a sealed value of the database does not open: the envelope key is another one, or the database was altered"
)]
pub struct SealError;

/// Where a sealed value lies.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// The verification secret of a server, current or previous.
    Verification,
    /// The secret of a session.
    Session,
    /// The private half of the key that a KeySet brought in.
    KeySet,
    /// What makes the one-time codes of an administrator.
    Totp,
    /// The private half of a key of tokens.
    TokenKey,
    /// What a request with an idempotency key was answered.
    Answer,
}

impl Place {
    fn label(self) -> &'static [u8] {
        match self {
            Self::Verification => b"verification secret of ",
            Self::Session => b"session secret of ",
            Self::KeySet => b"private key of KeySet ",
            Self::Totp => b"one-time codes of ",
            Self::TokenKey => b"token key ",
            Self::Answer => b"answer to ",
        }
    }
}

/// Seals and opens, and makes the tags of personal keys.
pub(super) struct Sealer {
    key: RandomizedNonceKey,
    tags: hmac::Key,
    stamps: hmac::Key,
    check: Vec<u8>,
}

impl Sealer {
    pub(super) fn new(envelope: &EnvelopeKey) -> Self {
        let master = hmac::Key::new(hmac::HMAC_SHA256, envelope.0.expose());
        let derive = |label: &[u8]| hmac::sign(&master, label);
        let key = RandomizedNonceKey::new(&AES_256_GCM, derive(b"horizon store seal v1").as_ref())
            .expect("an HMAC-SHA256 tag has the length of an AES-256 key");
        let tags = hmac::Key::new(hmac::HMAC_SHA256, derive(b"horizon personal key tag v1").as_ref());
        let stamps = hmac::Key::new(hmac::HMAC_SHA256, derive(b"horizon challenge stamp v1").as_ref());
        let check = derive(b"horizon store check v1").as_ref()[..16].to_vec();
        Self { key, tags, stamps, check }
    }

    /// A value by which the database knows its envelope key again. It says nothing about the key.
    pub(super) fn check(&self) -> &[u8] {
        &self.check
    }

    /// Nonce, ciphertext and tag of a secret of `owner`.
    pub(super) fn seal(&self, place: Place, owner: &[u8; 16], secret: &Secret) -> Vec<u8> {
        self.seal_bytes(place, owner, secret.expose())
    }

    /// The same for bytes of any length.
    pub(super) fn seal_bytes(&self, place: Place, owner: &[u8; 16], secret: &[u8]) -> Vec<u8> {
        let mut text = zeroize::Zeroizing::new(secret.to_vec());
        let aad = Aad::from([place.label(), owner].concat());
        // Sealing fails only for texts of many gibibytes and for a broken random generator, without which nothing works.
        let nonce = self
            .key
            .seal_in_place_append_tag(aad, &mut *text)
            .expect("a few bytes can be sealed with a random nonce");
        [nonce.as_ref().as_slice(), &text].concat()
    }

    /// The secret of `owner`.
    pub(super) fn open(&self, place: Place, owner: &[u8; 16], sealed: &[u8]) -> Result<Secret, SealError> {
        Secret::from_slice(&self.open_bytes(place, owner, sealed)?).ok_or(SealError)
    }

    /// The bytes of `owner`.
    pub(super) fn open_bytes(
        &self,
        place: Place,
        owner: &[u8; 16],
        sealed: &[u8],
    ) -> Result<zeroize::Zeroizing<Vec<u8>>, SealError> {
        let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(SealError)?;
        let mut text = zeroize::Zeroizing::new(text.to_vec());
        let aad = Aad::from([place.label(), owner].concat());
        let open = self
            .key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut text)
            .map_err(|_| SealError)?;
        let length = open.len();
        text.truncate(length);
        Ok(text)
    }

    /// A stamp by which the controller, or another replica of it, knows again what it gave out.
    pub(super) fn stamp(&self, text: &[u8]) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(hmac::sign(&self.stamps, text).as_ref());
        out
    }

    /// Completes the random part of a personal key's secret by its tag.
    pub(super) fn tagged(&self, key: KeyId, random: &[u8; 32]) -> TaggedSecret {
        let mut tag = [0; TaggedSecret::TAG_BYTES];
        tag.copy_from_slice(&self.tag(key, random).as_ref()[..TaggedSecret::TAG_BYTES]);
        TaggedSecret::new(random, tag)
    }

    /// Whether a secret can be one that this controller made for the key. What cannot is garbage: it reaches neither the
    /// database nor the costly hash.
    pub(super) fn plausible(&self, key: KeyId, secret: &TaggedSecret) -> bool {
        let (random, tag) = secret.split();
        horizon_wire::heartbeat::equal(&self.tag(key, random).as_ref()[..tag.len()], tag)
    }

    fn tag(&self, key: KeyId, random: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.tags);
        context.update(key.as_bytes());
        context.update(random);
        context.sign()
    }
}

/// Random bytes from the operating system's generator.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn sealed_values_open_in_their_place_only() {
        let sealer = Sealer::new(&EnvelopeKey(Secret::new([1; 32])));
        let secret = Secret::new([7; 32]);
        let sealed = sealer.seal(Place::Session, &[1; 16], &secret);
        assert_ne!(sealed, sealer.seal(Place::Session, &[1; 16], &secret), "every seal has its own nonce");
        assert_eq!(sealer.open(Place::Session, &[1; 16], &sealed).unwrap().expose(), secret.expose());
        assert!(sealer.open(Place::Session, &[2; 16], &sealed).is_err());
        assert!(sealer.open(Place::Verification, &[1; 16], &sealed).is_err());
        let mut changed = sealed.clone();
        changed[20] ^= 1;
        assert!(sealer.open(Place::Session, &[1; 16], &changed).is_err());
        assert!(sealer.open(Place::Session, &[1; 16], &sealed[..11]).is_err());
        let other = Sealer::new(&EnvelopeKey(Secret::new([2; 32])));
        assert!(other.open(Place::Session, &[1; 16], &sealed).is_err());
    }

    #[test]
    fn only_secrets_made_here_are_plausible() {
        let sealer = Sealer::new(&EnvelopeKey(Secret::new([1; 32])));
        let key = KeyId(Uuid::from_u128(5));
        let secret = sealer.tagged(key, &[9; 32]);
        assert!(sealer.plausible(key, &secret));
        assert!(!sealer.plausible(KeyId(Uuid::from_u128(6)), &secret));
        assert!(!sealer.plausible(key, &TaggedSecret::new(&[9; 32], [9; 4])));
        assert!(!Sealer::new(&EnvelopeKey(Secret::new([2; 32]))).plausible(key, &secret));
    }
}
