//! How the three processes are started.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{ADMIN, KubeApi, lock};
use crate::options::KubeOptions;
use crate::pki::{Authority, elliptic_key, public_half};
use crate::process::Program;
use crate::programs::KubernetesPrograms;
use crate::site::Keeper;

/// The token of kube-controller-manager.
const MANAGER: &str = "manager-token";

/// The controllers that Horizon needs: namespaces end, owned objects are collected, ServiceAccounts and the authority's
/// certificate appear in namespaces, roles are aggregated.
const CONTROLLERS: &str = "--controllers=namespace-controller,garbage-collector-controller,\
serviceaccount-controller,serviceaccount-token-controller,root-ca-certificate-publisher-controller,\
clusterrole-aggregation-controller";

const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
";

impl KubeApi {
    /// Starts one; takes about 6 seconds, and the first time on a machine the minutes of the build.
    pub fn start(options: KubeOptions) -> Result<Self> {
        let programs = KubernetesPrograms::get()?;
        let keeper = Keeper::new(&options.site, "kube-")?;
        let folder = keeper.folder().to_owned();
        let (secure, store, peers, health) = (keeper.free()?, keeper.free()?, keeper.free()?, keeper.free()?);

        let authority = Authority::new(&keeper, "kube-ca")?;
        let server = authority.server(&keeper, "kube-apiserver", secure.ip(), &["kubernetes.default.svc"])?;
        let accounts = elliptic_key(&keeper, "accounts")?;
        let accounts_public = public_half(&keeper, &accounts, "accounts")?;
        let write = |file: &str, text: &str| -> Result<PathBuf> {
            let path = folder.join(file);
            std::fs::write(&path, text)?;
            Ok(path)
        };
        let tokens = format!(
            "{ADMIN},admin,admin,\"system:masters\"\n{MANAGER},system:kube-controller-manager,manager,\"system:masters\"\n"
        );
        let tokens = write("tokens.csv", &tokens)?;
        let policy = write("audit-policy.yaml", AUDIT_POLICY)?;
        let admin = folder.join("admin.kubeconfig");
        kubeconfig(&admin, &authority.certificate, secure, ADMIN, "default")?;
        let manager_config = folder.join("manager.kubeconfig");
        kubeconfig(&manager_config, &authority.certificate, secure, MANAGER, "default")?;

        let (clients, peers) = (format!("http://{store}"), format!("http://{peers}"));
        let mut etcd =
            Program::new(programs.program("etcd"), ["--unsafe-no-fsync", "--log-level=warn", "--data-dir"])
                .arg(folder.join("etcd"))
                .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
                .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
                .args(["--initial-cluster", &format!("default={peers}")])
                .spawn(&keeper, "etcd")?;
        etcd.ready(|| keeper.run(move || TcpStream::connect(store).is_ok()).ok()?.then_some(()))?;

        let path = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let mut arguments = vec![
            format!("--etcd-servers={clients}"),
            format!("--bind-address={}", secure.ip()),
            format!("--advertise-address={}", secure.ip()),
            format!("--secure-port={}", secure.port()),
            path("tls-cert-file", &server.certificate),
            path("tls-private-key-file", &server.key),
            path("token-auth-file", &tokens),
            path("service-account-key-file", &accounts_public),
            path("service-account-signing-key-file", &accounts),
            path("audit-policy-file", &policy),
            path("audit-log-path", &folder.join("audit.log")),
        ];
        let fixed = [
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--endpoint-reconciler-type=none",
        ];
        arguments.extend(fixed.map(str::to_owned));
        arguments.extend(options.apiserver);
        let apiserver =
            Program::new(programs.program("kube-apiserver"), &arguments).spawn(&keeper, "kube-apiserver")?;

        let manager =
            Program::new(programs.program("kube-controller-manager"), ["--leader-elect=false", CONTROLLERS])
                .args([path("kubeconfig", &manager_config), path("root-ca-file", &authority.certificate)])
                .args([path("service-account-private-key-file", &accounts), path("cert-dir", &folder)])
                .args([
                    format!("--bind-address={}", health.ip()),
                    format!("--secure-port={}", health.port()),
                ]);
        let mut api = Self {
            apiserver: Mutex::new(apiserver),
            manager: None,
            etcd,
            programs,
            secure,
            store,
            arguments,
            keeper,
        };
        lock(&api.apiserver)?.ready(|| api.healthy())?;
        if options.crds {
            api.install_crds()?;
        }
        // It gives up when the API server lets it wait, so it comes last.
        let mut manager = manager.spawn(&api.keeper, "kube-controller-manager")?;
        manager.ready(|| api.kubectl(["get", "serviceaccount", "default"]).ok())?;
        api.manager = Some(manager);
        Ok(api)
    }
}

/// Writes a kubeconfig for a bearer token.
pub(super) fn kubeconfig(
    file: &Path,
    authority: &Path,
    server: SocketAddr,
    token: &str,
    namespace: &str,
) -> Result<PathBuf> {
    let authority = authority.display();
    let text = format!(
        "apiVersion: v1
kind: Config
clusters: [{{name: lab, cluster: {{server: 'https://{server}', certificate-authority: '{authority}'}}}}]
users: [{{name: lab, user: {{token: '{token}'}}}}]
contexts: [{{name: lab, context: {{cluster: lab, user: lab, namespace: '{namespace}'}}}}]
current-context: lab
"
    );
    std::fs::write(file, text)?;
    Ok(file.to_owned())
}

/// Asks etcd's JSON gateway for its revision and compacts up to it.
pub(super) fn compact(keeper: &Keeper, store: SocketAddr) -> Result<()> {
    let status = post(keeper, store, "/v3/maintenance/status", "{}")?;
    let revision =
        status.pointer("/header/revision").and_then(|r| r.as_str()).context("etcd names no revision")?;
    let body = format!("{{\"revision\":\"{revision}\",\"physical\":true}}");
    post(keeper, store, "/v3/kv/compaction", &body).map(drop)
}

fn post(keeper: &Keeper, to: SocketAddr, path: &str, body: &str) -> Result<serde_json::Value> {
    let request = format!(
        "POST {path} HTTP/1.0\r\nHost: {to}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = keeper.run(move || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })??;
    let (head, body) = answer.split_once("\r\n\r\n").context("etcd answers no HTTP")?;
    if !head.contains(" 200 ") {
        bail!("etcd refuses {path}: {answer}");
    }
    Ok(serde_json::from_str(body)?)
}
