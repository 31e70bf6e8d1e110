//! The way back: into an empty system, all or nothing.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::{
    BackupError, Contents, Opener, Part, Section,
    verify::{records, verify},
};
use crate::{
    app,
    config::{Config, Settings, SourceKind},
    keys::Placed,
    source,
    store::{Database, Loading, Renewal, Renewed},
};

/// What is restored, and how.
pub struct Restoration<'a> {
    /// The backup.
    pub from: &'a Path,
    /// What opens it.
    pub opener: &'a Opener,
    /// The file of settings. One that is there stays and is used; otherwise that of the backup is put there. `None` for
    /// neither.
    pub settings_file: Option<&'a Path>,
    /// Settings that go over it.
    pub settings: Settings,
    /// The organisation that is expected, by its root.
    pub root: Option<String>,
    /// Whether tokens and hand-overs that were not used can still be used.
    pub keep_tokens: bool,
}

/// What was restored.
pub struct Restored {
    /// The backup.
    pub contents: Contents,
    /// The settings in force.
    pub config: Config,
    /// Whether the file of settings is that of the backup.
    pub settings_written: bool,
    /// What became of the keys.
    pub keys: Placed,
    /// What was done so that the copy goes on where the original ended.
    pub renewed: Renewed,
}

/// Restores a backup. The backup is read twice: nothing is touched before it was read to its end.
///
/// # Errors
/// Why not. What was made until then is removed.
pub async fn restore(order: Restoration<'_>, now: Timestamp) -> Result<Restored, BackupError> {
    let Restoration { from, opener, settings_file, settings, root, keep_tokens } = order;
    let contents = verify(from, opener, now)?;
    if let Some(expected) = root.filter(|root| *root != contents.manifest.root) {
        return Err(BackupError::OtherRoot { found: contents.manifest.root, expected });
    }
    let mut made = Made::default();
    let there = settings_file.is_some_and(|path| fs::symlink_metadata(path).is_ok());
    let written = settings_file.zip(contents.settings.as_ref()).filter(|_| !there);
    if let Some((path, text)) = written {
        made.file(path, text, 0o644)?;
    }
    let settings_written = written.is_some();
    let config = match settings_file.filter(|_| there || settings_written) {
        Some(path) => Config::load(Some(path), settings)?,
        None => Config::resolve(settings)?,
    };
    made.directory(&config.data, 0o700)?;
    let lock_file = config.data.join("lock");
    if fs::symlink_metadata(&lock_file).is_err() {
        made.0.push(lock_file);
    }
    let _lock = app::lock_data(&config)?;
    let database = app::restore_database(&config)?;
    if let Database::Sqlite(path) = &database
        && fs::symlink_metadata(path).is_err()
    {
        for end in ["", "-wal", "-shm"] {
            let mut name = path.as_os_str().to_owned();
            name.push(end);
            made.0.push(name.into());
        }
    }
    let with_files = config.source == SourceKind::Files;
    if with_files {
        only_of_backup(&config.resources, &contents.resources)?;
    }
    let known: HashSet<&String> = contents.resources.iter().collect();
    let home = app::keys_home(&config).await?;

    let manifest = &contents.manifest;
    let mut loading = Loading::begin(database, manifest.schema, &manifest.program, now).await?;
    let mut reader = records(from, opener)?;
    let mut fill = async || -> Result<(), BackupError> {
        loop {
            match reader.part().map_err(BackupError::records(from))? {
                Part::Manifest(again) if again != *manifest => {
                    return Err(BackupError::Disorder("it changed while it was read"));
                }
                Part::Manifest(_) => {}
                Part::File { section: Section::Resources, path, content } if with_files => {
                    // Its path was looked at when the backup was read first.
                    if !known.contains(&path) {
                        return Err(BackupError::Disorder("it changed while it was read"));
                    }
                    let path = config.resources.join(path);
                    made.directory(path.parent().unwrap_or(&config.resources), 0o755)?;
                    made.same_or_file(&path, &content, 0o644)?;
                }
                Part::File { .. } => {}
                Part::Table(shape) => loading.table(&shape)?,
                Part::Rows(rows) => loading.rows(rows).await?,
                Part::End(_) => return Ok(()),
            }
        }
    };
    if let Err(error) = fill().await {
        loading.abandon().await;
        return Err(error);
    }
    if with_files {
        made.directory(&config.resources, 0o755)?;
    }
    let renewal = Renewal { made: manifest.made, keep_tokens };
    let mut placed = Placed::Made;
    let renewed = loading.finish(&renewal, now, async || {
        // The database is committed once these are there: a restore that is broken off here is begun again.
        placed = home.place(&contents.keys, now).await?;
        Ok::<_, BackupError>(())
    });
    let renewed = renewed.await?;
    made.0.clear();
    Ok(Restored { contents, config, settings_written, keys: placed, renewed })
}

/// Whether a directory holds no document but those of the backup.
fn only_of_backup(root: &Path, known: &[String]) -> Result<(), BackupError> {
    if fs::symlink_metadata(root).is_err() {
        return Ok(());
    }
    let listed = source::documents(root).map_err(|problem| BackupError::Resources(problem.to_string()))?;
    match listed.into_iter().find(|path| !known.contains(path)) {
        Some(other) => Err(BackupError::NotEmpty(root.join(other))),
        None => Ok(()),
    }
}

/// Files and directories that were made, which go again unless everything is in its place.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Made {
    fn file(&mut self, path: &Path, content: &[u8], mode: u32) -> Result<(), BackupError> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(mode).open(path);
        let mut file = file.map_err(BackupError::file(path))?;
        self.0.push(path.to_owned());
        file.write_all(content).and_then(|()| file.sync_all()).map_err(BackupError::file(path))
    }

    fn same_or_file(&mut self, path: &Path, content: &[u8], mode: u32) -> Result<(), BackupError> {
        match fs::read(path) {
            Ok(found) if found == content => Ok(()),
            Ok(_) => Err(BackupError::NotEmpty(path.to_owned())),
            Err(_) => self.file(path, content, mode),
        }
    }

    fn directory(&mut self, path: &Path, mode: u32) -> Result<(), BackupError> {
        let missing: Vec<PathBuf> = path
            .ancestors()
            .take_while(|above| !above.as_os_str().is_empty() && !above.exists())
            .map(Path::to_owned)
            .collect();
        DirBuilder::new().recursive(true).mode(mode).create(path).map_err(BackupError::file(path))?;
        self.0.extend(missing.into_iter().rev());
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // What somebody else uses meanwhile stays, as does what cannot be removed.
            let _ = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
        }
    }
}
