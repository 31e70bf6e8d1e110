//! The way to the API server: that of the pod, or that of a kubeconfig which the settings name. Never one that happens to
//! lie around in somebody's home directory or environment.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kube::{
    Client, Config,
    client::ClientBuilder,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use thiserror::Error;

use super::{
    KubernetesMetrics,
    requests::{Observed, Throttle},
};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long nothing may come on a connection of which something is expected. Longer than a watch may be silent.
const READ_TIMEOUT: Duration = Duration::from_secs(180);
/// How long sending may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The namespace of the controller where nothing says another.
const DEFAULT_NAMESPACE: &str = "horizon-system";

/// Why there is no way to the API server.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Not in a pod.
    #[error(
        "resources come from Kubernetes, but this is no pod with a service account ({0}): run in one, or name a kubeconfig \
         with the setting `kubeconfig`"
    )]
    NoPod(#[source] InClusterError),
    /// The kubeconfig is not usable.
    #[error("{path}: {source}; correct the file, or name another with the setting `kubeconfig`")]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Box<KubeconfigError>,
    },
    /// What the configuration says cannot be used.
    #[error("the way to the API server cannot be used: {0}")]
    Client(#[from] Box<kube::Error>),
}

/// A cluster, and the controller's place in it.
#[derive(Clone)]
pub struct Cluster {
    /// Speaks with the API server.
    pub client: Client,
    /// The namespace that the controller itself is in.
    pub namespace: String,
    /// The figures about requests.
    pub metrics: KubernetesMetrics,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// Prepares to speak with the API server of `kubeconfig`, or of the pod. Nothing is sent yet.
///
/// # Errors
/// When there is no such configuration, or it cannot be used.
pub async fn connect(kubeconfig: Option<&Path>, metrics: KubernetesMetrics) -> Result<Cluster, ConnectError> {
    let (mut config, namespace) = match kubeconfig {
        Some(path) => from_file(path).await?,
        None => {
            let config = Config::incluster_env().map_err(ConnectError::NoPod)?;
            let namespace = config.default_namespace.clone();
            (config, namespace)
        }
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.write_timeout = Some(WRITE_TIMEOUT);
    config.reset_reader_on_write = true;
    // Everybody here tries again in their own time, and knows for how long the server asks to be left alone.
    config.default_retry = false;
    let builder = ClientBuilder::try_from(config).map_err(Box::new)?;
    let client = builder.with_layer(&Observed::layer(Throttle::default(), metrics.clone())).build();
    Ok(Cluster { client, namespace, metrics })
}

async fn from_file(path: &Path) -> Result<(Config, String), ConnectError> {
    let wrong = |source| ConnectError::Kubeconfig { path: path.to_owned(), source: Box::new(source) };
    let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
    let current =
        kubeconfig.contexts.iter().find(|named| Some(&named.name) == kubeconfig.current_context.as_ref());
    let named = current.and_then(|named| named.context.as_ref()?.namespace.clone());
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(wrong)?;
    Ok((config, named.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned())))
}
