//! Why a controller does not run.

use std::{io, net::SocketAddr, path::PathBuf};

use thiserror::Error;

use crate::{
    api::SocketError,
    config::UrlFileError,
    geo::GeoError,
    keys::{KeysError, RotateError},
    kubernetes::{ConnectError, KeysSecretError},
    live::shared::RedisUrlError,
    log,
    notify::NotifyError,
    rest::TlsError,
    store::{InvalidUrl, StoreError},
};

/// Why a controller did not start, or ended by itself.
#[derive(Debug, Error)]
pub enum RunError {
    /// A setting is wrong.
    #[error(transparent)]
    Log(#[from] log::InvalidLevel),
    /// There is no data directory.
    #[error(
        "there is no directory {0}: run `horizon-controller init DIR`, then `run --config DIR/config.toml`"
    )]
    NoData(PathBuf),
    /// Another controller has it.
    #[error("another controller uses {0}: stop it first")]
    Locked(PathBuf),
    /// The database of places cannot be used.
    #[error(transparent)]
    Geo(#[from] GeoError),
    /// Nobody can be notified as the settings say.
    #[error(transparent)]
    Notify(#[from] NotifyError),
    /// The keys cannot be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The keys cannot be brought up to date.
    #[error(transparent)]
    Rotation(#[from] RotateError),
    /// The keys are not those that were used last.
    #[error(
        "the keys are KeySet {found}, but KeySet {newest} was in use before: data/keys is older than the database, \
         restore the newer one"
    )]
    OldKeys {
        /// What was found.
        found: u64,
        /// What was in use.
        newest: u64,
    },
    /// Another replica reads resources elsewhere.
    #[error(
        "{other} works on the same database and reads resources from {theirs}; this one is to read them from {ours}: \
         stop every replica that reads {theirs} first (`source` in the settings)"
    )]
    OtherSource {
        /// Which.
        other: String,
        /// Where it reads.
        theirs: &'static str,
        /// Where this one is to read.
        ours: &'static str,
    },
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file with an address cannot be used.
    #[error(transparent)]
    UrlFile(#[from] UrlFileError),
    /// The address of the database is none.
    #[error("{setting}: {error}")]
    DatabaseUrl {
        /// Which setting names the file.
        setting: &'static str,
        /// What is wrong.
        error: InvalidUrl,
    },
    /// The address of Redis cannot be used.
    #[error(transparent)]
    RedisUrl(#[from] RedisUrlError),
    /// There is no way to the API server.
    #[error(transparent)]
    Kubernetes(#[from] ConnectError),
    /// The Secret with the keys cannot be used.
    #[error(transparent)]
    KeysSecret(#[from] KeysSecretError),
    /// There is nothing to migrate.
    #[error(
        "no database_url_file is set: the database is SQLite, which `horizon-controller run` migrates by itself"
    )]
    NothingToMigrate,
    /// The certificate of the REST API cannot be used.
    #[error(transparent)]
    RestTls(#[from] TlsError),
    /// The socket of the API cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// An address cannot be listened at.
    #[error("cannot listen at {address} ({setting}): {error}")]
    Listen {
        /// Which setting names it.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The system refused something else.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
    /// A part ended although nobody asked it to.
    #[error("the controller's {0} ended by itself; see the log")]
    Ended(&'static str),
}
