//! Sessions of users that an administrator ends.

use horizon_model::SessionId;
use jiff::Timestamp;

use super::{
    Actor, EndReason, Ended, Store, StoreError,
    audit::{self, Record},
    session,
};

impl Store {
    /// Ends a session if it is live, for an administrator.
    pub async fn end_session_by(
        &self,
        session: SessionId,
        reason: &EndReason,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Option<Ended>, StoreError> {
        let ended = self
            .retried("end_session", || async {
                let mut tx = self.begin().await?;
                let ended = session::end(&mut tx, session, reason, now).await?;
                if let Some(ended) = &ended {
                    let record = Record::new("end", "Session", session, session).notes(ended.reason.clone());
                    audit::write(&mut tx, actor, now, &[record]).await?;
                }
                tx.commit().await?;
                Ok::<_, StoreError>(ended)
            })
            .await?;
        if ended.is_some() {
            self.inner.metrics.session_ended(reason.status.as_str());
        }
        Ok(ended)
    }
}
