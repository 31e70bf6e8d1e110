//! The key-encryption key, which wraps the data keys of the database: a file or an entry of a Secret, or a key of a hardware
//! security module that never leaves it.

use std::sync::Arc;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    hmac,
};
use data_encoding::HEXLOWER;
use horizon_model::Secret;
use thiserror::Error;
use zeroize::Zeroizing;

use super::{
    Keys, KeysError,
    token::{Token, TokenError, TokenSettings},
};
use crate::{config::Config, store::EnvelopeKey};

/// The bytes of the id of a key in a file.
const ID_BYTES: usize = 8;

/// Why something was not wrapped or unwrapped.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EnvelopeError {
    /// It was wrapped under another key, for something else, or it was altered.
    #[error(
        "what is wrapped under the envelope key {0} does not open: the key is another one, or the database was altered"
    )]
    Closed(String),
    /// The token does not do it.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The process ends.
    #[error("the controller is ending")]
    Ending,
}

/// The key-encryption key. A clone is the same one; `Debug` shows nothing of it but its id.
#[derive(Clone)]
pub enum Envelope {
    /// In this process's memory, from a file or a Secret.
    Key(EnvelopeKey),
    /// In a hardware security module.
    Token(Arc<Token>),
}

impl std::fmt::Debug for Envelope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Envelope({})", self.id())
    }
}

impl From<&EnvelopeKey> for Envelope {
    fn from(key: &EnvelopeKey) -> Self {
        Self::Key(key.clone())
    }
}

impl From<Arc<Token>> for Envelope {
    fn from(token: Arc<Token>) -> Self {
        Self::Token(token)
    }
}

fn derived(key: &EnvelopeKey, label: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.0.expose()), label)
}

fn wrapping(key: &EnvelopeKey) -> RandomizedNonceKey {
    RandomizedNonceKey::new(&AES_256_GCM, derived(key, b"horizon envelope wrap v1").as_ref())
        .expect("an HMAC-SHA256 tag has the length of an AES-256 key")
}

impl Envelope {
    /// The envelope key of the settings: that of hardware, or that which lies with the other keys.
    ///
    /// # Errors
    /// When neither is there, or the PIN cannot be read.
    pub fn of(config: &Config, keys: &Keys) -> Result<Self, KeysError> {
        match &config.pkcs11 {
            Some(at) => Ok(Arc::new(Token::new(TokenSettings::read(at)?)).into()),
            None => Ok(keys.envelope_key()?.into()),
        }
    }

    /// The name by which the database knows it. That of a key in a file is a fingerprint, and says nothing about the key.
    pub fn id(&self) -> String {
        match self {
            Self::Key(key) => {
                let tag = derived(key, b"horizon envelope id v1");
                format!("file/{}", HEXLOWER.encode(&tag.as_ref()[..ID_BYTES]))
            }
            Self::Token(token) => token.id(),
        }
    }

    /// `file`, which a Secret's entries are too, or `pkcs11`.
    pub fn provider(&self) -> &'static str {
        match self {
            Self::Key(_) => "file",
            Self::Token(_) => "pkcs11",
        }
    }

    /// The key itself, unless it is in hardware.
    pub fn key(&self) -> Option<&EnvelopeKey> {
        match self {
            Self::Key(key) => Some(key),
            Self::Token(_) => None,
        }
    }

    /// Wraps a key: nonce, ciphertext and tag of AES-256-GCM (NIST SP 800-38D), bound to `what`.
    ///
    /// # Errors
    /// When the hardware does not do it.
    pub async fn wrap(&self, what: &[u8], key: &Secret) -> Result<Vec<u8>, EnvelopeError> {
        match self {
            Self::Key(own) => {
                let mut text = Zeroizing::new(key.expose().to_vec());
                let nonce = wrapping(own)
                    .seal_in_place_append_tag(Aad::from(what), &mut *text)
                    .expect("a few bytes can be sealed with a random nonce");
                Ok([nonce.as_ref().as_slice(), &text].concat())
            }
            Self::Token(token) => {
                let (token, what, key) = (token.clone(), what.to_vec(), key.clone());
                apart(move || token.wrap(&what, key.expose())).await
            }
        }
    }

    /// The key that was wrapped.
    ///
    /// # Errors
    /// When it was wrapped otherwise, or the hardware does not do it.
    pub async fn unwrap(&self, what: &[u8], wrapped: &[u8]) -> Result<Secret, EnvelopeError> {
        let closed = || EnvelopeError::Closed(self.id());
        let text = match self {
            Self::Key(own) => {
                let (nonce, text) = wrapped.split_first_chunk::<NONCE_LEN>().ok_or_else(closed)?;
                let mut text = Zeroizing::new(text.to_vec());
                let nonce = Nonce::assume_unique_for_key(*nonce);
                let opened = wrapping(own).open_in_place(nonce, Aad::from(what), &mut text);
                let length = opened.map_err(|_| closed())?.len();
                text.truncate(length);
                text
            }
            Self::Token(token) => {
                let (token, what, wrapped) = (token.clone(), what.to_vec(), wrapped.to_vec());
                apart(move || token.unwrap(&what, &wrapped)).await.map_err(|error| match error {
                    EnvelopeError::Token(TokenError::Closed) => closed(),
                    error => error,
                })?
            }
        };
        Secret::from_slice(&text).ok_or_else(closed)
    }

    /// Whether it can be used now.
    ///
    /// # Errors
    /// Why it cannot.
    pub async fn check(&self) -> Result<(), EnvelopeError> {
        match self {
            Self::Key(_) => Ok(()),
            Self::Token(token) => {
                let token = token.clone();
                apart(move || token.check()).await
            }
        }
    }
}

/// Runs what may wait for hardware off the async threads.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TokenError> + Send + 'static,
) -> Result<T, EnvelopeError> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| EnvelopeError::Ending)??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_wrapped_opens_under_its_key_for_its_purpose_only() {
        let key = |byte| Envelope::Key(EnvelopeKey(Secret::new([byte; 32])));
        let wrapped = key(1).wrap(b"data key 7", &Secret::new([9; 32])).await.unwrap();
        assert_eq!(key(1).unwrap(b"data key 7", &wrapped).await.unwrap().expose(), &[9; 32]);
        assert!(key(1).unwrap(b"data key 8", &wrapped).await.is_err());
        assert!(key(2).unwrap(b"data key 7", &wrapped).await.is_err());
        for end in 0..wrapped.len() {
            assert!(key(1).unwrap(b"data key 7", &wrapped[..end]).await.is_err());
        }
        assert_ne!(key(1).id(), key(2).id());
        let shown = format!("{:?} {}", key(1), key(1).id());
        assert!(!shown.contains("0101"), "{shown}");
    }
}
