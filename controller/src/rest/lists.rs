//! What can be read, and what is done to what was read: the operations of the local socket, page by page.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use horizon_controller_core::{Stored, account::Permission};
use horizon_crds::{DEFAULT_NAMESPACE, KindName, TargetKind};
use horizon_model::SessionId;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{
    Problem, Rest,
    guard::{self, TokenDevice},
    page::{Page, Paging, page},
    schema::{Reason, ServerForDevice},
};
use crate::{
    api::{
        Api, change,
        model::{Detail, Object, Recorded, RevocationRequest},
        read::{self, InNamespace},
        server::{Account, Ask, Body, In},
    },
    channel::servers,
    live::Hint,
    store::{
        Anomaly, AuditEntry, AuditFilter, Block, DevicePage, DeviceView, EndReason, EndedBy, EventPage, Flag,
        Notification, Report, RoleView, SecurityEvent, Service, SessionPage, SessionStatus, SessionView,
        SignedIn, Task,
    },
};

type Answer<T> = Result<Json<T>, Problem>;

/// What a list of resources is asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resources {
    namespace: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

impl Resources {
    fn paging(&self) -> Paging {
        Paging { limit: self.limit, cursor: self.cursor.clone() }
    }
}

fn kind_of(word: &str) -> Result<KindName, Problem> {
    KindName::parse(word).map_err(|error| {
        Problem::not_found(format!("there is no kind {:?}", error.given)).remedy(error.remedy)
    })
}

/// The kind as a cursor names it.
fn list_of(kind: KindName) -> String {
    format!("kind {kind}")
}

async fn objects(rest: &Rest, kind: KindName, asked: Resources) -> Answer<Page<Object>> {
    let (paging, namespace) = (asked.paging(), asked.namespace);
    let (limit, list) = (paging.limit()?, list_of(kind));
    let after = paging.after(&list)?;
    let index = rest.api.engine.index();
    let stored = match &namespace {
        Some(namespace) => index.in_namespace(kind, namespace),
        None => index.all(kind),
    };
    let key =
        |stored: &Stored| format!("{}/{}", stored.resource.metadata().namespace, stored.resource.name());
    let mut wanted: Vec<(String, &Arc<Stored>)> = stored.iter().map(|s| (key(s), s)).collect();
    wanted.retain(|(key, _)| after.as_ref().is_none_or(|after| key > after));
    wanted.sort_by(|a, b| a.0.cmp(&b.0));
    wanted.truncate(usize::try_from(limit).unwrap_or(usize::MAX) + 1);
    let mut items = Vec::with_capacity(wanted.len());
    for (key, stored) in wanted {
        let status = rest.api.store.status_of(stored.uid).await?.unwrap_or_default();
        items.push((key, read::object(stored, status)));
    }
    let Page { items, next } = page(&list, items, limit, |(key, _)| key.clone());
    Ok(Json(Page { items: items.into_iter().map(|(_, object)| object).collect(), next }))
}

pub(super) async fn list(
    State(rest): State<Rest>,
    In(word): In<String>,
    Ask(asked): Ask<Resources>,
) -> Answer<Page<Object>> {
    objects(&rest, kind_of(&word)?, asked).await
}

pub(super) async fn approvals(State(rest): State<Rest>, Ask(asked): Ask<Resources>) -> Answer<Page<Object>> {
    objects(&rest, KindName::Approval, asked).await
}

pub(super) async fn rotations(State(rest): State<Rest>, Ask(asked): Ask<Resources>) -> Answer<Page<Object>> {
    objects(&rest, KindName::KeyRotation, asked).await
}

pub(super) async fn decisions(State(rest): State<Rest>, Ask(asked): Ask<Resources>) -> Answer<Page<Object>> {
    objects(&rest, KindName::DeviceDecision, asked).await
}

pub(super) async fn revocations(
    State(rest): State<Rest>,
    Ask(asked): Ask<Resources>,
) -> Answer<Page<Object>> {
    objects(&rest, KindName::Revocation, asked).await
}

/// Servers: for a device those that its user may use, for an administrator all of them.
pub(super) async fn servers(
    State(rest): State<Rest>,
    device: Option<Extension<TokenDevice>>,
    Ask(asked): Ask<Resources>,
) -> Result<Response, Problem> {
    let Some(Extension(device)) = device else {
        return Ok(objects(&rest, KindName::Server, asked).await?.into_response());
    };
    let index = rest.api.engine.index();
    let found = servers::list(&rest.api.store, &*rest.api.live, &index, &device.record).await?;
    let items: Vec<ServerForDevice> = found
        .into_iter()
        .map(|server| ServerForDevice {
            name: server.name,
            available: server.available,
            reason: server.reason,
            capabilities: server.capabilities,
            location: server.location,
            networks: server.networks,
        })
        .collect();
    Ok(few("servers of a device", items, &asked.paging(), |server| server.name.clone())?.into_response())
}

/// A page of what is few enough to be read whole, in the order of its names.
fn few<T>(list: &str, mut all: Vec<T>, paging: &Paging, name: impl Fn(&T) -> String) -> Answer<Page<T>> {
    let (limit, after) = (paging.limit()?, paging.after(list)?);
    all.retain(|item| after.as_ref().is_none_or(|after| name(item) > *after));
    all.sort_by_key(&name);
    Ok(Json(page(list, all, limit, name)))
}

pub(super) async fn tasks(State(rest): State<Rest>, Ask(paging): Ask<Paging>) -> Answer<Page<Task>> {
    few("tasks", rest.api.store.list_tasks().await?, &paging, |task| task.name.clone())
}

pub(super) async fn services(State(rest): State<Rest>, Ask(paging): Ask<Paging>) -> Answer<Page<Service>> {
    few("services", rest.api.store.list_services().await?, &paging, |service| service.name.clone())
}

pub(super) async fn roles(State(rest): State<Rest>, Ask(paging): Ask<Paging>) -> Answer<Page<RoleView>> {
    few("roles", rest.api.store.list_roles().await?, &paging, |role| role.name.clone())
}

/// Lists of numbered records, the newest first.
macro_rules! numbered {
    ($($name:ident: $record:ty = $page:ident;)+) => {
        $(pub(super) async fn $name(
            State(rest): State<Rest>,
            Ask(paging): Ask<Paging>,
        ) -> Answer<Page<$record>> {
            let list = stringify!($name);
            let (limit, before) = (paging.limit()?, paging.place(list)?);
            let found = rest.api.store.$page(before, limit + 1).await?;
            Ok(Json(page(list, found, limit, |record| record.id.to_string())))
        })+
    };
}

numbered! {
    anomalies: Anomaly = page_anomalies;
    notifications: Notification = page_notifications;
    blocks: Block = page_blocks;
    flags: Flag = page_flags;
    reports: Report = page_reports;
}

/// One resource, with everything that is known of it. It has a tag that changes with its declaration.
pub(super) async fn one(
    State(rest): State<Rest>,
    In((word, name)): In<(String, String)>,
    Ask(asked): Ask<InNamespace>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let kind = kind_of(&word)?;
    let index = rest.api.engine.index();
    let namespace = asked.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let tag =
        index.get(kind, namespace, &name).map(|stored| format!("\"{}-{}\"", stored.uid, stored.generation));
    let Json(detail): Json<Detail> = read::one(State(rest.api.clone()), In((word, name)), Ask(asked)).await?;
    let mut answer = Json(detail).into_response();
    if let Some(tag) = tag {
        let known = headers.get(header::IF_NONE_MATCH).and_then(|tag| tag.to_str().ok());
        // Its status may have changed all the same: only who asks for the declaration says so.
        if known == Some(tag.as_str()) && headers.contains_key("x-horizon-declaration-only") {
            answer = StatusCode::NOT_MODIFIED.into_response();
        }
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            answer.headers_mut().insert(header::ETAG, tag);
        }
    }
    Ok(answer)
}

/// How the controller does: to anybody whether it can serve, to who may read resources everything.
pub(super) async fn status(
    State(rest): State<Rest>,
    State(api): State<Arc<Api>>,
    who: Option<Extension<SignedIn>>,
) -> Result<Response, Problem> {
    let may = who.is_some_and(|Extension(who)| who.permissions.contains(&Permission::ReadResources));
    if may {
        return Ok(read::status(State(api)).await?.into_response());
    }
    let ready = rest.api.health.missing().is_empty() && rest.api.database.ask().await.is_ok();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(json!({ "ready": ready }))).into_response())
}

/// What a list of sessions is asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sessions {
    status: Option<String>,
    user: Option<String>,
    server: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

pub(super) async fn sessions(
    State(rest): State<Rest>,
    Ask(asked): Ask<Sessions>,
) -> Answer<Page<SessionView>> {
    let Sessions { status, user, server, limit, cursor } = asked;
    let paging = Paging { limit, cursor };
    let limit = paging.limit()?;
    let wanted = SessionPage { before: paging.place("sessions")?, status, user, server };
    let found = rest.api.store.page_sessions(&wanted, limit + 1).await?;
    Ok(Json(page("sessions", found, limit, |view| view.id.to_string())))
}

/// Ends a session.
pub(super) async fn end_session(
    State(rest): State<Rest>,
    Extension(Account(actor)): Extension<Account>,
    In(session): In<Uuid>,
    Body(Reason { reason }): Body<Reason>,
) -> Result<Response, Problem> {
    if reason.is_empty() || reason.chars().count() > 256 || reason.chars().any(char::is_control) {
        return Err(Problem::bad_request("a reason is needed, of up to 256 characters that print"));
    }
    let (session, now) = (SessionId(session), rest.now());
    let why = EndReason {
        status: SessionStatus::Terminated,
        by: EndedBy::Admin,
        reason: format!("an administrator ended it: {reason}"),
    };
    let ended = rest.api.store.end_session_by(session, &why, &actor, now).await?;
    let ended = ended.ok_or_else(|| Problem::not_found(format!("there is no live session {session}")))?;
    rest.api.live.publish(Hint::SessionEnded {
        session: ended.session,
        device: ended.device,
        reason: ended.reason.as_str().into(),
    });
    rest.api.live.publish(Hint::ServerChanged(ended.server));
    Ok(guard::no_content())
}

/// Revokes something for good: the operation of the local socket, for who may manage what is revoked.
pub(super) async fn revoke(
    State(api): State<Arc<Api>>,
    Extension(who): Extension<SignedIn>,
    Extension(account): Extension<Account>,
    Body(request): Body<RevocationRequest>,
) -> Answer<Recorded> {
    let permission = match request.kind {
        TargetKind::Server | TargetKind::RegistrationKey => Permission::ManageServers,
        TargetKind::PersonalKey | TargetKind::Device => Permission::ManageUsers,
    };
    if !who.permissions.contains(&permission) {
        return Err(Problem::forbidden(format!("it takes the permission {permission}")));
    }
    Ok(change::revoke(State(api), Extension(account), Body(request)).await?)
}

/// What a list of devices is asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Devices {
    status: Option<String>,
    user: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

pub(super) async fn devices(State(rest): State<Rest>, Ask(asked): Ask<Devices>) -> Answer<Page<DeviceView>> {
    let Devices { status, user, limit, cursor } = asked;
    let paging = Paging { limit, cursor };
    let limit = paging.limit()?;
    let wanted = DevicePage { before: paging.place("devices")?, status, user };
    let found = rest.api.store.page_devices(&wanted, limit + 1).await?;
    Ok(Json(page("devices", found, limit, |view| view.id.to_string())))
}

/// What a list of events is asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Events {
    #[serde(rename = "type")]
    kind: Option<String>,
    severity: Option<String>,
    source: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

pub(super) async fn events(State(rest): State<Rest>, Ask(asked): Ask<Events>) -> Answer<Page<SecurityEvent>> {
    let Events { kind, severity, source, limit, cursor } = asked;
    let paging = Paging { limit, cursor };
    let limit = paging.limit()?;
    let wanted = EventPage { before: paging.place("events")?, kind, severity, source };
    let found = rest.api.store.page_events(&wanted, limit + 1).await?;
    Ok(Json(page("events", found, limit, |event| event.id.to_string())))
}

/// What the audit trail is asked for.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Audit {
    action: Option<String>,
    actor: Option<String>,
    target_type: Option<String>,
    target_id: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

pub(super) async fn audit(State(rest): State<Rest>, Ask(asked): Ask<Audit>) -> Answer<Page<AuditEntry>> {
    let Audit { action, actor, target_type, target_id, limit, cursor } = asked;
    let paging = Paging { limit, cursor };
    let limit = paging.limit()?;
    let wanted = AuditFilter { before: paging.place("audit")?, action, actor, target_type, target_id };
    let found = rest.api.store.page_audit(&wanted, limit + 1).await?;
    Ok(Json(page("audit", found, limit, |entry| entry.id.to_string())))
}
