//! Who may do what: every route with every role.

use std::collections::BTreeMap;

use serde_json::json;

use super::kit::{Ask, Running};
use crate::rest::routes;

/// Who is let in: `a`dmin, `o`perator, `v`iewer, aud`i`tor; `*` any of them, `?` anybody, `-` none of them (devices).
const TABLE: &[(&str, &str)] = &[
    ("GET /v1/status", "?"),
    ("GET /v1/openapi.json", "?"),
    ("GET /v1/jwks.json", "?"),
    ("POST /v1/challenges", "?"),
    ("POST /v1/register", "?"),
    ("POST /v1/auth", "?"),
    ("DELETE /v1/auth", "-"),
    ("POST /v1/admin/login", "?"),
    ("POST /v1/admin/refresh", "?"),
    ("POST /v1/admin/logout", "*"),
    ("GET /v1/admin/me", "*"),
    ("POST /v1/admin/password", "*"),
    ("POST /v1/admin/totp", "*"),
    ("POST /v1/admin/totp/confirm", "*"),
    ("GET /v1/admin/sessions", "*"),
    ("DELETE /v1/admin/sessions/{session}", "*"),
    ("GET /v1/admins", "a"),
    ("POST /v1/admins", "a"),
    ("GET /v1/admins/{admin}", "a"),
    ("PATCH /v1/admins/{admin}", "a"),
    ("POST /v1/admins/{admin}/suspend", "a"),
    ("POST /v1/admins/{admin}/activate", "a"),
    ("POST /v1/admins/{admin}/unlock", "a"),
    ("POST /v1/admins/{admin}/reset-password", "a"),
    ("POST /v1/admins/{admin}/reset-totp", "a"),
    ("GET /v1/admin-sessions", "a"),
    ("DELETE /v1/admin-sessions/{session}", "a"),
    ("GET /v1/roles", "a"),
    ("PUT /v1/roles/{role}", "a"),
    ("POST /v1/token-keys/rotate", "a"),
    ("GET /v1/servers", "aovi"),
    ("GET /v1/sessions", "aovi"),
    ("POST /v1/sessions/{session}/end", "ao"),
    ("GET /v1/devices", "aovi"),
    ("GET /v1/devices/{id}", "aovi"),
    ("GET /v1/devicedecisions", "aovi"),
    ("POST /v1/devicedecisions", "ao"),
    ("GET /v1/keyrotations", "aovi"),
    ("POST /v1/keyrotations", "ao"),
    ("GET /v1/events", "aovi"),
    ("POST /v1/events/{id}/handling", "ao"),
    ("GET /v1/anomalies", "aovi"),
    ("POST /v1/anomalies/{id}/feedback", "ao"),
    ("GET /v1/notifications", "aovi"),
    ("POST /v1/notifications/{id}", "ao"),
    ("GET /v1/blocks", "aovi"),
    ("POST /v1/blocks", "ao"),
    ("POST /v1/unblocks", "ao"),
    ("GET /v1/flags", "aovi"),
    ("POST /v1/flags", "ao"),
    ("POST /v1/flag-clearings", "ao"),
    ("GET /v1/tasks", "aovi"),
    ("GET /v1/services", "aovi"),
    ("GET /v1/reports", "aovi"),
    ("GET /v1/events/stream", "*"),
    ("GET /v1/audit", "ai"),
    ("POST /v1/tokens", "ao"),
    ("POST /v1/invitations", "ao"),
    ("GET /v1/approvals", "aovi"),
    ("POST /v1/approvals", "ao"),
    ("GET /v1/revocations", "aovi"),
    ("POST /v1/revocations", "ao"),
    ("POST /v1/prune-confirmations", "ao"),
    ("GET /v1/{kind}", "aovi"),
    ("GET /v1/{kind}/{name}", "aovi"),
];

#[test]
fn every_route_is_in_the_table() {
    let table: BTreeMap<&str, &str> = TABLE.iter().copied().collect();
    assert_eq!(table.len(), TABLE.len());
    let routes: Vec<&str> = routes::all().iter().map(|route| route.endpoint).collect();
    for endpoint in &routes {
        assert!(table.contains_key(endpoint), "{endpoint} has no entry: say who may use it");
    }
    assert_eq!(routes.len(), table.len(), "an entry has no route");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_role_may_what_the_table_says() {
    let running = Running::start().await;
    let mut roles = Vec::new();
    for (letter, role) in [('a', "admin"), ('o', "operator"), ('v', "viewer"), ('i', "auditor")] {
        roles.push((letter, running.settled(role, role).await));
    }
    let table: BTreeMap<&str, &str> = TABLE.iter().copied().collect();
    let last = "POST /v1/admin/logout";
    let mut all = routes::all();
    // It ends what the others need.
    all.sort_by_key(|route| route.endpoint == last);
    for route in all {
        // Nobody is meant: what is let in is not found, or not understood.
        let path = route.path.replace("{session}", "0199f2c0-0000-7000-8000-000000000000");
        let path = path.replace("{admin}", "0199f2c0-0000-7000-8000-000000000000").replace("{id}", "1");
        let path = path.replace("{kind}", "users").replace("{name}", "nobody").replace("{role}", "x");
        let ask = || {
            let ask = Ask::new(route.method.as_str(), &path);
            if route.method == hyper::Method::GET { ask } else { ask.json(&json!({ "none": 1 })) }
        };
        let who = table[route.endpoint];
        if who == "?" {
            // Few attempts are allowed, so these are not tried with each role.
            continue;
        }
        let bare = running.ask(ask()).await;
        assert_eq!(bare.status, 401, "{} without a token: {bare:?}", route.endpoint);
        for (letter, settled) in &roles {
            let answer = running.send(ask().bearer(&settled.token)).await.status().as_u16();
            let let_in = who == "*" || who.contains(*letter);
            match (who, let_in) {
                ("-", _) => assert_eq!(answer, 401, "{} {letter}", route.endpoint),
                (_, true) => assert!(
                    !matches!(answer, 401 | 403 | 429 | 500..),
                    "{} {letter}: {answer}",
                    route.endpoint
                ),
                (_, false) => assert_eq!(answer, 403, "{} {letter}", route.endpoint),
            }
        }
    }
}
