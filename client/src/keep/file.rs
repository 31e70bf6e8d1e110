//! A personal key in a file under a passphrase: Argon2id (RFC 9106) makes the key, AES-256-GCM seals the text.
//!
//! The file is `HZNKEY1\n`, memory in KiB, passes and lanes as 32-bit big-endian numbers, 16 bytes of salt, 12 of nonce, and
//! the sealed text. All before the sealed text is authenticated with it.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    rand,
};
use horizon_client_core::ipc::KeyText;
use zeroize::Zeroizing;

use super::KeepError;

const MAGIC: &[u8; 8] = b"HZNKEY1\n";
/// Memory in KiB, passes, lanes: the second recommendation of RFC 9106, section 4.
const COST: (u32, u32, u32) = (64 * 1024, 3, 4);
/// What a file may ask for at most: 1 GiB, so that a file from somebody else does not take the machine down.
const MAX_COST: (u32, u32, u32) = (1024 * 1024, 16, 16);
const SALT: usize = 16;
const NONCE: usize = 12;
const HEADER: usize = MAGIC.len() + 12 + SALT + NONCE;
/// The longest file, in bytes; longer than any key.
const MAX_FILE: u64 = 16 * 1024;

/// A file's text, opened.
fn open(bytes: &[u8], passphrase: &str) -> Option<KeyText> {
    let (header, sealed) = bytes.split_at_checked(HEADER)?;
    let rest = header.strip_prefix(MAGIC)?;
    let number = |at: usize| Some(u32::from_be_bytes(rest.get(at..at + 4)?.try_into().ok()?));
    let cost = (number(0)?, number(4)?, number(8)?);
    if cost.0 > MAX_COST.0 || cost.1 > MAX_COST.1 || cost.2 > MAX_COST.2 {
        return None;
    }
    let (salt, nonce) = rest.get(12..)?.split_at_checked(SALT)?;
    let key = derive(passphrase, salt, cost)?;
    let mut text = Zeroizing::new(sealed.to_vec());
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let plain = key.open_in_place(nonce, Aad::from(header), &mut text).ok()?;
    Some(KeyText::new(String::from_utf8(plain.to_vec()).ok()?))
}

/// A text as the bytes of a file.
fn seal(key: &KeyText, passphrase: &str, cost: (u32, u32, u32)) -> Option<Vec<u8>> {
    let mut random = [0; SALT + NONCE];
    rand::fill(&mut random).ok()?;
    let (salt, nonce) = random.split_at(SALT);
    let mut file = MAGIC.to_vec();
    for number in [cost.0, cost.1, cost.2] {
        file.extend_from_slice(&number.to_be_bytes());
    }
    file.extend_from_slice(&random);
    let sealing = derive(passphrase, salt, cost)?;
    let mut text = Zeroizing::new(key.expose().as_bytes().to_vec());
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let tag = sealing.seal_in_place_separate_tag(nonce, Aad::from(&file[..]), &mut text).ok()?;
    file.extend_from_slice(&text);
    file.extend_from_slice(tag.as_ref());
    Some(file)
}

fn derive(passphrase: &str, salt: &[u8], cost: (u32, u32, u32)) -> Option<LessSafeKey> {
    let params = Params::new(cost.0, cost.1, cost.2, Some(32)).ok()?;
    let mut key = Zeroizing::new([0; 32]);
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon.hash_password_into(passphrase.as_bytes(), salt, &mut *key).ok()?;
    Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*key).ok()?))
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> KeepError {
    move |error| KeepError::File { action, path: path.into(), cause: error.to_string() }
}

pub(super) fn get(path: &Path, passphrase: &str) -> Result<Option<KeyText>, KeepError> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("read", path)(e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(failed("read", path))?;
    if !bytes.starts_with(MAGIC) {
        let cause = "it is no key file of horizon".to_owned();
        return Err(KeepError::File { action: "used", path: path.into(), cause });
    }
    open(&bytes, passphrase).map(Some).ok_or_else(|| KeepError::Passphrase(path.into()))
}

pub(super) fn set(path: &Path, passphrase: &str, key: &KeyText) -> Result<(), KeepError> {
    let cause = || io::Error::other("it could not be encrypted");
    let bytes = seal(key, passphrase, COST).ok_or_else(cause).map_err(failed("written", path))?;
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let written = || -> io::Result<()> {
        match fs::remove_file(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    written().map_err(failed("written", path))
}

pub(super) fn remove(path: &Path) -> Result<bool, KeepError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(failed("removed", path)(e)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    const SMALL: (u32, u32, u32) = (64, 1, 1);

    #[test]
    fn a_key_file_opens_with_its_passphrase_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = KeyText::new("hzn-key-abc".into());
        assert!(get(&path, "right").unwrap().is_none());
        set(&path, "right", &key).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(get(&path, "right").unwrap(), Some(key));
        assert!(matches!(get(&path, "wrong"), Err(KeepError::Passphrase(_))));
        let bytes = fs::read(&path).unwrap();
        assert!(!bytes.windows(7).any(|w| w == b"hzn-key"));
        fs::write(&path, b"something else").unwrap();
        assert!(matches!(get(&path, "right"), Err(KeepError::File { .. })));
        assert!(remove(&path).unwrap() && !remove(&path).unwrap());
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let bytes = seal(&KeyText::new("hzn-key-abc".into()), "right", SMALL).unwrap();
        assert!(open(&bytes, "right").is_some());
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 1;
            // Changed costs would only take long.
            if !(MAGIC.len()..MAGIC.len() + 12).contains(&i) {
                assert!(open(&changed, "right").is_none(), "byte {i}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(open(&bytes, "x").is_none());
        }
    }
}
