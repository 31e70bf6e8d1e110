//! Live changes as server-sent events (the HTML standard, section 9.2): security events, the audit trail, and that resources
//! changed. What was missed is sent when a client names the last that it had, so nothing is lost by a broken connection.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderName, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use horizon_controller_core::account::Permission;
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};

use super::{Problem, Rest};
use crate::store::{Caller, SignedIn, StoreError};

/// The most streams at once.
const MAX_STREAMS: usize = 256;
/// How often the database is asked, at the most: hints of changes come sooner.
const LOOK: Duration = Duration::from_secs(1);
/// How long nothing may be sent before a comment is, so that both ends know that the other is there.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a stream may last; the client comes back, and shows its token again.
const LONGEST: Duration = Duration::from_secs(600);
/// The most records of each sort that are read at once.
const BATCH: u32 = 100;
/// The header that names the last event of a stream that broke off.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// How many streams there are.
#[derive(Default)]
pub(super) struct Streams(Arc<AtomicUsize>);

/// One of them.
struct Open(Arc<AtomicUsize>);

impl Streams {
    fn open(&self) -> Option<Open> {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let open = Open(self.0.clone());
        (before < MAX_STREAMS).then_some(open)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How far a stream has come: the last security event, the last row of the audit trail, the revision of the resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    event: i64,
    audit: i64,
    revision: i64,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.event, self.audit, self.revision)
    }
}

impl Position {
    fn read(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(|number| number.parse::<i64>().ok().filter(|n| *n >= 0));
        let position = Self { event: numbers.next()??, audit: numbers.next()??, revision: numbers.next()?? };
        numbers.next().is_none().then_some(position)
    }
}

/// One event, as it is sent. JSON has no line breaks of its own.
fn frame(id: Position, kind: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).unwrap_or_default();
    Bytes::from(format!("id: {id}\nevent: {kind}\ndata: {data}\n\n"))
}

struct Stream {
    rest: Rest,
    who: SignedIn,
    caller: Caller,
    at: Position,
    waiting: VecDeque<Bytes>,
    hints: tokio::sync::broadcast::Receiver<crate::live::Hint>,
    ends: Instant,
    spoke: Instant,
    _open: Open,
}

pub(super) async fn open(
    State(rest): State<Rest>,
    Extension(who): Extension<SignedIn>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let given = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok());
    let wrong = || Problem::bad_request("Last-Event-ID is none of this stream");
    let at = match given.filter(|id| !id.is_empty()) {
        Some(id) => Position::read(id).ok_or_else(wrong)?,
        None => {
            let (event, audit) = rest.api.store.newest_records().await?;
            Position { event, audit, revision: rest.api.engine.in_force().revision.0 }
        }
    };
    let open = rest.streams.open().ok_or_else(|| Problem::unavailable("there are too many streams"))?;
    let hello = Bytes::from(format!("retry: 2000\nid: {at}\nevent: hello\ndata: {{}}\n\n"));
    let stream = Stream {
        hints: rest.api.live.subscribe(),
        rest,
        who,
        caller,
        at,
        waiting: VecDeque::from([hello]),
        ends: Instant::now() + LONGEST,
        spoke: Instant::now(),
        _open: open,
    };
    let body = stream::unfold(stream, |mut stream| async {
        let next = stream.next().await?;
        Some((Ok::<_, Infallible>(next), stream))
    });
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream"), (HeaderName::from_static("x-accel-buffering"), "no")];
    Ok((headers, Body::from_stream(body)).into_response())
}

impl Stream {
    /// What is sent next; `None` when the stream ends. It is asked for more only when that was sent: who reads slowly is sent
    /// less at once, and nothing piles up here.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.waiting.pop_front() {
                self.spoke = Instant::now();
                return Some(frame);
            }
            if Instant::now() >= self.ends || !self.look().await? {
                return None;
            }
            if !self.waiting.is_empty() {
                continue;
            }
            if self.spoke.elapsed() >= HEARTBEAT {
                self.waiting.push_back(Bytes::from_static(b": here\n\n"));
                continue;
            }
            // Hints come in bursts; one look answers all of them.
            let _ = timeout(LOOK, self.hints.recv()).await;
            sleep(LOOK / 10).await;
            while !matches!(
                self.hints.try_recv(),
                Err(tokio::sync::broadcast::error::TryRecvError::Empty
                    | tokio::sync::broadcast::error::TryRecvError::Closed)
            ) {}
        }
    }

    /// Looks for what is new. `Some(false)` when who listens may no longer.
    async fn look(&mut self) -> Option<bool> {
        let (rest, now) = (&self.rest, self.rest.now());
        if rest.api.live.is_token_dead(self.who.session.0, now) {
            return Some(false);
        }
        match rest.api.store.signed_in(self.who.session, &self.caller, &rest.accounts(), now).await {
            Ok(who) => self.who = who,
            // The database is away for a moment: nothing is new.
            Err(crate::store::SessionRefused::Store(_)) => return Some(true),
            Err(_) => return Some(false),
        }
        match self.read().await {
            Ok(()) => {}
            Err(error) => tracing::debug!(%error, "a stream of events waits for the database"),
        }
        Some(true)
    }

    async fn read(&mut self) -> Result<(), StoreError> {
        let store = &self.rest.api.store;
        let may = |permission| self.who.permissions.contains(&permission);
        if may(Permission::ReadEvents) {
            for event in store.events_after(self.at.event, BATCH).await? {
                self.at.event = event.id;
                self.waiting.push_back(frame(self.at, "security_event", &event));
            }
        }
        if may(Permission::ReadAudit) {
            for entry in store.audit_after(self.at.audit, BATCH).await? {
                self.at.audit = entry.id;
                self.waiting.push_back(frame(self.at, "audit", &entry));
            }
        }
        let revision = self.rest.api.engine.in_force().revision.0;
        if may(Permission::ReadResources) && revision != self.at.revision {
            self.at.revision = revision;
            self.waiting.push_back(frame(self.at, "resources", &serde_json::json!({ "revision": revision })));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn positions_return(event in 0_i64.., audit in 0_i64.., revision in 0_i64..) {
            let at = Position { event, audit, revision };
            prop_assert_eq!(Position::read(&at.to_string()), Some(at));
        }

        #[test]
        fn what_is_no_position_is_refused(text in "\\PC{0,60}") {
            if let Some(at) = Position::read(&text) {
                prop_assert!(at.event >= 0 && at.audit >= 0 && at.revision >= 0);
            }
        }
    }

    #[test]
    fn an_event_is_one_frame_whatever_is_in_it() {
        let at = Position { event: 1, audit: 2, revision: 3 };
        let bytes = frame(at, "audit", &serde_json::json!({ "text": "a\n\ndata: b" }));
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        assert_eq!(text.matches("\n\n").count(), 1);
        assert!(text.starts_with("id: 1.2.3\nevent: audit\ndata: {"));
    }
}
