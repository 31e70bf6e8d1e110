//! The store as the database that replicas share.

use futures_util::{FutureExt as _, StreamExt as _, stream::BoxStream};
use horizon_model::{DeviceId, ServerId};

use super::database::{Database, DatabaseError, Later, Seat};
use crate::store::{PresenceRow, ReplicaId, ReplicaRow, Store, StoreError};

impl From<StoreError> for DatabaseError {
    fn from(error: StoreError) -> Self {
        Self(error.to_string())
    }
}

impl From<PresenceRow> for Seat {
    fn from(row: PresenceRow) -> Self {
        let PresenceRow { server, lease, replica, incarnation, since } = row;
        Self { server, replica, incarnation, lease, since }
    }
}

impl Database for Store {
    fn notify<'a>(&'a self, text: &'a str) -> Later<'a, ()> {
        async { Ok(Self::notify(self, text).await?) }.boxed()
    }

    fn listen(&self) -> Later<'_, BoxStream<'static, String>> {
        async { Ok(Self::listen(self).await?.boxed()) }.boxed()
    }

    fn replicas(&self) -> Later<'_, Vec<ReplicaId>> {
        async {
            let rows = Self::replicas(self).await?;
            Ok(rows.iter().filter(|row| row.alive()).map(|row: &ReplicaRow| row.replica).collect())
        }
        .boxed()
    }

    fn seats<'a>(&'a self, of: Option<&'a [ServerId]>) -> Later<'a, Vec<Seat>> {
        async move {
            let rows = match of {
                Some(servers) => self.presences_of(servers).await?,
                None => self.presences().await?,
            };
            Ok(rows.into_iter().map(Seat::from).collect())
        }
        .boxed()
    }

    fn devices<'a>(&'a self, of: Option<&'a [DeviceId]>) -> Later<'a, Vec<(DeviceId, ReplicaId)>> {
        async move {
            Ok(match of {
                Some(devices) => self.device_channels_of(devices).await?,
                None => self.device_channels().await?,
            })
        }
        .boxed()
    }

    fn put_devices<'a>(
        &'a self,
        replica: ReplicaId,
        whole: bool,
        online: &'a [DeviceId],
        offline: &'a [DeviceId],
    ) -> Later<'a, ()> {
        async move { Ok(self.put_device_channels(replica, whole, online, offline).await?) }.boxed()
    }
}
