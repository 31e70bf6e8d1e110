//! What can be read.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Json, extract::State};
use horizon_controller_core::Stored;
use horizon_crds::{API_VERSION, DEFAULT_NAMESPACE, KindName, RotationTarget};
use horizon_model::SessionId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Api, ApiError,
    model::{Detail, List, ORIGIN, Object, ObjectMeta, ReplicaStatus, Replication, SessionDetail, Status},
    reasons,
    server::{Ask, In},
};
use crate::{
    config::SourceKind,
    engine::ToldProblem,
    metrics::NameLabel,
    replica::{Roll, Standing},
    store::{EnvelopePhase, EnvelopeState, EventFilter, StoreError},
};

/// The most records that are listed.
const MAX_LIMIT: u32 = 10_000;
/// How many records of each sort a description shows.
const RECORDS_OF_ONE: u32 = 10;
/// The most sessions that are looked through for one.
const MAX_SESSIONS: u32 = 10_000;
/// The most minutes of a session that are shown.
const MINUTES_OF_ONE: u32 = 60;
/// How many heartbeats a description shows.
const BEATS_OF_ONE: u32 = 5;

type Answer<T> = Result<Json<T>, ApiError>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InNamespace {
    pub(crate) namespace: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Page {
    limit: Option<u32>,
}

impl Page {
    pub(super) fn limit(&self) -> Result<u32, ApiError> {
        let limit = self.limit.unwrap_or(100);
        if (1..=MAX_LIMIT).contains(&limit) {
            return Ok(limit);
        }
        Err(ApiError::bad_request(format!("limit is {limit}"), format!("ask for 1 to {MAX_LIMIT} entries")))
    }
}

fn kind(word: &str) -> Result<KindName, ApiError> {
    KindName::parse(word)
        .map_err(|error| ApiError::not_found(format!("there is no kind {:?}", error.given), error.remedy))
}

pub(crate) async fn list(
    State(api): State<Arc<Api>>,
    In(word): In<String>,
    Ask(query): Ask<InNamespace>,
) -> Answer<List<Object>> {
    objects(&api, kind(&word)?, &query).await
}

pub(crate) async fn approvals(
    State(api): State<Arc<Api>>,
    Ask(query): Ask<InNamespace>,
) -> Answer<List<Object>> {
    objects(&api, KindName::Approval, &query).await
}

pub(crate) async fn revocations(
    State(api): State<Arc<Api>>,
    Ask(query): Ask<InNamespace>,
) -> Answer<List<Object>> {
    objects(&api, KindName::Revocation, &query).await
}

pub(crate) async fn objects(api: &Api, kind: KindName, query: &InNamespace) -> Answer<List<Object>> {
    let index = api.engine.index();
    let stored = match &query.namespace {
        Some(namespace) => index.in_namespace(kind, namespace),
        None => index.all(kind),
    };
    let mut statuses = statuses(api).await?;
    let items = stored.iter().map(|s| object(s, statuses.remove(&s.uid).unwrap_or_default())).collect();
    Ok(Json(List { items }))
}

async fn statuses(api: &Api) -> Result<std::collections::HashMap<uuid::Uuid, Value>, ApiError> {
    api.store.statuses().await.map_err(|error| ApiError::internal("read the statuses", error))
}

pub(crate) async fn one(
    State(api): State<Arc<Api>>,
    In((word, name)): In<(String, String)>,
    Ask(query): Ask<InNamespace>,
) -> Answer<Detail> {
    let kind = kind(&word)?;
    let index = api.engine.index();
    let namespace = query.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let Some(stored) = index.get(kind, namespace, &name) else {
        return Err(missing(&api, kind, namespace, &name));
    };
    let fault = |error| ApiError::internal("read its records", error);
    let status = api.store.status_of(stored.uid).await.map_err(fault)?.unwrap_or_default();
    let filter = EventFilter { source: Some(stored.uid), limit: RECORDS_OF_ONE };
    let events = api.store.list_security_events(&filter).await.map_err(fault)?;
    let changes = api.store.list_audit_of(&stored.uid.to_string(), RECORDS_OF_ONE).await.map_err(fault)?;
    let (mut appliance, mut heartbeats) = (Vec::new(), Vec::new());
    let (mut factors, mut challenges) = (Vec::new(), Vec::new());
    if kind == KindName::Server {
        let record = api.store.server(stored.server_id()).await.map_err(fault)?;
        appliance = record.as_ref().map(reasons::appliance).unwrap_or_default();
        heartbeats = values(&api.store.list_beats(stored.server_id(), BEATS_OF_ONE).await.map_err(fault)?);
        factors = values(&api.store.list_factors(stored.server_id()).await.map_err(fault)?);
        challenges =
            values(&api.store.list_challenges(stored.server_id(), RECORDS_OF_ONE).await.map_err(fault)?);
    }
    let rotated = match kind {
        KindName::PersonalKey => Some(RotationTarget::PersonalKeys),
        KindName::Server => Some(RotationTarget::VerificationSecrets),
        _ => None,
    };
    let rotations = match rotated {
        Some(target) => {
            let key = stored.uid.to_string();
            values(&api.store.list_rotations(target, &key, RECORDS_OF_ONE).await.map_err(fault)?)
        }
        None => Vec::new(),
    };
    let id = stored.id().to_string();
    let told = api.engine.report().await.map_err(fault)?;
    let about = |problem: &ToldProblem| problem.resource.as_deref() == Some(id.as_str());
    let problems = told.problems.into_iter().filter(about).map(|problem| problem.text).collect();
    Ok(Json(Detail {
        object: object(stored, status),
        reasons: reasons::about(&index, stored),
        appliance,
        heartbeats,
        factors,
        challenges,
        rotations,
        problems,
        events: values(&events),
        changes: values(&changes),
    }))
}

/// Says that a resource does not exist, and what there is instead.
pub(crate) fn missing(api: &Api, kind: KindName, namespace: &str, name: &str) -> ApiError {
    const MAX_NAMES: usize = 10;
    let index = api.engine.index();
    let there = index.in_namespace(kind, namespace);
    let mut names: Vec<&str> = there.iter().take(MAX_NAMES).map(|s| s.resource.name().as_str()).collect();
    if there.len() > MAX_NAMES {
        names.push("…");
    }
    let remedy = if names.is_empty() {
        match api.config.source {
            SourceKind::Files => format!("declare it in a file in {}", api.source),
            SourceKind::Kubernetes => "declare it: `kubectl apply` its document".to_owned(),
        }
    } else {
        format!(
            "there {} {}; `horizon-controller get {}` lists them",
            if names.len() == 1 { "is" } else { "are" },
            names.join(", "),
            kind.plural()
        )
    };
    ApiError::not_found(format!("there is no {kind} '{name}' in namespace '{namespace}'"), remedy)
}

pub(crate) fn object(stored: &Stored, status: Value) -> Object {
    let meta = stored.resource.metadata();
    let mut annotations = meta.annotations.clone();
    annotations.insert(ORIGIN.to_owned(), stored.origin.to_string());
    Object {
        api_version: API_VERSION.to_owned(),
        kind: stored.resource.kind(),
        metadata: ObjectMeta {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: stored.uid.to_string(),
            generation: stored.generation,
            creation_timestamp: stored.created_at.into(),
            labels: meta.labels.clone(),
            annotations,
        },
        spec: stored.resource.spec_json(),
        status,
    }
}

pub(crate) fn values(records: &[impl Serialize]) -> Vec<Value> {
    // Records consist of strings, numbers and lists: nothing that JSON lacks.
    records.iter().filter_map(|record| serde_json::to_value(record).ok()).collect()
}

pub(crate) async fn sessions(State(api): State<Arc<Api>>, Ask(page): Ask<Page>) -> Answer<List<Value>> {
    let found = api.store.list_sessions(page.limit()?).await;
    Ok(Json(List { items: values(&found.map_err(|error| ApiError::internal("list the sessions", error))?) }))
}

pub(crate) async fn session(State(api): State<Arc<Api>>, In(id): In<SessionId>) -> Answer<SessionDetail> {
    let fault = |error| ApiError::internal("read the session", error);
    let sessions = api.store.list_sessions(MAX_SESSIONS).await.map_err(fault)?;
    let Some(session) = sessions.iter().find(|session| session.id == id) else {
        let remedy = "`horizon-controller get sessions` lists them";
        return Err(ApiError::not_found(format!("there is no session {id}"), remedy));
    };
    let minutes = api.store.session_minutes(id, MINUTES_OF_ONE).await.map_err(fault)?;
    let session = values(std::slice::from_ref(session)).pop().unwrap_or_default();
    Ok(Json(SessionDetail { session, minutes: values(&minutes) }))
}

pub(crate) async fn devices(State(api): State<Arc<Api>>, Ask(page): Ask<Page>) -> Answer<List<Value>> {
    let found = api.store.list_devices(page.limit()?).await;
    Ok(Json(List { items: values(&found.map_err(|error| ApiError::internal("list the devices", error))?) }))
}

pub(crate) async fn events(State(api): State<Arc<Api>>, Ask(page): Ask<Page>) -> Answer<List<Value>> {
    let found = api.store.list_security_events(&EventFilter { source: None, limit: page.limit()? }).await;
    Ok(Json(List { items: values(&found.map_err(|error| ApiError::internal("list the events", error))?) }))
}

pub(crate) async fn audit(State(api): State<Arc<Api>>, Ask(page): Ask<Page>) -> Answer<List<Value>> {
    let found = api.store.list_audit(page.limit()?).await;
    Ok(Json(List {
        items: values(&found.map_err(|error| ApiError::internal("list the audit trail", error))?),
    }))
}

pub(crate) async fn status(State(api): State<Arc<Api>>) -> Answer<Status> {
    let in_force = api.engine.in_force();
    let resources: BTreeMap<String, u64> =
        KindName::ALL.iter().map(|kind| (kind.to_string(), in_force.index.all(*kind).len() as u64)).collect();
    let channels = |role| {
        let count = api.metrics.channels.get_or_create(&NameLabel { name: role }).get();
        u64::try_from(count).unwrap_or_default()
    };
    let database = match api.database.ask().await {
        Ok(()) => "answers".to_owned(),
        Err(why) => why,
    };
    // While the database is away, what is known here has to do.
    let told = api.engine.report().await.unwrap_or_default();
    let answers = database == "answers";
    let open = if_it_answers(answers, api.store.keyset_rotations(None)).await;
    let services = if_it_answers(answers, api.store.list_services()).await;
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: api.started_at.into(),
        resources_directory: api.source.clone(),
        listen: api.config.listen.to_string(),
        advertise: api.strings.advertise.clone(),
        root: api.strings.root().to_string(),
        resources,
        appliances: channels("appliance"),
        devices: channels("device"),
        sessions: u64::try_from(api.metrics.sessions.get()).unwrap_or_default(),
        problems: told.problems.into_iter().map(|problem| problem.text).collect(),
        prune_pending: told.held,
        not_ready: api.health.missing().into_iter().map(|(part, why)| format!("{part}: {why}")).collect(),
        revision: in_force.revision.0,
        database,
        troubles: troubles(services),
        keyset: api.strings.keys.now().keyset.version,
        keyset_holders: if_it_answers(answers, api.store.keyset_holders(None)).await,
        envelope: envelope(&if_it_answers(answers, api.store.envelope_state()).await),
        rotations: rotations(open, if_it_answers(answers, api.store.envelope_rotation(None)).await),
        replication: api.roll.as_ref().map(|roll| replication(&api, roll)),
    }))
}

/// What a database says that answers, or nothing: the status is asked for most when something is wrong.
async fn if_it_answers<T: Default>(answers: bool, ask: impl Future<Output = Result<T, StoreError>>) -> T {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);
    if !answers {
        return T::default();
    }
    tokio::time::timeout(PATIENCE, ask).await.ok().and_then(Result::ok).unwrap_or_default()
}

/// The rotations of the organisation's keys that are under way.
fn rotations(
    open: Vec<crate::store::KeySetRotation>,
    envelope: Option<crate::store::EnvelopeRotation>,
) -> Vec<String> {
    let line = |rotation: crate::store::KeySetRotation| {
        let reached = rotation.reached.map_or("over", |reached| reached.as_str());
        format!("{} key: {reached}; {}, {}", rotation.class.as_str(), rotation.kind, rotation.reason)
    };
    let enveloped = envelope.map(|rotation| {
        let reached = match rotation.phase {
            EnvelopePhase::Requested => "requested".to_owned(),
            EnvelopePhase::Published => "published, not used yet".to_owned(),
            EnvelopePhase::InUse => format!("in use, {} values sealed anew", rotation.resealed),
            EnvelopePhase::Done => "over".to_owned(),
        };
        format!("envelope: {reached}; {}, {}", rotation.kind.as_str(), rotation.reason)
    });
    open.into_iter().map(line).chain(enveloped).collect()
}

/// What seals the secrets of the database, in a line.
fn envelope(state: &EnvelopeState) -> String {
    let Some((number, since)) = state.sealing else { return String::new() };
    let mut text = format!("data key {number} since {since:.0}");
    if let Some((id, _)) = state.envelopes.iter().find(|(_, current)| *current) {
        text += &format!(", under {id}");
    }
    if let Some((id, _)) = state.envelopes.iter().find(|(_, current)| !current) {
        text += &format!(", soon under {id}: {} of {} replicas have it", state.moved, state.replicas);
    }
    if !state.older.is_empty() {
        let older: Vec<String> = state.older.iter().map(i64::to_string).collect();
        text += &format!("; values under {} are sealed anew", older.join(", "));
    }
    text
}

/// The parts that do not do as they should, as the leader last saw them.
fn troubles(services: Vec<crate::store::Service>) -> Vec<String> {
    let trouble = services.into_iter().filter(|service| service.state != "operational");
    let line = |service: crate::store::Service| {
        let detail = service.detail.map(|detail| format!(": {detail}")).unwrap_or_default();
        format!("{} is {}, since {:.0}{detail}", service.name, service.state, service.since)
    };
    trouble.map(line).collect()
}

/// How this replica and the others do.
fn replication(api: &Api, roll: &Roll) -> Replication {
    let name = &api.config.replica;
    let (leader, epoch) = match api.engine.standing() {
        Standing::Leader(epoch) => (Some(name.clone()), Some(epoch.0)),
        Standing::Follower { leader } => (leader, None),
        Standing::Undecided => (None, None),
    };
    let replicas = roll.replicas().into_iter().map(|row| ReplicaStatus {
        alive: row.alive(),
        name: row.info.name,
        addresses: row.info.addresses,
        version: row.info.version,
        draining: row.info.draining,
        seen_seconds: row.age.as_secs(),
    });
    Replication {
        replica: name.clone(),
        leader,
        epoch,
        replicas: replicas.collect(),
        bus: api.live.bus_health().map(|bus| bus.text),
    }
}
