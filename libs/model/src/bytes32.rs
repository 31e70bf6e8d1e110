//! The 32-byte values: public keys, digests and secrets. Text forms are lower-case base32 without padding, except for
//! digests, which people compare with other tools and which are therefore hexadecimal.

use std::{fmt, str::FromStr};

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A text or byte string that is not a value of 32 bytes in the form asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected {expected} for 32 bytes")]
pub struct InvalidBytes {
    expected: &'static str,
}

macro_rules! bytes32 {
    ($(#[$doc:meta])* $name:ident, $encode:expr, $decode:expr, $form:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// Reads exactly 32 bytes; `None` when the length is another.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// The bytes.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&$encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = InvalidBytes;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $decode(text).and_then(|b| Self::from_slice(&b)).ok_or(InvalidBytes { expected: $form })
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidBytes;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}

fn base32(bytes: &[u8; 32]) -> String {
    BASE32_NOPAD.encode(bytes).to_ascii_lowercase()
}

fn from_base32(text: &str) -> Option<Vec<u8>> {
    BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).ok()
}

fn hex(bytes: &[u8; 32]) -> String {
    HEXLOWER.encode(bytes)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    HEXLOWER.decode(text.as_bytes()).ok()
}

bytes32! {
    /// An Ed25519 public key (RFC 8032): who an appliance, a device or a controller is.
    PublicKey, base32, from_base32, "52 characters of base32"
}
bytes32! {
    /// The SHA-256 of an organisation's root public key, which tokens and personal keys pin.
    RootId, base32, from_base32, "52 characters of base32"
}
bytes32! {
    /// A SHA-256 digest (FIPS 180-4).
    Digest, hex, from_hex, "64 hexadecimal digits"
}

/// 32 secret bytes. They are wiped when dropped, have no text form, and `Debug` shows nothing of them. Compare them
/// with a constant-time function of the crypto library, which is why there is no `PartialEq`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Takes the bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads exactly 32 bytes; `None` when the length is another.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes, for the crypto library and the sealed store only.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The secret of a personal key: 256 random bits, and a tag of 32 bits by which the controller tells garbage before it
/// computes anything costly. Wiped when dropped; `Debug` shows nothing of it.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct TaggedSecret([u8; Self::BYTES]);

impl TaggedSecret {
    /// Length of the tag.
    pub const TAG_BYTES: usize = 4;
    /// Length of both.
    pub const BYTES: usize = 32 + Self::TAG_BYTES;

    /// Puts a secret and its tag together.
    pub fn new(random: &[u8; 32], tag: [u8; Self::TAG_BYTES]) -> Self {
        let mut bytes = [0; Self::BYTES];
        bytes[..32].copy_from_slice(random);
        bytes[32..].copy_from_slice(&tag);
        Self(bytes)
    }

    /// Reads exactly 36 bytes; `None` when the length is another.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes, for the string that people paste and the controller they are sent to only.
    pub fn expose(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    /// The random part and the tag.
    pub fn split(&self) -> (&[u8], &[u8]) {
        self.0.split_at(32)
    }
}

impl fmt::Debug for TaggedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TaggedSecret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_return() {
        let key = PublicKey([7; 32]);
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(key.to_string().len(), 52);
        let digest = Digest([0xab; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!("zz".parse::<Digest>().is_err());
        assert!(PublicKey::from_slice(&[0; 31]).is_none());
    }

    #[test]
    fn secrets_do_not_show() {
        assert_eq!(format!("{:?}", Secret::new([9; 32])), "Secret(..)");
        let tagged = TaggedSecret::new(&[9; 32], [8; 4]);
        assert_eq!(tagged.split(), (&[9; 32][..], &[8; 4][..]));
        assert_eq!(format!("{tagged:?}"), "TaggedSecret(..)");
    }
}
