//! Sealing: secrets that the database must keep are encrypted with AES-256-GCM (NIST SP 800-38D) under numbered data keys, which
//! lie in the database wrapped under a key that does not ([`seal_keys`](super::seal_keys)). Each value is bound to its table,
//! column and row, so that one moved elsewhere does not open. Secrets that are looked up are known by a keyed hash.
//!
//! A sealed value is `2`, the number of its data key (4 bytes, big-endian), a nonce and the ciphertext. The key that encrypts it
//! is derived from the data key and its place, so that nonces, which are random, need to differ within one place only. What was
//! sealed before there were numbers has no such head (format 1): it opens as long as its key is there.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    hmac,
};
use horizon_model::{KeyId, Secret, TaggedSecret};
use horizon_wire::heartbeat::equal;
use thiserror::Error;
use zeroize::Zeroizing;

/// The key that the data keys hang on, where it is no hardware's. It lies in a file of its own, or in a Secret.
#[derive(Clone, Debug)]
pub struct EnvelopeKey(pub Secret);

/// A sealed value does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "a sealed value of the database does not open: the envelope key is another one, or the database was altered"
)]
pub struct SealError;

/// What a data key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    /// Seals values.
    Seal,
    /// Hashes what is looked up.
    Lookup,
    /// What replicas have in common: what they tell each other, stamps, packets.
    Shared,
    /// The tags of personal keys, which people hold. It spares work and protects nothing, so it is not replaced.
    Tag,
}

impl Purpose {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Seal => "seal",
            Self::Lookup => "lookup",
            Self::Shared => "shared",
            Self::Tag => "tag",
        }
    }

    pub(super) fn read(text: &str) -> Option<Self> {
        [Self::Seal, Self::Lookup, Self::Shared, Self::Tag].into_iter().find(|p| p.as_str() == text)
    }
}

/// The format of what is sealed under the envelope key itself.
pub(super) const FIRST_FORMAT: i64 = 1;
/// The format of what names its data key.
pub(super) const FORMAT: i64 = 2;
/// The first byte of a value in that format.
const HEAD: u8 = 2;
const HEAD_BYTES: usize = 5;
/// The length of a digest that is kept as it is, in format 1.
const DIGEST: usize = 32;

/// A data key, unwrapped.
#[derive(Clone, Debug)]
pub(super) struct DataKey {
    pub(super) number: i64,
    pub(super) purpose: Purpose,
    pub(super) format: i64,
    /// Whether what is new is sealed under it.
    pub(super) current: bool,
    pub(super) secret: Secret,
}

/// Where a sealed value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The verification secret of a server.
    Verification,
    /// The one before it.
    PreviousVerification,
    /// The secret of a session.
    Session,
    /// The private half of the key that a KeySet brought in.
    KeySet,
    /// The hash of an administrator's password.
    Password,
    /// What makes the one-time codes of an administrator.
    Totp,
    /// The digest of a recovery code of an administrator.
    RecoveryCode,
    /// The digest of the token of an administrator's session.
    SessionToken,
    /// That of the one before it.
    PreviousToken,
    /// The private half of a key of tokens.
    TokenKey,
    /// The digest of a request with an idempotency key.
    Request,
    /// What it was answered.
    Answer,
    /// The digest of the string of a hand-over.
    Handover,
    /// The hash of its code.
    HandoverCode,
    /// The digest of a registration key's secret.
    Registration,
}

impl Place {
    /// What it is called in format 1; `None` for what was not sealed then.
    fn first_label(self) -> Option<&'static [u8]> {
        Some(match self {
            Self::Verification | Self::PreviousVerification => b"verification secret of ",
            Self::Session => b"session secret of ",
            Self::KeySet => b"private key of KeySet ",
            Self::Totp => b"one-time codes of ",
            Self::TokenKey => b"token key ",
            Self::Answer => b"answer to ",
            _ => return None,
        })
    }

    /// Its table and column.
    fn column(self) -> &'static str {
        match self {
            Self::Verification => "servers.verification_secret",
            Self::PreviousVerification => "servers.previous_secret",
            Self::Session => "connections.secret",
            Self::KeySet => "keysets.key_sealed",
            Self::Password => "admins.password_hash",
            Self::Totp => "admins.mfa_secret",
            Self::RecoveryCode => "admin_recovery_codes.code_hash",
            Self::SessionToken => "admin_sessions.session_token",
            Self::PreviousToken => "admin_sessions.previous_token",
            Self::TokenKey => "token_keys.private_key",
            Self::Request => "idempotency_keys.request_digest",
            Self::Answer => "idempotency_keys.answer",
            Self::Handover => "key_handovers.secret_digest",
            Self::HandoverCode => "key_handovers.code_hash",
            Self::Registration => "registration_keys.secret_digest",
        }
    }
}

/// A value as the database keeps it, and the number that goes into the column beside it.
#[derive(Clone, Debug)]
pub(super) struct Sealed {
    pub(super) bytes: Vec<u8>,
    pub(super) key: i64,
}

enum SealKey {
    First(RandomizedNonceKey),
    Numbered(Box<hmac::Key>),
}

struct Keyed<K> {
    number: i64,
    key: K,
}

/// Seals and opens, hashes what is looked up, and makes the tags of personal keys.
pub(super) struct Sealer {
    /// The one in use first.
    seals: Vec<Keyed<SealKey>>,
    lookups: Vec<Keyed<hmac::Key>>,
    shared: Vec<Secret>,
    stamps: Vec<hmac::Key>,
    tags: Vec<hmac::Key>,
    keys: Vec<DataKey>,
}

fn derived(key: &Secret, label: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.expose()), label)
}

fn secret(tag: &hmac::Tag) -> Secret {
    Secret::from_slice(tag.as_ref()).expect("an HMAC-SHA256 tag has 32 bytes")
}

fn aead(key: &[u8]) -> RandomizedNonceKey {
    RandomizedNonceKey::new(&AES_256_GCM, key).expect("an HMAC-SHA256 tag has the length of an AES-256 key")
}

/// What sealed values hung on before there were data keys, as keys of data: seal, tag and shared.
pub(super) fn first_keys(envelope: &EnvelopeKey) -> [(Purpose, Secret); 3] {
    [
        (Purpose::Seal, secret(&derived(&envelope.0, b"horizon store seal v1"))),
        (Purpose::Tag, secret(&derived(&envelope.0, b"horizon personal key tag v1"))),
        (Purpose::Shared, envelope.0.clone()),
    ]
}

/// A value by which a database of that time knew its envelope key again. It says nothing about the key.
pub(super) fn first_check(envelope: &EnvelopeKey) -> Vec<u8> {
    derived(&envelope.0, b"horizon store check v1").as_ref()[..16].to_vec()
}

impl Sealer {
    /// Of keys of which one seals and is in use; there is one for tags and one that is shared.
    pub(super) fn new(keys: Vec<DataKey>) -> Self {
        let mut ordered: Vec<&DataKey> = keys.iter().collect();
        // What is in use comes first, then the newest.
        ordered.sort_by_key(|key| (!key.current, -key.number));
        let of = |purpose| ordered.iter().copied().filter(move |key| key.purpose == purpose);
        let hashing = |key: &Secret| hmac::Key::new(hmac::HMAC_SHA256, key.expose());
        let seal = |key: &DataKey| match key.format {
            FIRST_FORMAT => SealKey::First(aead(key.secret.expose())),
            _ => SealKey::Numbered(Box::new(hashing(&key.secret))),
        };
        let stamps = |key: &DataKey| {
            hmac::Key::new(hmac::HMAC_SHA256, derived(&key.secret, b"horizon challenge stamp v1").as_ref())
        };
        Self {
            seals: of(Purpose::Seal).map(|key| Keyed { number: key.number, key: seal(key) }).collect(),
            lookups: of(Purpose::Lookup)
                .map(|key| Keyed { number: key.number, key: hashing(&key.secret) })
                .collect(),
            shared: of(Purpose::Shared).map(|key| key.secret.clone()).collect(),
            stamps: of(Purpose::Shared).map(stamps).collect(),
            tags: of(Purpose::Tag).map(|key| hashing(&key.secret)).collect(),
            keys,
        }
    }

    /// The keys that it was made of.
    pub(super) fn keys(&self) -> &[DataKey] {
        &self.keys
    }

    /// The number of the key under which is sealed what is new.
    pub(super) fn sealing(&self) -> i64 {
        self.seals.first().map_or(0, |key| key.number)
    }

    /// Whether what is new is sealed in the format of before there were numbers.
    pub(super) fn is_first(&self) -> bool {
        self.seals.first().is_some_and(|key| matches!(key.key, SealKey::First(_)))
    }

    fn first(&self) -> Option<&RandomizedNonceKey> {
        self.seals.iter().find_map(|key| match &key.key {
            SealKey::First(key) => Some(key),
            SealKey::Numbered(_) => None,
        })
    }

    /// Seals a secret of `owner`.
    pub(super) fn seal(&self, place: Place, owner: &[u8; 16], secret: &Secret) -> Sealed {
        self.seal_bytes(place, owner, secret.expose())
    }

    /// The same for bytes of any length.
    pub(super) fn seal_bytes(&self, place: Place, owner: &[u8; 16], secret: &[u8]) -> Sealed {
        let Keyed { number, key } = self.seals.first().expect("one key seals");
        let own;
        let (key, head, aad) = match key {
            SealKey::First(key) => {
                // What was not sealed then was kept as it is.
                let Some(label) = place.first_label() else {
                    return Sealed { bytes: secret.to_vec(), key: *number };
                };
                (key, Vec::new(), [label, owner].concat())
            }
            SealKey::Numbered(key) => {
                let aad = numbered_aad(place, owner, *number);
                own = aead(hmac::sign(key, &aad).as_ref());
                (&own, head(*number), aad)
            }
        };
        let mut text = Zeroizing::new(secret.to_vec());
        // Sealing fails only for texts of many gibibytes and for a broken random generator, without which nothing works.
        let nonce = key
            .seal_in_place_append_tag(Aad::from(aad), &mut *text)
            .expect("a few bytes can be sealed with a random nonce");
        Sealed { bytes: [&head[..], nonce.as_ref().as_slice(), &text].concat(), key: *number }
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
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        if let Some((number, rest)) = headed(sealed) {
            let named = self.seals.iter().find_map(|key| match &key.key {
                SealKey::Numbered(numbered) if key.number == number => Some(numbered),
                _ => None,
            });
            if let Some(key) = named {
                let aad = numbered_aad(place, owner, number);
                let opened = open(&aead(hmac::sign(key, &aad).as_ref()), aad, rest);
                if opened.is_ok() {
                    return opened;
                }
            }
        }
        // A value of format 1 may begin like one of format 2 by chance.
        let first = self.first().ok_or(SealError)?;
        match place.first_label() {
            Some(label) => open(first, [label, owner].concat(), sealed),
            None if sealed.len() == DIGEST => Ok(Zeroizing::new(sealed.to_vec())),
            None => Err(SealError),
        }
    }

    /// Whether a digest is the one that is sealed. The comparison takes the same time for all digests.
    pub(super) fn is_digest(
        &self,
        place: Place,
        owner: &[u8; 16],
        sealed: &[u8],
        digest: &[u8; DIGEST],
    ) -> Result<bool, SealError> {
        Ok(equal(&self.open_bytes(place, owner, sealed)?, digest))
    }

    /// The keyed hash by which a digest is looked up, and the number of its key. `None` as long as the format of before is in use:
    /// then it is looked up as it is.
    pub(super) fn lookup(&self, place: Place, digest: &[u8; DIGEST]) -> Option<Sealed> {
        let Keyed { number, key } = self.lookups.first().filter(|_| !self.is_first())?;
        Some(Sealed { bytes: keyed(key, place, digest), key: *number })
    }

    /// Every form under which a digest may be kept.
    pub(super) fn lookups(&self, place: Place, digest: &[u8; DIGEST]) -> Vec<Vec<u8>> {
        let plain = self.first().map(|_| digest.to_vec());
        self.lookups.iter().map(|key| keyed(&key.key, place, digest)).chain(plain).collect()
    }

    /// What replicas have in common, what is in use first.
    pub(super) fn shared(&self) -> &[Secret] {
        &self.shared
    }

    /// A stamp by which the controller, or another replica of it, knows again what it gave out.
    pub(super) fn stamp(&self, text: &[u8]) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(hmac::sign(&self.stamps[0], text).as_ref());
        out
    }

    /// Whether a stamp is one of a text.
    pub(super) fn is_stamp(&self, text: &[u8], stamp: &[u8]) -> bool {
        self.stamps.iter().fold(false, |known, key| known | equal(hmac::sign(key, text).as_ref(), stamp))
    }

    /// Completes the random part of a personal key's secret by its tag.
    pub(super) fn tagged(&self, key: KeyId, random: &[u8; 32]) -> TaggedSecret {
        let mut tag = [0; TaggedSecret::TAG_BYTES];
        tag.copy_from_slice(&personal_tag(&self.tags[0], key, random).as_ref()[..TaggedSecret::TAG_BYTES]);
        TaggedSecret::new(random, tag)
    }

    /// Whether a secret can be one that this controller made for the key. What cannot is garbage: it reaches neither the
    /// database nor the costly hash.
    pub(super) fn plausible(&self, key: KeyId, secret: &TaggedSecret) -> bool {
        let (random, tag) = secret.split();
        self.tags.iter().any(|tags| equal(&personal_tag(tags, key, random).as_ref()[..tag.len()], tag))
    }
}

fn open(key: &RandomizedNonceKey, aad: Vec<u8>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(SealError)?;
    let mut text = Zeroizing::new(text.to_vec());
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let length = key.open_in_place(nonce, Aad::from(aad), &mut text).map_err(|_| SealError)?.len();
    text.truncate(length);
    Ok(text)
}

fn head(number: i64) -> Vec<u8> {
    let number = u32::try_from(number).expect("data keys are counted from 1");
    [&[HEAD][..], &number.to_be_bytes()].concat()
}

fn headed(sealed: &[u8]) -> Option<(i64, &[u8])> {
    let (head, rest) = sealed.split_first_chunk::<HEAD_BYTES>()?;
    let [HEAD, a, b, c, d] = *head else { return None };
    Some((i64::from(u32::from_be_bytes([a, b, c, d])), rest))
}

/// No column's name contains a zero byte, and owner and number have fixed lengths, so that places do not run into each other.
fn numbered_aad(place: Place, owner: &[u8; 16], number: i64) -> Vec<u8> {
    [&b"horizon sealed v2\0"[..], place.column().as_bytes(), b"\0", owner, &number.to_be_bytes()].concat()
}

fn keyed(key: &hmac::Key, place: Place, digest: &[u8; DIGEST]) -> Vec<u8> {
    let text = [&b"horizon lookup v1\0"[..], place.column().as_bytes(), b"\0", digest].concat();
    hmac::sign(key, &text).as_ref().to_vec()
}

fn personal_tag(key: &hmac::Key, id: KeyId, random: &[u8]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    context.update(id.as_bytes());
    context.update(random);
    context.sign()
}

/// Random bytes from the operating system's generator.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn key(number: i64, purpose: Purpose, format: i64, current: bool) -> DataKey {
        let secret = Secret::new([u8::try_from(number).unwrap(); 32]);
        DataKey { number, purpose, format, current, secret }
    }

    /// Of a seal key in use and one before it.
    fn sealer(current: i64, before: Option<i64>) -> Sealer {
        let keys = [key(100, Purpose::Tag, 2, true), key(101, Purpose::Shared, 2, true)];
        let seals = [(Some(current), true), (before, false)].into_iter().filter_map(|(n, c)| Some((n?, c)));
        let seals = seals.flat_map(|(number, current)| {
            let format = if number == 1 { FIRST_FORMAT } else { FORMAT };
            [key(number, Purpose::Seal, format, current), key(number + 50, Purpose::Lookup, FORMAT, current)]
        });
        Sealer::new(seals.filter(|key| key.number != 51).chain(keys).collect())
    }

    #[test]
    fn sealed_values_open_in_their_place_only() {
        for number in [1, 2] {
            let sealer = sealer(number, None);
            let secret = Secret::new([7; 32]);
            let sealed = sealer.seal(Place::Session, &[1; 16], &secret);
            assert_eq!(sealed.key, number);
            let sealed = sealed.bytes;
            let again = sealer.seal(Place::Session, &[1; 16], &secret).bytes;
            assert_ne!(sealed, again, "every seal has its own nonce");
            assert_eq!(sealer.open(Place::Session, &[1; 16], &sealed).unwrap().expose(), secret.expose());
            assert!(sealer.open(Place::Session, &[2; 16], &sealed).is_err());
            assert!(sealer.open(Place::Verification, &[1; 16], &sealed).is_err());
            for at in 0..sealed.len() {
                let mut changed = sealed.clone();
                changed[at] ^= 1;
                assert!(sealer.open(Place::Session, &[1; 16], &changed).is_err(), "{number} {at}");
                assert!(sealer.open(Place::Session, &[1; 16], &sealed[..at]).is_err());
            }
        }
    }

    #[test]
    fn columns_of_one_row_are_different_places() {
        let sealer = sealer(2, None);
        let sealed = sealer.seal(Place::Verification, &[1; 16], &Secret::new([7; 32])).bytes;
        assert!(sealer.open(Place::PreviousVerification, &[1; 16], &sealed).is_err());
        let digest = sealer.seal_bytes(Place::Password, &[1; 16], &[3; 32]).bytes;
        assert!(sealer.is_digest(Place::Password, &[1; 16], &digest, &[3; 32]).unwrap());
        assert!(!sealer.is_digest(Place::Password, &[1; 16], &digest, &[4; 32]).unwrap());
        assert!(sealer.is_digest(Place::RecoveryCode, &[1; 16], &digest, &[3; 32]).is_err());
        // A digest that somebody put there as it is proves nothing.
        assert!(sealer.is_digest(Place::Password, &[1; 16], &[3; 32], &[3; 32]).is_err());
    }

    #[test]
    fn both_keys_open_while_one_follows_the_other() {
        for (old, new) in [(1, 2), (2, 3)] {
            let before = sealer(old, None);
            let both = sealer(new, Some(old));
            let after = sealer(new, None);
            for place in [Place::Session, Place::Password] {
                let sealed = before.seal_bytes(place, &[1; 16], &[9; 32]).bytes;
                assert_eq!(both.open_bytes(place, &[1; 16], &sealed).unwrap()[..], [9; 32]);
                assert!(after.open_bytes(place, &[1; 16], &sealed).is_err());
                let sealed = both.seal_bytes(place, &[1; 16], &[9; 32]).bytes;
                assert_eq!(after.open_bytes(place, &[1; 16], &sealed).unwrap()[..], [9; 32]);
                assert!(before.open_bytes(place, &[1; 16], &sealed).is_err());
            }
        }
    }

    #[test]
    fn what_is_looked_up_is_hashed_under_a_key() {
        let (first, second, both) = (sealer(2, None), sealer(3, None), sealer(3, Some(2)));
        let hash = |sealer: &Sealer| sealer.lookup(Place::Registration, &[8; 32]).unwrap().bytes;
        assert_ne!(hash(&first), hash(&second));
        assert_eq!(hash(&both), hash(&second));
        let known = both.lookups(Place::Registration, &[8; 32]);
        assert_eq!(known, [hash(&second), hash(&first)]);
        assert!(!known.contains(&vec![8; 32]));
        // As long as what was kept before goes on, it is found as it was.
        let old = sealer(1, None);
        assert!(old.lookup(Place::Registration, &[8; 32]).is_none());
        assert_eq!(old.lookups(Place::Registration, &[8; 32]), [vec![8; 32]]);
        assert!(sealer(2, Some(1)).lookups(Place::Registration, &[8; 32]).contains(&vec![8; 32]));
    }

    #[test]
    fn stamps_are_known_across_a_rotation() {
        let with = |shared: &[(i64, bool)]| {
            let shared = shared.iter().map(|(number, current)| key(*number, Purpose::Shared, 2, *current));
            Sealer::new(
                shared.chain([key(2, Purpose::Seal, 2, true), key(3, Purpose::Tag, 2, true)]).collect(),
            )
        };
        let (old, both, new) = (with(&[(4, true)]), with(&[(4, false), (5, true)]), with(&[(5, true)]));
        let stamp = old.stamp(b"text");
        assert!(old.is_stamp(b"text", &stamp) && both.is_stamp(b"text", &stamp));
        assert!(!both.is_stamp(b"other", &stamp) && !new.is_stamp(b"text", &stamp));
        assert_eq!(both.stamp(b"text"), new.stamp(b"text"));
    }

    #[test]
    fn only_secrets_made_here_are_plausible() {
        let sealer = sealer(2, None);
        let id = KeyId(Uuid::from_u128(5));
        let secret = sealer.tagged(id, &[9; 32]);
        assert!(sealer.plausible(id, &secret));
        assert!(!sealer.plausible(KeyId(Uuid::from_u128(6)), &secret));
        assert!(!sealer.plausible(id, &TaggedSecret::new(&[9; 32], [9; 4])));
        let other = Sealer::new(vec![
            key(7, Purpose::Tag, 2, true),
            key(2, Purpose::Seal, 2, true),
            key(3, Purpose::Shared, 2, true),
        ]);
        assert!(!other.plausible(id, &secret));
    }

    proptest! {
        #[test]
        fn what_was_never_sealed_never_opens(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let sealer = sealer(3, Some(1));
            prop_assert!(sealer.open_bytes(Place::Session, &[1; 16], &bytes).is_err());
            let headed = [&head(3)[..], &bytes].concat();
            prop_assert!(sealer.open_bytes(Place::Answer, &[1; 16], &headed).is_err());
        }

        #[test]
        fn what_was_sealed_opens(bytes in proptest::collection::vec(any::<u8>(), 0..200), owner: [u8; 16]) {
            for sealer in [sealer(1, None), sealer(2, Some(1))] {
                let sealed = sealer.seal_bytes(Place::Answer, &owner, &bytes).bytes;
                prop_assert_eq!(&sealer.open_bytes(Place::Answer, &owner, &sealed).unwrap()[..], &bytes[..]);
            }
        }
    }
}
