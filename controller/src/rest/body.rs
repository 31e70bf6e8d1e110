//! Bodies of requests, before anything reads them: how large, how deep, how slow, and what they are.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, header},
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use super::Problem;

/// How long a body may take to come.
pub(super) const BODY_PATIENCE: Duration = Duration::from_secs(10);

/// Reads a whole body, if it is one that may be looked at: of so many bytes at most.
pub(super) async fn read(headers: &HeaderMap, body: Body, most: u32) -> Result<Bytes, Problem> {
    let limited = Limited::new(body, usize::try_from(most).unwrap_or(usize::MAX));
    let collected = tokio::time::timeout(BODY_PATIENCE, limited.collect()).await;
    let bytes = match collected {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return Err(Problem::too_large(format!("a body has at most {most} bytes")));
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
    Ok(bytes)
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_json_is_json() {
        let kind = |text: &str| HeaderMap::from_iter([(header::CONTENT_TYPE, text.parse().unwrap())]);
        assert!(is_json(&kind("application/json; charset=utf-8")));
        assert!(!is_json(&kind("text/plain")) && !is_json(&HeaderMap::new()));
        assert!(!is_json(&kind("application/x-www-form-urlencoded")));
    }
}
