//! Limits and accounts follow the security policy at once, and wrong secrets over REST are seen.

use horizon_model::TaggedSecret;
use horizon_wire::token::PersonalKey;
use serde_json::{Value, json};

use super::{
    doors::key,
    kit::{Answer, Ask, PASSWORD, PATIENCE, Running},
};

impl Running {
    /// Declares the security policy, and waits until it is in force.
    pub(super) async fn policy(&self, spec: &str) {
        let document = format!(
            "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"SecurityPolicy\"\nmetadata.name = \"limits\"\n[spec]\n{spec}\n"
        );
        let before = self.generation().await;
        std::fs::write(self.resources().join("limits.toml"), document).unwrap();
        let declared = async {
            while self.generation().await == before {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, declared).await.expect("the policy is taken up");
    }

    async fn generation(&self) -> Option<i64> {
        let found: Result<Value, _> = self.socket.get("/v1/securitypolicies/limits").await;
        found.ok()?["object"]["metadata"]["generation"].as_i64()
    }
}

async fn until_limited(mut ask: impl AsyncFnMut() -> Answer) -> usize {
    for n in 0..50 {
        let answer = ask().await;
        if answer.status == 429 {
            assert_eq!(answer.problem(), "rate-limited");
            return n;
        }
    }
    panic!("nothing was limited");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_the_rest_api_follow_the_security_policy_at_once() {
    let running = Running::start().await;
    let ann = running.settled("ann", "admin").await;
    for _ in 0..30 {
        assert_eq!(running.get("/v1/admin/me", &ann.token).await.status, 200, "by default there are many");
    }
    running.policy("restLimits = { requestsPerUser = 2 }").await;
    assert!(until_limited(async || running.get("/v1/admin/me", &ann.token).await).await < 10);
    // Who says nothing of themselves is not counted as a user.
    assert_eq!(running.ask(Ask::new("GET", "/v1/status")).await.status, 200);
    running.policy("restLimits = { changesPerEndpoint = 1 }").await;
    let change = async || running.post("/v1/admin/totp", &ann.token, &json!({})).await;
    assert!(until_limited(change).await < 10);
    assert_eq!(running.get("/v1/admin/me", &ann.token).await.status, 200, "reading is of another class");
    running.policy("restLimits = { readsPerEndpoint = 1 }").await;
    assert!(until_limited(async || running.get("/v1/roles", &ann.token).await).await < 10);
    running.policy("restLimits = { requestsPerAddress = 3 }").await;
    assert!(until_limited(async || running.ask(Ask::new("GET", "/v1/nothing")).await).await < 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_follow_the_security_policy_at_once() {
    let running = Running::start().await;
    let lenient = "accounts = { requireTotp = false }\nrestLimits = { signInsPerAddress = 1000 }";
    running.policy(lenient).await;
    let first = running.account("ann", "admin").await;
    let begun = running.login("ann", &first, None).await;
    assert_eq!(begun.body["mustDo"], json!(["change_password"]));
    let change = json!({ "current": first, "new": PASSWORD });
    let changed = running.post("/v1/admin/password", &begun.text("accessToken"), &change).await;
    let token = changed.text("accessToken");
    assert_eq!(running.get("/v1/admins", &token).await.status, 200, "no code is needed");
    // What is required from now on is required of who is signed in.
    running.policy("restLimits = { signInsPerAddress = 1000 }").await;
    let refused = running.get("/v1/admins", &token).await;
    assert_eq!((refused.status, refused.problem().as_str()), (403, "duty-first"));
    assert_eq!(running.get("/v1/admin/me", &token).await.body["mustDo"], json!(["enrol_totp"]));
    // One wrong password locks where the policy says so.
    let strict = "accounts = { lockoutThreshold = 1 }\nrestLimits = { signInsPerAddress = 1000 }";
    running.policy(strict).await;
    assert_eq!(running.login("ann", "not the password", None).await.status, 401);
    let admins: Value = running.socket.get("/v1/admins").await.unwrap();
    assert_eq!(admins["items"][0]["status"], "locked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_administrators_are_listed_in_pages() {
    let running = Running::start().await;
    let ann = running.settled("ann", "admin").await;
    for code in &ann.recovery[..2] {
        assert_eq!(running.login("ann", PASSWORD, Some(code)).await.status, 200);
    }
    for list in ["/v1/admin/sessions", "/v1/admin-sessions"] {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = running.get(&format!("{list}?limit=2{cursor}"), &ann.token).await;
            seen.extend(page.items().iter().map(|item| item["id"].as_str().unwrap().to_owned()));
            let Some(next) = page.body["next"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        let all = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!((all, seen.len()), (3, 3), "{list}");
        assert_eq!(running.get(&format!("{list}?cursor=x"), &ann.token).await.status, 400);
    }
}

/// Sends wrong secrets of a kind until the address is blocked for it.
async fn blocked_by(what: &str, mut ask: impl AsyncFnMut(&Running) -> Answer) {
    let running = Running::start().await;
    let _ = running.settled("ann", "admin").await;
    running
        .policy(
            "lockout.threshold = 10000\nrestLimits = { signInsPerAddress = 100000 }\n\
             detection.blocking = { failures = 3, window = \"24h\", spared = [] }",
        )
        .await;
    let blocked = async {
        loop {
            let answer = ask(&running).await;
            match answer.status {
                401 | 403 if answer.text("detail").contains("blocked") => return,
                401 | 403 => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
                other => panic!("{what}: {other}: {answer:?}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE * 2, blocked).await.unwrap_or_else(|_| panic!("{what} is not counted"));
    let anomalies: Value = running.socket.get("/v1/anomalies").await.unwrap();
    assert_eq!(anomalies["items"][0]["type"], "brute_force", "{what}: {anomalies}");
}

impl Running {
    async fn personal_key(&self) -> PersonalKey {
        let asked = json!({ "namespace": "default", "user": "ann" });
        let issued: Value = self.socket.post("/v1/invitations", &asked).await.unwrap();
        PersonalKey::decode(issued["secret"].as_str().unwrap()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_passwords_and_codes_over_rest_are_brute_force() {
    blocked_by("a wrong password", async |r| r.login("ann", "not the password", None).await).await;
    blocked_by("a wrong code", async |r| r.login("ann", PASSWORD, Some("000000")).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_tokens_over_rest_are_brute_force() {
    blocked_by("a wrong token", async |r| r.get("/v1/admin/me", "eyJhbGciOiJub25lIn0.e30.").await).await;
    let unknown = json!({ "refreshToken": format!("hzr_{}", "A".repeat(64)) });
    let renew = async |r: &Running| r.ask(Ask::new("POST", "/v1/admin/refresh").json(&unknown)).await;
    blocked_by("a wrong refresh token", renew).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_personal_keys_over_rest_are_brute_force() {
    let mut known = None;
    let guessed = async |r: &Running| {
        if known.is_none() {
            known = Some(r.personal_key().await);
        }
        let mut guess = known.clone().unwrap();
        guess.secret = TaggedSecret::new(&[7; 32], [7; 4]);
        let proof = match r.try_proof(&key(9)).await {
            Ok(proof) => proof,
            Err(blocked) => return blocked,
        };
        let body = json!({ "personalKey": guess.encode(), "proof": proof, "name": "laptop" });
        r.ask(Ask::new("POST", "/v1/auth").json(&body)).await
    };
    blocked_by("a wrong personal key", guessed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_the_rules_refuse_are_told_and_block_where_they_come_from() {
    let running = Running::start().await;
    let ann = running.settled("ann", "admin").await;
    let reason = async |text: &str| {
        let body = json!({ "kind": "Server", "name": "home", "reason": text });
        running.post("/v1/flags", &ann.token, &body).await
    };
    assert_eq!(reason("odd since the upgrade; see <b>ticket 7</b>, 100 %").await.status, 200);
    for text in ["a\u{1b}[2J", "<SCRIPT src=x>", "${jndi:ldap://x}", &"x".repeat(9000)] {
        let answer = reason(text).await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "payload-refused"), "{text:?}");
        assert!(!answer.text("detail").contains("script"), "which pattern is not told");
    }
    let told = async {
        loop {
            let events: Value = running.socket.get("/v1/events?limit=50").await.unwrap();
            let items = events["items"].as_array().unwrap();
            if let Some(event) = items.iter().find(|event| event["type"] == "payload_refused") {
                return event.clone();
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let event = tokio::time::timeout(PATIENCE * 2, told).await.expect("it is an event");
    assert_eq!(event["data"]["door"], "rest", "{event}");
    // Rules are the policy's, at once; and who goes on is blocked.
    running
        .policy(
            "payload = { patterns = [\"forbidden*word\"], blockAfter = 3, maxBytes = 2048 }\n\
             detection.blocking = { window = \"24h\", spared = [] }",
        )
        .await;
    assert_eq!(reason("<script>").await.status, 200, "the patterns are those of the policy");
    assert_eq!(reason(&"x".repeat(3000)).await.status, 413);
    let blocked = async {
        loop {
            let answer = reason("a Forbidden and long WORD").await;
            match (answer.status, answer.problem().as_str()) {
                (400, "payload-refused") => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
                (403, "forbidden") if answer.text("detail").contains("blocked") => return,
                _ => panic!("{answer:?}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE * 2, blocked).await.expect("the address is blocked");
    let anomalies: Value = running.socket.get("/v1/anomalies").await.unwrap();
    assert_eq!(anomalies["items"][0]["type"], "malicious_payload", "{anomalies}");
}
