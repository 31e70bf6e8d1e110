//! Telling other replicas through Postgres. What is told may be lost: whoever listens looks at the store from time to time.

use futures_util::{Stream, StreamExt as _, stream};
use sqlx::postgres::PgListener;

use super::{
    Store, StoreError,
    dialect::{Engine, Pool, query},
};

/// The channel of Postgres.
const CHANNEL: &str = "horizon_hints";
/// The longest text, in bytes; Postgres takes less than 8000.
pub const MAX_NOTICE: usize = 7900;

impl Store {
    /// Whether the database is Postgres, which several replicas may share.
    pub fn is_postgres(&self) -> bool {
        self.readers().engine() == Engine::Postgres
    }

    /// Tells every replica that listens, this one too. A text above [`MAX_NOTICE`] is refused by the database. On SQLite there
    /// is nobody to tell.
    pub async fn notify(&self, text: &str) -> Result<(), StoreError> {
        if self.is_postgres() {
            query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(text).execute(self.readers()).await?;
        }
        Ok(())
    }

    /// What replicas tell from now on. It ends when the connection breaks: what is told until somebody listens again is
    /// lost. On SQLite nothing is ever told.
    pub async fn listen(
        &self,
    ) -> Result<impl Stream<Item = String> + Send + Unpin + 'static + use<>, StoreError> {
        let Pool::Postgres(pool) = self.readers() else { return Ok(stream::pending().boxed()) };
        let mut listener = PgListener::connect_with(pool).await?;
        // What is told while nobody listens is lost: whoever listens must hear of that at once.
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        let told = stream::unfold(listener, async |mut listener| match listener.try_recv().await {
            Ok(Some(notice)) => Some((notice.payload().to_owned(), listener)),
            Ok(None) | Err(_) => None,
        });
        Ok(told.boxed())
    }
}
