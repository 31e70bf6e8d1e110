//! Who may speak on the bus: what replicas write carries a tag, HMAC-SHA256 (RFC 2104) cut to 16 bytes, under a key that hangs
//! on a data key. All replicas of an organisation have that, and it is in neither the database nor Redis in the clear.

use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::{hkdf, hmac};
use data_encoding::HEXLOWER;
use horizon_model::Secret;
use zeroize::Zeroizing;

/// The length of a tag before its text form, in bytes.
const BYTES: usize = 16;
/// The length of a tag as it is written, in bytes.
pub(super) const TAG: usize = 2 * BYTES;
/// What the key is for.
const LABEL: &[u8] = b"horizon bus v1";

/// The keys of what replicas tell each other: under the first is said what is said, and under any of them it is heard, while one
/// follows the other. They are wiped when dropped, and `Debug` shows nothing of them. A clone has the same keys.
#[derive(Clone, Debug)]
pub struct BusKey(Arc<RwLock<Vec<Secret>>>);

/// The key of all that have this data key: HKDF-SHA256 (RFC 5869).
fn derive(shared: &Secret) -> Secret {
    let mut key = Zeroizing::new([0; 32]);
    hkdf::Salt::new(hkdf::HKDF_SHA256, &[])
        .extract(shared.expose())
        .expand(&[LABEL], hkdf::HKDF_SHA256)
        .and_then(|expanded| expanded.fill(&mut *key))
        .expect("HKDF-SHA256 gives 32 bytes");
    Secret::new(*key)
}

fn tag(key: &Secret, way: &[u8], text: &[u8]) -> [u8; BYTES] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key.expose()));
    // No name of a way is the beginning of another's, so no text of one way is one of another.
    context.update(way);
    context.update(text);
    let mut tag = [0; BYTES];
    tag.copy_from_slice(&context.sign().as_ref()[..BYTES]);
    tag
}

impl BusKey {
    /// Of the data keys that replicas share, of which there is at least one; the one in use first.
    pub fn new(shared: &[Secret]) -> Self {
        Self(Arc::new(RwLock::new(shared.iter().map(derive).collect())))
    }

    /// Goes on with other keys.
    pub fn replace(&self, shared: &[Secret]) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = shared.iter().map(derive).collect();
    }

    fn keys(&self) -> Vec<Secret> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A text with its tag before it, for one way.
    pub(super) fn tagged(&self, way: &[u8], text: &str) -> String {
        HEXLOWER.encode(&tag(&self.keys()[0], way, text.as_bytes())) + text
    }

    /// The text after a tag that is right for it and this way. The comparison takes the same time for all tags.
    pub(super) fn verified<'a>(&self, way: &[u8], tagged: &'a [u8]) -> Option<&'a [u8]> {
        let (claimed, text) = tagged.split_first_chunk::<TAG>()?;
        let claimed = HEXLOWER.decode(claimed).ok()?;
        let known = |key: &Secret| horizon_wire::heartbeat::equal(&tag(key, way, text), &claimed);
        self.keys().iter().any(known).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> BusKey {
        BusKey::new(&[Secret::new([byte; 32])])
    }

    #[test]
    fn only_who_has_the_key_speaks() {
        let said = key(1).tagged(b"redis", "text");
        assert_eq!(said.len(), TAG + 4);
        assert_eq!(key(1).verified(b"redis", said.as_bytes()), Some(b"text".as_slice()));
        assert_eq!(key(2).verified(b"redis", said.as_bytes()), None);
        assert_eq!(key(1).verified(b"database", said.as_bytes()), None);
        assert_eq!(key(1).verified(b"redis", said.replace("text", "next").as_bytes()), None);
        assert_eq!(key(1).verified(b"redis", said.to_uppercase().as_bytes()), None);
        for end in 0..said.len() {
            assert_eq!(key(1).verified(b"redis", &said.as_bytes()[..end]), None);
        }
        let shown = format!("{:?}", key(1));
        assert!(shown.contains("Secret(..)") && !shown.contains('1'), "{shown}");
    }

    #[test]
    fn one_key_follows_another() {
        let (old, new, speaker) = (key(1), key(2), key(1));
        let early = speaker.tagged(b"redis", "text");
        speaker.replace(&[Secret::new([2; 32]), Secret::new([1; 32])]);
        assert!(speaker.verified(b"redis", early.as_bytes()).is_some());
        let late = speaker.tagged(b"redis", "text");
        assert!(new.verified(b"redis", late.as_bytes()).is_some());
        assert!(old.verified(b"redis", late.as_bytes()).is_none());
    }

    #[test]
    fn the_key_is_not_the_data_key() {
        let (master, bus) = (Secret::new([1; 32]), key(1).keys());
        assert_ne!(master.expose(), bus[0].expose());
        // As any HKDF-SHA256 without salt makes it: replicas of different versions understand each other.
        let prk = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &[0; 32]), master.expose());
        let prk = hmac::Key::new(hmac::HMAC_SHA256, prk.as_ref());
        let expanded = hmac::sign(&prk, &[LABEL, &[1]].concat());
        assert_eq!(expanded.as_ref(), bus[0].expose());
    }
}
