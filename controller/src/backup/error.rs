//! What may go wrong with a backup, in words.

use std::{
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::{head::HeadError, records::RecordError};
use crate::{
    app::RunError,
    config::ConfigError,
    keys::KeysError,
    store::{LoadError, StoreError},
};

/// Why no backup was made, or none restored. In both cases nothing was changed.
#[derive(Debug, Error)]
pub enum BackupError {
    /// A file is there.
    #[error("{0} exists already: name another file, or say --force to replace it")]
    Exists(PathBuf),
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The backup cannot be opened.
    #[error("{path}: {error}")]
    Head {
        /// Which.
        path: PathBuf,
        /// Why.
        error: HeadError,
    },
    /// The backup cannot be read, or written.
    #[error("{path}: {error}")]
    Records {
        /// Which.
        path: PathBuf,
        /// Why.
        error: RecordError,
    },
    /// There are no keys yet.
    #[error("{0} holds no keys yet, so there is nothing to back up")]
    NoKeys(String),
    /// Keys were rotated again and again while they were read.
    #[error("the keys changed whenever they were read: try again")]
    Unsteady,
    /// Not all resources could be listed.
    #[error("not all resources can be read: {0}")]
    Resources(String),
    /// It is another organisation's.
    #[error(
        "the backup is of the organisation with the root {found}, not of {expected}: it is not what you think it is"
    )]
    OtherRoot {
        /// What is in the backup.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// It was put together by somebody who has not the keys.
    #[error("the backup is not in order: {0}. It was not made by `backup`")]
    Disorder(&'static str),
    /// Something is there that the backup would go on top of.
    #[error(
        "{0} is not in the backup or is another one: a backup is restored into an empty system only. Remove it, or restore elsewhere"
    )]
    NotEmpty(PathBuf),
    /// The settings do not work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The surroundings do not work.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The keys do not work.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The database cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl BackupError {
    pub(super) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |error| Self::File { path: path.to_owned(), error }
    }

    pub(super) fn head(path: &Path) -> impl FnOnce(HeadError) -> Self + '_ {
        |error| Self::Head { path: path.to_owned(), error }
    }

    pub(super) fn records(path: &Path) -> impl FnOnce(RecordError) -> Self + '_ {
        |error| Self::Records { path: path.to_owned(), error }
    }
}
