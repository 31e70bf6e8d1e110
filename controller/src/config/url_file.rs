//! Files that hold one address with its password. They are readable by their owner alone, as keys are, or are those that
//! Kubernetes projects for a pod: owned by root, and readable by a group of this process.

use std::{
    fs, io,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use thiserror::Error;
use zeroize::Zeroizing;

/// The largest address, in bytes.
const MAX_BYTES: usize = 8 << 10;
const GROUP_MAY_MORE_THAN_READ: u32 = 0o030;
const GROUP: u32 = 0o070;
const OTHERS: u32 = 0o007;

/// Why a file with an address was refused.
#[derive(Debug, Error)]
pub enum UrlFileError {
    /// It cannot be read.
    #[error("cannot read the address in {path}: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Others than the owner may read it.
    #[error(
        "{0} holds a password and can be read by others than its owner: run `chmod 400` on it, or give the volume \
         `defaultMode: 0440`"
    )]
    Open(PathBuf),
    /// It is not one line of text.
    #[error("{0} does not hold one line with an address")]
    NoLine(PathBuf),
}

/// Reads the address. It may hold a password: do not log it.
///
/// # Errors
/// When the file cannot be read, can be read by too many, or holds something else.
pub fn read_url(path: &Path) -> Result<Zeroizing<String>, UrlFileError> {
    let unreadable = |error| UrlFileError::Unreadable { path: path.to_owned(), error };
    let file = fs::File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let (mode, projected) = (metadata.mode(), metadata.uid() == 0);
    let forbidden = if projected { OTHERS | GROUP_MAY_MORE_THAN_READ } else { OTHERS | GROUP };
    if mode & forbidden != 0 {
        return Err(UrlFileError::Open(path.to_owned()));
    }
    // With room for everything, so that no part of it stays behind in memory that was given back.
    let mut text = Zeroizing::new(String::with_capacity(MAX_BYTES + 1));
    let no_line = || UrlFileError::NoLine(path.to_owned());
    match file.take(MAX_BYTES as u64 + 1).read_to_string(&mut text) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(no_line()),
        Err(error) => return Err(unreadable(error)),
        Ok(read) if read > MAX_BYTES => return Err(no_line()),
        Ok(_) => {}
    }
    let line = text.trim();
    if line.is_empty() || line.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(no_line());
    }
    Ok(Zeroizing::new(line.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const URL: &str = "postgres://horizon:secret@db/horizon";

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("url");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    #[test]
    fn one_line_is_read() {
        let (_dir, path) = file(format!("{URL}\n").as_bytes(), 0o400);
        assert_eq!(*read_url(&path).unwrap(), URL);
    }

    #[test]
    fn what_others_may_read_is_refused() {
        for mode in [0o404, 0o602, 0o460, 0o410] {
            let (_dir, path) = file(URL.as_bytes(), mode);
            let refused = read_url(&path).unwrap_err().to_string();
            assert!(refused.contains("chmod 400") && !refused.contains("secret"), "{mode:o}: {refused}");
        }
        // What a group may read is a projection only if it is root's.
        let (_dir, path) = file(URL.as_bytes(), 0o440);
        let root = fs::metadata(&path).unwrap().uid() == 0;
        assert_eq!(read_url(&path).is_ok(), root);
        if root {
            std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
            assert!(matches!(read_url(&path), Err(UrlFileError::Open(_))));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for content in [&b""[..], b"\n", b"a\nb", b"a b", b"\xff\xfe", &[b'x'; 9000]] {
            let (_dir, path) = file(content, 0o400);
            assert!(matches!(read_url(&path), Err(UrlFileError::NoLine(_))), "{content:?}");
        }
        assert!(matches!(read_url(Path::new("/nonexistent/url")), Err(UrlFileError::Unreadable { .. })));
    }
}
