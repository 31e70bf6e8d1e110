//! Who may open a backup: the holder of a private key that lies elsewhere, so that whoever makes backups by the clock holds no
//! secret that opens them. Both halves are strings that are told from others and from mistyped ones.

use std::{fmt, str::FromStr};

use data_encoding::BASE32_NOPAD;
use horizon_tls::hpke::WrappingKey;
use horizon_wire::key::sha256;
use thiserror::Error;
use zeroize::Zeroizing;

const PUBLIC: &str = "horizon-backup-public-";
const PRIVATE: &str = "horizon-backup-private-";
/// Bytes that tell a mistyped string.
const CHECK: usize = 4;

/// Why a text is no key for backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidBackupKey {
    /// It is the other half.
    #[error(
        "this is the private half of a key for backups, which belongs where backups are restored: give the one that begins with horizon-backup-public-"
    )]
    Private,
    /// It is the other half.
    #[error(
        "this is the public half of a key for backups, which opens none: give the file with the one that begins with horizon-backup-private-"
    )]
    Public,
    /// It is something else.
    #[error("this is no key for backups, or it was mistyped: `horizon-controller backup key` makes one")]
    Malformed,
}

/// The public half: backups are made for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient(pub [u8; 32]);

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(PUBLIC, &self.0))
    }
}

impl FromStr for Recipient {
    type Err = InvalidBackupKey;
    fn from_str(text: &str) -> Result<Self, InvalidBackupKey> {
        let text = text.trim();
        if text.starts_with(PRIVATE) {
            return Err(InvalidBackupKey::Private);
        }
        decode(PUBLIC, text).map(|key| Self(*key))
    }
}

/// The private half: it opens backups. `Debug` shows the public half.
pub struct Identity {
    seed: Zeroizing<[u8; 32]>,
    key: WrappingKey,
}

impl Identity {
    /// The key that follows from 32 random bytes.
    pub fn new(seed: Zeroizing<[u8; 32]>) -> Self {
        let key = WrappingKey::of_backups(&seed);
        Self { seed, key }
    }

    /// Reads the string.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Self, InvalidBackupKey> {
        let text = text.trim();
        if text.starts_with(PUBLIC) {
            return Err(InvalidBackupKey::Public);
        }
        Ok(Self::new(decode(PRIVATE, text)?))
    }

    /// The string, which is secret.
    pub fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(encode(PRIVATE, &self.seed))
    }

    /// The public half.
    pub fn recipient(&self) -> Recipient {
        Recipient(self.key.public())
    }

    pub(super) fn key(&self) -> &WrappingKey {
        &self.key
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.recipient()).finish()
    }
}

fn check(prefix: &str, key: &[u8; 32]) -> [u8; CHECK] {
    let digest = sha256(&[prefix.as_bytes(), key].concat()).0;
    [digest[0], digest[1], digest[2], digest[3]]
}

fn encode(prefix: &str, key: &[u8; 32]) -> String {
    let bytes = Zeroizing::new([&key[..], &check(prefix, key)[..]].concat());
    let mut text = Zeroizing::new(BASE32_NOPAD.encode(&bytes));
    text.make_ascii_lowercase();
    format!("{prefix}{}", *text)
}

fn decode(prefix: &str, text: &str) -> Result<Zeroizing<[u8; 32]>, InvalidBackupKey> {
    let rest = text.strip_prefix(prefix).ok_or(InvalidBackupKey::Malformed)?;
    let upper = Zeroizing::new(rest.to_ascii_uppercase());
    let bytes = BASE32_NOPAD.decode(upper.as_bytes()).map(Zeroizing::new);
    let bytes = bytes.map_err(|_| InvalidBackupKey::Malformed)?;
    let (key, checked) = bytes.split_first_chunk::<32>().ok_or(InvalidBackupKey::Malformed)?;
    let key = Zeroizing::new(*key);
    if checked != check(prefix, &key) { Err(InvalidBackupKey::Malformed) } else { Ok(key) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_and_mistyped_ones_do_not() {
        let identity = Identity::new(Zeroizing::new([3; 32]));
        let (public, private) = (identity.recipient().to_string(), identity.text());
        assert_eq!(public.parse::<Recipient>().unwrap(), identity.recipient());
        assert_eq!(Identity::parse(&format!(" {}\n", *private)).unwrap().recipient(), identity.recipient());
        assert_eq!(private.parse::<Recipient>(), Err(InvalidBackupKey::Private));
        assert_eq!(Identity::parse(&public).unwrap_err(), InvalidBackupKey::Public);
        for at in PUBLIC.len()..public.len() {
            let mut typed = public.clone().into_bytes();
            typed[at] = if typed[at] == b'a' { b'b' } else { b'a' };
            let typed = String::from_utf8(typed).unwrap();
            assert_eq!(typed.parse::<Recipient>(), Err(InvalidBackupKey::Malformed), "{typed}");
        }
        assert!(!format!("{identity:?}").contains(&private[PRIVATE.len()..]));
    }
}
