//! Who may speak on the bus: what replicas write carries a tag, HMAC-SHA256 (RFC 2104) cut to 16 bytes, under a key that hangs
//! on the envelope key. All replicas of an organisation have that, and neither the database nor Redis does.

use aws_lc_rs::{hkdf, hmac};
use data_encoding::HEXLOWER;
use horizon_model::Secret;
use zeroize::Zeroizing;

use crate::store::EnvelopeKey;

/// The length of a tag before its text form, in bytes.
const BYTES: usize = 16;
/// The length of a tag as it is written, in bytes.
pub(super) const TAG: usize = 2 * BYTES;
/// What the key is for.
const LABEL: &[u8] = b"horizon bus v1";

/// The key of what replicas tell each other. It is wiped when dropped, and `Debug` shows nothing of it.
#[derive(Clone, Debug)]
pub struct BusKey(Secret);

impl BusKey {
    /// The key of all that have this envelope key: HKDF-SHA256 (RFC 5869).
    pub fn of(envelope: &EnvelopeKey) -> Self {
        let mut key = Zeroizing::new([0; 32]);
        hkdf::Salt::new(hkdf::HKDF_SHA256, &[])
            .extract(envelope.0.expose())
            .expand(&[LABEL], hkdf::HKDF_SHA256)
            .and_then(|expanded| expanded.fill(&mut *key))
            .expect("HKDF-SHA256 gives 32 bytes");
        Self(Secret::new(*key))
    }

    fn tag(&self, way: &[u8], text: &[u8]) -> [u8; BYTES] {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, self.0.expose()));
        // No name of a way is the beginning of another's, so no text of one way is one of another.
        context.update(way);
        context.update(text);
        let mut tag = [0; BYTES];
        tag.copy_from_slice(&context.sign().as_ref()[..BYTES]);
        tag
    }

    /// A text with its tag before it, for one way.
    pub(super) fn tagged(&self, way: &[u8], text: &str) -> String {
        HEXLOWER.encode(&self.tag(way, text.as_bytes())) + text
    }

    /// The text after a tag that is right for it and this way. The comparison takes the same time for all tags.
    pub(super) fn verified<'a>(&self, way: &[u8], tagged: &'a [u8]) -> Option<&'a [u8]> {
        let (claimed, text) = tagged.split_first_chunk::<TAG>()?;
        let claimed = HEXLOWER.decode(claimed).ok()?;
        horizon_wire::heartbeat::equal(&self.tag(way, text), &claimed).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> BusKey {
        BusKey::of(&EnvelopeKey(Secret::new([byte; 32])))
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
        assert_eq!(format!("{:?}", key(1)), "BusKey(Secret(..))");
    }

    #[test]
    fn the_key_is_not_the_envelope_key() {
        let (master, bus) = (Secret::new([1; 32]), key(1));
        assert_ne!(master.expose(), bus.0.expose());
        // As any HKDF-SHA256 without salt makes it: replicas of different versions understand each other.
        let prk = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &[0; 32]), master.expose());
        let prk = hmac::Key::new(hmac::HMAC_SHA256, prk.as_ref());
        let expanded = hmac::sign(&prk, &[LABEL, &[1]].concat());
        assert_eq!(expanded.as_ref(), bus.0.expose());
    }
}
