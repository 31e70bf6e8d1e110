//! What attackers send.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::kit::{Ask, PASSWORD, PATIENCE, Running};
use crate::account::totp;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessed_passwords_lock_and_tell_nothing() {
    let running = Running::start().await;
    running.account("ann", "admin").await;
    let mut answers = Vec::new();
    for _ in 0..4 {
        for name in ["ann", "nobody"] {
            let mut answer = running.login(name, "not the password", None).await;
            assert_eq!((answer.status, answer.problem().as_str()), (401, "invalid-credentials"));
            answer.body["instance"] = Value::Null;
            answers.push(answer.body);
        }
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "known and unknown look alike");
    // Then the address may try no more for a while, whoever it means.
    let mut last = running.login("ann", "not the password", None).await;
    while last.status == 401 {
        last = running.login("ann", "not the password", None).await;
    }
    assert_eq!((last.status, last.problem().as_str()), (429, "rate-limited"));
    let seconds: u64 = last.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(seconds >= 1);
    let admins: Value = running.socket.get("/v1/admins").await.unwrap();
    assert_eq!(admins["items"][0]["status"], "locked");
    // Others are served meanwhile.
    assert_eq!(running.ask(Ask::new("GET", "/v1/status")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codes_and_sessions_are_not_used_twice() {
    let running = Running::start().await;
    let ann = running.settled("ann", "admin").await;
    // The code that set it up, once more.
    let code = totp::code(&ann.totp, jiff::Timestamp::now());
    let replayed = running.login("ann", PASSWORD, Some(&code)).await;
    assert_eq!(replayed.status, 401, "{replayed:?}");
    assert_eq!(running.login("ann", PASSWORD, Some(&ann.recovery[0])).await.status, 200);
    assert_eq!(running.login("ann", PASSWORD, Some(&ann.recovery[0])).await.status, 401);
    // A session that somebody else names is not taken over: its owner chooses none.
    let fixed = json!({ "username": "ann", "password": PASSWORD, "code": ann.recovery[1], "session": "0199f2c0-0000-7000-8000-000000000000" });
    let refused = running.ask(Ask::new("POST", "/v1/admin/login").json(&fixed)).await;
    assert_eq!(refused.status, 400);
    // A refresh token in two hands ends the session.
    let renew = async |token: &str| {
        running.ask(Ask::new("POST", "/v1/admin/refresh").json(&json!({ "refreshToken": token }))).await
    };
    let renewed = renew(&ann.refresh).await;
    assert_eq!(renewed.status, 200);
    assert_eq!(renew(&ann.refresh).await.status, 401);
    assert_eq!(running.get("/v1/admin/me", &renewed.text("accessToken")).await.status, 401);
    // So does another program that shows a stolen token, and it is an event.
    let again = running.login("ann", PASSWORD, Some(&ann.recovery[2])).await.text("accessToken");
    let stolen = Ask::new("GET", "/v1/admin/me").bearer(&again).header("user-agent", "curl/8");
    assert_eq!(running.ask(stolen).await.status, 401);
    assert_eq!(running.get("/v1/admin/me", &again).await.status, 401);
    let events: Value = running.socket.get("/v1/events?limit=5").await.unwrap();
    assert_eq!(events["items"][0]["type"], "admin_session_hijacking_suspected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_too_much_are_refused() {
    let running = Running::start().await;
    let send = async |body: Vec<u8>, kind: &str| {
        let mut ask = Ask::new("POST", "/v1/admin/login").header("content-type", kind);
        ask.body = body;
        running.ask(ask).await
    };
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000)).into_bytes();
    let answer = send(deep, "application/json").await;
    assert_eq!((answer.status, answer.problem().as_str()), (400, "payload-refused"));
    let deep = format!("{{\"username\":{}1{}}}", "[".repeat(16), "]".repeat(16)).into_bytes();
    assert_eq!(send(deep, "application/json").await.status, 400);
    let answer = send(vec![b' '; 65 << 10], "application/json").await;
    assert_eq!((answer.status, answer.problem().as_str()), (413, "too-large"));
    let answer = send(b"username=ann&password=x".to_vec(), "application/x-www-form-urlencoded").await;
    assert_eq!((answer.status, answer.problem().as_str()), (415, "unsupported-media-type"));
    for text in [
        "",
        "{",
        "null",
        "[]",
        "{\"username\":1}",
        "{\"username\":\"a\",\"username\":\"b\",\"password\":\"c\"}",
    ] {
        let answer = send(text.as_bytes().to_vec(), "application/json").await;
        assert!(matches!(answer.status, 400 | 429), "{text}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_that_are_not_ones_own_to_set_are_refused() {
    let running = Running::start().await;
    let ann = running.settled("ann", "admin").await;
    for (path, body) in [
        ("/v1/admins", json!({ "username": "eve", "roles": ["viewer"], "status": "active" })),
        ("/v1/admins", json!({ "username": "eve", "roles": ["viewer"], "mustChangePassword": false })),
        ("/v1/admins", json!({ "username": "eve", "roles": ["viewer"], "passwordHash": "x" })),
        (
            "/v1/admin/password",
            json!({ "current": PASSWORD, "new": "another long phrase", "roles": ["admin"] }),
        ),
        (
            "/v1/tokens",
            json!({ "namespace": "default", "server": "home", "lifetime": "1h", "secret": "mine" }),
        ),
    ] {
        let answer = running.post(path, &ann.token, &body).await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "bad-request"), "{path} {body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_and_control_characters_are_only_text() {
    let running = Running::start().await;
    let ann = running.settled("ann", "admin").await;
    let evil = [
        "'",
        "' OR '1'='1",
        "'; DROP TABLE audit_logs; --",
        "\" OR \"\"=\"",
        "%",
        "\\",
        "$1",
        "{lock}",
        "1)) UNION SELECT password_hash FROM admins --",
    ];
    for text in evil {
        let text = crate::api::client::escape(text);
        for list in [
            "/v1/audit?action=",
            "/v1/audit?actor=",
            "/v1/audit?targetType=",
            "/v1/audit?targetId=",
            "/v1/events?type=",
            "/v1/events?severity=",
            "/v1/events?source=",
            "/v1/sessions?status=",
            "/v1/sessions?user=",
            "/v1/sessions?server=",
            "/v1/devices?status=",
            "/v1/devices?user=",
            "/v1/users?namespace=",
        ] {
            let answer = running.get(&format!("{list}{text}"), &ann.token).await;
            assert_eq!((answer.status, answer.items().len()), (200, 0), "{list}{text}");
        }
        for path in ["/v1/audit?cursor=", "/v1/admins?cursor=", "/v1/audit?limit="] {
            assert_eq!(running.get(&format!("{path}{text}"), &ann.token).await.status, 400, "{path}{text}");
        }
        assert_eq!(running.get(&format!("/v1/users/{text}"), &ann.token).await.status, 404, "{text}");
    }
    assert!(!running.get("/v1/audit", &ann.token).await.items().is_empty(), "the table is still there");
    // A name that would forge a line of the log, and a request id that would.
    for name in ["ann\nFAKE line", "ann\u{1b}[2J", "ann\r\nx: y"] {
        let made =
            running.post("/v1/admins", &ann.token, &json!({ "username": name, "roles": ["viewer"] })).await;
        assert_eq!(made.status, 400, "{name:?}");
        let why = json!({ "reason": name });
        let id = running.get("/v1/admin/me", &ann.token).await.text("id");
        assert_eq!(running.post(&format!("/v1/admins/{id}/suspend"), &ann.token, &why).await.status, 400);
    }
    let long = "x".repeat(65);
    for id in ["a b", "<script>", &long] {
        let answer = running.ask(Ask::new("GET", "/v1/status").header("x-request-id", id)).await;
        assert_ne!(answer.headers["x-request-id"], id);
    }
    let answer = running.ask(Ask::new("GET", "/v1/status").header("x-request-id", "mine-1")).await;
    assert_eq!(answer.headers["x-request-id"], "mine-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_peers_are_hung_up_on_and_keep_nobody_out() {
    let running = Running::start().await;
    // Heads that never end, and a body that never comes.
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\nx-slow: ").await.unwrap();
        slow.push(stream);
    }
    let mut body = TcpStream::connect(running.address).await.unwrap();
    let head = b"POST /v1/admin/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    body.write_all(head).await.unwrap();
    assert_eq!(running.ask(Ask::new("GET", "/v1/status")).await.status, 200);
    let mut answer = Vec::new();
    timeout(PATIENCE, body.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(
        String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 408"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    for mut stream in slow {
        let mut rest = Vec::new();
        // Hung up on, with or without a word.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap();
    }
    // One party has its share of connections and no more.
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(TcpStream::connect(running.address).await.unwrap());
    }
    let closed = async {
        let mut byte = [0];
        for stream in &mut held[32..] {
            assert!(matches!(stream.read(&mut byte).await, Ok(0) | Err(_)));
        }
    };
    timeout(PATIENCE, closed).await.unwrap();
    drop(held);
    let served = async {
        loop {
            let Ok(mut stream) = TcpStream::connect(running.address).await else { continue };
            let _ =
                stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
            let mut answer = Vec::new();
            if stream.read_to_end(&mut answer).await.is_ok() && answer.starts_with(b"HTTP/1.1 200") {
                return;
            }
        }
    };
    timeout(PATIENCE, served).await.unwrap();
}
