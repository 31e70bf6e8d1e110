//! The REST API as a person uses it: the program, its output, and plain HTTP.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use horizon_controller::account::totp;
use horizon_model::Secret;
use serde_json::{Value, json};

const PASSWORD: &str = "rain tractor velvet";

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_horizon-controller"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HORIZON_")) {
        command.env_remove(name);
    }
    command
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running controller, which ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a controller. Returns it with the address of the REST API, as its log says it.
fn start(config: &str) -> (Running, String) {
    let any = "127.0.0.1:0";
    let mut child = program()
        .args(["run", "--config", config, "--listen", any, "--metrics-listen", any, "--rest-listen", any])
        .args(["--log-format", "json"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut log = BufReader::new(child.stderr.take().expect("it is piped"));
    let (mut line, mut address) = (String::new(), String::new());
    while !line.contains("the controller runs") {
        line.clear();
        assert_ne!(log.read_line(&mut line).expect("log lines are UTF-8"), 0, "the controller ended");
        let read: Value = serde_json::from_str(&line).unwrap_or_default();
        if read["message"] == "the REST API is served" {
            address = read["address"].as_str().expect("the answer is whole").to_owned();
        }
    }
    // What nobody reads any more must not stop it.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    assert!(!address.is_empty());
    (Running(child), address)
}

/// One request on a connection of its own: the status and the body.
fn ask(address: &str, method: &str, path: &str, token: Option<&str>, body: Option<&Value>) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).expect("the answer is whole");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("the answer is whole");
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nhost: controller\r\nuser-agent: curl/8\r\nconnection: close\r\n"
    );
    if let Some(token) = token {
        head.push_str(&format!("authorization: Bearer {token}\r\n"));
    }
    let body = body.map(ToString::to_string).unwrap_or_default();
    if !body.is_empty() {
        head.push_str(&format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()));
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes()).expect("the answer is whole");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the answer is whole");
    let (head, body) = answer.split_once("\r\n\r\n").expect("the answer is whole");
    let status = head.split(' ').nth(1).expect("the answer is whole").parse().expect("the answer is whole");
    (status, serde_json::from_str(body).unwrap_or_default())
}

fn word<'a>(body: &'a Value, field: &str) -> &'a str {
    body[field].as_str().unwrap_or_else(|| panic!("no {field} in {body}"))
}

fn organisation(dir: &Path) -> (String, String) {
    let org = dir.join("org");
    let made = run(&["init", org.to_str().expect("UTF-8"), "--advertise", "192.0.2.1"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let said = text(&made.stdout);
    // The last line is the one-time password.
    let password = said.lines().last().expect("the answer is whole").trim().to_owned();
    assert!(said.contains("The first administrator is 'admin'"), "{said}");
    (org.join("config.toml").to_str().expect("UTF-8").to_owned(), password)
}

#[test]
fn from_init_to_a_dead_token() {
    let dir = tempfile::tempdir().unwrap();
    let (config, first) = organisation(dir.path());
    let (_running, address) = start(&config);
    let post = |path: &str, token: Option<&str>, body: Value| ask(&address, "POST", path, token, Some(&body));

    // First sign-in: the password must be changed, and one-time codes set up.
    let (status, login) = post("/v1/admin/login", None, json!({ "username": "admin", "password": first }));
    assert_eq!((status, &login["mustDo"]), (200, &json!(["change_password", "enrol_totp"])), "{login}");
    let (status, refused) = ask(&address, "GET", "/v1/servers", Some(word(&login, "accessToken")), None);
    assert_eq!((status, word(&refused, "type")), (403, "urn:horizon:problem:duty-first"));
    let (status, changed) = post(
        "/v1/admin/password",
        Some(word(&login, "accessToken")),
        json!({ "current": first, "new": PASSWORD }),
    );
    assert_eq!(status, 200, "{changed}");
    let token = word(&changed, "accessToken");
    let (status, begun) = post("/v1/admin/totp", Some(token), json!({}));
    assert_eq!(status, 201, "{begun}");
    let mut bytes = [0; 32];
    bytes[..20]
        .copy_from_slice(&data_encoding::BASE32_NOPAD.decode(word(&begun, "secret").as_bytes()).unwrap());
    let code = totp::code(&Secret::new(bytes), jiff::Timestamp::now());
    let (status, done) = post("/v1/admin/totp/confirm", Some(token), json!({ "code": code }));
    assert_eq!((status, done["recoveryCodes"].as_array().map(Vec::len)), (200, Some(10)), "{done}");

    // Now for the work: servers, and an approval.
    let token = word(&done, "accessToken");
    let (status, servers) = ask(&address, "GET", "/v1/servers", Some(token), None);
    assert_eq!((status, &servers["items"][0]["metadata"]["name"]), (200, &json!("home")));
    let digest = format!("sha256:{}", "ab".repeat(32));
    let approval =
        json!({ "namespace": "default", "server": "home", "digest": digest, "reason": "new disk" });
    let (status, approved) = post("/v1/approvals", Some(token), approval);
    assert_eq!(status, 200, "{approved}");
    let listed = text(&run(&["get", "approvals", "--config", &config]).stdout);
    assert!(listed.contains(word(&approved, "name")), "{listed}");
    let audit = text(&run(&["get", "audit", "--config", &config, "-o", "json"]).stdout);
    assert!(
        audit.contains("\"actor\": \"admin\"") && audit.contains("\"address\": \"127.0.0.1\""),
        "{audit}"
    );

    // Signed out, the token is dead.
    assert_eq!(post("/v1/admin/logout", Some(token), json!({})).0, 204);
    assert_eq!(ask(&address, "GET", "/v1/servers", Some(token), None).0, 401);

    // The way back in from the machine itself.
    let listed = text(&run(&["admin", "list", "--config", &config]).stdout);
    assert!(listed.contains("admin") && listed.contains("active") && listed.contains("yes"), "{listed}");
    let made = run(&["admin", "add", "ann", "--role", "viewer", "--config", &config]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let password = text(&made.stdout).trim().to_owned();
    let (status, _) = post("/v1/admin/login", None, json!({ "username": "ann", "password": password }));
    assert_eq!(status, 200);
    let suspended = run(&["admin", "suspend", "ann", "--reason", "on leave", "--config", &config]);
    assert!(suspended.status.success(), "{}", text(&suspended.stderr));
    let (status, told) = post("/v1/admin/login", None, json!({ "username": "ann", "password": password }));
    assert_eq!((status, word(&told, "type")), (403, "urn:horizon:problem:suspended"));
    let only = run(&["admin", "suspend", "admin", "--reason", "x", "--config", &config]);
    assert!(!only.status.success(), "the last who may manage accounts stays");
}
