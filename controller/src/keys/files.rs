//! Files of keys: written whole or not at all, readable by their owner alone.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use data_encoding::BASE32_NOPAD;
use horizon_model::{PublicKey, Secret};
use horizon_wire::key::SigningKey;
use zeroize::Zeroizing;

use super::{KeyFiles, KeysError, SUFFIX};

const OWNER_ONLY: u32 = 0o600;
const OWNER_ONLY_DIRECTORY: u32 = 0o700;
const OTHERS: u32 = 0o077;
/// The largest file with one key.
const MAX_KEY_BYTES: usize = 256;

fn failed(path: &Path) -> impl FnOnce(io::Error) -> KeysError + '_ {
    |source| KeysError::File { path: path.to_owned(), source }
}

/// Makes the directory for its owner alone.
pub(super) fn make_directory(path: &Path) -> Result<(), KeysError> {
    fs::DirBuilder::new().recursive(true).mode(OWNER_ONLY_DIRECTORY).create(path).map_err(failed(path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(OWNER_ONLY_DIRECTORY)).map_err(failed(path))
}

/// Writes a file under another name and moves it into its place, so that it is never half there.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<(), KeysError> {
    let draft = path.with_extension("new");
    let written = || -> io::Result<()> {
        // A draft that an earlier attempt left may have other permissions.
        match fs::remove_file(&draft) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(OWNER_ONLY).open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    written().map_err(failed(path))
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), KeysError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(path)(e)),
        _ => Ok(()),
    }
}

/// A key as a line of text.
pub(super) fn encode(key: &Secret) -> Zeroizing<Vec<u8>> {
    let mut text = Zeroizing::new(BASE32_NOPAD.encode(key.expose()));
    text.make_ascii_lowercase();
    let mut line = Zeroizing::new(Vec::with_capacity(text.len() + 1));
    line.extend_from_slice(text.as_bytes());
    line.push(b'\n');
    line
}

/// Reads a file that only its owner may read.
pub(super) fn read(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, KeysError> {
    let file = fs::File::open(path).map_err(failed(path))?;
    if file.metadata().map_err(failed(path))?.mode() & OTHERS != 0 {
        return Err(KeysError::Open(path.to_owned()));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(failed(path))?;
    if bytes.len() > limit {
        return Err(KeysError::Damaged(path.to_owned()));
    }
    Ok(bytes)
}

/// Reads every file with a key in a directory.
pub(super) fn read_keys(directory: &Path) -> Result<KeyFiles, KeysError> {
    let mut found = KeyFiles::new();
    for entry in fs::read_dir(directory).map_err(failed(directory))? {
        let path = entry.map_err(failed(directory))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(name) = name.filter(|name| name.strip_suffix(SUFFIX).is_some_and(|n| n.ends_with('.'))) {
            found.insert(name.to_owned(), read(&path, MAX_KEY_BYTES)?);
        }
    }
    Ok(found)
}

/// The key in a file.
pub(super) fn decode(found: &KeyFiles, place: &Path, name: &str) -> Result<Secret, KeysError> {
    let path = place.join(name);
    let bytes = found.get(name).ok_or_else(|| failed(&path)(io::ErrorKind::NotFound.into()))?;
    let text = Zeroizing::new(bytes.trim_ascii().to_ascii_uppercase());
    let decoded = BASE32_NOPAD.decode(&text).ok().map(Zeroizing::new);
    decoded.and_then(|key| Secret::from_slice(&key)).ok_or(KeysError::Damaged(path))
}

/// Whether a file is of the form `class-N.key`.
pub(super) fn is_of(file: &str, class: &str) -> bool {
    number(file, class).is_some()
}

fn number(file: &str, class: &str) -> Option<u64> {
    file.strip_prefix(class)?.strip_prefix('-')?.strip_suffix(SUFFIX)?.strip_suffix('.')?.parse().ok()
}

/// The first of the files `name-*.key`, the highest number first, whose public key is wanted.
pub(super) fn find_key(
    found: &KeyFiles,
    place: &Path,
    name: &str,
    wanted: &dyn Fn(&PublicKey) -> bool,
) -> Result<Option<SigningKey>, KeysError> {
    let mut versions: Vec<u64> = found.keys().filter_map(|file| number(file, name)).collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    for version in versions {
        let key = SigningKey::from_seed(decode(found, place, &format!("{name}-{version}.{SUFFIX}"))?);
        if wanted(&key.public()) {
            return Ok(Some(key));
        }
    }
    Ok(None)
}
