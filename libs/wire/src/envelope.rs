//! Signed envelopes: the exact bytes that were sent, under a context that says what they are.

use horizon_model::PublicKey;
use thiserror::Error;

use crate::{
    key::{self, SigningKey},
    proto,
};

/// What a signature is for. A signature under one context says nothing under another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// A KeySet.
    KeySet,
    /// A delta of an appliance's state.
    State,
    /// A ticket for a client.
    Ticket,
    /// A checkpoint of the audit trail.
    Audit,
}

impl Context {
    fn label(self) -> &'static [u8] {
        match self {
            Self::KeySet => b"horizon keyset v1\0",
            Self::State => b"horizon state v1\0",
            Self::Ticket => b"horizon ticket v1\0",
            Self::Audit => b"horizon audit checkpoint v1\0",
        }
    }

    /// The bytes that are signed for a payload.
    pub(crate) fn message(self, payload: &[u8]) -> Vec<u8> {
        [self.label(), payload].concat()
    }
}

/// Why an envelope was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EnvelopeError {
    /// It names no key of 32 bytes.
    #[error("the signature names no key")]
    NoKey,
    /// The key is not one of those that may sign this.
    #[error("signed by {0}, which the organisation's KeySet does not list for this use")]
    Untrusted(PublicKey),
    /// The signature does not match.
    #[error("the signature does not match the content")]
    BadSignature,
}

/// Signs `payload` for `context`.
pub fn seal(context: Context, key: &SigningKey, payload: Vec<u8>) -> proto::Envelope {
    let signature = key.sign(&context.message(&payload));
    proto::Envelope { key: key.public().0.to_vec(), payload, signature }
}

/// The payload, if one of the keys that `trusted` accepts signed it for `context`.
pub fn open(
    context: Context,
    envelope: &proto::Envelope,
    trusted: impl Fn(&PublicKey) -> bool,
) -> Result<&[u8], EnvelopeError> {
    let key = PublicKey::from_slice(&envelope.key).ok_or(EnvelopeError::NoKey)?;
    if !trusted(&key) {
        return Err(EnvelopeError::Untrusted(key));
    }
    if !key::verify(&key, &context.message(&envelope.payload), &envelope.signature) {
        return Err(EnvelopeError::BadSignature);
    }
    Ok(&envelope.payload)
}

#[cfg(test)]
mod tests {
    use horizon_model::Secret;

    use super::*;

    #[test]
    fn only_the_right_key_context_and_bytes_open() {
        let key = SigningKey::from_seed(Secret::new([1; 32]));
        let sealed = seal(Context::State, &key, b"payload".to_vec());
        let mine = |k: &PublicKey| *k == key.public();
        assert_eq!(open(Context::State, &sealed, mine), Ok(&b"payload"[..]));
        assert_eq!(open(Context::Ticket, &sealed, mine), Err(EnvelopeError::BadSignature));
        assert_eq!(open(Context::State, &sealed, |_| false), Err(EnvelopeError::Untrusted(key.public())));
        let mut changed = sealed.clone();
        changed.payload[0] ^= 1;
        assert_eq!(open(Context::State, &changed, mine), Err(EnvelopeError::BadSignature));
        let mut keyless = sealed;
        keyless.key.pop();
        assert_eq!(open(Context::State, &keyless, mine), Err(EnvelopeError::NoKey));
    }
}
