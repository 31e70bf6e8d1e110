//! What administrators do, from the first sign-in on.

use serde_json::{Value, json};

use super::kit::{Ask, PASSWORD, PATIENCE, Running};
use crate::account::totp;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_the_one_time_password_to_a_dead_token() {
    let running = Running::start().await;
    let first = running.account("ann", "admin").await;
    let login = running.login("ann", &first, None).await;
    assert_eq!((login.status, &login.body["mustDo"]), (200, &json!(["change_password", "enrol_totp"])));
    let token = login.text("accessToken");
    // Nothing else goes before that.
    for path in ["/v1/servers", "/v1/admins", "/v1/audit", "/v1/events/stream"] {
        let answer = running.get(path, &token).await;
        assert_eq!((answer.status, answer.problem().as_str()), (403, "duty-first"), "{path}");
    }
    let early = running.post("/v1/admin/totp", &token, &json!({})).await;
    assert_eq!((early.status, early.problem().as_str()), (403, "duty-first"));
    let body = json!({ "current": first, "new": PASSWORD });
    let changed = running.post("/v1/admin/password", &token, &body).await;
    assert_eq!((changed.status, &changed.body["mustDo"]), (200, &json!(["enrol_totp"])));
    // The session before is dead: another took its place.
    assert_eq!(running.get("/v1/admin/me", &token).await.status, 401);
    assert_ne!(login.text("session"), changed.text("session"));
    let token = changed.text("accessToken");
    let begun = running.post("/v1/admin/totp", &token, &json!({})).await;
    assert!(begun.text("uri").starts_with("otpauth://totp/Horizon:ann?secret="));
    let secret = super::kit::totp_secret(&begun.text("secret"));
    let wrong = running.post("/v1/admin/totp/confirm", &token, &json!({ "code": "abcdef" })).await;
    assert_eq!(wrong.status, 403);
    let code = totp::code(&secret, jiff::Timestamp::now());
    let done = running.post("/v1/admin/totp/confirm", &token, &json!({ "code": code })).await;
    assert_eq!((done.status, &done.body["mustDo"]), (200, &json!([])));
    assert_eq!(done.body["recoveryCodes"].as_array().unwrap().len(), 10);
    let token = done.text("accessToken");
    let servers = running.get("/v1/servers", &token).await;
    assert_eq!(servers.items()[0]["metadata"]["name"], "home");
    let detail = running.get("/v1/servers/home", &token).await;
    assert!(detail.headers.contains_key("etag") && detail.body["reasons"].is_array(), "{detail:?}");
    // Renewed once; what was used is worth nothing.
    let refresh = json!({ "refreshToken": done.text("refreshToken") });
    let renewed = running.ask(Ask::new("POST", "/v1/admin/refresh").json(&refresh)).await;
    assert_eq!((renewed.status, renewed.text("session")), (200, done.text("session")));
    // A recovery code signs in as well.
    let recovery = done.body["recoveryCodes"][0].as_str().unwrap();
    let other = running.login("ann", PASSWORD, Some(recovery)).await;
    assert_eq!(other.status, 200);
    let me = running.get("/v1/admin/me", &other.text("accessToken")).await;
    assert_eq!((&me.body["username"], &me.body["recoveryCodesLeft"]), (&json!("ann"), &json!(9)));
    let sessions = running.get("/v1/admin/sessions", &token).await;
    assert_eq!(sessions.items().len(), 2);
    // Signed out, every token of the session is dead, and the other session is not.
    let out = running.post("/v1/admin/logout", &token, &json!({})).await;
    assert_eq!(out.status, 204);
    for dead in [&token, &renewed.text("accessToken")] {
        let answer = running.get("/v1/servers", dead).await;
        assert_eq!((answer.status, answer.problem().as_str()), (401, "unauthorized"));
    }
    let refresh = json!({ "refreshToken": renewed.text("refreshToken") });
    assert_eq!(running.ask(Ask::new("POST", "/v1/admin/refresh").json(&refresh)).await.status, 401);
    assert_eq!(running.get("/v1/servers", &other.text("accessToken")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_those_of_the_socket_and_on_record() {
    let running = Running::start().await;
    let ann = running.settled("ann", "admin").await;
    let body = json!({ "namespace": "default", "server": "home", "lifetime": "1h" });
    let made = running.post("/v1/tokens", &ann.token, &body).await;
    assert_eq!(made.status, 200, "{made:?}");
    let key = json!({ "namespace": "default", "kind": "RegistrationKey", "name": made.text("name"), "reason": "lost" });
    let revoked = running.post("/v1/revocations", &ann.token, &key).await;
    assert!(revoked.text("message").contains("is revoked for good"));
    let digest = format!("sha256:{}", "ab".repeat(32));
    let approval =
        json!({ "namespace": "default", "server": "home", "digest": digest, "reason": "new disk" });
    assert_eq!(running.post("/v1/approvals", &ann.token, &approval).await.status, 200);
    // Each with who did it, from where, and what it was and is.
    let audit = running.get("/v1/audit?actor=ann&action=create", &ann.token).await;
    let kinds: Vec<&str> = audit.items().iter().map(|entry| entry["targetType"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["Approval", "Revocation", "RegistrationKey"]);
    for entry in audit.items() {
        assert_eq!((&entry["address"], &entry["agent"]), (&json!("127.0.0.1"), &json!("test/1")));
        assert!(entry["new"].is_object(), "{entry}");
    }
    let text = serde_json::to_string(&audit.body).unwrap();
    assert!(!text.contains(&made.text("secret")));
    // What files declare is not changed here.
    let refused = running.ask(Ask::new("PUT", "/v1/servers/home").bearer(&ann.token).json(&json!({}))).await;
    assert_eq!((refused.status, refused.problem().as_str()), (405, "method-not-allowed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_follow_each_other_and_requests_are_carried_out_once() {
    let running = Running::start().await;
    let ann = running.settled("ann", "admin").await;
    let token = |key: &str, server: &str| {
        let body = json!({ "namespace": "default", "server": server, "lifetime": "1h" });
        Ask::new("POST", "/v1/tokens").bearer(&ann.token).header("idempotency-key", key).json(&body)
    };
    let first = running.ask(token("one", "home")).await;
    let again = running.ask(token("one", "home")).await;
    assert_eq!((first.status, first.text("secret")), (again.status, again.text("secret")));
    assert_eq!(again.headers["idempotency-replayed"], "true");
    let other = running.ask(token("one", "other")).await;
    assert_eq!((other.status, other.problem().as_str()), (422, "idempotency-key-reused"));
    let second = running.ask(token("two", "home")).await;
    assert_ne!(first.text("secret"), second.text("secret"));
    // What failed may be tried again with its key.
    assert_eq!(running.ask(token("three", "nowhere")).await.status, 404);
    assert_eq!(running.ask(token("three", "home")).await.status, 200);
    let bad = running.ask(token("with space", "home")).await;
    assert_eq!(bad.status, 400);
    let keys = running.get("/v1/registrationkeys", &ann.token).await;
    assert_eq!(keys.items().len(), 3);

    for list in ["/v1/audit?", "/v1/registrationkeys?", "/v1/events?"] {
        let whole = running.get(&format!("{list}limit=500"), &ann.token).await;
        let mut pages: Vec<Value> = Vec::new();
        let mut next = String::new();
        loop {
            let page = running.get(&format!("{list}limit=2{next}"), &ann.token).await;
            assert!(page.items().len() <= 2);
            pages.extend(page.items().iter().cloned());
            match page.body["next"].as_str() {
                Some(cursor) => next = format!("&cursor={cursor}"),
                None => break,
            }
        }
        assert_eq!(&pages, whole.items(), "{list}");
    }
    let cursor = running.get("/v1/audit?limit=1", &ann.token).await.text("next");
    let elsewhere = running.get(&format!("/v1/events?cursor={cursor}"), &ann.token).await;
    assert_eq!(elsewhere.status, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_are_managed_with_their_versions() {
    let running = Running::start().await;
    let ann = running.settled("ann", "admin").await;
    let made =
        running.post("/v1/admins", &ann.token, &json!({ "username": "bob", "roles": ["viewer"] })).await;
    assert_eq!(made.status, 201, "{made:?}");
    let path = format!("/v1/admins/{}", made.text("id"));
    let seen = running.get(&path, &ann.token).await;
    let tag = seen.headers["etag"].to_str().unwrap().to_owned();
    let change = |tag: Option<&str>| {
        let ask = Ask::new("PATCH", &path)
            .bearer(&ann.token)
            .json(&json!({ "fullName": "Bob", "roles": ["auditor"] }));
        match tag {
            Some(tag) => ask.header("if-match", tag),
            None => ask,
        }
    };
    assert_eq!(running.ask(change(None)).await.status, 428);
    let changed = running.ask(change(Some(&tag))).await;
    assert_eq!((changed.status, &changed.body["roles"]), (200, &json!(["auditor"])));
    let stale = running.ask(change(Some(&tag))).await;
    assert_eq!((stale.status, stale.problem().as_str()), (412, "precondition-failed"));
    // Before and after are on record.
    let audit = running.get("/v1/audit?action=set_roles", &ann.token).await;
    let entry = &audit.items()[0];
    assert_eq!(
        (&entry["previous"]["roles"], &entry["new"]["roles"]),
        (&json!(["viewer"]), &json!(["auditor"]))
    );
    let (suspend, why) = (format!("{path}/suspend"), json!({ "reason": "on leave" }));
    assert_eq!(running.post(&suspend, &ann.token, &why).await.body["status"], "suspended");
    let refused = running.login("bob", &made.text("password"), None).await;
    assert_eq!((refused.status, refused.problem().as_str()), (403, "suspended"));
    // The last who may manage accounts stays.
    let me = running.get("/v1/admin/me", &ann.token).await.text("id");
    let refused = running.post(&format!("/v1/admins/{me}/suspend"), &ann.token, &why).await;
    assert_eq!(refused.status, 409);
    let role = json!({ "description": "Approves.", "permissions": ["approve_identity"] });
    let put = running.ask(Ask::new("PUT", "/v1/roles/approver").bearer(&ann.token).json(&role)).await;
    assert_eq!(put.status, 200, "{put:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_streamed_and_a_stream_goes_on_where_it_broke_off() {
    use http_body_util::BodyExt as _;
    let running = Running::start().await;
    let ann = running.settled("ann", "admin").await;
    let open = async |last: Option<&str>| {
        let mut ask = Ask::new("GET", "/v1/events/stream").bearer(&ann.token);
        if let Some(last) = last {
            ask = ask.header("last-event-id", last);
        }
        let answer = running.send(ask).await;
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["content-type"]),
            (200, &"text/event-stream".parse().unwrap())
        );
        answer.into_body()
    };
    /// Reads until an event of the kind; returns its id.
    async fn until(body: &mut hyper::body::Incoming, kind: &str) -> String {
        let mut text = String::new();
        loop {
            let frame = tokio::time::timeout(PATIENCE, body.frame()).await.unwrap().unwrap().unwrap();
            text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
            while let Some((event, rest)) = text.split_once("\n\n") {
                let found = event.contains(&format!("event: {kind}\n"));
                let id = event.lines().find_map(|line| line.strip_prefix("id: ")).map(str::to_owned);
                text = rest.to_owned();
                if found {
                    return id.unwrap();
                }
            }
        }
    }
    let mut body = open(None).await;
    let hello = until(&mut body, "hello").await;
    let token = json!({ "namespace": "default", "server": "home", "lifetime": "1h" });
    assert_eq!(running.post("/v1/tokens", &ann.token, &token).await.status, 200);
    until(&mut body, "audit").await;
    drop(body);
    // Somebody fails to sign in while nobody listens: it is told afterwards.
    assert_eq!(running.login("ann", "not the password", None).await.status, 401);
    let mut body = open(Some(&hello)).await;
    until(&mut body, "security_event").await;
    assert_eq!(
        running
            .ask(Ask::new("GET", "/v1/events/stream").bearer(&ann.token).header("last-event-id", "x"))
            .await
            .status,
        400
    );
    // Who signs out hears nothing more.
    assert_eq!(running.post("/v1/admin/logout", &ann.token, &json!({})).await.status, 204);
    let ended = async { while body.frame().await.is_some() {} };
    tokio::time::timeout(PATIENCE, ended).await.unwrap();
}

#[test]
fn the_document_is_the_one_that_is_committed() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let document = crate::rest::openapi::text_of(&crate::rest::document());
    if std::env::var_os("HORIZON_REGENERATE").is_some() {
        std::fs::write(&path, &document).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == document, "docs/openapi.json is stale: HORIZON_REGENERATE=1 makes it anew");
    let read: Value = serde_json::from_str(&document).unwrap();
    for route in crate::rest::routes::all() {
        let operation = &read["paths"][route.path][route.method.as_str().to_lowercase()];
        assert_eq!(operation["summary"], route.summary, "{}", route.endpoint);
    }
    // Every schema that is named is there.
    for name in document.split("\"#/components/schemas/").skip(1).map(|rest| rest.split('"').next().unwrap())
    {
        assert!(read["components"]["schemas"][name].is_object(), "{name}");
    }
}
