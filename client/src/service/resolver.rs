//! The resolver's file on disk: taken over while a session names resolvers, and put back exactly.

use std::{
    fs,
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use horizon_client_core::resolv::{self, Original};
use rustix::fs::{Gid, Uid};

/// What the file is now.
pub(super) fn read(path: &Path) -> io::Result<Original> {
    let found = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Original::Absent),
        found => found?,
    };
    if found.is_symlink() {
        return Ok(Original::Link { target: fs::read_link(path)? });
    }
    if !found.is_file() || found.len() > resolv::MAX_BYTES as u64 {
        return Err(io::Error::other("it is no file of a resolver's size"));
    }
    Ok(Original::File {
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
        content: fs::read(path)?,
    })
}

/// Names the session's resolvers in place of those of `original`, which [`read`] found.
pub(super) fn take_over(path: &Path, original: &Original, servers: &[IpAddr]) -> io::Result<()> {
    let before = match original {
        Original::Absent => String::new(),
        Original::File { content, .. } => String::from_utf8_lossy(content).into_owned(),
        // A link to nowhere is as good as no file.
        Original::Link { .. } => fs::read_to_string(path).unwrap_or_default(),
    };
    replace(path, resolv::rewrite(&before, servers).as_bytes(), 0o644, None)
}

/// Puts the original back, unless somebody else has written the file since: theirs is newer. Whether it was put back.
pub(super) fn restore(path: &Path, original: &Original) -> io::Result<bool> {
    let ours = match read(path)? {
        Original::File { content, .. } => resolv::is_ours(&content),
        _ => false,
    };
    if !ours {
        return Ok(false);
    }
    match original {
        Original::Absent => fs::remove_file(path)?,
        Original::Link { target } => {
            let temporary = beside(path);
            let _ = fs::remove_file(&temporary);
            symlink(target, &temporary)?;
            fs::rename(&temporary, path)?;
        }
        Original::File { mode, uid, gid, content } => replace(path, content, *mode, Some((*uid, *gid)))?,
    }
    Ok(true)
}

/// Replaces the file at once where the directory allows it, and writes into it where it does not (a file that is a
/// mount point, as in containers).
fn replace(path: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    let temporary = beside(path);
    let renamed = create(&temporary, content, mode, owner).and_then(|()| fs::rename(&temporary, path));
    let Err(error) = renamed else { return Ok(()) };
    let _ = fs::remove_file(&temporary);
    let in_place = fs::OpenOptions::new().write(true).truncate(true).open(path);
    match in_place.and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all())) {
        Ok(()) => Ok(()),
        Err(_) => Err(error),
    }
}

fn create(path: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    let _ = fs::remove_file(path);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    if let Some((uid, gid)) = owner.filter(|o| file.metadata().is_ok_and(|m| *o != (m.uid(), m.gid()))) {
        rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    // After the owner, because a change of owner clears bits of the mode.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    // The session's file need not outlive the machine; the original, put back, must.
    if owner.is_some() { file.sync_all() } else { Ok(()) }
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.horizon"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers() -> Vec<IpAddr> {
        vec!["9.9.9.9".parse().unwrap()]
    }

    fn round(path: &Path) {
        let original = read(path).unwrap();
        take_over(path, &original, &servers()).unwrap();
        assert_eq!(resolv::servers(&fs::read_to_string(path).unwrap()), servers());
        assert!(restore(path, &original).unwrap());
        assert_eq!(read(path).unwrap(), original);
        assert_eq!(
            fs::read_dir(path.parent().unwrap())
                .unwrap()
                .filter(|e| { e.as_ref().unwrap().file_name().to_string_lossy().ends_with(".horizon") })
                .count(),
            0
        );
    }

    #[test]
    fn files_links_and_absence_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        round(&path);
        assert!(!path.exists());
        fs::write(&path, b"nameserver 192.0.2.1\n\xff\xfe").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        round(&path);
        fs::remove_file(&path).unwrap();
        fs::write(dir.path().join("stub"), "nameserver 127.0.0.53\nsearch example.org\n").unwrap();
        symlink("stub", &path).unwrap();
        round(&path);
        fs::remove_file(&path).unwrap();
        symlink("nowhere", &path).unwrap();
        round(&path);
    }

    #[test]
    fn a_file_that_somebody_else_wrote_meanwhile_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        let original = read(&path).unwrap();
        take_over(&path, &original, &servers()).unwrap();
        fs::write(&path, "nameserver 198.51.100.1\n").unwrap();
        assert!(!restore(&path, &original).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 198.51.100.1\n");
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).is_err());
    }
}
