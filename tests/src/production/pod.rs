//! A controller, started as a node starts a pod of its Deployment.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use data_encoding::BASE64;
use serde_json::Value;

use super::{Cluster, SYSTEM};
use crate::lab::{Cmd, Host, Proc, within};
use crate::products::{Clock, Programs};
use crate::services::http;

/// How long a replica may take to be ready. Generous: the lab shares the machine with compilers.
const READY: std::time::Duration = std::time::Duration::from_secs(60);

/// Where a controller serves metrics and readiness.
const METRICS_PORT: u16 = 7441;

/// A pod of the Deployment `horizon-controller` on a host of its own: its volumes are files of the host, its image is the
/// program under test, its account is the Deployment's.
pub struct Pod {
    process: Option<Proc>,
    host: Host,
    program: PathBuf,
    /// The pod's specification, as the API server has it.
    spec: Value,
    environment: Vec<(String, String)>,
}

impl Pod {
    /// Puts a pod on a host: its volumes are filled, its init containers have ended, its container is not started.
    pub fn place(cluster: &Cluster, host: Host, programs: &Programs) -> Result<Self> {
        let deployment = cluster.kube.get(["deployment", "horizon-controller", "-n", SYSTEM])?;
        let spec = deployment.pointer("/spec/template/spec").context("the Deployment has no pods")?.clone();
        let environment = environment(cluster, &spec, host.name())?;
        let pod = Self { process: None, host, program: programs.controller.clone(), spec, environment };
        pod.fill(cluster)?;
        pod.initialise()?;
        Ok(pod)
    }

    /// Runs its init containers to their ends.
    pub fn initialise(&self) -> Result<()> {
        self.containers("initContainers").try_for_each(|container| self.command(container)?.ok().map(drop))
    }

    /// Starts its container.
    pub fn start(&mut self) -> Result<()> {
        let container = self.containers("containers").next().context("the pod has no container")?;
        self.process = Some(self.command(container)?.spawn("controller")?);
        Ok(())
    }

    /// Waits until its readiness probe succeeds.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let ready = within(READY, "the replica is ready", || {
            let running = self.process.as_mut().is_some_and(Proc::running);
            (self.is_ready() || !running).then_some(running)
        });
        match ready {
            Ok(true) => Ok(()),
            Ok(false) => bail!("replica {} ended:\n{}", self.name(), self.log()),
            Err(error) => Err(error.context(self.log())),
        }
    }

    /// Whether its readiness probe succeeds.
    pub fn is_ready(&self) -> bool {
        let probe = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT));
        http(&self.host, probe, "/readyz").is_ok_and(|(status, _)| status == 200)
    }

    /// What it serves at `/metrics`.
    pub fn metrics(&self) -> Result<String> {
        let served = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT));
        Ok(http(&self.host, served, "/metrics")?.1)
    }

    /// Its name, which is its host's.
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// Sets a variable of its environment, for when it is started again.
    pub fn set(&mut self, name: &str, value: &str) {
        self.unset(name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Takes a variable out of its environment, for when it is started again.
    pub fn unset(&mut self, name: &str) {
        self.environment.retain(|(set, _)| set != name);
    }

    /// Gives it a clock of its own, for when it is started again: what [`Pod::set_clock`] sets, as `date` would the
    /// machine's. (Time since boot goes on as ever.)
    pub fn fake_clock(&mut self) -> Result<()> {
        let clock = Clock::new(self.clock(), "+0")?;
        for (name, value) in clock.variables()? {
            self.set(name, &value.display().to_string());
        }
        Ok(())
    }

    /// Sets its clock, e.g. `+3600` for an hour ahead of the machine's.
    pub fn set_clock(&self, offset: &str) -> Result<()> {
        Clock::new(self.clock(), offset).map(drop)
    }

    fn clock(&self) -> PathBuf {
        self.host.dir().join("clock")
    }

    /// Whether it is the holder that a Lease names: by its name, and something that differs from start to start.
    pub fn is(&self, holder: &str) -> bool {
        holder
            .strip_prefix(self.name())
            .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
    }

    /// Its host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its process, once it was started.
    pub fn process(&mut self) -> Result<&mut Proc> {
        self.process.as_mut().context("the replica is not running")
    }

    /// The end of what it has logged.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Proc::tail).unwrap_or_default()
    }

    /// One of the controller's commands in the running pod, as `kubectl exec` runs it, with the pod's configuration.
    pub fn exec<const N: usize>(&self, args: [&str; N]) -> Cmd<'_> {
        let args = args.into_iter().chain(["--config", "/etc/horizon/config.toml"]);
        self.cmd(&self.program, args)
    }

    /// Any program where the pod runs, with its environment.
    pub fn cmd<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Cmd<'_> {
        self.with_environment(self.host.cmd(program, args))
    }

    fn containers(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.spec[kind].as_array().into_iter().flatten()
    }

    /// A container's command. All containers share the environment: what the manifests set is meant for the program.
    fn command(&self, container: &Value) -> Result<Cmd<'_>> {
        let args = container["args"].as_array().context("the container has no arguments")?;
        let args = args.iter().filter_map(Value::as_str);
        Ok(self.cmd(&self.program, args))
    }

    fn with_environment<'h>(&self, command: Cmd<'h>) -> Cmd<'h> {
        self.environment.iter().fold(command, |command, (name, value)| command.env(name, value))
    }

    /// Fills the volumes, each where the first container that mounts it has it.
    fn fill(&self, cluster: &Cluster) -> Result<()> {
        let mounts: Vec<_> = (self.containers("initContainers").chain(self.containers("containers")))
            .flat_map(|container| container["volumeMounts"].as_array().into_iter().flatten())
            .collect();
        for volume in self.spec["volumes"].as_array().into_iter().flatten() {
            let name = &volume["name"];
            let mount = mounts.iter().find(|mount| mount["name"] == *name);
            let at =
                mount.and_then(|mount| mount["mountPath"].as_str()).context("a volume is not mounted")?;
            let files = files_of(cluster, volume).with_context(|| format!("volume {name}"))?;
            let at = Path::new(at).to_owned();
            self.host.run(move || -> Result<()> {
                std::fs::create_dir_all(&at)?;
                for (file, text) in files {
                    let path = at.join(file);
                    std::fs::write(&path, text)?;
                    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o440))?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// The files of a volume.
fn files_of(cluster: &Cluster, volume: &Value) -> Result<Vec<(String, String)>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if let Some(name) = volume.pointer("/configMap/name").and_then(Value::as_str) {
        let map = cluster.kube.get(["configmap", name, "-n", SYSTEM])?;
        let data = map["data"].as_object().context("the ConfigMap is empty")?;
        return Ok(data.iter().map(|(key, value)| (key.clone(), text(value))).collect());
    }
    if let Some(secret) = volume.get("secret") {
        let object = cluster.kube.get(["secret", &text(&secret["secretName"]), "-n", SYSTEM])?;
        let items = secret["items"].as_array().context("the volume lists no items")?;
        return items
            .iter()
            .map(|item| {
                let encoded = text(&object["data"][text(&item["key"])]);
                Ok((text(&item["path"]), String::from_utf8(BASE64.decode(encoded.as_bytes())?)?))
            })
            .collect();
    }
    if let Some(sources) = volume.pointer("/projected/sources").and_then(Value::as_array) {
        // The account's token, the API server's authority and the pod's namespace.
        let mut files = Vec::new();
        for source in sources {
            if source.get("serviceAccountToken").is_some() {
                let token = ["create", "token", "horizon-controller", "-n", SYSTEM, "--duration=1h"];
                files.push(("token".to_owned(), cluster.kube.kubectl(token)?.trim().to_owned()));
            } else if source.get("configMap").is_some() {
                files.push(("ca.crt".to_owned(), std::fs::read_to_string(cluster.kube.authority())?));
            } else {
                files.push(("namespace".to_owned(), SYSTEM.to_owned()));
            }
        }
        return Ok(files);
    }
    if volume.get("emptyDir").is_some() {
        return Ok(Vec::new());
    }
    bail!("the lab knows no such volume: {volume}")
}

/// What a pod's container has in its environment: the ConfigMaps it names, its own name, and where the API server is.
fn environment(cluster: &Cluster, spec: &Value, name: &str) -> Result<Vec<(String, String)>> {
    let container = spec.pointer("/containers/0").context("the pod has no container")?;
    let mut environment = Vec::new();
    for from in container["envFrom"].as_array().into_iter().flatten() {
        let map = from
            .pointer("/configMapRef/name")
            .and_then(Value::as_str)
            .context("envFrom without a ConfigMap")?;
        let map = cluster.kube.get(["configmap", map, "-n", SYSTEM])?;
        for (key, value) in map["data"].as_object().into_iter().flatten() {
            environment.push((key.clone(), value.as_str().unwrap_or_default().to_owned()));
        }
    }
    for variable in container["env"].as_array().into_iter().flatten() {
        let key = variable["name"].as_str().context("a variable without a name")?.to_owned();
        let value = match variable["value"].as_str() {
            Some(value) => value.to_owned(),
            None if variable
                .pointer("/valueFrom/fieldRef/fieldPath")
                .is_some_and(|path| path == "metadata.name") =>
            {
                name.to_owned()
            }
            None => bail!("the lab knows no such variable: {variable}"),
        };
        environment.push((key, value));
    }
    let (address, port) = cluster.api();
    environment.push(("KUBERNETES_SERVICE_HOST".to_owned(), address.to_string()));
    environment.push(("KUBERNETES_SERVICE_PORT".to_owned(), port.to_string()));
    Ok(environment)
}
