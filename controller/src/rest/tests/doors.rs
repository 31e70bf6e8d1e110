//! Appliances and devices, by the same operations as on the control channel.

use data_encoding::BASE64URL_NOPAD;
use horizon_model::Secret;
use horizon_wire::key::SigningKey;
use serde_json::{Value, json};

use super::kit::{Answer, Ask, Running};

pub(super) fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(Secret::new([n; 32]))
}

impl Running {
    async fn anonymous(&self, path: &str, body: &Value) -> Answer {
        self.ask(Ask::new("POST", path).json(body)).await
    }

    async fn proof(&self, key: &SigningKey) -> Value {
        self.try_proof(key).await.unwrap()
    }

    /// The proof of a key; the answer where no challenge is given.
    pub(super) async fn try_proof(&self, key: &SigningKey) -> Result<Value, Answer> {
        let public = key.public().to_string();
        let asked = self.anonymous("/v1/challenges", &json!({ "publicKey": public })).await;
        if asked.status != 200 {
            return Err(asked);
        }
        let challenge = asked.text("challenge");
        let signed = [b"horizon rest proof v1\0".as_slice(), challenge.as_bytes()].concat();
        let signature = BASE64URL_NOPAD.encode(&key.sign(&signed));
        Ok(json!({ "publicKey": public, "challenge": challenge, "signature": signature }))
    }
}

fn register(token: &str, proof: &Value) -> Value {
    json!({
        "token": token, "proof": proof, "hostname": "box", "version": "0.1.0", "capabilities": ["vpn"],
        "factors": [{ "kind": "hardware_fingerprint", "name": "board", "value": "a" }],
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_appliance_registers_once_by_either_door() {
    let running = Running::start().await;
    let issued: Value = running
        .socket
        .post("/v1/tokens", &json!({ "namespace": "default", "server": "home", "lifetime": "1h" }))
        .await
        .unwrap();
    let token = issued["secret"].as_str().unwrap();
    // Without the key there is no proof, whatever else is right.
    let (mine, other) = (key(1), key(2));
    let mut stolen = running.proof(&mine).await;
    stolen["publicKey"] = json!(other.public().to_string());
    assert_eq!(running.anonymous("/v1/register", &register(token, &stolen)).await.status, 400);
    let mut forged = running.proof(&mine).await;
    forged["signature"] = running.proof(&other).await["signature"].clone();
    assert_eq!(running.anonymous("/v1/register", &register(token, &forged)).await.status, 400);

    let proof = running.proof(&mine).await;
    let first = running.anonymous("/v1/register", &register(token, &proof)).await;
    assert_eq!((first.status, first.text("server")), (200, "home".into()), "{first:?}");
    // A lost answer strands nobody: the same key gets the same one again.
    let again = running.anonymous("/v1/register", &register(token, &proof)).await;
    assert_eq!(again.text("verificationSecret"), first.text("verificationSecret"));
    // Another key is refused, and that is an event.
    let proof = running.proof(&other).await;
    let stolen = running.anonymous("/v1/register", &register(token, &proof)).await;
    assert_eq!(stolen.status, 409);
    let events: Value = running.socket.get("/v1/events?limit=20").await.unwrap();
    let kinds: Vec<&str> =
        events["items"].as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"registration_token_reused"), "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_signs_in_with_a_personal_key_and_sees_its_servers() {
    let running = Running::start().await;
    let issued: Value = running
        .socket
        .post("/v1/invitations", &json!({ "namespace": "default", "user": "ann" }))
        .await
        .unwrap();
    let personal = issued["secret"].as_str().unwrap();
    let body =
        |personal: &str, proof: &Value| json!({ "personalKey": personal, "proof": proof, "name": "laptop" });
    let proof = running.proof(&key(3)).await;
    let first = running.anonymous("/v1/auth", &body(personal, &proof)).await;
    assert_eq!((first.status, first.text("user")), (201, "ann".into()), "{first:?}");
    let again = running.anonymous("/v1/auth", &body(personal, &proof)).await;
    assert_eq!((again.status, again.text("deviceId")), (200, first.text("deviceId")));
    let token = again.text("accessToken");
    let servers = running.get("/v1/servers", &token).await;
    assert_eq!(servers.items()[0]["name"], "home");
    assert!(servers.items()[0].get("spec").is_none(), "not what administrators see");
    for path in ["/v1/users", "/v1/audit", "/v1/admin/me", "/v1/servers/home"] {
        assert_eq!(running.get(path, &token).await.status, 401, "{path}");
    }
    // Given back, the token is dead; the other one lives.
    assert_eq!(running.ask(Ask::new("DELETE", "/v1/auth").bearer(&token)).await.status, 204);
    assert_eq!(running.get("/v1/servers", &token).await.status, 401);
    assert_eq!(running.get("/v1/servers", &first.text("accessToken")).await.status, 200);
    // A revoked key takes its tokens along.
    let revoke =
        json!({ "namespace": "default", "kind": "PersonalKey", "name": issued["name"], "reason": "lost" });
    let _: Value = running.socket.post("/v1/revocations", &revoke).await.unwrap();
    assert_eq!(running.get("/v1/servers", &first.text("accessToken")).await.status, 403);
}
