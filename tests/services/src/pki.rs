//! Certificates of a fixture, made by `openssl` for one run.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::process::Program;
use crate::site::Keeper;

/// A certificate authority that exists for one fixture.
#[derive(Clone, Debug)]
pub struct Authority {
    /// Its certificate (PEM), which clients are to trust.
    pub certificate: PathBuf,
    key: PathBuf,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate (PEM).
    pub certificate: PathBuf,
    /// The private key (PEM), mode 0600.
    pub key: PathBuf,
}

impl Authority {
    /// A new authority, whose files go into the fixture's folder.
    pub(crate) fn new(keeper: &Keeper, name: &str) -> Result<Self> {
        let certificate = keeper.folder().join(format!("{name}.crt"));
        let key = elliptic_key(keeper, name)?;
        let words = ["req", "-x509", "-new", "-sha256", "-days", "30", "-subj", &format!("/CN={name}")];
        Program::new("openssl", words).arg("-key").arg(&key).arg("-out").arg(&certificate).ok(keeper, b"")?;
        Ok(Self { certificate, key })
    }

    /// A certificate for a server at `address`, which is also called `localhost` and by each of `names`.
    pub(crate) fn server(
        &self,
        keeper: &Keeper,
        name: &str,
        address: IpAddr,
        names: &[&str],
    ) -> Result<Certificate> {
        let mut also = format!("subjectAltName=IP:{address},DNS:localhost");
        names.iter().for_each(|name| also.push_str(&format!(",DNS:{name}")));
        self.issue(keeper, name, &also)
    }

    fn issue(&self, keeper: &Keeper, name: &str, also: &str) -> Result<Certificate> {
        let certificate = keeper.folder().join(format!("{name}.crt"));
        let key = elliptic_key(keeper, name)?;
        let words = ["req", "-x509", "-new", "-sha256", "-days", "30", "-subj", &format!("/CN={name}")];
        Program::new("openssl", words)
            .arg("-key")
            .arg(&key)
            .arg("-CA")
            .arg(&self.certificate)
            .arg("-CAkey")
            .arg(&self.key)
            .arg("-out")
            .arg(&certificate)
            .args(["-addext", also, "-addext", "basicConstraints=critical,CA:FALSE"])
            .ok(keeper, b"")?;
        Ok(Certificate { certificate, key })
    }
}

/// A new P-256 key in `NAME.key`.
pub(crate) fn elliptic_key(keeper: &Keeper, name: &str) -> Result<PathBuf> {
    let key = keeper.folder().join(format!("{name}.key"));
    Program::new("openssl", ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"])
        .arg(&key)
        .ok(keeper, b"")?;
    Ok(key)
}

/// The public half of a key, in `NAME.pub`.
pub(crate) fn public_half(keeper: &Keeper, key: &Path, name: &str) -> Result<PathBuf> {
    let public = keeper.folder().join(format!("{name}.pub"));
    Program::new("openssl", ["pkey", "-pubout", "-in"]).arg(key).arg("-out").arg(&public).ok(keeper, b"")?;
    Ok(public)
}
