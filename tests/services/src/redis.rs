//! Redis: one server, a watched pair, or a cluster.

use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, OnceLock};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::Signal;

use crate::options::{RedisOptions, RedisShape};
use crate::pki::{Authority, Certificate};
use crate::process::{Process, Program, until};
use crate::site::Keeper;

/// Under which name sentinels know the primary.
const SERVICE: &str = "horizon";

/// One or more Redis processes with files of their own.
#[derive(Debug)]
pub struct Redis {
    nodes: Mutex<Vec<Node>>,
    options: RedisOptions,
    security: Option<(Authority, Certificate)>,
    keeper: Keeper,
}

#[derive(Debug)]
struct Node {
    process: Process,
    name: String,
    address: SocketAddr,
    sentinel: bool,
}

impl Redis {
    /// The server that the tests of one process share: prefix your keys, and do not stop or flush it.
    pub fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<Redis, String>> = OnceLock::new();
        let shared = SHARED
            .get_or_init(|| Self::start(&RedisOptions::default()).map_err(|error| format!("{error:#}")));
        shared.as_ref().map_err(|error| anyhow!("{error}"))
    }

    /// Starts it and waits until it serves; takes less than a second, sentinels and clusters a few.
    pub fn start(options: &RedisOptions) -> Result<Self> {
        let keeper = Keeper::new(&options.site, "redis-")?;
        let security = options.tls.then(|| {
            let authority = Authority::new(&keeper, "redis-ca")?;
            let certificate = authority.server(&keeper, "redis", keeper.address(), &[])?;
            anyhow::Ok((authority, certificate))
        });
        let security = security.transpose()?;
        let redis = Self { nodes: Mutex::default(), options: options.clone(), security, keeper };
        match options.shape {
            RedisShape::Single => drop(redis.server("redis", None)?),
            RedisShape::Sentinel => redis.watched_pair()?,
            RedisShape::Cluster => redis.cluster()?,
        }
        Ok(redis)
    }

    /// Starts one server and waits until it answers.
    fn server(&self, name: &str, replica_of: Option<SocketAddr>) -> Result<SocketAddr> {
        let address = self.keeper.free()?;
        let mut lines = self.common(name, address)?;
        lines.push("save \"\"".into());
        lines.push(format!(
            "appendonly {}",
            if self.options.durable { "yes\nappendfsync always" } else { "no" }
        ));
        if let Some(bytes) = self.options.memory {
            lines.push(format!("maxmemory {bytes}\nmaxmemory-policy noeviction"));
        }
        lines.extend(self.options.password.iter().map(|password| format!("masterauth {password}")));
        if let Some(primary) = replica_of {
            lines.push(format!("replicaof {} {}", primary.ip(), primary.port()));
        }
        if self.options.shape == RedisShape::Cluster {
            let bus = self.keeper.free()?;
            let patience = self.options.patience.as_millis();
            lines.push(format!(
                "cluster-enabled yes\ncluster-port {}\ncluster-node-timeout {patience}\ncluster-config-file nodes-{name}.conf",
                bus.port()
            ));
            lines.extend(self.security.is_some().then(|| "tls-cluster yes".into()));
        }
        lines.extend(
            (self.security.is_some() && self.options.shape == RedisShape::Sentinel)
                .then(|| "tls-replication yes".into()),
        );
        self.add(name, address, false, &lines)
    }

    fn watched_pair(&self) -> Result<()> {
        let primary = self.server("primary", None)?;
        let replica = self.server("replica", Some(primary))?;
        until("the replica follows the primary", || {
            self.ask(replica, &["info", "replication"]).ok()?.contains("master_link_status:up").then_some(())
        })?;
        let patience = self.options.patience.as_millis();
        for name in ["sentinel-1", "sentinel-2", "sentinel-3"] {
            let address = self.keeper.free()?;
            let mut lines = self.common(name, address)?;
            lines.push(format!("sentinel monitor {SERVICE} {} {} 2", primary.ip(), primary.port()));
            lines.push(format!("sentinel down-after-milliseconds {SERVICE} {patience}"));
            lines.push(format!("sentinel failover-timeout {SERVICE} {}", 5 * patience));
            if let Some(password) = &self.options.password {
                lines.push(format!(
                    "sentinel auth-pass {SERVICE} {password}\nsentinel sentinel-pass {password}"
                ));
            }
            lines.extend(self.security.is_some().then(|| "tls-replication yes".into()));
            self.add(name, address, true, &lines)?;
        }
        let sentinel = self.sentinels()?.first().copied().context("no sentinel was started")?;
        until("the sentinels know one another and the replica", || {
            let known = self.ask(sentinel, &["sentinel", "master", SERVICE]).ok()?;
            let count = |name: &str| known.lines().skip_while(|line| *line != name).nth(1).map(str::to_owned);
            (count("num-other-sentinels")? == "2" && count("num-slaves")? == "1").then_some(())
        })
    }

    fn cluster(&self) -> Result<()> {
        let mut create = self.client().args(["--cluster", "create"]);
        for name in ["node-1", "node-2", "node-3"] {
            create = create.arg(self.server(name, None)?.to_string());
        }
        create.arg("--cluster-yes").ok(&self.keeper, b"")?;
        for node in self.addresses()? {
            until("the cluster is whole", || {
                self.ask(node, &["cluster", "info"]).ok()?.contains("cluster_state:ok").then_some(())
            })?;
        }
        Ok(())
    }

    /// The settings that servers and sentinels share.
    fn common(&self, name: &str, address: SocketAddr) -> Result<Vec<String>> {
        let folder = self.keeper.folder().join(name);
        std::fs::create_dir(&folder)?;
        let mut lines = vec![format!("bind {}\ndir {}\nprotected-mode no", address.ip(), folder.display())];
        match &self.security {
            None => lines.push(format!("port {}", address.port())),
            Some((authority, own)) => lines.push(format!(
                "port 0\ntls-port {}\ntls-auth-clients no\ntls-ca-cert-file {}\ntls-cert-file {}\ntls-key-file {}",
                address.port(),
                authority.certificate.display(),
                own.certificate.display(),
                own.key.display()
            )),
        }
        lines.extend(self.options.password.iter().map(|password| format!("requirepass {password}")));
        Ok(lines)
    }

    fn add(&self, name: &str, address: SocketAddr, sentinel: bool, lines: &[String]) -> Result<SocketAddr> {
        std::fs::write(self.keeper.folder().join(format!("{name}.conf")), lines.join("\n") + "\n")?;
        let process = self.spawn(name, sentinel)?;
        let mut node = Node { process, name: name.to_owned(), address, sentinel };
        self.wait_until_ready(&mut node)?;
        self.nodes()?.push(node);
        Ok(address)
    }

    fn spawn(&self, name: &str, sentinel: bool) -> Result<Process> {
        let config = self.keeper.folder().join(format!("{name}.conf"));
        let program = if sentinel { "redis-sentinel" } else { "redis-server" };
        Program::new(program, [config]).spawn(&self.keeper, name)
    }

    fn wait_until_ready(&self, node: &mut Node) -> Result<()> {
        let address = node.address;
        node.process.ready(|| {
            let listens = self.keeper.run(move || TcpStream::connect(address).is_ok()).ok()?;
            (listens && self.ask(address, &["ping"]).ok()?.trim() == "PONG").then_some(())
        })
    }

    /// What a controller is configured with: `redis://HOST`, `redis+sentinel://HOSTS/SERVICE`, `redis+cluster://HOSTS`, with
    /// `s` after `redis` and `?ca=FILE` at the end for TLS.
    pub fn url(&self) -> Result<String> {
        let hosts = match self.options.shape {
            RedisShape::Sentinel => self.sentinels()?,
            _ => self.addresses()?,
        };
        let hosts: Vec<_> = hosts.iter().map(ToString::to_string).collect();
        self.url_at(&hosts.join(","))
    }

    /// As [`Redis::url`], naming `hosts` instead: those of a [`crate::Proxy`].
    pub fn url_at(&self, hosts: &str) -> Result<String> {
        let (tls, authority) = match self.authority() {
            Some(path) => ("s", format!("?ca={}", path.display())),
            None => ("", String::new()),
        };
        let user = self.options.password.as_ref().map_or(String::new(), |password| format!(":{password}@"));
        Ok(match self.options.shape {
            RedisShape::Single => format!("redis{tls}://{user}{hosts}{authority}"),
            RedisShape::Sentinel => format!("redis{tls}+sentinel://{user}{hosts}/{SERVICE}{authority}"),
            RedisShape::Cluster => format!("redis{tls}+cluster://{user}{hosts}{authority}"),
        })
    }

    /// The certificate (PEM) of the authority that signed the servers', when TLS was asked for.
    pub fn authority(&self) -> Option<&std::path::Path> {
        self.security.as_ref().map(|(authority, _)| authority.certificate.as_path())
    }

    /// Where the servers (not the sentinels) listen, in the order they were started.
    pub fn addresses(&self) -> Result<Vec<SocketAddr>> {
        Ok(self.nodes()?.iter().filter(|node| !node.sentinel).map(|node| node.address).collect())
    }

    /// Where the sentinels listen.
    pub fn sentinels(&self) -> Result<Vec<SocketAddr>> {
        Ok(self.nodes()?.iter().filter(|node| node.sentinel).map(|node| node.address).collect())
    }

    /// Asks the first server, following a cluster's redirections: `cli(["get", "key"])`.
    pub fn cli<const N: usize>(&self, args: [&str; N]) -> Result<String> {
        let first = *self.addresses()?.first().context("no server was started")?;
        let words: Vec<_> = ["-c"].into_iter().chain(args).collect();
        self.ask(first, &words)
    }

    /// Ends the n-th server (or, after the servers, sentinel) without asking; -9.
    pub fn kill(&self, n: usize) -> Result<()> {
        self.node(&mut self.nodes()?, n)?.process.kill()
    }

    /// Starts it again after [`Redis::kill`], on the same address, and waits until it answers.
    pub fn revive(&self, n: usize) -> Result<()> {
        let mut nodes = self.nodes()?;
        let node = self.node(&mut nodes, n)?;
        node.process = self.spawn(&node.name, node.sentinel)?;
        self.wait_until_ready(node)
    }

    /// Freezes it (SIGSTOP): connections stay open and nothing is answered.
    pub fn freeze(&self, n: usize) -> Result<()> {
        self.node(&mut self.nodes()?, n)?.process.signal(Signal::STOP)
    }

    /// Lets a frozen one go on.
    pub fn thaw(&self, n: usize) -> Result<()> {
        self.node(&mut self.nodes()?, n)?.process.signal(Signal::CONT)
    }

    fn node<'n>(&self, nodes: &'n mut [Node], n: usize) -> Result<&'n mut Node> {
        nodes.get_mut(n).with_context(|| format!("there is no Redis process {n}"))
    }

    fn nodes(&self) -> Result<MutexGuard<'_, Vec<Node>>> {
        self.nodes.lock().map_err(|_| anyhow!("a thread panicked while it held Redis"))
    }

    fn ask(&self, of: SocketAddr, words: &[&str]) -> Result<String> {
        let (host, port) = (of.ip().to_string(), of.port().to_string());
        let said = self.client().args(["-h", &host, "-p", &port]).args(words).ok(&self.keeper, b"")?;
        match said.split(' ').next() {
            // redis-cli reports an error of the server as an answer.
            Some("ERR" | "NOAUTH" | "WRONGPASS" | "OOM" | "LOADING" | "MISCONF") => {
                bail!("Redis says: {said}")
            }
            _ => Ok(said),
        }
    }

    fn client(&self) -> Program {
        let mut program = Program::new("redis-cli", [""; 0]);
        if let Some((authority, _)) = &self.security {
            program = program.args(["--tls", "--cacert"]).arg(&authority.certificate);
        }
        if let Some(password) = &self.options.password {
            program = program.env("REDISCLI_AUTH", password);
        }
        program
    }
}
