//! Idempotency keys: a POST that is repeated with its key is answered as the first time, and does nothing more, for 24 hours.

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http_body_util::BodyExt as _;

use super::{
    Problem,
    guard::{Access, Guarded},
};
use crate::{
    account::sha256,
    store::{IdempotentRequest, Repeated, SignedIn},
};

/// The header with the key.
const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer is one of before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// The longest key, in characters.
const MAX_KEY: usize = 128;
/// The largest answer that is kept, in bytes.
const MAX_ANSWER: usize = 64 << 10;

/// The key of a request, if it has one.
fn key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut given = headers.get_all(KEY).iter();
    let Some(value) = given.next() else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let good = (1..=MAX_KEY).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    if good && given.next().is_none() {
        return Ok(Some(text));
    }
    let detail = format!("Idempotency-Key is one value of 1 to {MAX_KEY} letters, digits and signs");
    Err(Problem::bad_request(detail))
}

/// Carries a request out, or answers what it was answered before.
pub(super) async fn once(route: &Guarded, request: Request, next: Next) -> Response {
    let owner = request.extensions().get::<SignedIn>().map(|who| who.admin.to_string());
    let key = match (request.method() == Method::POST, key(request.headers())) {
        (true, Ok(Some(key))) => key.to_owned(),
        (_, Err(problem)) => return problem.into_response(),
        _ => return next.run(request).await,
    };
    // What changes one's own credentials is answered anew each time: nobody else is to see it later.
    let Some(owner) = owner.filter(|_| matches!(route.access, Access::May(_) | Access::MayOne(_))) else {
        return next.run(request).await;
    };
    let (parts, body) = request.into_parts();
    // It was read before, whole.
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let digest = sha256(&[parts.uri.to_string().as_bytes(), b"\n", &body].concat());
    let claim = IdempotentRequest { owner, key, digest };
    let store = &route.rest.api.store;
    match store.claim_idempotency(&claim, route.rest.now()).await {
        Ok(Repeated::New) => {}
        Ok(Repeated::Answered(status, answer)) => return again(status, &answer),
        Ok(Repeated::UnderWay) => {
            let detail = "a request with this Idempotency-Key is under way";
            return Problem::conflict(detail)
                .remedy("send it again in a while")
                .retry_after(1)
                .into_response();
        }
        Ok(Repeated::Other) => {
            let (status, title) = (StatusCode::UNPROCESSABLE_ENTITY, "The key belongs to another request");
            let detail = "another request had this Idempotency-Key";
            return Problem::named(status, "idempotency-key-reused", title, detail).into_response();
        }
        Err(error) => return Problem::from(error).into_response(),
    }
    let answer = next.run(Request::from_parts(parts, Body::from(body))).await;
    let (head, body) = answer.into_parts();
    let body: Bytes = match body.collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) => return Problem::internal(error).into_response(),
    };
    // What failed, or was refused for now, may be tried again with its key.
    let lasting = head.status.is_success() && body.len() <= MAX_ANSWER;
    let kept = lasting.then_some((head.status.as_u16(), &body[..]));
    if let Err(error) = store.settle_idempotency(&claim, kept, route.rest.now()).await {
        tracing::warn!(%error, "the answer to a request with an idempotency key was not kept");
    }
    Response::from_parts(head, Body::from(body))
}

fn again(status: u16, body: &[u8]) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (REPLAYED, HeaderValue::from_static("true")),
    ];
    (status, headers, body.to_vec()).into_response()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_are_short_and_printable(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let headers = HeaderMap::from_iter([(KEY, value)]);
                match key(&headers) {
                    Ok(Some(text)) => {
                        prop_assert_eq!(text.as_bytes(), &bytes[..]);
                        prop_assert!(text.len() <= MAX_KEY && text.bytes().all(|b| b.is_ascii_graphic()));
                    }
                    Ok(None) => prop_assert!(false, "there is one"),
                    Err(_) => {}
                }
            }
        }
    }
}
