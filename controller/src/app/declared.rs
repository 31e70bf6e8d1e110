//! What declares the resources of a database: files or Kubernetes, not both at once. A controller that starts with the
//! other one takes over, and what is declared there under the same names stays what it is; but not while a replica that
//! lives still reads the one before, for each would remove what the other declares.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::RunError;
use crate::{
    config::SourceKind,
    store::{ReplicaId, Store},
};

/// Under which name the database remembers it.
const NOTE: &str = "leader.source";

fn name(kind: SourceKind) -> &'static str {
    match kind {
        SourceKind::Files => "files",
        SourceKind::Kubernetes => "kubernetes",
    }
}

/// What a start knows of the one before.
pub(super) struct Declared {
    kind: SourceKind,
    /// What declared resources until now; `None` before the first start.
    before: Option<Value>,
}

impl Declared {
    /// Notes what declares resources from now on. Called before others can see this replica.
    pub(super) async fn by(kind: SourceKind, store: &Store, now: Timestamp) -> Result<Self, RunError> {
        let declared = Self { kind, before: store.note(NOTE).await? };
        declared.check(store, None).await?;
        if declared.before.as_ref() != Some(&json!(name(kind))) {
            if let Some(before) = &declared.before {
                tracing::info!(%before, now = name(kind), "resources are declared in another place from now on");
                // Who led there was elected there, and may have died without giving it up: that election ends nothing here.
                let nobody = ReplicaId::random();
                store.take_leadership(nobody, "", now).await?;
                store.release_lease(nobody).await?;
            }
            store.put_note(NOTE, Some(&json!(name(kind))), now, None).await?;
        }
        Ok(declared)
    }

    /// Makes sure, once others can see this replica, that none of them started in the same moment with the other.
    pub(super) async fn confirm(&self, store: &Store, replica: ReplicaId) -> Result<(), RunError> {
        self.check(store, Some(replica)).await?;
        match store.note(NOTE).await? {
            Some(noted) if noted != json!(name(self.kind)) => Err(self.refusal("another replica")),
            _ => Ok(()),
        }
    }

    /// Refuses to take over from a replica that lives.
    async fn check(&self, store: &Store, replica: Option<ReplicaId>) -> Result<(), RunError> {
        if self.before.as_ref().is_none_or(|before| *before == json!(name(self.kind))) {
            return Ok(());
        }
        let replicas = store.replicas().await?;
        match replicas.iter().find(|row| row.alive() && Some(row.replica) != replica) {
            Some(other) => Err(self.refusal(&format!("replica '{}'", other.info.name))),
            None => Ok(()),
        }
    }

    fn refusal(&self, other: &str) -> RunError {
        let theirs = match self.kind {
            SourceKind::Files => name(SourceKind::Kubernetes),
            SourceKind::Kubernetes => name(SourceKind::Files),
        };
        RunError::OtherSource { other: other.to_owned(), theirs, ours: name(self.kind) }
    }
}

#[cfg(test)]
mod tests {
    use crate::store::{
        LeaseOutcome, ReplicaInfo,
        tests::{
            kit::{Kit, at},
            place::{ENGINE, On},
        },
    };

    use super::*;

    async fn beat(kit: &Kit, replica: ReplicaId) {
        let info =
            ReplicaInfo { name: "one".into(), addresses: Vec::new(), draining: false, version: "0".into() };
        kit.store.replica_beat(replica, &info).await.unwrap();
    }

    async fn scenario() {
        use SourceKind::{Files, Kubernetes};
        let kit = Kit::new().await;
        let by = |kind| Declared::by(kind, &kit.store, at(0));
        let (one, two) = (ReplicaId::random(), ReplicaId::random());
        let first = by(Files).await.unwrap();
        beat(&kit, one).await;
        first.confirm(&kit.store, one).await.unwrap();
        // More of the same are welcome.
        let second = by(Files).await.unwrap();
        second.confirm(&kit.store, two).await.unwrap();
        // The other is not while one lives, and says what to do.
        let refused = by(Kubernetes).await.err().unwrap().to_string();
        assert!(refused.contains("replica 'one'") && refused.contains("files"), "{refused}");
        kit.store.remove_replica(one).await.unwrap();
        let epoch = kit.store.take_leadership(one, "one", at(0)).await.unwrap();
        let third = by(Kubernetes).await.unwrap();
        // Who led with the one before was elected elsewhere, and never gave it up.
        let outcome = kit.store.try_lease(two, "two", std::time::Duration::from_secs(3)).await.unwrap();
        assert!(matches!(outcome, LeaseOutcome::Held(newer) if newer > epoch), "{outcome:?}");
        beat(&kit, two).await;
        third.confirm(&kit.store, two).await.unwrap();
        // Who started with the one before in the same moment is found out.
        beat(&kit, one).await;
        assert!(third.confirm(&kit.store, two).await.is_err());
        assert!(second.confirm(&kit.store, one).await.is_err());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_database_has_one_kind_of_source_at_a_time() {
        ENGINE.scope(On::Postgres, scenario()).await;
    }
}
