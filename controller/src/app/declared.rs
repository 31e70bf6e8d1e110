//! What declares the resources of a database: files or Kubernetes, not both at once. A controller that starts with the
//! other one takes over, and what is declared there under the same names stays what it is; but not while a replica that
//! lives still reads the one before, for each would remove what the other declares.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::RunError;
use crate::{
    config::SourceKind,
    store::{Declaration, REPLICA_SILENT, ReplicaId, ReplicaInfo, Store},
};

/// For how long a replica of the other source may go on to look alive: one that was killed does for a while.
pub(super) const PATIENCE: Duration = REPLICA_SILENT.saturating_add(Duration::from_secs(3));
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(250);

fn name(kind: SourceKind) -> &'static str {
    match kind {
        SourceKind::Files => "files",
        SourceKind::Kubernetes => "kubernetes",
    }
}

/// Notes what declares resources from now on, and that this replica is there, if others may be.
///
/// # Errors
/// When a replica goes on to live that reads the other one.
pub(super) async fn declare(
    kind: SourceKind,
    store: &Store,
    (replica, info): (ReplicaId, Option<&ReplicaInfo>),
    patience: Duration,
) -> Result<(), RunError> {
    let end = Instant::now() + patience;
    loop {
        match store.declare(name(kind), replica, info, Timestamp::now()).await? {
            Declaration::AsBefore => return Ok(()),
            Declaration::Moved => break,
            Declaration::Refused { other } if Instant::now() >= end => return Err(refusal(kind, &other)),
            Declaration::Refused { .. } => sleep(LOOK).await,
        }
    }
    tracing::info!(now = name(kind), "resources are declared in another place from now on");
    // Who led there was elected there, and may have died without giving it up: that election ends nothing here.
    let nobody = ReplicaId::random();
    store.take_leadership(nobody, "", Timestamp::now()).await?;
    store.release_lease(nobody).await?;
    Ok(())
}

fn refusal(ours: SourceKind, other: &str) -> RunError {
    let theirs = match ours {
        SourceKind::Files => name(SourceKind::Kubernetes),
        SourceKind::Kubernetes => name(SourceKind::Files),
    };
    RunError::OtherSource { other: format!("replica '{other}'"), theirs, ours: name(ours) }
}

#[cfg(test)]
mod tests {
    use crate::store::{
        LeaseOutcome,
        tests::{
            kit::{Kit, at},
            place::{ENGINE, On},
        },
    };

    use super::*;

    async fn scenario() {
        use SourceKind::{Files, Kubernetes};
        let kit = Kit::new().await;
        let info =
            ReplicaInfo { name: "one".into(), addresses: Vec::new(), draining: false, version: "0".into() };
        let enter = |kind, replica, patience| declare(kind, &kit.store, (replica, Some(&info)), patience);
        let (one, two) = (ReplicaId::random(), ReplicaId::random());
        enter(Files, one, Duration::ZERO).await.unwrap();
        // More of the same are welcome.
        enter(Files, two, Duration::ZERO).await.unwrap();
        kit.store.remove_replica(two).await.unwrap();
        // The other is not while one lives, and says what to do.
        let refused = enter(Kubernetes, two, Duration::ZERO).await.unwrap_err().to_string();
        assert!(refused.contains("replica 'one'") && refused.contains("files"), "{refused}");
        // One that ends is waited for. Of several that start at once, all may.
        let epoch = kit.store.take_leadership(one, "one", at(0)).await.unwrap();
        let three = ReplicaId::random();
        let (second, third, ()) =
            tokio::join!(enter(Kubernetes, two, PATIENCE), enter(Kubernetes, three, PATIENCE), async {
                sleep(LOOK).await;
                kit.store.remove_replica(one).await.unwrap();
            });
        second.unwrap();
        third.unwrap();
        // Who led with the one before was elected elsewhere, and never gave it up.
        let outcome = kit.store.try_lease(two, "two", Duration::from_secs(3)).await.unwrap();
        assert!(matches!(outcome, LeaseOutcome::Held(newer) if newer > epoch), "{outcome:?}");
        assert!(enter(Files, one, Duration::ZERO).await.is_err());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_database_has_one_kind_of_source_at_a_time() {
        ENGINE.scope(On::Postgres, scenario()).await;
    }
}
