//! Kubernetes: objects of the nine kinds as the desired state, their statuses and events, Secrets with what is delivered
//! once, the leader's Lease, and the organisation's keys in a Secret.
//!
//! Nothing here asks the environment for a cluster: it is the pod's own, or that of a kubeconfig which the settings name.

mod author;
mod backoff;
mod bucket;
mod client;
mod convert;
mod events;
mod failure;
mod keys;
mod lease;
mod metrics;
mod objects;
mod queue;
mod relay;
mod requests;
mod secrets;
mod source;
mod status;
mod watch;

pub use author::{POLICY, Stamps};
pub use client::{Cluster, ConnectError, connect};
pub use events::Events;
pub use keys::{KeysSecretError, find_keys_secret, keys_secret, replace_keys_secret};
pub use lease::{KubernetesLease, LEASE};
pub use metrics::KubernetesMetrics;
pub use objects::Objects;
pub use relay::relay_security_events;
pub use secrets::Secrets;
pub use source::Source;
pub use status::{StatusBudget, Statuses, Writing};

use horizon_crds::{GROUP, KindName, VERSION};
use kube::core::{ApiResource, GroupVersionKind};

/// The name under which the API server notes what the controller wrote.
pub const FIELD_MANAGER: &str = "horizon-controller";

/// A kind as the API server knows it.
fn resource_of(kind: KindName) -> ApiResource {
    let known = GroupVersionKind::gvk(GROUP, VERSION, kind.as_str());
    ApiResource::from_gvk_with_plural(&known, kind.plural())
}
