//! Numbers and names that replicas tell each other: which version of the resources, which leadership, which channel.

use std::{fmt, str::FromStr};

use uuid::Uuid;

/// The version of the resources as a whole: one more with every commit that changed something. 0 before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

/// The number of a leadership. Whoever took a later one fences all earlier ones: they write nothing from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaderEpoch(pub i64);

/// The number of a replica's hold on an appliance's channel: one more with each taking, so that a write of an earlier
/// holder shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelLease(pub i64);

/// One start of a controller's process. Random: a replica that starts again is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub Uuid);

/// How far a sweep over changed servers has come. Only the database that gave it can read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(pub(super) Position);

/// A place in the sequence of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// SQLite counts them.
    Counter(i64),
    /// Postgres names the transactions that had ended.
    Snapshot(String),
}

impl ReplicaId {
    /// That of a process that starts now.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for LeaderEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ChannelLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ReplicaId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}
