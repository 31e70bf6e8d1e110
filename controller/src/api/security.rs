//! What administrators do about what is out of the ordinary: they handle events, judge anomalies, block addresses, flag
//! servers and users, and read notifications.

use std::{net::IpAddr, sync::Arc};

use axum::{Extension, Json, extract::State};
use horizon_crds::{DEFAULT_NAMESPACE, KindName, Name, TimeSpan};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    Api, ApiError,
    model::{Done, List},
    read::{self, Page},
    server::{Account, Ask, Body, In},
};
use crate::{
    live::Hint,
    store::{
        Anomaly, BlockSeverity, BlockSource, EndReason, EndedBy, NewBlock, Notification, SecurityEvent,
        SessionStatus, StoreError, Subject,
    },
};

/// The longest text that is taken, in characters.
const MAX_TEXT: usize = 1024;
/// The shortest prefixes that may be blocked: a wider range would shut out half the world by a slip.
const WIDEST: (u8, u8) = (8, 16);

type Answer<T> = Result<Json<T>, ApiError>;

/// A block.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct BlockRequest {
    /// An address or a range.
    range: String,
    #[serde(default)]
    reason: String,
    #[schema(value_type = Option<String>)]
    severity: Option<BlockSeverity>,
    /// For how long; until it is lifted unless set.
    #[serde(rename = "for")]
    #[schema(value_type = Option<String>)]
    span: Option<TimeSpan>,
}

/// What is unblocked.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UnblockRequest {
    range: String,
}

/// How an event was handled.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Handling {
    note: String,
}

/// What is said of an anomaly.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Verdict {
    false_positive: bool,
    #[serde(default)]
    note: String,
}

/// That a notification was read, and what was done.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Acting {
    action: Option<String>,
}

/// A flag, or its end.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FlagRequest {
    #[schema(value_type = String)]
    kind: KindName,
    #[serde(default = "default_namespace")]
    #[schema(value_type = String)]
    namespace: Name,
    #[schema(value_type = String)]
    name: Name,
    reason: String,
}

fn default_namespace() -> Name {
    DEFAULT_NAMESPACE.parse().expect("a constant that is a name")
}

fn fault(what: &'static str) -> impl Fn(StoreError) -> ApiError {
    move |error| ApiError::internal(what, error)
}

fn text(given: &str, field: &str) -> Result<String, ApiError> {
    if given.chars().count() > MAX_TEXT || given.chars().any(|c| c.is_control() && c != '\n') {
        let remedy = format!("write at most {MAX_TEXT} characters, without control characters");
        return Err(ApiError::bad_request(format!("'{field}' cannot be kept"), remedy));
    }
    Ok(given.trim().to_owned())
}

fn values(records: &[impl Serialize]) -> Json<List<Value>> {
    // Records consist of strings, numbers and lists: nothing that JSON lacks.
    Json(List { items: records.iter().filter_map(|record| serde_json::to_value(record).ok()).collect() })
}

/// An address or a range of a request.
fn range(given: &str) -> Result<IpNet, ApiError> {
    let wrong = |why: &str| {
        ApiError::bad_request(
            format!("'{given}' cannot be blocked: {why}"),
            "write 192.0.2.7 or 192.0.2.0/24",
        )
    };
    if let Ok(address) = given.parse::<IpAddr>() {
        return Ok(IpNet::from(address.to_canonical()));
    }
    let range: IpNet = given.parse().map_err(|_| wrong("it is neither an address nor a range"))?;
    if range.trunc() != range {
        return Err(wrong("it has address bits beyond its prefix"));
    }
    let widest = if range.addr().is_ipv4() { WIDEST.0 } else { WIDEST.1 };
    if range.prefix_len() < widest {
        return Err(wrong(&format!("it is wider than /{widest}")));
    }
    Ok(range)
}

pub(crate) async fn blocks(State(api): State<Arc<Api>>, Ask(page): Ask<Page>) -> Answer<List<Value>> {
    let found = api.store.list_blocks(page.limit()?).await.map_err(fault("list what is blocked"))?;
    Ok(values(&found))
}

pub(crate) async fn block(
    State(api): State<Arc<Api>>,
    Extension(account): Extension<Account>,
    Body(request): Body<BlockRequest>,
) -> Answer<Done> {
    let range = range(&request.range)?;
    let now = Timestamp::now();
    let until = request.span.and_then(|span| now.checked_add(span.get()).ok());
    let default = if until.is_some() { BlockSeverity::Temporary } else { BlockSeverity::Persistent };
    let block = NewBlock {
        range,
        reason: text(&request.reason, "reason")?,
        severity: request.severity.unwrap_or(default),
        source: BlockSource::Manual,
        until,
    };
    let failed = fault("block it");
    api.store.block_range(&block, &account.actor(), now).await.map_err(&failed)?;
    // Whoever talks to a replica from there is refused in the middle of it; what sessions they have ends.
    api.live.publish(Hint::BlocksChanged);
    let mut ended = 0;
    for session in api.store.sessions_from(range).await.map_err(&failed)? {
        let reason = EndReason {
            status: SessionStatus::Terminated,
            by: EndedBy::Admin,
            reason: "the network that it was asked for from is blocked".to_owned(),
        };
        if let Some(over) = api.store.end_session(session, &reason, now).await.map_err(&failed)? {
            let reason = over.reason.as_str().into();
            api.live.publish(Hint::SessionEnded { session: over.session, device: over.device, reason });
            api.live.publish(Hint::ServerChanged(over.server));
            ended += 1;
        }
    }
    let until = until.map_or_else(|| "until it is unblocked".to_owned(), |until| format!("until {until:.0}"));
    let sessions = match ended {
        0 => String::new(),
        1 => "; 1 session ended".to_owned(),
        more => format!("; {more} sessions ended"),
    };
    Ok(Json(Done { message: format!("{range} is blocked {until}{sessions}") }))
}

pub(crate) async fn unblock(
    State(api): State<Arc<Api>>,
    Extension(account): Extension<Account>,
    Body(request): Body<UnblockRequest>,
) -> Answer<Done> {
    let range = range(&request.range)?;
    let lifted = api.store.unblock_range(range, &account.actor(), Timestamp::now()).await;
    if !lifted.map_err(fault("unblock it"))? {
        let remedy = "`horizon-controller get blocks` lists what is; a SecurityPolicy's blockedNetworks are changed there";
        return Err(ApiError::not_found(format!("{range} is not blocked"), remedy));
    }
    api.live.publish(Hint::BlocksChanged);
    Ok(Json(Done { message: format!("{range} is not blocked any more") }))
}

pub(crate) async fn handle_event(
    State(api): State<Arc<Api>>,
    Extension(account): Extension<Account>,
    In(id): In<i64>,
    Body(request): Body<Handling>,
) -> Answer<SecurityEvent> {
    let note = text(&request.note, "note")?;
    let handled = api.store.handle_event(id, &note, &account.actor(), Timestamp::now()).await;
    found(handled.map_err(fault("note it"))?, "event", id, "events")
}

pub(crate) async fn anomalies(State(api): State<Arc<Api>>, Ask(page): Ask<Page>) -> Answer<List<Value>> {
    let found = api.store.list_anomalies(page.limit()?).await.map_err(fault("list the anomalies"))?;
    Ok(values(&found))
}

pub(crate) async fn judge_anomaly(
    State(api): State<Arc<Api>>,
    Extension(account): Extension<Account>,
    In(id): In<i64>,
    Body(request): Body<Verdict>,
) -> Answer<Anomaly> {
    let note = text(&request.note, "note")?;
    let actor = account.actor();
    let judged = api.store.judge_anomaly(id, request.false_positive, &note, &actor, Timestamp::now()).await;
    found(judged.map_err(fault("note it"))?, "anomaly", id, "anomalies")
}

pub(crate) async fn notifications(State(api): State<Arc<Api>>, Ask(page): Ask<Page>) -> Answer<List<Value>> {
    let found = api.store.list_notifications(page.limit()?).await;
    Ok(values(&found.map_err(fault("list the notifications"))?))
}

pub(crate) async fn address_notification(
    State(api): State<Arc<Api>>,
    Extension(account): Extension<Account>,
    In(id): In<i64>,
    Body(request): Body<Acting>,
) -> Answer<Notification> {
    let action = request.action.as_deref().map(|action| text(action, "action")).transpose()?;
    let actor = account.actor();
    let done = api.store.address_notification(id, action.as_deref(), &actor, Timestamp::now()).await;
    found(done.map_err(fault("note it"))?, "notification", id, "notifications")
}

fn found<T>(record: Option<T>, what: &str, id: i64, list: &str) -> Answer<T> {
    let missing = || {
        let remedy = format!("`horizon-controller get {list}` lists them");
        ApiError::not_found(format!("there is no {what} {id}"), remedy)
    };
    record.map(Json).ok_or_else(missing)
}

pub(crate) async fn flags(State(api): State<Arc<Api>>, Ask(page): Ask<Page>) -> Answer<List<Value>> {
    let found = api.store.list_flags(page.limit()?).await.map_err(fault("list the flags"))?;
    Ok(values(&found))
}

fn subject(api: &Api, request: &FlagRequest) -> Result<Subject, ApiError> {
    let index = api.engine.index();
    let missing = || read::missing(api, request.kind, &request.namespace, &request.name);
    let stored = index.get(request.kind, &request.namespace, &request.name).ok_or_else(missing)?;
    match request.kind {
        KindName::Server => Ok(Subject::server(stored.server_id(), request.name.as_str())),
        KindName::User => Ok(Subject::user(stored.uid, request.name.as_str())),
        other => Err(ApiError::bad_request(
            format!("a {other} is not flagged"),
            "flag a server or a user; a device is marked as suspicious",
        )),
    }
}

pub(crate) async fn flag(
    State(api): State<Arc<Api>>,
    Extension(account): Extension<Account>,
    Body(request): Body<FlagRequest>,
) -> Answer<Done> {
    let (subject, reason) = (subject(&api, &request)?, text(&request.reason, "reason")?);
    let fresh = api.store.flag(&subject, &reason, &account.actor(), Timestamp::now()).await;
    let what = if fresh.map_err(fault("flag it"))? { "is flagged" } else { "was flagged already" };
    Ok(Json(Done { message: format!("{} '{}' {what}", request.kind, request.name) }))
}

pub(crate) async fn clear_flag(
    State(api): State<Arc<Api>>,
    Extension(account): Extension<Account>,
    Body(request): Body<FlagRequest>,
) -> Answer<Done> {
    let (subject, notes) = (subject(&api, &request)?, text(&request.reason, "reason")?);
    let cleared = api.store.clear_flag(&subject, &notes, &account.actor(), Timestamp::now()).await;
    if !cleared.map_err(fault("clear the flag"))? {
        let message = format!("{} '{}' is not flagged", request.kind, request.name);
        return Err(ApiError::not_found(message, "`horizon-controller get flags` lists what is"));
    }
    Ok(Json(Done { message: format!("{} '{}' is not flagged any more", request.kind, request.name) }))
}

pub(crate) async fn tasks(State(api): State<Arc<Api>>) -> Answer<List<Value>> {
    Ok(values(&api.store.list_tasks().await.map_err(fault("list the tasks"))?))
}

pub(crate) async fn services(State(api): State<Arc<Api>>) -> Answer<List<Value>> {
    Ok(values(&api.store.list_services().await.map_err(fault("list the services"))?))
}

pub(crate) async fn reports(State(api): State<Arc<Api>>, Ask(page): Ask<Page>) -> Answer<List<Value>> {
    Ok(values(&api.store.list_reports(page.limit()?).await.map_err(fault("list the reports"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_addresses_or_networks_of_a_sensible_size() {
        let read = |given: &str| range(given).map(|range| range.to_string()).map_err(|error| error.message);
        assert_eq!(read("192.0.2.7").unwrap(), "192.0.2.7/32");
        assert_eq!(read("::ffff:192.0.2.7").unwrap(), "192.0.2.7/32");
        assert_eq!(read("2001:db8::/32").unwrap(), "2001:db8::/32");
        assert!(read("192.0.2.7/24").unwrap_err().contains("beyond its prefix"));
        assert!(read("0.0.0.0/0").unwrap_err().contains("wider than /8"));
        assert!(read("::/0").unwrap_err().contains("wider than /16"));
        assert!(read("home").unwrap_err().contains("neither"));
        assert!(text("a\u{7}", "x").is_err() && text(&"a".repeat(2000), "x").is_err());
    }
}
