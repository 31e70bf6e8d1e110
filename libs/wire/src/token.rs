//! The strings people paste: registration tokens (`hzn-reg-…`) and personal keys (`hzn-key-…`).
//!
//! Both are base32 without padding over a protobuf message and a 4-byte SHA-256 checksum, so that a mangled paste is told
//! from a wrong secret before anything is sent.

use data_encoding::BASE32_NOPAD;
use horizon_model::{KeyId, RootId, Secret, TaggedSecret};
use prost::Message;
use thiserror::Error;

use crate::{key::sha256, proto};

/// The longest string accepted, in bytes.
pub const MAX_BYTES: usize = 4096;
/// The most controller addresses a string names.
pub const MAX_CONTROLLERS: usize = 16;
const MAX_ADDRESS_BYTES: usize = 260;
const CHECKSUM_BYTES: usize = 4;
const REGISTRATION: &str = "hzn-reg-";
const PERSONAL: &str = "hzn-key-";
const HANDOVER: &str = "hzn-hand-";

/// Why a pasted string was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TokenError {
    /// It does not start as it should.
    #[error("this is not {expected}: it should start with '{prefix}'")]
    WrongKind {
        /// What was asked for.
        expected: &'static str,
        /// How that starts.
        prefix: &'static str,
    },
    /// Characters are missing or wrong.
    #[error("the text is damaged: characters are missing or changed; copy it again, whole")]
    Damaged,
    /// It is longer than any such string.
    #[error("the text is longer than {MAX_BYTES} characters")]
    TooLong,
}

/// What a server operator pastes: whom to register with, and the one-time secret.
#[derive(Clone, Debug)]
pub struct RegistrationToken {
    /// Controllers as `host:port`, best first.
    pub controllers: Vec<String>,
    /// The organisation's root.
    pub root: RootId,
    /// The name of the `RegistrationKey`.
    pub key_name: String,
    /// The secret; 256 random bits.
    pub secret: Secret,
}

impl RegistrationToken {
    /// The string.
    pub fn encode(&self) -> String {
        let content = proto::RegistrationToken {
            controllers: self.controllers.clone(),
            root_id: self.root.0.to_vec(),
            key_name: self.key_name.clone(),
            secret: self.secret.expose().to_vec(),
        };
        wrap(REGISTRATION, &content)
    }

    /// Reads the string.
    pub fn decode(text: &str) -> Result<Self, TokenError> {
        let raw: proto::RegistrationToken = unwrap(text, REGISTRATION, "a registration token")?;
        Ok(Self {
            controllers: controllers(raw.controllers)?,
            root: RootId::from_slice(&raw.root_id).ok_or(TokenError::Damaged)?,
            key_name: raw.key_name,
            secret: Secret::from_slice(&raw.secret).ok_or(TokenError::Damaged)?,
        })
    }
}

/// What a user pastes once per device.
#[derive(Clone, Debug)]
pub struct PersonalKey {
    /// Controllers as `host:port`, best first.
    pub controllers: Vec<String>,
    /// The organisation's root.
    pub root: RootId,
    /// The key.
    pub id: KeyId,
    /// The secret and its tag.
    pub secret: TaggedSecret,
}

impl PersonalKey {
    /// The string.
    pub fn encode(&self) -> String {
        let content = proto::PersonalKey {
            controllers: self.controllers.clone(),
            root_id: self.root.0.to_vec(),
            key_id: self.id.as_bytes().to_vec(),
            secret: self.secret.expose().to_vec(),
        };
        wrap(PERSONAL, &content)
    }

    /// Reads the string.
    pub fn decode(text: &str) -> Result<Self, TokenError> {
        let raw: proto::PersonalKey = unwrap(text, PERSONAL, "a personal key")?;
        Ok(Self {
            controllers: controllers(raw.controllers)?,
            root: RootId::from_slice(&raw.root_id).ok_or(TokenError::Damaged)?,
            id: KeyId::from_slice(&raw.key_id).ok_or(TokenError::Damaged)?,
            secret: TaggedSecret::from_slice(&raw.secret).ok_or(TokenError::Damaged)?,
        })
    }
}

/// What a person is given instead of a personal key: with the code that they are told in another way, their client fetches it.
#[derive(Clone, Debug)]
pub struct Handover {
    /// Controllers as `host:port`, best first.
    pub controllers: Vec<String>,
    /// The organisation's root.
    pub root: RootId,
    /// Which hand-over.
    pub id: [u8; 16],
    /// The secret; 256 random bits. Without the code it is useless.
    pub secret: Secret,
}

impl Handover {
    /// Whether a text is meant to be one.
    pub fn is_meant(text: &str) -> bool {
        text.trim_start().starts_with(HANDOVER)
    }

    /// The string.
    pub fn encode(&self) -> String {
        let content = proto::Handover {
            controllers: self.controllers.clone(),
            root_id: self.root.0.to_vec(),
            id: self.id.to_vec(),
            secret: self.secret.expose().to_vec(),
        };
        wrap(HANDOVER, &content)
    }

    /// Reads the string.
    pub fn decode(text: &str) -> Result<Self, TokenError> {
        let raw: proto::Handover = unwrap(text, HANDOVER, "a hand-over")?;
        Ok(Self {
            controllers: controllers(raw.controllers)?,
            root: RootId::from_slice(&raw.root_id).ok_or(TokenError::Damaged)?,
            id: raw.id.try_into().map_err(|_| TokenError::Damaged)?,
            secret: Secret::from_slice(&raw.secret).ok_or(TokenError::Damaged)?,
        })
    }
}

fn wrap(prefix: &str, content: &impl Message) -> String {
    let mut bytes = content.encode_to_vec();
    let checksum = sha256(&bytes);
    bytes.extend_from_slice(&checksum.0[..CHECKSUM_BYTES]);
    format!("{prefix}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
}

fn unwrap<M: Message + Default>(
    text: &str,
    prefix: &'static str,
    expected: &'static str,
) -> Result<M, TokenError> {
    let text = text.trim();
    if text.len() > MAX_BYTES {
        return Err(TokenError::TooLong);
    }
    let body = text.strip_prefix(prefix).ok_or(TokenError::WrongKind { expected, prefix })?;
    let bytes = BASE32_NOPAD.decode(body.to_ascii_uppercase().as_bytes()).map_err(|_| TokenError::Damaged)?;
    let (content, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(TokenError::Damaged)?;
    if sha256(content).0[..CHECKSUM_BYTES] != *checksum {
        return Err(TokenError::Damaged);
    }
    M::decode(content).map_err(|_| TokenError::Damaged)
}

fn controllers(list: Vec<String>) -> Result<Vec<String>, TokenError> {
    let ok = |a: &String| !a.is_empty() && a.len() <= MAX_ADDRESS_BYTES;
    if list.is_empty() || list.len() > MAX_CONTROLLERS || !list.iter().all(ok) {
        Err(TokenError::Damaged)
    } else {
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> RegistrationToken {
        RegistrationToken {
            controllers: vec!["192.0.2.1:7440".into(), "[2001:db8::1]:7440".into()],
            root: RootId([3; 32]),
            key_name: "paris-1".into(),
            secret: Secret::new([4; 32]),
        }
    }

    #[test]
    fn tokens_return_and_kinds_are_told_apart() {
        let text = token().encode();
        let read = RegistrationToken::decode(&format!("  {text}\n")).unwrap();
        assert_eq!(
            (read.controllers, read.root, read.key_name),
            (token().controllers, token().root, "paris-1".into())
        );
        assert_eq!(read.secret.expose(), token().secret.expose());
        assert!(matches!(PersonalKey::decode(&text), Err(TokenError::WrongKind { .. })));
        assert_eq!(RegistrationToken::decode(&"h".repeat(5000)).err(), Some(TokenError::TooLong));
    }

    #[test]
    fn a_hand_over_returns() {
        let hand = Handover {
            controllers: token().controllers,
            root: RootId([3; 32]),
            id: [5; 16],
            secret: Secret::new([6; 32]),
        };
        let text = hand.encode();
        let read = Handover::decode(&format!("{text}\n")).unwrap();
        assert_eq!((read.controllers, read.root, read.id), (hand.controllers, hand.root, hand.id));
        assert_eq!(read.secret.expose(), hand.secret.expose());
        assert!(Handover::is_meant(&text) && !Handover::is_meant(&token().encode()));
        assert!(matches!(PersonalKey::decode(&text), Err(TokenError::WrongKind { .. })));
    }

    proptest! {
        #[test]
        fn any_changed_character_is_noticed(at in 8usize..120, with in "[a-z2-7]") {
            let text = token().encode();
            let mut changed = text.clone();
            changed.replace_range(at..=at, &with);
            if changed != text {
                prop_assert_eq!(RegistrationToken::decode(&changed).err(), Some(TokenError::Damaged));
            }
        }

        #[test]
        fn no_text_panics(text in "(hzn-reg-|hzn-key-|hzn-hand-)?[a-z2-7]{0,200}") {
            let _ = RegistrationToken::decode(&text);
            let _ = Handover::decode(&text);
            let _ = PersonalKey::decode(&text);
        }
    }
}
