//! The Unix socket of the API.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// A controller already answers there.
    #[error("another controller already answers at {0}: stop it, or name another socket with --socket")]
    InUse(PathBuf),
    /// Something that is no socket is in the way.
    #[error("{0} exists and is no socket: remove it, or name another path with --socket")]
    Occupied(PathBuf),
    /// The system refused.
    #[error("cannot make the socket {path}: {error}")]
    System {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Listens at `path` with mode 0600, in the place of a socket that nobody answers at any more.
pub async fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let system = |error| SocketError::System { path: path.to_owned(), error };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(system(error)),
        Ok(found) => {
            use std::os::unix::fs::FileTypeExt;
            if !found.file_type().is_socket() {
                return Err(SocketError::Occupied(path.to_owned()));
            }
            if UnixStream::connect(path).await.is_ok() {
                return Err(SocketError::InUse(path.to_owned()));
            }
        }
    }
    // Bound under another name and moved into place, so that nobody ever finds it with a wider mode.
    let draft = path.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&draft);
    let listener = UnixListener::bind(&draft).map_err(system)?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o600)).map_err(system)?;
    fs::rename(&draft, path).map_err(system)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("h.sock");
        let first = bind(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(bind(&path).await, Err(SocketError::InUse(_))));
        drop(first);
        bind(&path).await.unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(matches!(bind(&path).await, Err(SocketError::Occupied(_))));
    }
}
