//! The head of a backup: in the clear, it says only how the file is opened. A random key of the file is sealed to a passphrase
//! (Argon2id, RFC 9106) or to recipients (HPKE, RFC 9180); the key of the stream follows from it and from the whole head
//! (HKDF, RFC 5869), so a head that was changed opens no stream.

use std::io::{self, Read, Write};

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use data_encoding::BASE64;
use horizon_tls::hpke::{self, Sealed};
use horizon_wire::key::sha256;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use super::{
    recipient::{Identity, Recipient},
    stream::{Opening, Sealing, StreamKey, TAG},
};
use crate::store::random;

/// What every backup begins with, before the number of its format and a line feed.
const MAGIC: &[u8; 15] = b"horizon backup ";
/// The format that this program writes, and the only one there is.
const FORMAT: u8 = b'1';
/// The longest head, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// The most ways to open one file.
const MAX_WAYS: usize = 16;
/// The cost of a passphrase: the second recommendation of RFC 9106, section 4.
const COST: (u32, u32, u32) = (64 * 1024, 3, 4);
/// The most that a file may ask for, so that opening a foreign one costs no more than this.
const MAX_COST: (u32, u32, u32) = (256 * 1024, 16, 16);
/// The shortest passphrase, in bytes.
pub const MIN_PASSPHRASE: usize = 12;

const HPKE_INFO: &[u8] = b"horizon backup file key v1";
const STREAM_INFO: &[u8] = b"horizon backup stream v1";

/// Why a file is not opened.
#[derive(Debug, Error)]
pub enum HeadError {
    /// It is something else.
    #[error("this is no backup of a controller")]
    NotOne,
    /// A newer program made it.
    #[error(
        "the backup has a newer format than this program knows: use the program that made it, or a newer one"
    )]
    NewerFormat,
    /// Its head is damaged.
    #[error("the head of the backup is damaged or was cut short: use another copy of it")]
    Damaged,
    /// It asks for more than any backup does.
    #[error("the backup asks for more memory or time than a passphrase may cost: no `backup` made it so")]
    Cost,
    /// The passphrase is another one.
    #[error("the passphrase is not the one of this backup")]
    WrongPassphrase,
    /// It was made for somebody else.
    #[error("the backup was not made for this key: it was made for {0}")]
    OtherRecipient(String),
    /// It has no passphrase.
    #[error("the backup has no passphrase: give the private half (--key-file) of {0}")]
    NeedsKey(String),
    /// It has one.
    #[error("the backup was made with a passphrase, not for a key: give the passphrase")]
    NeedsPassphrase,
    /// Nothing can be sealed to a recipient.
    #[error("nothing can be sealed to {0}: make another key with `horizon-controller backup key`")]
    Unusable(Recipient),
    /// The file cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// For whom a backup is made.
pub enum Lock {
    /// Whoever knows the passphrase.
    Passphrase(Zeroizing<String>),
    /// Holders of private keys.
    Recipients(Vec<Recipient>),
}

/// What opens a backup.
pub enum Opener {
    /// The passphrase.
    Passphrase(Zeroizing<String>),
    /// A private key.
    Identity(Identity),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    ways: Vec<Way>,
}

/// One way to the key of the file. Bytes are in base64.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Way {
    #[serde(rename_all = "camelCase")]
    Passphrase {
        salt: String,
        memory_kib: u32,
        passes: u32,
        lanes: u32,
        key: String,
    },
    Recipient {
        public: String,
        encapsulated: String,
        key: String,
    },
}

fn bytes(text: &str) -> Result<Vec<u8>, HeadError> {
    BASE64.decode(text.as_bytes()).map_err(|_| HeadError::Damaged)
}

fn stretch(
    passphrase: &str,
    salt: &[u8],
    (memory, passes, lanes): (u32, u32, u32),
) -> Result<Zeroizing<[u8; 32]>, HeadError> {
    let params = Params::new(memory, passes, lanes, Some(32)).map_err(|_| HeadError::Damaged)?;
    let mut key = Zeroizing::new([0; 32]);
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon.hash_password_into(passphrase.as_bytes(), salt, &mut *key).map_err(|_| HeadError::Damaged)?;
    Ok(key)
}

/// The key of the stream: that of the file, bound to the head.
fn stream_key(file_key: &[u8; 32], head: &[u8; 32]) -> StreamKey {
    struct Bytes32;
    impl KeyType for Bytes32 {
        fn len(&self) -> usize {
            32
        }
    }
    let mut key = Zeroizing::new([0; 32]);
    Salt::new(HKDF_SHA256, head)
        .extract(file_key)
        .expand(&[STREAM_INFO], Bytes32)
        .and_then(|okm| okm.fill(&mut *key))
        .expect("HKDF-SHA256 gives 32 bytes");
    StreamKey::new(&key)
}

/// Writes the head, and gives the stream that follows it.
///
/// # Errors
/// When it cannot be written, or nothing can be sealed to a recipient.
pub fn seal<W: Write>(mut out: W, lock: &Lock) -> Result<Sealing<W>, HeadError> {
    let file_key = Zeroizing::new(random::<32>());
    let ways = match lock {
        Lock::Passphrase(passphrase) => {
            let salt: [u8; 16] = random();
            let key = stretch(passphrase, &salt, COST)?;
            let mut sealed = file_key.to_vec();
            StreamKey::new(&key).seal(0, true, &mut sealed);
            let (memory_kib, passes, lanes) = COST;
            let (salt, key) = (BASE64.encode(&salt), BASE64.encode(&sealed));
            vec![Way::Passphrase { salt, memory_kib, passes, lanes, key }]
        }
        Lock::Recipients(recipients) => {
            let way = |recipient: &Recipient| {
                let sealed = hpke::seal(&recipient.0, HPKE_INFO, &recipient.0, &*file_key)
                    .map_err(|_| HeadError::Unusable(recipient.clone()))?;
                let [encapsulated, key] = [sealed.encapsulated, sealed.ciphertext].map(|b| BASE64.encode(&b));
                Ok(Way::Recipient { public: recipient.to_string(), encapsulated, key })
            };
            recipients.iter().take(MAX_WAYS).map(way).collect::<Result<_, HeadError>>()?
        }
    };
    let head = serde_json::to_vec(&Head { ways }).map_err(io::Error::from)?;
    let length = u32::try_from(head.len()).unwrap_or(u32::MAX).to_be_bytes();
    let whole = [&MAGIC[..], &[FORMAT, b'\n'], &length, &head].concat();
    let digest = sha256(&whole).0;
    out.write_all(&whole)?;
    out.write_all(&digest)?;
    Ok(Sealing::new(out, stream_key(&file_key, &digest)))
}

/// Reads the head, and gives the stream that follows it, opened.
///
/// # Errors
/// Why it does not open.
pub fn open<R: Read>(mut input: R, opener: &Opener) -> Result<Opening<R>, HeadError> {
    let mut start = [0; MAGIC.len() + 2];
    let read = |error: io::Error, short: HeadError| match error.kind() {
        io::ErrorKind::UnexpectedEof => short,
        _ => error.into(),
    };
    input.read_exact(&mut start).map_err(|error| read(error, HeadError::NotOne))?;
    match start.strip_prefix(MAGIC) {
        Some([FORMAT, b'\n']) => {}
        Some([b'2'..=b'9', _]) => return Err(HeadError::NewerFormat),
        _ => return Err(HeadError::NotOne),
    }
    let mut length = [0; 4];
    input.read_exact(&mut length).map_err(|error| read(error, HeadError::Damaged))?;
    let size = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if size > MAX_HEAD {
        return Err(HeadError::Damaged);
    }
    let (mut head, mut digest) = (vec![0; size], [0; 32]);
    input.read_exact(&mut head).map_err(|error| read(error, HeadError::Damaged))?;
    input.read_exact(&mut digest).map_err(|error| read(error, HeadError::Damaged))?;
    if sha256(&[&start[..], &length, &head].concat()).0 != digest {
        return Err(HeadError::Damaged);
    }
    let head: Head = serde_json::from_slice(&head).map_err(|_| HeadError::Damaged)?;
    if head.ways.len() > MAX_WAYS {
        return Err(HeadError::Damaged);
    }
    let file_key = file_key(&head, opener)?;
    Ok(Opening::new(input, stream_key(&file_key, &digest)))
}

fn file_key(head: &Head, opener: &Opener) -> Result<Zeroizing<[u8; 32]>, HeadError> {
    let mut others = Vec::new();
    for way in &head.ways {
        match (way, opener) {
            (Way::Passphrase { salt, memory_kib, passes, lanes, key }, Opener::Passphrase(passphrase)) => {
                let cost = (*memory_kib, *passes, *lanes);
                if cost.0 > MAX_COST.0 || cost.1 > MAX_COST.1 || cost.2 > MAX_COST.2 {
                    return Err(HeadError::Cost);
                }
                let stretched = stretch(passphrase, &bytes(salt)?, cost)?;
                let mut sealed = bytes(key)?;
                if sealed.len() != 32 + TAG {
                    return Err(HeadError::Damaged);
                }
                let open = StreamKey::new(&stretched)
                    .open(0, true, &mut sealed)
                    .map(|key| Zeroizing::new(key.to_vec()));
                let key = open.ok_or(HeadError::WrongPassphrase)?;
                return key[..].try_into().map(Zeroizing::new).map_err(|_| HeadError::Damaged);
            }
            (Way::Recipient { public, encapsulated, key }, Opener::Identity(identity)) => {
                let own = identity.recipient();
                if *public == own.to_string() {
                    let sealed = Sealed { encapsulated: bytes(encapsulated)?, ciphertext: bytes(key)? };
                    let key = identity.key().open(HPKE_INFO, &own.0, &sealed).ok_or(HeadError::Damaged)?;
                    return key[..].try_into().map(Zeroizing::new).map_err(|_| HeadError::Damaged);
                }
                others.push(public.clone());
            }
            (Way::Recipient { public, .. }, Opener::Passphrase(_)) => others.push(public.clone()),
            (Way::Passphrase { .. }, Opener::Identity(_)) => return Err(HeadError::NeedsPassphrase),
        }
    }
    // What a foreign file says here is shown only as far as it is a key.
    others.retain(|public| public.parse::<Recipient>().is_ok());
    Err(match opener {
        Opener::Passphrase(_) => HeadError::NeedsKey(others.join(", ")),
        Opener::Identity(_) => HeadError::OtherRecipient(others.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase(text: &str) -> Zeroizing<String> {
        Zeroizing::new(text.to_owned())
    }

    fn identity(n: u8) -> Identity {
        Identity::new(Zeroizing::new([n; 32]))
    }

    fn made(lock: &Lock) -> Vec<u8> {
        let mut stream = seal(Vec::new(), lock).unwrap();
        stream.write_all(b"text").unwrap();
        stream.finish().unwrap()
    }

    fn read(file: &[u8], opener: &Opener) -> Result<Vec<u8>, String> {
        let mut text = Vec::new();
        open(file, opener)
            .map_err(|e| e.to_string())?
            .read_to_end(&mut text)
            .map_err(|e| e.get_ref().map(ToString::to_string).unwrap_or_default())?;
        Ok(text)
    }

    #[test]
    fn only_the_passphrase_opens() {
        let file = made(&Lock::Passphrase(passphrase("correct horse battery")));
        let right = Opener::Passphrase(passphrase("correct horse battery"));
        assert_eq!(read(&file, &right).unwrap(), b"text");
        let wrong = read(&file, &Opener::Passphrase(passphrase("correct horse batteri"))).unwrap_err();
        assert!(wrong.contains("the passphrase is not the one"), "{wrong}");
        let key = read(&file, &Opener::Identity(identity(1))).unwrap_err();
        assert!(key.contains("give the passphrase"), "{key}");
    }

    #[test]
    fn only_recipients_open() {
        let file = made(&Lock::Recipients(vec![identity(1).recipient(), identity(2).recipient()]));
        for n in [1, 2] {
            assert_eq!(read(&file, &Opener::Identity(identity(n))).unwrap(), b"text");
        }
        let other = read(&file, &Opener::Identity(identity(3))).unwrap_err();
        assert!(other.contains(&identity(2).recipient().to_string()), "{other}");
        let none = read(&file, &Opener::Passphrase(passphrase("correct horse battery"))).unwrap_err();
        assert!(none.contains("--key-file"), "{none}");
        let unusable = seal(Vec::new(), &Lock::Recipients(vec![Recipient([0; 32])])).err().unwrap();
        assert!(matches!(unusable, HeadError::Unusable(_)));
    }

    /// Every byte of a file, changed or cut away, is found, and told from a wrong key.
    #[test]
    fn any_changed_byte_and_any_cut_shows() {
        let file = made(&Lock::Recipients(vec![identity(1).recipient()]));
        let opener = Opener::Identity(identity(1));
        for at in 0..file.len() {
            let mut changed = file.clone();
            changed[at] ^= 1;
            let error = read(&changed, &opener).unwrap_err();
            let expected = match at {
                0..15 | 16 => "this is no backup",
                15 => "this is no backup",
                _ if at < file.len() - 4 - TAG => "the head of the backup is damaged",
                _ => "its chunk 1 is not what was written",
            };
            assert!(error.contains(expected), "byte {at}: {error}");
            assert!(read(&file[..at], &opener).is_err(), "cut at {at}");
        }
        let mut newer = file;
        newer[15] = b'2';
        assert!(read(&newer, &opener).unwrap_err().contains("a newer format"));
    }

    /// A head that was put together anew opens no stream but its own, and costs no more than it may.
    #[test]
    fn a_forged_head_gains_nothing() {
        let forge = |edit: &dyn Fn(&mut serde_json::Value)| {
            let file = made(&Lock::Passphrase(passphrase("correct horse battery")));
            let size = u32::from_be_bytes(file[17..21].try_into().unwrap()) as usize;
            let mut head: serde_json::Value = serde_json::from_slice(&file[21..21 + size]).unwrap();
            edit(&mut head);
            let head = serde_json::to_vec(&head).unwrap();
            let length = u32::try_from(head.len()).unwrap().to_be_bytes();
            let whole = [&file[..17], &length, &head].concat();
            let digest = sha256(&whole).0;
            [&whole[..], &digest, &file[21 + size + 32..]].concat()
        };
        let opener = Opener::Passphrase(passphrase("correct horse battery"));
        let costly = forge(&|head| head["ways"][0]["passphrase"]["memoryKib"] = 4_000_000_000_u32.into());
        assert!(read(&costly, &opener).unwrap_err().contains("more memory or time"));
        let slow = forge(&|head| head["ways"][0]["passphrase"]["passes"] = 4_000_000_000_u32.into());
        assert!(read(&slow, &opener).unwrap_err().contains("more memory or time"));
        let more = forge(&|head| {
            let way = head["ways"][0].clone();
            head["ways"].as_array_mut().unwrap().push(way);
        });
        assert!(read(&more, &opener).unwrap_err().contains("its chunk 1 is not"));
        let huge = [&file_start()[..], &u32::MAX.to_be_bytes(), &[0; 64]].concat();
        assert!(read(&huge, &opener).unwrap_err().contains("head of the backup is damaged"));
    }

    fn file_start() -> Vec<u8> {
        [&MAGIC[..], &[FORMAT, b'\n']].concat()
    }
}
