//! A controller with its REST API, and a client that speaks plain HTTP/1.1.

use std::{net::SocketAddr, time::Duration};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::HeaderMap,
};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::{
    account::totp,
    api::{client::Client, model::Status},
    app::App,
    config::{Config, Settings},
    init::init,
};

/// How long anything may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// The password that accounts of tests have in the end.
pub(super) const PASSWORD: &str = "rain tractor velvet";

pub(super) struct Running {
    dir: tempfile::TempDir,
    _app: App,
    pub(super) socket: Client,
    pub(super) address: SocketAddr,
}

/// An answer, whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Value,
}

impl Answer {
    pub(super) fn text(&self, field: &str) -> String {
        self.body[field].as_str().unwrap_or_else(|| panic!("no {field} in {:?}", self.body)).to_owned()
    }

    /// What a problem is called.
    pub(super) fn problem(&self) -> String {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        assert_eq!(self.body["instance"].as_str().unwrap(), self.headers["x-request-id"].to_str().unwrap());
        self.text("type").trim_start_matches("urn:horizon:problem:").to_owned()
    }

    pub(super) fn items(&self) -> &Vec<Value> {
        self.body["items"].as_array().unwrap_or_else(|| panic!("no items in {:?}", self.body))
    }
}

/// What is asked.
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Ask {
    pub(super) fn new(method: &str, path: &str) -> Self {
        let method = method.parse().unwrap();
        Self { method, path: path.into(), headers: Vec::new(), body: Vec::new() }
    }

    pub(super) fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(super) fn json(self, body: &Value) -> Self {
        let mut ask = self.header("content-type", "application/json");
        ask.body = body.to_string().into_bytes();
        ask
    }
}

/// An administrator who is signed in and has nothing to do first.
pub(super) struct Settled {
    pub(super) token: String,
    pub(super) refresh: String,
    pub(super) totp: horizon_model::Secret,
    pub(super) recovery: Vec<String>,
}

impl Running {
    pub(super) async fn start() -> Self {
        Self::start_with(Settings::default()).await
    }

    pub(super) async fn start_with(settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let org = dir.path().join("org");
        init(&org, &["192.0.2.1".parse().unwrap()], false, &mut Vec::new()).unwrap();
        let any = || Some("127.0.0.1:0".parse().unwrap());
        let settings = settings.over(Settings {
            listen: any(),
            metrics_listen: any(),
            rest_listen: any(),
            debounce: Some("10ms".parse().unwrap()),
            ..Settings::default()
        });
        let app = App::start(Config::load(Some(&org.join("config.toml")), settings).unwrap()).await.unwrap();
        let (socket, address) = (Client::new(app.socket.clone()), app.rest.unwrap());
        let ready = async {
            loop {
                let status: Status = socket.get("/v1/status").await.unwrap();
                if status.not_ready.is_empty() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.unwrap();
        Self { dir, _app: app, socket, address }
    }

    /// The folder of what is declared.
    pub(super) fn resources(&self) -> std::path::PathBuf {
        self.dir.path().join("org/resources")
    }

    /// Sends a request on a connection of its own, and gives the answer whose body is still to come.
    pub(super) async fn send(&self, ask: Ask) -> hyper::Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder().method(ask.method).uri(ask.path).header("host", "controller");
        if !ask.headers.iter().any(|(name, _)| name == "user-agent") {
            request = request.header("user-agent", "test/1");
        }
        for (name, value) in ask.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::from(ask.body))).unwrap();
        tokio::time::timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap()
    }

    pub(super) async fn ask(&self, ask: Ask) -> Answer {
        let answer = self.send(ask).await;
        let (head, body) = answer.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect()).await.unwrap().unwrap().to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Answer { status: head.status.as_u16(), headers: head.headers, body }
    }

    pub(super) async fn get(&self, path: &str, token: &str) -> Answer {
        self.ask(Ask::new("GET", path).bearer(token)).await
    }

    pub(super) async fn post(&self, path: &str, token: &str, body: &Value) -> Answer {
        self.ask(Ask::new("POST", path).bearer(token).json(body)).await
    }

    pub(super) async fn login(&self, username: &str, password: &str, code: Option<&str>) -> Answer {
        let body = json!({ "username": username, "password": password, "code": code });
        self.ask(Ask::new("POST", "/v1/admin/login").json(&body)).await
    }

    /// Makes an account by the local socket. Returns the one-time password.
    pub(super) async fn account(&self, name: &str, role: &str) -> String {
        let made: Value =
            self.socket.post("/v1/admins", &json!({ "username": name, "roles": [role] })).await.unwrap();
        made["password"].as_str().unwrap().to_owned()
    }

    /// Makes an account and goes the whole way with it.
    pub(super) async fn settled(&self, name: &str, role: &str) -> Settled {
        let first = self.account(name, role).await;
        let login = self.login(name, &first, None).await;
        assert_eq!(login.status, 200, "{login:?}");
        let body = json!({ "current": first, "new": PASSWORD });
        let changed = self.post("/v1/admin/password", &login.text("accessToken"), &body).await;
        assert_eq!(changed.status, 200, "{changed:?}");
        let token = changed.text("accessToken");
        let begun = self.post("/v1/admin/totp", &token, &json!({})).await;
        assert_eq!(begun.status, 201, "{begun:?}");
        let totp = totp_secret(&begun.text("secret"));
        let body = json!({ "code": totp::code(&totp, Timestamp::now()) });
        let done = self.post("/v1/admin/totp/confirm", &token, &body).await;
        assert_eq!(done.status, 200, "{done:?}");
        let recovery = done.body["recoveryCodes"].as_array().unwrap();
        let recovery = recovery.iter().map(|code| code.as_str().unwrap().to_owned()).collect();
        Settled { token: done.text("accessToken"), refresh: done.text("refreshToken"), totp, recovery }
    }
}

/// The secret of an authenticator as it was typed.
pub(super) fn totp_secret(typed: &str) -> horizon_model::Secret {
    let mut bytes = [0; 32];
    bytes[..20].copy_from_slice(&data_encoding::BASE32_NOPAD.decode(typed.as_bytes()).unwrap());
    horizon_model::Secret::new(bytes)
}
