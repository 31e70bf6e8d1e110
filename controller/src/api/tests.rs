//! The API over a real socket, with the real engine and store.

use std::{fs, path::Path, process::ExitCode};

use clap::Parser;
use horizon_crds::KindName;
use horizon_model::Secret;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::{
    client::{Client, ClientError},
    model::{Detail, Done, Issued, List, Object, Recorded, Status},
};
use crate::{
    app::App,
    cli::{Cli, execute},
    config::{Config, Settings},
    init::init,
};

/// A controller of a fresh organisation, in a directory of its own.
struct Running {
    dir: tempfile::TempDir,
    app: App,
    client: Client,
}

impl Running {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let org = dir.path().join("org");
        init(&org, &["192.0.2.1".parse().unwrap()], false, &mut Vec::new()).unwrap();
        let settings = Settings {
            listen: Some("127.0.0.1:0".parse().unwrap()),
            metrics_listen: Some("127.0.0.1:0".parse().unwrap()),
            debounce: Some("10ms".parse().unwrap()),
            ..Settings::default()
        };
        let app = App::start(Config::load(Some(&org.join("config.toml")), settings).unwrap()).await.unwrap();
        let client = Client::new(app.socket.clone());
        let running = Self { dir, app, client };
        running.until(|status| status.not_ready.is_empty()).await;
        running
    }

    /// Waits until the status is as wanted; the test runner's own limit ends what never is.
    async fn until(&self, wanted: impl Fn(&Status) -> bool) -> Status {
        loop {
            let status: Status = self.client.get("/v1/status").await.unwrap();
            if wanted(&status) {
                return status;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    fn resources(&self) -> std::path::PathBuf {
        self.dir.path().join("org/resources")
    }

    async fn cli(&self, args: &[&str]) -> (ExitCode, String, String) {
        let socket = self.app.socket.to_str().unwrap();
        let cli = Cli::try_parse_from([&["x"], args, &["--socket", socket]].concat()).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = execute(cli, &mut out, &mut err).await.unwrap();
        (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    async fn refused(&self, path: &str, body: Option<Value>) -> super::ApiError {
        let answer: Result<Value, _> = match body {
            Some(body) => self.client.post(path, &body).await,
            None => self.client.get(path).await,
        };
        match answer {
            Err(ClientError::Refused(error)) => error,
            other => panic!("{path}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_declared_is_listed_and_described() {
    let running = Running::start().await;
    let servers: List<Object> = running.client.get("/v1/servers").await.unwrap();
    assert_eq!(servers.items.len(), 1);
    assert_eq!(servers.items[0].metadata.annotations["horizon.dev/origin"], "server-home.toml");
    let elsewhere: List<Object> = running.client.get("/v1/Server?namespace=lab").await.unwrap();
    assert!(elsewhere.items.is_empty());
    let detail: Detail = running.client.get("/v1/users/ann").await.unwrap();
    assert_eq!(detail.object.kind, KindName::User);
    assert_eq!(detail.reasons, ["may use server home: the access network"]);
    assert_eq!(detail.changes.len(), 1);

    let (_, table, _) = running.cli(&["get", "all"]).await;
    for line in ["server/home", "user/ann", "accesspolicy/family"] {
        assert!(table.contains(line), "{table}");
    }
    let (_, yaml, _) = running.cli(&["get", "server", "home", "-o", "yaml"]).await;
    assert!(yaml.starts_with("apiVersion: horizon.dev/v1alpha1\nkind: Server\n"), "{yaml}");
    let (_, told, _) = running.cli(&["describe", "apol", "family"]).await;
    assert!(
        told.contains("it speaks of users: ann") && told.contains("it speaks of servers: home"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_and_invitations_are_one_string_each() {
    let running = Running::start().await;
    let (_, token, hints) = running.cli(&["token", "home"]).await;
    let token = horizon_wire::token::RegistrationToken::decode(&token).unwrap();
    assert_eq!(token.controllers, ["192.0.2.1:7440"]);
    assert!(hints.contains("horizon-appliance enroll"), "{hints}");
    let (_, key, _) = running.cli(&["invite", "ann", "--lifetime", "7d"]).await;
    let key = horizon_wire::token::PersonalKey::decode(&key).unwrap();
    let keys: List<Object> = running.client.get("/v1/pkey").await.unwrap();
    assert_eq!(keys.items[0].metadata.uid, key.id.to_string());
    let tokens: List<Object> = running.client.get("/v1/registrationkeys").await.unwrap();
    assert_eq!(tokens.items[0].metadata.name.as_str(), token.key_name);
    assert_ne!(token.secret.expose(), Secret::new([0; 32]).expose());

    // What was issued is on record, with who did it, and without the secret.
    let audit: List<Value> = running.client.get("/v1/audit").await.unwrap();
    let created =
        |kind: &str| audit.items.iter().find(|a| a["action"] == "create" && a["targetType"] == kind).unwrap();
    assert_eq!(created("RegistrationKey")["actorType"], "admin");
    assert_eq!(created("PersonalKey")["actor"], created("RegistrationKey")["actor"]);

    let error = running
        .refused("/v1/tokens", Some(json!({ "namespace": "default", "server": "nix", "lifetime": "1h" })))
        .await;
    assert_eq!(error.status, 404);
    assert!(error.message.contains("no Server 'nix'") && error.remedy.contains("home"), "{error}");
    let error = running
        .refused("/v1/tokens", Some(json!({ "namespace": "default", "server": "home", "lifetime": "1s" })))
        .await;
    assert_eq!(error.status, 400, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_files_declare_are_delivered_into_files() {
    use std::os::unix::fs::PermissionsExt;
    let running = Running::start().await;
    let declared = "[[resource]]\napiVersion = \"horizon.dev/v1alpha1\"\nkind = \"RegistrationKey\"\nmetadata.name = \"k1\"\n\
                    [resource.spec]\nserverRef = \"home\"\n\
                    [[resource]]\napiVersion = \"horizon.dev/v1alpha1\"\nkind = \"PersonalKey\"\nmetadata.name = \"k2\"\n\
                    [resource.spec]\nuserRef = \"ann\"\n";
    let keys = running.resources().join("keys.toml");
    fs::write(&keys, declared).unwrap();
    let file_of = async |path: &str| loop {
        let detail: Result<Detail, _> = running.client.get(path).await;
        if let Some(file) =
            detail.ok().and_then(|d| d.object.status["secretFile"].as_str().map(ToOwned::to_owned))
        {
            return file;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    let (token, key) = (file_of("/v1/regkey/k1").await, file_of("/v1/pkey/k2").await);
    assert_eq!(fs::metadata(&token).unwrap().permissions().mode() & 0o777, 0o600);
    let token_text = fs::read_to_string(&token).unwrap();
    assert_eq!(horizon_wire::token::RegistrationToken::decode(&token_text).unwrap().key_name, "k1");
    assert!(horizon_wire::token::PersonalKey::decode(&fs::read_to_string(&key).unwrap()).is_ok());

    // What is gone leaves no string behind.
    fs::remove_file(keys).unwrap();
    running.until(|status| status.resources["PersonalKey"] == 0).await;
    while Path::new(&key).exists() || Path::new(&token).exists() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocations_are_for_good() {
    let running = Running::start().await;
    let issued: Issued = running
        .client
        .post("/v1/invitations", &json!({ "namespace": "default", "user": "ann" }))
        .await
        .unwrap();
    let (_, said, _) =
        running.cli(&["revoke", "personalkey", &issued.name, "--reason", "lost", "--compromised"]).await;
    assert!(said.contains("is revoked for good"), "{said}");
    let events: List<Value> = running.client.get("/v1/events?limit=5").await.unwrap();
    assert_eq!(events.items[0]["severity"], "critical");
    let recorded: List<Object> = running.client.get("/v1/revocations").await.unwrap();
    assert_eq!(recorded.items[0].spec["target"]["name"], issued.name.as_str());

    let body = json!({ "namespace": "default", "kind": "Server", "name": "home", "reason": "" });
    assert_eq!(running.refused("/v1/revocations", Some(body)).await.status, 400);
    let body = json!({ "namespace": "default", "server": "home" });
    let error = running.refused("/v1/approvals", Some(body)).await;
    assert!(error.message.contains("no identity that waits"), "{error}");
    let digest = "ab".repeat(32);
    let body = json!({ "namespace": "default", "server": "home", "digest": format!("sha256:{digest}"), "reason": "new disk" });
    let recorded: Recorded = running.client.post("/v1/approvals", &body).await.unwrap();
    assert!(recorded.message.contains(&digest), "{}", recorded.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_seen_before_and_after() {
    let running = Running::start().await;
    let other = running.dir.path().join("other");
    copy(&running.resources(), &other);
    let user = fs::read_to_string(other.join("user-ann.toml")).unwrap();
    fs::write(other.join("user-ann.toml"), user.replace("kind = \"User\"", "kind = \"Usr\"")).unwrap();
    let (code, said, _) = running.cli(&["diff", other.to_str().unwrap()]).await;
    assert_eq!(code, ExitCode::FAILURE);
    assert!(said.contains("did you mean \"User\"?"), "{said}");
    fs::remove_file(other.join("policy-family.toml")).unwrap();
    fs::write(other.join("user-ann.toml"), user).unwrap();
    let (code, said, _) = running.cli(&["diff", other.to_str().unwrap()]).await;
    assert_eq!(code, ExitCode::SUCCESS);
    assert!(
        said.contains("- AccessPolicy default/family") && said.contains("ann may no longer use home"),
        "{said}"
    );

    // Now for real, and broken: the last good state stays, and the problem is told.
    fs::write(running.resources().join("user-ann.toml"), "kind = ").unwrap();
    let status = running.until(|status| !status.problems.is_empty()).await;
    assert!(status.problems[0].starts_with("user-ann.toml:1"), "{:?}", status.problems);
    assert_eq!(status.resources["User"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_directory_waits_for_a_word() {
    let running = Running::start().await;
    for entry in fs::read_dir(running.resources()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let status = running.until(|status| !status.prune_pending.is_empty()).await;
    assert_eq!(status.resources["Server"], 1);
    let done: Done = running.client.post("/v1/prune-confirmations", &json!({})).await.unwrap();
    assert_eq!(done.message, "3 resources were let go");
    running.until(|status| status.resources["Server"] == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_understood_is_answered_with_a_remedy() {
    let running = Running::start().await;
    let error = running.refused("/v1/severs", None).await;
    assert_eq!((error.status, error.remedy.as_str()), (404, "did you mean \"servers\"?"));
    let error = running.refused("/v1/servers/nix", None).await;
    assert!(error.remedy.contains("home"), "{error}");
    assert_eq!(running.refused("/nothing/here", None).await.status, 404);
    assert_eq!(running.refused("/v1/tokens", Some(json!({ "server": "home" }))).await.status, 400);
    assert_eq!(running.refused("/v1/servers", Some(json!({}))).await.status, 405);
    assert_eq!(running.refused("/v1/events?limit=0", None).await.status, 400);
    assert_eq!(running.refused("/v1/events?limits=1", None).await.status, 400);
    let large =
        json!({ "namespace": "default", "server": "home", "lifetime": "1h", "x": "y".repeat(100_000) });
    assert_eq!(running.refused("/v1/tokens", Some(large)).await.status, 413);
    // What is no HTTP at all ends that connection and nothing else.
    let mut raw = UnixStream::connect(&running.app.socket).await.unwrap();
    raw.write_all(&[0xff; 4096]).await.unwrap();
    let _ = raw.read_to_end(&mut Vec::new()).await;
    running.until(|status| status.not_ready.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_figures_are_served_and_everything_ends() {
    let mut running = Running::start().await;
    let page = |path: &'static str| {
        let address = running.app.metrics;
        async move {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            text
        }
    };
    assert!(page("/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(page("/readyz").await.contains("ready"));
    let figures = page("/metrics").await;
    assert!(figures.contains("horizon_controller_resources{kind=\"Server\"} 1"), "{figures}");
    assert!(figures.contains("horizon_controller_api_requests_total{name=\"ok\"}"), "{figures}");

    let second =
        Config::load(Some(&running.dir.path().join("org/config.toml")), Settings::default()).unwrap();
    let error = App::start(second).await.err().unwrap().to_string();
    assert!(error.contains("another controller uses"), "{error}");

    running.app.stop().await;
    assert!(!running.app.socket.exists());
    let gone = running.client.get::<Status>("/v1/status").await.unwrap_err();
    assert!(matches!(gone, ClientError::NotRunning(_)), "{gone}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}
