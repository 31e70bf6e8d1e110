//! Production in the lab: a Kubernetes API server, PostgreSQL and Redis on one host, and controllers on others, each started
//! as the manifests say a pod is.

mod cluster;
mod estate;
mod pod;

pub use cluster::{Cluster, ClusterOptions, NAMESPACE, SYSTEM};
pub use estate::Estate;
pub use pod::Pod;
