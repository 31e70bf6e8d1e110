//! Following the files as they are replaced, which happens about once a week.

use std::time::Duration;

use super::Geo;
use crate::stop::Stop;

/// How often it is looked whether a file changed.
const LOOK: Duration = Duration::from_secs(5);

impl Geo {
    /// Reads the files again when they change, until it is to stop.
    pub async fn follow(self, mut stop: Stop) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = stop.requested() => return,
            }
            let geo = self.clone();
            match tokio::task::spawn_blocking(move || geo.refresh()).await {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => tracing::info!("the database of places was read again"),
                Ok(Err(error)) => tracing::error!(%error, "the one that was read before stays in use"),
                Err(error) => tracing::error!(%error, "reading the database of places broke down"),
            }
        }
    }
}
