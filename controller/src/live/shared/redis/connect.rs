//! Connections to Redis, whatever its shape.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo as _,
    Pipeline, ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError, RedisResult, TlsCertificates,
    TlsMode, Value,
    aio::MultiplexedConnection,
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    sentinel::{SentinelClientBuilder, SentinelServerType},
};
use tokio::{sync::mpsc, time::timeout};

use super::url::{RedisUrl, Shape};

/// How long it may take to connect, with all that belongs to it.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// How long an answer may take.
pub(super) const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// How many commands to a cluster are under way at once.
const CLUSTER_AT_ONCE: usize = 256;

/// A connection for commands.
#[derive(Clone)]
pub(super) enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    pub(super) async fn open(url: &RedisUrl) -> RedisResult<Self> {
        in_time(async {
            Ok(match url.shape {
                Shape::Cluster => Self::Cluster(url.cluster()?.get_async_connection().await?),
                _ => {
                    let client = url.client(ProtocolVersion::RESP2).await?;
                    Self::One(client.get_multiplexed_async_connection_with_config(&config()).await?)
                }
            })
        })
        .await
    }

    /// Carries commands out, each by itself, and returns what each was answered.
    pub(super) async fn run(&mut self, commands: Vec<Cmd>) -> RedisResult<Vec<RedisResult<Value>>> {
        match self {
            Self::One(connection) => {
                let mut pipeline = Pipeline::with_capacity(commands.len());
                pipeline.ignore_errors();
                for command in commands {
                    pipeline.add_command(command);
                }
                pipeline.query_async(connection).await
            }
            Self::Cluster(connection) => {
                let each = commands.into_iter().map(|command| {
                    let mut connection = connection.clone();
                    async move { command.query_async::<Value>(&mut connection).await }
                });
                Ok(stream::iter(each).buffered(CLUSTER_AT_ONCE).collect().await)
            }
        }
    }
}

/// Subscribes to channels. What is published goes into the queue; what finds it full is dropped, and `lost` is called.
/// The connection lives as long as what is returned.
pub(super) async fn subscribe(
    url: &RedisUrl,
    channels: &[String],
    queue: mpsc::Sender<PushInfo>,
    lost: impl Fn() + Send + Sync + 'static,
) -> RedisResult<MultiplexedConnection> {
    let config = config().set_push_sender(move |push: PushInfo| match queue.try_send(push) {
        Ok(()) => Ok(()),
        Err(mpsc::error::TrySendError::Full(_)) => {
            lost();
            Ok(())
        }
        Err(mpsc::error::TrySendError::Closed(_)) => Err(redis::aio::SendError),
    });
    in_time(async {
        let mut connection = url.subscriber(&config).await?;
        for channel in channels {
            connection.subscribe(channel).await?;
        }
        Ok(connection)
    })
    .await
}

async fn in_time<T>(connect: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    timeout(CONNECT_PATIENCE, connect)
        .await
        .unwrap_or_else(|_| Err(RedisError::from((ErrorKind::Io, "it took too long to connect"))))
}

fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_PATIENCE))
        .set_response_timeout(Some(ANSWER_PATIENCE))
}

impl RedisUrl {
    fn address(&self, host: &(String, u16)) -> ConnectionAddr {
        let (host, port) = host.clone();
        match self.tls {
            true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
            false => ConnectionAddr::Tcp(host, port),
        }
    }

    fn certificates(&self) -> Option<TlsCertificates> {
        let trusts = self.authority.clone().filter(|_| self.tls);
        trusts.map(|root| TlsCertificates { client_tls: None, root_cert: Some(root) })
    }

    fn node(&self, host: &(String, u16), protocol: ProtocolVersion) -> RedisResult<ConnectionInfo> {
        let mut settings = RedisConnectionInfo::default().set_protocol(protocol).set_db(self.database);
        if let Some(user) = &self.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &self.password {
            settings = settings.set_password(password.as_str());
        }
        Ok(self.address(host).into_connection_info()?.set_redis_settings(settings))
    }

    fn client_of(&self, host: &(String, u16), protocol: ProtocolVersion) -> RedisResult<Client> {
        let node = self.node(host, protocol)?;
        match self.certificates() {
            Some(certificates) => Client::build_with_tls(node, certificates),
            None => Client::open(node),
        }
    }

    /// The server that is written to now.
    async fn client(&self, protocol: ProtocolVersion) -> RedisResult<Client> {
        let (service, auth) = match (&self.shape, self.hosts.first()) {
            (Shape::Sentinel { service, auth }, _) => (service, *auth),
            (_, Some(host)) => return self.client_of(host, protocol),
            (_, None) => return Err(no_host()),
        };
        let sentinels = self.hosts.iter().map(|host| self.address(host));
        let mut builder = SentinelClientBuilder::new(sentinels, service, SentinelServerType::Master)?
            .set_client_to_redis_protocol(protocol)
            .set_client_to_redis_db(self.database);
        if self.tls {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
        }
        if let Some(certificates) = self.certificates() {
            builder = builder
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates);
        }
        if let Some(user) = &self.user {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = &self.password {
            builder = builder.set_client_to_redis_password(password.as_str());
            if auth {
                builder = builder.set_client_to_sentinel_password(password.as_str());
            }
        }
        builder.build()?.async_get_client().await
    }

    fn cluster(&self) -> RedisResult<ClusterClient> {
        let nodes: Vec<_> = self
            .hosts
            .iter()
            .map(|host| self.node(host, ProtocolVersion::RESP2))
            .collect::<RedisResult<_>>()?;
        let mut builder = ClusterClient::builder(nodes)
            .connection_timeout(CONNECT_PATIENCE)
            .response_timeout(ANSWER_PATIENCE)
            .retries(2);
        if let Some(certificates) = self.certificates() {
            builder = builder.certs(certificates);
        }
        builder.build()
    }

    /// A connection to where messages can be heard: any node of a cluster passes on what is published at any other.
    async fn subscriber(&self, config: &AsyncConnectionConfig) -> RedisResult<MultiplexedConnection> {
        let hosts = match self.shape {
            Shape::Cluster => &self.hosts[..],
            _ => {
                let client = self.client(ProtocolVersion::RESP3).await?;
                return client.get_multiplexed_async_connection_with_config(config).await;
            }
        };
        let mut last = no_host();
        let patience = CONNECT_PATIENCE / u32::try_from(hosts.len().max(1)).unwrap_or(u32::MAX);
        for host in hosts {
            let client = self.client_of(host, ProtocolVersion::RESP3)?;
            match timeout(patience, client.get_multiplexed_async_connection_with_config(config)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => last = error,
                Err(_) => {}
            }
        }
        Err(last)
    }
}

fn no_host() -> RedisError {
    RedisError::from((ErrorKind::Io, "no host answered"))
}
