//! What every request to the API server goes through: it is counted, bounded in time, and waits while the server asks to be
//! left alone.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http::{Method, Request, Response, StatusCode, header};
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

use super::{KubernetesMetrics, metrics::RequestLabels};

/// How long the server may take to begin an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest that a server is left alone because it asks for it.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Until when the server asked to be left alone. A clone is the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Throttle(Arc<Mutex<Option<Instant>>>);

impl Throttle {
    fn ask(&self, pause: Duration) {
        let until = Instant::now() + pause.min(LONGEST_PAUSE);
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Some(current.map_or(until, |earlier| earlier.max(until)));
    }

    fn until(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn over(&self) {
        if let Some(until) = self.until() {
            tokio::time::sleep_until(until).await;
        }
    }
}

/// A service with the above around it.
pub(super) struct Observed<S> {
    inner: S,
    throttle: Throttle,
    metrics: KubernetesMetrics,
}

/// Puts it around.
pub(super) struct ObservedLayer {
    throttle: Throttle,
    metrics: KubernetesMetrics,
}

impl Observed<()> {
    pub(super) fn layer(throttle: Throttle, metrics: KubernetesMetrics) -> ObservedLayer {
        ObservedLayer { throttle, metrics }
    }
}

impl<S> Layer<S> for ObservedLayer {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, throttle: self.throttle.clone(), metrics: self.metrics.clone() }
    }
}

impl<S, In, Out> Service<Request<In>> for Observed<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let labels = labels(&request);
        // Nothing is sent before this is polled.
        let answer = self.inner.call(request);
        let (throttle, metrics) = (self.throttle.clone(), self.metrics.clone());
        Box::pin(async move {
            throttle.over().await;
            let answer = match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
                Ok(answer) => answer.map_err(Into::into),
                Err(_) => {
                    let seconds = ANSWER_TIMEOUT.as_secs();
                    Err(format!("the API server did not answer within {seconds} s").into())
                }
            };
            let code = match &answer {
                Ok(response) => response.status().as_str().to_owned(),
                Err(_) => "none".to_owned(),
            };
            metrics.requests.get_or_create(&RequestLabels { code, ..labels }).inc();
            if let Some(pause) = answer.as_ref().ok().and_then(pause) {
                throttle.ask(pause);
            }
            answer
        })
    }
}

/// For how long a server that has too much to do asks to be left alone.
fn pause<B>(response: &Response<B>) -> Option<Duration> {
    if !matches!(response.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return None;
    }
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// What a request is about, told by its address: `/apis/GROUP/VERSION[/namespaces/NAMESPACE]/RESOURCE[/NAME[/SUBRESOURCE]]`.
fn labels<B>(request: &Request<B>) -> RequestLabels {
    let mut parts = request.uri().path().trim_matches('/').split('/');
    let skipped = if parts.next() == Some("api") { 1 } else { 2 };
    let rest: Vec<_> = parts.skip(skipped).collect();
    let rest = match rest.as_slice() {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    let watches = request.uri().query().is_some_and(|query| query.contains("watch=true"));
    let verb = match *request.method() {
        Method::GET if watches => "watch",
        Method::GET if rest.len() > 1 => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    };
    let resource = rest.first().copied().unwrap_or_default().to_owned();
    RequestLabels { verb, resource, code: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_told_by_its_address() {
        let cases = [
            (Method::GET, "/apis/horizon.dev/v1alpha1/servers?limit=500", "list", "servers"),
            (Method::GET, "/apis/horizon.dev/v1alpha1/namespaces/a/users?watch=true", "watch", "users"),
            (
                Method::PATCH,
                "/apis/horizon.dev/v1alpha1/namespaces/a/users/b/status?force=true",
                "patch",
                "users",
            ),
            (Method::GET, "/api/v1/namespaces/a/secrets/keys", "get", "secrets"),
            (Method::POST, "/api/v1/namespaces/a/secrets", "create", "secrets"),
            (Method::GET, "/api/v1/namespaces/a", "get", "namespaces"),
            (Method::GET, "/version", "list", ""),
        ];
        for (method, path, verb, resource) in cases {
            let labels = labels(&Request::builder().method(method).uri(path).body(()).unwrap());
            assert_eq!((labels.verb, labels.resource.as_str()), (verb, resource), "{path}");
        }
    }

    #[test]
    fn a_server_that_asks_for_it_is_left_alone() {
        let answer = |status: u16, after: &str| {
            pause(&Response::builder().status(status).header("retry-after", after).body(()).unwrap())
        };
        assert_eq!(answer(429, "7"), Some(Duration::from_secs(7)));
        assert_eq!(answer(503, "1"), Some(Duration::from_secs(1)));
        assert_eq!((answer(200, "7"), answer(429, "soon"), answer(429, "-1")), (None, None, None));
        let throttle = Throttle::default();
        assert_eq!(throttle.until(), None);
        throttle.ask(Duration::from_secs(7));
        let first = throttle.until();
        throttle.ask(Duration::from_secs(1));
        assert_eq!(throttle.until(), first, "a shorter wait shortens no longer one");
        throttle.ask(Duration::from_secs(u64::MAX));
        assert!(throttle.until().unwrap() <= Instant::now() + LONGEST_PAUSE);
    }

    #[tokio::test]
    async fn every_attempt_is_counted() {
        let service = tower::service_fn(|_: Request<()>| async {
            Ok::<_, BoxError>(Response::builder().status(404).body(()).unwrap())
        });
        let metrics = KubernetesMetrics::default();
        let mut service = Observed::layer(Throttle::default(), metrics.clone()).layer(service);
        let request = Request::builder().uri("/apis/horizon.dev/v1alpha1/servers").body(()).unwrap();
        assert_eq!(service.call(request).await.unwrap().status(), 404);
        let labels = RequestLabels { verb: "list", resource: "servers".into(), code: "404".into() };
        assert_eq!(metrics.requests.get_or_create(&labels).get(), 1);
    }
}
