//! Events for administrators: what `kubectl describe` and `kubectl events` show. Repeated ones are counted by the API server
//! as one, and there is a budget; the store's own events and the audit trail are complete.

use std::{sync::Arc, time::Duration};

use horizon_controller_core::status::Notice;
use horizon_crds::API_VERSION;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::{sync::mpsc, time::timeout};
use uuid::Uuid;

use super::{Cluster, FIELD_MANAGER, bucket::Bucket, failure::words, lease::LEASE, objects::Key};

/// The most events that wait; when there are more they are left out.
const MAX_WAITING: usize = 512;
/// How many per second in the long run, and at once after a quiet time.
const BUDGET: (u32, u32) = (5, 100);
/// How long writing one may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest note that the API server takes, in bytes.
const MAX_NOTE: usize = 1024;

/// Publishes events. A clone is the same; the last one dropped ends it.
#[derive(Clone, Debug)]
pub struct Events {
    sender: mpsc::Sender<(ObjectReference, Notice)>,
    own: Arc<ObjectReference>,
    metrics: super::KubernetesMetrics,
}

impl Events {
    /// Starts to publish, in the name of this replica.
    pub fn start(cluster: &Cluster, replica: &str) -> Self {
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        let reporter = Reporter {
            controller: FIELD_MANAGER.to_owned(),
            instance: Some(replica.chars().take(128).collect()),
        };
        let recorder = Recorder::new(cluster.client.clone(), reporter);
        tokio::spawn(publish(recorder, receiver, cluster.metrics.clone()));
        let own = ObjectReference {
            api_version: Some("coordination.k8s.io/v1".to_owned()),
            kind: Some("Lease".to_owned()),
            name: Some(LEASE.to_owned()),
            namespace: Some(cluster.namespace.clone()),
            ..ObjectReference::default()
        };
        Self { sender, own: Arc::new(own), metrics: cluster.metrics.clone() }
    }

    /// Whether every kind of object is synced with the API server.
    pub fn synced(&self) -> bool {
        self.metrics.synced.get() == 1
    }

    /// Publishes something about an object.
    pub(super) fn publish(&self, key: &Key, uid: Uuid, notice: Notice) {
        let object = ObjectReference {
            api_version: Some(API_VERSION.to_owned()),
            kind: Some(key.kind.as_str().to_owned()),
            name: Some(key.name.to_string()),
            namespace: Some(key.namespace.to_string()),
            uid: Some(uid.to_string()),
            ..ObjectReference::default()
        };
        self.send(object, notice);
    }

    /// Publishes something that is about no single object. It stands at the controller's Lease.
    pub fn publish_own(&self, notice: Notice) {
        self.send((*self.own).clone(), notice);
    }

    fn send(&self, object: ObjectReference, notice: Notice) {
        if self.sender.try_send((object, notice)).is_err() {
            self.metrics.event("dropped");
        }
    }
}

async fn publish(
    recorder: Recorder,
    mut receiver: mpsc::Receiver<(ObjectReference, Notice)>,
    metrics: super::KubernetesMetrics,
) {
    let mut bucket = Bucket::new(BUDGET.0, BUDGET.1);
    while let Some((object, notice)) = receiver.recv().await {
        bucket.take().await;
        let note = notice.message[..notice.message.floor_char_boundary(MAX_NOTE)].to_owned();
        let event = Event {
            type_: if notice.warning { EventType::Warning } else { EventType::Normal },
            // One word for what was done; the reason says what that was.
            action: "Observed".to_owned(),
            reason: notice.reason,
            note: Some(note),
            secondary: None,
        };
        match timeout(WRITE_TIMEOUT, recorder.publish(&event, &object)).await {
            Ok(Ok(())) => metrics.event("written"),
            failed => {
                metrics.event("failed");
                let why = match failed {
                    Ok(Err(error)) => words(&error),
                    _ => "no answer in time".to_owned(),
                };
                tracing::debug!(reason = event.reason, object = object.name, %why, "an event could not be written");
            }
        }
    }
}
