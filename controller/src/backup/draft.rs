//! A file that is there whole or not at all, and for its owner alone.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::BackupError;

const OWNER_ONLY: u32 = 0o600;

/// A file under another name until it is finished. Dropped before, nothing is left of it.
pub(super) struct Draft {
    draft: PathBuf,
    path: PathBuf,
    force: bool,
    kept: bool,
}

impl Draft {
    /// Begins a file, which replaces another only by `force`.
    pub(super) fn begin(path: &Path, force: bool) -> Result<(Self, File), BackupError> {
        if !force && fs::symlink_metadata(path).is_ok() {
            return Err(BackupError::Exists(path.to_owned()));
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let draft = path.with_file_name(name);
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(OWNER_ONLY).open(&draft);
        let file = file.map_err(BackupError::file(&draft))?;
        Ok((Self { draft, path: path.to_owned(), force, kept: false }, file))
    }

    /// Gives the file its name, once it has reached the disk.
    pub(super) fn finish(mut self, file: &File) -> Result<(), BackupError> {
        file.sync_all().map_err(BackupError::file(&self.path))?;
        let flags = if self.force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match renameat_with(CWD, &self.draft, CWD, &self.path, flags) {
            Ok(()) => {}
            // Not every file system can do that. There it is looked for once more.
            Err(rustix::io::Errno::INVAL) if fs::symlink_metadata(&self.path).is_err() => {
                fs::rename(&self.draft, &self.path).map_err(BackupError::file(&self.path))?;
            }
            Err(rustix::io::Errno::EXIST | rustix::io::Errno::INVAL) => {
                return Err(BackupError::Exists(self.path.clone()));
            }
            Err(error) => return Err(BackupError::file(&self.path)(error.into())),
        }
        self.kept = true;
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let synced =
            File::open(directory.unwrap_or(Path::new("."))).and_then(|directory| directory.sync_all());
        synced.map_err(BackupError::file(&self.path))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept {
            // Whatever failed before is what is told.
            let _: io::Result<()> = fs::remove_file(&self.draft);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn a_file_is_whole_or_not_there_and_replaces_none_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        let names = || fs::read_dir(dir.path()).unwrap().count();
        let (draft, _) = Draft::begin(&path, false).unwrap();
        assert_eq!((path.exists(), names()), (false, 1));
        drop(draft);
        assert_eq!(names(), 0, "nothing is left");

        let write = |force, text: &[u8]| -> Result<(), BackupError> {
            let (draft, mut file) = Draft::begin(&path, force)?;
            file.write_all(text).unwrap();
            draft.finish(&file)
        };
        write(false, b"one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(write(false, b"two"), Err(BackupError::Exists(_))));
        // One that appears meanwhile is not replaced either.
        fs::remove_file(&path).unwrap();
        let (draft, file) = Draft::begin(&path, false).unwrap();
        fs::write(&path, b"other").unwrap();
        assert!(matches!(draft.finish(&file), Err(BackupError::Exists(_))));
        write(true, b"two").unwrap();
        assert_eq!((fs::read(&path).unwrap(), names()), (b"two".to_vec(), 1));
    }
}
