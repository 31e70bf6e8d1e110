//! Tokens as an attacker would make them.

use aws_lc_rs::hmac;
use serde_json::{Value, json};

use super::*;
use crate::store::{
    Actor,
    tests::{
        kit::{Kit, at},
        place::{ENGINE, On},
    },
};

fn part(value: &Value) -> String {
    BASE64URL_NOPAD.encode(value.to_string().as_bytes())
}

fn split(token: &str) -> (Value, Value, String) {
    let parts: Vec<&str> = token.split('.').collect();
    let read =
        |text: &str| serde_json::from_slice(&BASE64URL_NOPAD.decode(text.as_bytes()).unwrap()).unwrap();
    (read(parts[0]), read(parts[1]), parts[2].to_owned())
}

async fn on_sqlite(test: impl Future<Output = ()>) {
    ENGINE.scope(On::Sqlite, test).await;
}

#[tokio::test]
async fn tokens_hold_for_their_time_and_their_audience() {
    on_sqlite(async {
        let kit = Kit::new().await;
        let ring = Keyring::new(kit.store.clone());
        let (subject, session) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let (token, made) = ring.sign(Audience::Admin, subject, Some(session), at(0)).await.unwrap();
        let read = ring.check(&token, Audience::Admin, at(599)).await.unwrap();
        assert_eq!((read, made.exp - made.iat), (made.clone(), 600));
        assert!(matches!(ring.check(&token, Audience::Device, at(0)).await, Err(TokenError::Invalid)));
        assert!(matches!(ring.check(&token, Audience::Admin, at(606)).await, Err(TokenError::Expired)));
        assert!(matches!(ring.check(&token, Audience::Admin, at(-6)).await, Err(TokenError::Expired)));
        // Another replica knows the same keys; another organisation does not.
        let other = Keyring::new(kit.replica().await);
        assert_eq!(other.check(&token, Audience::Admin, at(1)).await.unwrap(), made);
        let elsewhere = Kit::new().await;
        let stranger = Keyring::new(elsewhere.store.clone());
        // Of a key that is not known any more: no attack if it says itself that it has expired.
        assert!(matches!(stranger.check(&token, Audience::Admin, at(601)).await, Err(TokenError::Invalid)));
        assert!(matches!(stranger.check(&token, Audience::Admin, at(1)).await, Err(TokenError::Forged)));
    })
    .await;
}

#[tokio::test]
async fn forged_tokens_are_refused() {
    on_sqlite(async {
        let kit = Kit::new().await;
        let ring = Keyring::new(kit.store.clone());
        let (token, _) = ring.sign(Audience::Admin, Uuid::from_u128(1), None, at(0)).await.unwrap();
        let (header, claims, signature) = split(&token);
        let refused = async |what: &str, token: String| {
            let answer = ring.check(&token, Audience::Admin, at(1)).await;
            assert!(matches!(answer, Err(TokenError::Forged)), "{what}: {answer:?}");
        };
        let with = |key: &str, value: Value| {
            let mut other = header.clone();
            other[key] = value;
            other
        };
        // No algorithm, and no signature.
        for none in ["none", "None", "NONE", "nOnE"] {
            refused(none, format!("{}.{}.", part(&with("alg", json!(none))), part(&claims))).await;
        }
        // The public key as the secret of an HMAC.
        let keys = ring.keys(at(0)).await.unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, keys[0].public.as_bytes());
        let confused = format!("{}.{}", part(&with("alg", json!("HS256"))), part(&claims));
        let tag = BASE64URL_NOPAD.encode(hmac::sign(&key, confused.as_bytes()).as_ref());
        refused("HS256", format!("{confused}.{tag}")).await;
        // Names of keys that lead elsewhere.
        for kid in ["../../etc/passwd", "' OR '1'='1", "", "00000000-0000-0000-0000-000000000000", "\u{0}"] {
            refused(kid, format!("{}.{}.{signature}", part(&with("kid", json!(kid))), part(&claims))).await;
        }
        refused("no kid", {
            let mut bare = header.clone();
            bare.as_object_mut().unwrap().remove("kid");
            format!("{}.{}.{signature}", part(&bare), part(&claims))
        })
        .await;
        // A key that the token brings along.
        let own = SigningKeyOfAttacker::new();
        for (name, value) in [
            ("jwk", json!({ "kty": "OKP", "crv": "Ed25519", "x": own.public() })),
            ("jku", json!("https://attacker.example/jwks.json")),
            ("x5u", json!("https://attacker.example/cert.pem")),
            ("crit", json!(["exp"])),
            ("typ", json!("JWT")),
        ] {
            refused(name, own.sign(&with(name, value), &claims)).await;
        }
        refused("another's signature", own.sign(&header, &claims)).await;
        // Altered claims, and what is cut or too long.
        let mut later = claims.clone();
        later["exp"] = json!(i64::MAX);
        refused("later", format!("{}.{}.{signature}", part(&header), part(&later))).await;
        for cut in 0..token.len() {
            refused("cut", token[..cut].to_owned()).await;
        }
        refused("long", format!("{token}{}", "A".repeat(4096))).await;
    })
    .await;
}

struct SigningKeyOfAttacker(horizon_wire::key::SigningKey);

impl SigningKeyOfAttacker {
    fn new() -> Self {
        Self(horizon_wire::key::SigningKey::from_seed(horizon_model::Secret::new([9; 32])))
    }

    fn public(&self) -> String {
        BASE64URL_NOPAD.encode(self.0.public().as_bytes())
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let text = format!("{}.{}", part(header), part(claims));
        let signature = BASE64URL_NOPAD.encode(&self.0.sign(text.as_bytes()));
        format!("{text}.{signature}")
    }
}

#[tokio::test]
async fn keys_change_and_what_they_signed_stays_until_it_expires() {
    on_sqlite(async {
        let kit = Kit::new().await;
        let ring = Keyring::new(kit.store.clone());
        let sign =
            async |time: i64| ring.sign(Audience::Admin, Uuid::from_u128(1), None, at(time)).await.unwrap().0;
        let day = 24 * 3600;
        sign(0).await;
        let first = sign(day - 1).await;
        ring.forget();
        // The key has signed for a day: another takes its place, and the last token of the first one lives on.
        let second = sign(day + 1).await;
        assert_ne!(split(&first).0["kid"], split(&second).0["kid"]);
        ring.check(&first, Audience::Admin, at(day + 1)).await.unwrap();
        ring.check(&second, Audience::Admin, at(day + 1)).await.unwrap();
        let admin = Actor::Admin("ann".into());
        kit.store.rotate_token_keys(false, &admin, at(day + 2)).await.unwrap();
        ring.forget();
        ring.check(&second, Audience::Admin, at(day + 3)).await.unwrap();
        let third = sign(day + 3).await;
        assert_ne!(split(&second).0["kid"], split(&third).0["kid"]);
        // Keys in wrong hands sign nothing that counts, whenever it was signed.
        kit.store.rotate_token_keys(true, &admin, at(day + 4)).await.unwrap();
        ring.forget();
        for token in [&first, &second, &third] {
            let answer = ring.check(token, Audience::Admin, at(day + 5)).await;
            assert!(matches!(answer, Err(TokenError::Forged)), "{answer:?}");
        }
        ring.check(&sign(day + 5).await, Audience::Admin, at(day + 5)).await.unwrap();
        assert_eq!(kit.store.list_audit(1).await.unwrap()[0].action, "rotate");
    })
    .await;
}

/// RFC 8037, appendix A: keys are read and signatures made as others do, and RFC 7515's example under a shared secret is none.
#[tokio::test]
async fn rfc_8037_and_rfc_7515_vectors() {
    let decoded = |text: &str| BASE64URL_NOPAD.decode(text.as_bytes()).unwrap();
    let seed = decoded("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A");
    let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    let message = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    let signature = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    let private = EncodingKey::from_ed_der(&[&PKCS8[..], &seed].concat());
    assert_eq!(jsonwebtoken::crypto::sign(message, &private, Algorithm::EdDSA).unwrap(), signature);
    let public = DecodingKey::from_ed_components(x).unwrap();
    let verifies = |text: &[u8]| {
        jsonwebtoken::crypto::verify(signature, text, &public, Algorithm::EdDSA).unwrap_or(false)
    };
    assert!(verifies(message) && !verifies(&message[1..]));
    on_sqlite(async {
        let ring = Keyring::new(Kit::new().await.store);
        // Appendix A.1 of RFC 7515 is signed with HMAC, and the token of appendix A.5 with nothing at all.
        let claims = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        for token in [
            format!("eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{claims}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
            format!("eyJhbGciOiJub25lIn0.{claims}."),
        ] {
            let refused = ring.check(&token, Audience::Admin, at(0)).await;
            assert!(matches!(refused, Err(TokenError::Invalid | TokenError::Forged)), "{token}");
        }
    })
    .await;
}
