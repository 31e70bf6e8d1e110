//! Reading a backup as a whole, without doing anything with it: whether it is whole, and what is in it.

use std::{
    fs::File,
    io::BufReader,
    path::{Component, Path},
};

use horizon_wire::proto;
use jiff::Timestamp;
use serde::Serialize;
use zeroize::Zeroizing;

use super::{BackupError, Manifest, Opener, Opening, Part, Reader, Section, Totals, open};
use crate::{
    keys::{KeyFiles, Keys},
    store::{AuditReport, Loading},
};

/// The most files of a backup, besides its tables.
const MAX_FILES: usize = 200_000;
/// The longest path of a file.
const MAX_PATH: usize = 1024;

/// A table and how many rows it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableSize {
    /// Its name.
    pub table: String,
    /// Its rows.
    pub rows: u64,
}

/// A backup that was read to its end.
pub struct Contents {
    /// What it says of itself.
    pub manifest: Manifest,
    /// The files of resources.
    pub resources: Vec<String>,
    /// The file of settings.
    pub settings: Option<Zeroizing<Vec<u8>>>,
    /// The keys.
    pub keys: KeyFiles,
    /// The tables.
    pub tables: Vec<TableSize>,
    /// What is in it.
    pub totals: Totals,
}

/// The records of a backup.
pub(super) fn records(
    path: &Path,
    opener: &Opener,
) -> Result<Reader<BufReader<Opening<BufReader<File>>>>, BackupError> {
    let file = File::open(path).map_err(BackupError::file(path))?;
    let stream = open(BufReader::new(file), opener).map_err(BackupError::head(path))?;
    Ok(Reader::new(BufReader::new(stream)))
}

/// Reads a backup to its end.
///
/// # Errors
/// When it is not whole, or not what `backup` makes.
pub fn verify(path: &Path, opener: &Opener, now: Timestamp) -> Result<Contents, BackupError> {
    let mut reader = records(path, opener)?;
    let Part::Manifest(manifest) = reader.part().map_err(BackupError::records(path))? else {
        return Err(BackupError::Disorder("it does not say what it is"));
    };
    let mut contents = Contents {
        manifest,
        resources: Vec::new(),
        settings: None,
        keys: KeyFiles::new(),
        tables: Vec::new(),
        totals: Totals::default(),
    };
    let mut files = 0;
    loop {
        match reader.part().map_err(BackupError::records(path))? {
            Part::Manifest(_) => return Err(BackupError::Disorder("it says twice what it is")),
            Part::File { section, path, content } => {
                files += 1;
                if files > MAX_FILES || !is_inside(&path) {
                    return Err(BackupError::Disorder("a file of it has a place where none belongs"));
                }
                match section {
                    Section::Settings => contents.settings = Some(content),
                    Section::Resources => contents.resources.push(path),
                    Section::Keys if is_key(&path) => drop(contents.keys.insert(path, content)),
                    Section::Keys => {
                        return Err(BackupError::Disorder("a key of it has a name that none has"));
                    }
                }
            }
            Part::Table(shape) => contents.tables.push(TableSize { table: shape.table, rows: 0 }),
            Part::Rows(rows) => {
                if let Some(table) = contents.tables.last_mut() {
                    table.rows += rows.len() as u64;
                }
            }
            Part::End(totals) => {
                contents.totals = totals;
                break;
            }
        }
    }
    let keys = Keys::read(&contents.keys, Path::new("the backup"), now)?;
    let found = keys.root_id().to_string();
    if found != contents.manifest.root {
        return Err(BackupError::OtherRoot { found, expected: contents.manifest.root });
    }
    Ok(contents)
}

/// The tables that the audit trail hangs on.
const OF_AUDIT: [&str; 4] = ["audit_logs", "audit_links", "audit_checkpoints", "keysets"];

/// Verifies the audit trail in a backup, in memory. `witnesses` are checkpoints that appliances kept.
///
/// # Errors
/// When the backup cannot be read.
pub async fn verify_audit(
    path: &Path,
    opener: &Opener,
    witnesses: &[proto::Envelope],
    now: Timestamp,
) -> Result<AuditReport, BackupError> {
    let mut reader = records(path, opener)?;
    let Part::Manifest(manifest) = reader.part().map_err(BackupError::records(path))? else {
        return Err(BackupError::Disorder("it does not say what it is"));
    };
    let mut loading = Loading::in_memory(manifest.schema, &manifest.program, now).await?;
    let mut of_audit = false;
    loop {
        match reader.part().map_err(BackupError::records(path))? {
            Part::Table(shape) => {
                of_audit = OF_AUDIT.contains(&&*shape.table);
                if of_audit {
                    loading.table(&shape)?;
                }
            }
            Part::Rows(rows) if of_audit => loading.rows(rows).await?,
            Part::End(_) => break,
            _ => {}
        }
    }
    Ok(loading.verify_audit(witnesses, now).await?)
}

/// Whether a path leads to below where it starts.
fn is_inside(path: &str) -> bool {
    let mut components = Path::new(path).components();
    path.len() <= MAX_PATH && !path.is_empty() && components.all(|part| matches!(part, Component::Normal(_)))
}

fn is_key(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    name.len() <= 64 && !name.starts_with('.') && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for good in ["a.toml", "a/b.toml", "a/.../b"] {
            assert!(is_inside(good), "{good}");
        }
        for bad in ["", "/etc/passwd", "../a", "a/../../b", "./a", "a/.."] {
            assert!(!is_inside(bad), "{bad}");
        }
        assert!(is_key("envelope.key") && is_key("keysets.bin"));
        assert!(!is_key("../envelope.key") && !is_key(".key") && !is_key("a/b.key"));
    }
}
