//! A Kubernetes API server with what Horizon needs of a cluster around it.

mod audit;
mod start;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::Signal;
use serde_json::Value;

pub use audit::Audited;

use crate::options::KubeOptions;
use crate::process::{Process, Program, until};
use crate::programs::{KubernetesPrograms, repository};
use crate::site::Keeper;

/// The token of the admin, who may do everything.
const ADMIN: &str = "admin-token";

/// etcd, kube-apiserver and kube-controller-manager (namespaces end, owned objects are collected, ServiceAccounts work).
///
/// Authorisation is RBAC's; every request is in the audit log. Beside the admin, anybody may be impersonated by the
/// admin (`kubectl --as`), and ServiceAccounts have tokens.
#[derive(Debug)]
pub struct KubeApi {
    // Processes go first: their drop stops what writes below the keeper's folder.
    apiserver: Mutex<Process>,
    manager: Option<Process>,
    etcd: Process,
    programs: &'static KubernetesPrograms,
    secure: SocketAddr,
    store: SocketAddr,
    arguments: Vec<String>,
    keeper: Keeper,
}

impl KubeApi {
    /// The API server that the tests of one process share: make a namespace of your own in it, and do not stop it.
    pub fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<KubeApi, String>> = OnceLock::new();
        let shared =
            SHARED.get_or_init(|| Self::start(KubeOptions::default()).map_err(|error| format!("{error:#}")));
        shared.as_ref().map_err(|error| anyhow!("{error}"))
    }

    /// The folder of the fixture: kubeconfigs, logs, the audit log.
    pub fn folder(&self) -> &Path {
        self.keeper.folder()
    }

    /// Where the API server listens (TLS).
    pub fn address(&self) -> SocketAddr {
        self.secure
    }

    /// The admin's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder().join("admin.kubeconfig")
    }

    /// The certificate (PEM) of the authority that signed the API server's.
    pub fn authority(&self) -> PathBuf {
        self.folder().join("kube-ca.crt")
    }

    /// The programs it was started from.
    pub fn programs(&self) -> &'static KubernetesPrograms {
        self.programs
    }

    /// A kubeconfig for a bearer token, naming the API server at `address`: its own, or that of a [`crate::Proxy`].
    pub fn kubeconfig_for(
        &self,
        file: &str,
        token: &str,
        namespace: &str,
        address: SocketAddr,
    ) -> Result<PathBuf> {
        start::kubeconfig(&self.folder().join(file), &self.authority(), address, token, namespace)
    }

    /// A kubeconfig for a ServiceAccount, with a token of an hour from the TokenRequest API.
    pub fn kubeconfig_of_account(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let token = self.kubectl(["create", "token", account, "-n", namespace, "--duration=1h"])?;
        let file = format!("{namespace}.{account}.kubeconfig");
        self.kubeconfig_for(&file, token.trim(), namespace, self.secure)
    }

    /// Runs `kubectl` as the admin and returns what it prints; failure is an error with both streams.
    pub fn kubectl<const N: usize>(&self, args: [&str; N]) -> Result<String> {
        self.command("kubectl", &args).ok(&self.keeper, b"")
    }

    /// As [`KubeApi::kubectl`], with something to read: `kubectl_with(documents, ["apply", "-f", "-"])`.
    pub fn kubectl_with<const N: usize>(&self, stdin: &str, args: [&str; N]) -> Result<String> {
        self.command("kubectl", &args).ok(&self.keeper, stdin.as_bytes())
    }

    /// Runs `kubectl` to an unsuccessful end and returns all it said; success is the error.
    pub fn kubectl_refused<const N: usize>(&self, stdin: &str, args: [&str; N]) -> Result<String> {
        let output = self.command("kubectl", &args).output(&self.keeper, stdin.as_bytes())?;
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            bail!("kubectl {} should have failed, and said:\n{said}", args.join(" "));
        }
        Ok(said)
    }

    /// Runs `helm` as the admin.
    pub fn helm<const N: usize>(&self, args: [&str; N]) -> Result<String> {
        self.command("helm", &args).ok(&self.keeper, b"")
    }

    /// One object, or a list of them, as JSON: `get(["servers", "-n", "office"])`.
    pub fn get<const N: usize>(&self, args: [&str; N]) -> Result<Value> {
        let words: Vec<_> = ["get", "-o", "json"].into_iter().chain(args).collect();
        Ok(serde_json::from_str(&self.command("kubectl", &words).ok(&self.keeper, b"")?)?)
    }

    /// Applies documents by server-side apply, strictly validated; again, while an API server that has just started says
    /// that it does not know a kind yet.
    pub fn apply(&self, namespace: &str, documents: &str) -> Result<String> {
        let args = ["apply", "--server-side", "--validate=strict", "-n", namespace, "-f", "-"];
        until("the API server knows the kinds", || match self.kubectl_with(documents, args) {
            Err(error) if error.to_string().contains("There can be a delay") => None,
            outcome => Some(outcome),
        })?
    }

    /// A namespace that no other test of this process has.
    pub fn fresh_namespace(&self) -> Result<String> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.kubectl(["create", "namespace", &name])?;
        Ok(name)
    }

    /// Installs the repository's CRDs and waits until the API server serves them.
    pub fn install_crds(&self) -> Result<()> {
        let folder = repository().join("crds/yaml").display().to_string();
        self.kubectl(["apply", "--server-side", "--validate=strict", "-f", &folder])?;
        self.kubectl(["wait", "--for=condition=Established", "--timeout=60s", "-f", &folder]).map(drop)
    }

    /// All that was asked of the API server until now, oldest first.
    pub fn audited(&self) -> Result<Vec<Audited>> {
        let path = self.audit_log();
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(audit::parse(&text))
    }

    /// `verb group/resource/subresource` of everything a user has asked for, as an RBAC rule would name it.
    pub fn used(&self, user: &str) -> Result<BTreeSet<String>> {
        Ok(self
            .audited()?
            .into_iter()
            .filter(|request| request.user == user)
            .map(|r| r.permission())
            .collect())
    }

    /// The audit log: one JSON object per line and request.
    pub fn audit_log(&self) -> PathBuf {
        self.folder().join("audit.log")
    }

    /// Memory that etcd and the API server hold together, in bytes.
    pub fn memory(&self) -> Result<u64> {
        Ok(lock(&self.apiserver)?.memory()? + self.etcd.memory()?)
    }

    /// The process id of the API server.
    pub fn apiserver_pid(&self) -> Result<u32> {
        Ok(lock(&self.apiserver)?.pid())
    }

    /// Freezes the API server (SIGSTOP): connections stay open and nothing is answered.
    pub fn freeze(&self) -> Result<()> {
        lock(&self.apiserver)?.signal(Signal::STOP)
    }

    /// Lets a frozen API server go on.
    pub fn thaw(&self) -> Result<()> {
        lock(&self.apiserver)?.signal(Signal::CONT)
    }

    /// Ends the API server without asking; the rest stays.
    pub fn kill(&self) -> Result<()> {
        lock(&self.apiserver)?.kill()
    }

    /// Starts the API server again after [`KubeApi::kill`], and waits until it is ready. Watches from before see 410.
    pub fn revive(&self) -> Result<()> {
        let mut apiserver = lock(&self.apiserver)?;
        *apiserver = Program::new(self.programs.program("kube-apiserver"), &self.arguments)
            .spawn(&self.keeper, "kube-apiserver")?;
        apiserver.ready(|| self.healthy())
    }

    /// Forgets all history of etcd before now: a watch that resumes from before gets 410 (Gone), once the API server's
    /// own cache has lost it too (at once with `--watch-cache=false`, else after a restart).
    pub fn compact(&self) -> Result<()> {
        start::compact(&self.keeper, self.store)
    }

    fn healthy(&self) -> Option<()> {
        let args = ["get", "--raw", "/readyz", "--request-timeout=5s"];
        self.command("kubectl", &args).ok(&self.keeper, b"").ok().map(drop)
    }

    fn command(&self, program: &str, args: &[&str]) -> Program {
        Program::new(self.programs.program(program), args).env("KUBECONFIG", self.kubeconfig())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>> {
    mutex.lock().map_err(|_| anyhow!("a thread panicked while it held this process"))
}
