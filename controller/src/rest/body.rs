//! Bodies of requests, before anything reads them: how large, how deep, how slow, and what they are.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, header},
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use super::Problem;

/// The largest body, in bytes.
pub(super) const MAX_BODY: usize = 64 << 10;
/// How long a body may take to come.
pub(super) const BODY_PATIENCE: Duration = Duration::from_secs(10);
/// How deeply values may lie in one another.
pub(super) const MAX_DEPTH: usize = 16;

/// Reads a whole body, if it is one that may be looked at.
pub(super) async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
    let collected = tokio::time::timeout(BODY_PATIENCE, Limited::new(body, MAX_BODY).collect()).await;
    let bytes = match collected {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return Err(Problem::too_large(format!("a body has at most {MAX_BODY} bytes")));
        }
        Ok(Err(_)) => return Err(Problem::bad_request("the body broke off")),
        Err(_) => return Err(Problem::slow()),
    };
    if bytes.is_empty() {
        return Ok(bytes);
    }
    if !is_json(headers) {
        return Err(Problem::unsupported());
    }
    if depth(&bytes) > MAX_DEPTH {
        let detail = format!("values lie in one another more than {MAX_DEPTH} deep");
        return Err(Problem::bad_request(detail));
    }
    Ok(bytes)
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// How deeply values lie in one another in a JSON text. What is not JSON is for the parser to refuse.
fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0_usize, 0, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn real(value: &Value) -> usize {
        match value {
            Value::Array(items) => 1 + items.iter().map(real).max().unwrap_or(0),
            Value::Object(map) => 1 + map.values().map(real).max().unwrap_or(0),
            _ => 0,
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf =
            prop_oneof![Just(Value::Null), any::<i64>().prop_map(Value::from), ".*".prop_map(Value::from)];
        leaf.prop_recursive(6, 40, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((".*", inner), 0..4)
                    .prop_map(|list| Value::Object(list.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_depth_is_that_of_the_value(value in json()) {
            prop_assert_eq!(depth(value.to_string().as_bytes()), real(&value));
        }

        #[test]
        fn anything_has_a_depth(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            depth(&bytes);
        }
    }

    #[test]
    fn only_json_is_json() {
        let kind = |text: &str| HeaderMap::from_iter([(header::CONTENT_TYPE, text.parse().unwrap())]);
        assert!(is_json(&kind("application/json; charset=utf-8")));
        assert!(!is_json(&kind("text/plain")) && !is_json(&HeaderMap::new()));
        assert!(!is_json(&kind("application/x-www-form-urlencoded")));
    }
}
