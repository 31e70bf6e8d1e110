//! What the document of the API says of lists is so.

use serde_json::{Value, json};

use super::kit::{Ask, Running};
use crate::rest::{document, openapi, routes};

/// Whether a value is one that a schema of the document describes, as far as names of fields go.
fn described(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let path = reference.trim_start_matches('#');
        return described(document, document.pointer(path).ok_or(reference)?, value);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let fits = choices.iter().any(|choice| described(document, choice, value).is_ok());
        return if fits { Ok(()) } else { Err(format!("none of the choices is {value}")) };
    }
    if let (Some(allowed), false) = (schema["enum"].as_array(), value.is_null()) {
        return if allowed.contains(value) { Ok(()) } else { Err(format!("{value} is no choice")) };
    }
    match value {
        Value::Object(map) => {
            for name in schema["required"].as_array().into_iter().flatten() {
                let name = name.as_str().unwrap();
                map.get(name).ok_or_else(|| format!("{name} is missing in {value}"))?;
            }
            let Some(known) = schema["properties"].as_object() else { return Ok(()) };
            for (name, value) in map {
                let schema = known.get(name).ok_or_else(|| format!("{name} is not described"))?;
                described(document, schema, value)?;
            }
            Ok(())
        }
        Value::Array(items) => items.iter().try_for_each(|item| described(document, &schema["items"], item)),
        _ => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_list_has_cursors_and_is_what_the_document_says() {
    let running = Running::start().await;
    let ann = running.settled("ann", "admin").await;
    // Something for the lists to hold.
    for range in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        let body = json!({ "range": range, "reason": "a test", "for": "1h" });
        assert_eq!(running.post("/v1/blocks", &ann.token, &body).await.status, 200);
    }
    let flag = json!({ "kind": "Server", "name": "home", "reason": "a test" });
    assert_eq!(running.post("/v1/flags", &ann.token, &flag).await.status, 200);
    let token = json!({ "namespace": "default", "server": "home", "lifetime": "1h" });
    assert_eq!(running.post("/v1/tokens", &ann.token, &token).await.status, 200);
    let document: Value = serde_json::from_str(&openapi::text_of(&document())).unwrap();
    let mut lists = 0;
    for route in routes::all().iter().filter(|route| route.gives.1.starts_with('[')) {
        let schema = &document["paths"][route.path]["get"]["responses"]["200"]["content"]["application/json"]
            ["schema"];
        let paths = match route.path {
            "/v1/{kind}" => {
                vec!["/v1/users", "/v1/registrationkeys", "/v1/accesspolicies", "/v1/securitypolicies"]
            }
            path => vec![path],
        };
        for path in paths {
            lists += 1;
            let whole = running.get(&format!("{path}?limit=500"), &ann.token).await;
            assert_eq!(whole.status, 200, "{path}: {whole:?}");
            described(&document, schema, &whole.body).unwrap_or_else(|error| panic!("{path}: {error}"));
            let (mut pages, mut next) = (Vec::new(), String::new());
            loop {
                let page = running.get(&format!("{path}?limit=1{next}"), &ann.token).await;
                assert!(page.items().len() <= 1, "{path}");
                pages.extend(page.items().iter().cloned());
                match page.body["next"].as_str() {
                    Some(cursor) => next = format!("&cursor={cursor}"),
                    None => break,
                }
            }
            assert_eq!(pages.len(), whole.items().len(), "{path}");
            let wrong = running.ask(Ask::new("GET", &format!("{path}?cursor=x")).bearer(&ann.token)).await;
            assert_eq!(wrong.status, 400, "{path}");
        }
    }
    assert!(lists >= 20, "{lists}");
    let server = running.get("/v1/servers/home", &ann.token).await;
    let schema = &document["components"]["schemas"]["Detail"];
    described(&document, schema, &server.body).unwrap();
}

#[test]
fn bodies_and_answers_have_schemas() {
    for route in routes::all() {
        let exempt = ["GET /v1/status", "GET /v1/openapi.json", "GET /v1/events/stream"];
        let (status, gives) = route.gives;
        assert!(status == 204 || !gives.is_empty() || exempt.contains(&route.endpoint), "{}", route.endpoint);
    }
}
