//! How fixtures differ.

use std::time::Duration;

use crate::Site;

/// How a [`crate::KubeApi`] is started.
#[derive(Clone, Debug)]
pub struct KubeOptions {
    /// Where it lives.
    pub site: Site,
    /// More arguments for `kube-apiserver`.
    pub apiserver: Vec<String>,
    /// Whether the repository's CRDs are installed first: the garbage collector looks for new kinds every 30 s only.
    pub crds: bool,
}

impl Default for KubeOptions {
    fn default() -> Self {
        Self { site: Site::default(), apiserver: Vec::new(), crds: true }
    }
}

/// How a [`crate::Postgres`] is started.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// Where it lives.
    pub site: Site,
    /// Whether a commit waits for the disk. Without it a killed server loses nothing, a machine without power might.
    pub fsync: bool,
    /// Whether connections may, and from other than superusers must, use TLS.
    pub tls: bool,
    /// `max_connections`.
    pub connections: u32,
    /// Keeps all data on a disk of this many bytes, at least 100 MiB, to be filled.
    pub disk: Option<u64>,
    /// More settings, as in `postgresql.conf`.
    pub settings: Vec<(String, String)>,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            site: Site::default(),
            fsync: false,
            tls: false,
            connections: 100,
            disk: None,
            settings: Vec::new(),
        }
    }
}

/// Which processes a [`crate::Redis`] consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedisShape {
    /// One server.
    #[default]
    Single,
    /// A primary, a replica, and three sentinels that watch them under the name `horizon`.
    Sentinel,
    /// Three primaries that share the key space.
    Cluster,
}

/// How a [`crate::Redis`] is started.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// Where it lives.
    pub site: Site,
    /// Which processes.
    pub shape: RedisShape,
    /// What clients must know.
    pub password: Option<String>,
    /// Whether every connection uses TLS.
    pub tls: bool,
    /// How many bytes it holds before it refuses (`noeviction`) more.
    pub memory: Option<u64>,
    /// Whether writes survive a kill: an append-only file, written at once.
    pub durable: bool,
    /// How long sentinels miss a primary, or cluster nodes one another, before they call it gone.
    pub patience: Duration,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self {
            site: Site::default(),
            shape: RedisShape::Single,
            password: None,
            tls: false,
            memory: None,
            durable: false,
            patience: Duration::from_secs(1),
        }
    }
}
