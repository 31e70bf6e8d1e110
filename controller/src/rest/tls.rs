//! The certificate of the REST API: files, read again when they change, so that whoever renews it needs no restart.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    version::TLS13,
};
use thiserror::Error;

/// How often it is looked whether the files changed.
const LOOK: Duration = Duration::from_secs(10);
/// The largest file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is far too large.
    #[error("{0} is larger than 1 MiB, so it holds no certificate and no key")]
    TooLarge(PathBuf),
    /// It does not hold what it should.
    #[error("{0} holds no {1} in PEM form")]
    Empty(PathBuf, &'static str),
    /// The two do not belong together.
    #[error("the certificate and the key of the REST API cannot be used: {0}")]
    Pair(#[from] rustls::Error),
}

/// A certificate in files.
pub(super) struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    current: Mutex<Current>,
}

struct Current {
    config: Arc<ServerConfig>,
    looked: Instant,
    changed: [Option<SystemTime>; 2],
}

fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|meta| meta.modified()).ok()
}

impl Certificate {
    pub(super) fn open(chain: &Path, key: &Path) -> Result<Self, TlsError> {
        let changed = [changed(chain), changed(key)];
        let current = Current { config: Arc::new(load(chain, key)?), looked: Instant::now(), changed };
        Ok(Self { chain: chain.to_owned(), key: key.to_owned(), current: Mutex::new(current) })
    }

    /// The configuration for the next connection. Files that cannot be used leave the one before in use.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked.elapsed() >= LOOK {
            current.looked = Instant::now();
            let now = [changed(&self.chain), changed(&self.key)];
            if now != current.changed {
                match load(&self.chain, &self.key) {
                    Ok(config) => {
                        tracing::info!("the certificate of the REST API changed");
                        (current.config, current.changed) = (Arc::new(config), now);
                    }
                    Err(error) => tracing::warn!(%error, "the certificate before stays in use"),
                }
            }
        }
        current.config.clone()
    }
}

fn read(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, TlsError> {
    let failed = |error| TlsError::File { path: path.to_owned(), error };
    if fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
        return Err(TlsError::TooLarge(path.to_owned()));
    }
    fs::read(path).map(zeroize::Zeroizing::new).map_err(failed)
}

/// TLS 1.3 alone (RFC 8446).
fn load(chain: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let (chain_pem, key_pem) = (read(chain)?, read(key)?);
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain_pem).collect();
    let certificates = certificates.ok().filter(|list| !list.is_empty());
    let certificates = certificates.ok_or_else(|| TlsError::Empty(chain.to_owned(), "certificate"))?;
    let private = PrivateKeyDer::from_pem_slice(&key_pem)
        .map_err(|_| TlsError::Empty(key.to_owned(), "private key"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(certificates, private)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.max_early_data_size = 0;
    Ok(config)
}
