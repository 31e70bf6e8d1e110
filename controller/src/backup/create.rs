//! Making a backup while the controller runs.

use std::{
    fs,
    io::{BufWriter, Write},
    path::Path,
};

use horizon_crds::Problem;
use jiff::Timestamp;

use super::{
    BackupError, Lock, Manifest, RecordError, Section, Totals, Writer, draft::Draft, seal, stream::Sealing,
};
use crate::{
    app,
    config::{Config, SourceKind},
    keys::{Home, KeyFiles, Keys},
    source,
    store::{Snapshot, StoreError},
};

/// How often keys and database are read anew when keys change meanwhile.
const ATTEMPTS: usize = 5;
/// After how many rows it is told how far it is.
const TELL_ROWS: u64 = 100_000;
/// The largest file of settings and the largest document, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// What is backed up, and how.
pub struct Order<'a> {
    /// The settings.
    pub config: &'a Config,
    /// The file they were read from.
    pub settings: Option<&'a Path>,
    /// For whom it is.
    pub lock: &'a Lock,
}

/// A backup that was made.
pub struct Made {
    /// What it says of itself.
    pub manifest: Manifest,
    /// What is in it.
    pub totals: Totals,
    /// Its size in bytes.
    pub size: u64,
}

/// Makes a backup in a file, which replaces another only by `force`. `tell` hears how many rows were written so far.
///
/// # Errors
/// Why not; nothing is left behind then.
pub async fn create_file(
    order: Order<'_>,
    (to, force): (&Path, bool),
    now: Timestamp,
    tell: &mut dyn FnMut(u64),
) -> Result<Made, BackupError> {
    let (draft, file) = Draft::begin(to, force)?;
    let made = create(order, (&mut &file, to), now, tell).await?;
    draft.finish(&file)?;
    Ok(made)
}

/// Writes a backup to `out`, which is called by the path.
///
/// # Errors
/// Why not. What was written until then opens as a backup that was cut.
pub async fn create(
    order: Order<'_>,
    (out, to): (&mut dyn Write, &Path),
    now: Timestamp,
    tell: &mut dyn FnMut(u64),
) -> Result<Made, BackupError> {
    let Order { config, settings, lock } = order;
    let home = app::keys_home(config).await?;
    let (mut snapshot, files) = consistent(config, &home).await?;
    let keys = Keys::read(&files, Path::new(&home.to_string()), now)?;
    let manifest = Manifest {
        made: now,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        schema: snapshot.schema(),
        engine: snapshot.engine().to_owned(),
        root: keys.root_id().to_string(),
        keyset: keys.keyset.version,
        source: source_name(config.source).to_owned(),
    };
    let in_backup = || BackupError::records(to);
    let out = Counted { out: BufWriter::new(out), bytes: 0 };
    let stream = seal(out, lock).map_err(BackupError::head(to))?;
    let mut writer = Writer::new(stream, &manifest).map_err(in_backup())?;
    if let Some(path) = settings {
        writer.file(Section::Settings, "config.toml", &read(path)?).map_err(in_backup())?;
    }
    for (name, content) in &files {
        writer.file(Section::Keys, name, content).map_err(in_backup())?;
    }
    if config.source == SourceKind::Files {
        put_resources(&config.resources, &mut writer, to)?;
    }
    for shape in snapshot.tables().to_vec() {
        writer.table(&shape).map_err(in_backup())?;
        let written = snapshot.rows(&shape, |row| {
            writer.row(&row)?;
            let rows = writer.totals().rows;
            if rows.is_multiple_of(TELL_ROWS) {
                tell(rows);
            }
            Ok::<_, RowError>(())
        });
        written.await.map_err(|error| match error {
            RowError::Store(error) => error.into(),
            RowError::Record(error) => in_backup()(error),
        })?;
    }
    snapshot.close().await;
    let (stream, totals) = writer.finish().map_err(in_backup())?;
    let mut out = stream.finish().map_err(BackupError::file(to))?;
    out.flush().map_err(BackupError::file(to))?;
    Ok(Made { manifest, totals, size: out.bytes })
}

/// Counts what is written.
struct Counted<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

enum RowError {
    Store(StoreError),
    Record(RecordError),
}

impl From<StoreError> for RowError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<RecordError> for RowError {
    fn from(error: RecordError) -> Self {
        Self::Record(error)
    }
}

/// One state of the database and the keys of that moment: those from before are those from after it.
async fn consistent(config: &Config, home: &Home) -> Result<(Snapshot, KeyFiles), BackupError> {
    for _ in 0..ATTEMPTS {
        let before = home.files().await?.ok_or_else(|| BackupError::NoKeys(home.to_string()))?;
        let snapshot = Snapshot::take(app::database(config)?).await?;
        if home.files().await?.as_ref() == Some(&before) {
            return Ok((snapshot, before));
        }
        snapshot.close().await;
    }
    Err(BackupError::Unsteady)
}

fn put_resources<W: Write>(
    root: &Path,
    writer: &mut Writer<Sealing<W>>,
    to: &Path,
) -> Result<(), BackupError> {
    let told = |problem: &Problem| BackupError::Resources(problem.to_string());
    for path in source::documents(root).map_err(|problem| told(&problem))? {
        let content = match read(&root.join(&path)) {
            Ok(content) => content,
            // It was removed since it was listed.
            Err(BackupError::File { error, .. }) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        writer.file(Section::Resources, &path, &content).map_err(BackupError::records(to))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, BackupError> {
    let failed = BackupError::file(path);
    if fs::metadata(path).map_err(BackupError::file(path))?.len() > MAX_FILE {
        return Err(failed(std::io::Error::other(format!("it is larger than {MAX_FILE} bytes"))));
    }
    fs::read(path).map_err(failed)
}

fn source_name(kind: SourceKind) -> &'static str {
    match kind {
        SourceKind::Files => "files",
        SourceKind::Kubernetes => "kubernetes",
    }
}
