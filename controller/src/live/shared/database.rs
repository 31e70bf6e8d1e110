//! What the live layer asks of the database that replicas share: notifications, and who is connected where, for when there
//! is no Redis.

use futures_util::{future::BoxFuture, stream::BoxStream};
use horizon_model::{DeviceId, Incarnation, ServerId};
use jiff::Timestamp;

use crate::store::{ChannelLease, ReplicaId};

/// A server whose channel a replica holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Which server.
    pub server: ServerId,
    /// The replica that holds its channel.
    pub replica: ReplicaId,
    /// The start of the appliance's process.
    pub incarnation: Incarnation,
    /// The lease of the channel.
    pub lease: ChannelLease,
    /// Since when.
    pub since: Timestamp,
}

/// Why the database did not answer, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DatabaseError(pub String);

/// An answer that comes later.
pub type Later<'a, T> = BoxFuture<'a, Result<T, DatabaseError>>;

/// A database that replicas share.
pub trait Database: Send + Sync + 'static {
    /// Tells every replica that listens, itself included. `text` is shorter than 8,000 bytes.
    fn notify<'a>(&'a self, text: &'a str) -> Later<'a, ()>;
    /// What is told from now on. The stream ends when the connection breaks.
    fn listen(&self) -> Later<'_, BoxStream<'static, String>>;
    /// The replicas that live.
    fn replicas(&self) -> Later<'_, Vec<ReplicaId>>;
    /// Who holds which server's channel: of some servers, or of all.
    fn seats<'a>(&'a self, of: Option<&'a [ServerId]>) -> Later<'a, Vec<Seat>>;
    /// Which devices have a channel where: some, or all.
    fn devices<'a>(&'a self, of: Option<&'a [DeviceId]>) -> Later<'a, Vec<(DeviceId, ReplicaId)>>;
    /// Notes which devices have a channel at a replica and which have none any more. With `whole`, no others have.
    fn put_devices<'a>(
        &'a self,
        replica: ReplicaId,
        whole: bool,
        online: &'a [DeviceId],
        offline: &'a [DeviceId],
    ) -> Later<'a, ()>;
}
