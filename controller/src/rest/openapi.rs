//! The document of the API (OpenAPI 3.1), made of the table of routes and of the types of bodies. It is committed as
//! `docs/openapi.json`, and a test fails when that is not what this program says.

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use horizon_crds::KindName;
use serde_json::{Value, json};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        self, ComponentsBuilder, Content, InfoBuilder, License, OpenApi, OpenApiBuilder, PathItem,
        PathsBuilder, Ref, RefOr, Required, ResponseBuilder, Schema, SecurityRequirement,
        path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn},
        request_body::RequestBodyBuilder,
        schema::{ObjectBuilder, Type},
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

use super::{
    account::Jwks,
    guard::Access,
    problem::{PROBLEM_JSON, Problem},
    routes::{self, Route},
    schema,
};
use crate::{
    api::{model, security},
    store,
};

/// Query parameters of lists that go on.
const PAGING: [(&str, &str); 2] =
    [("limit", "The most entries: 1 to 500, 50 unless said."), ("cursor", "`next` of the page before.")];

/// What else lists can be asked for.
fn filters(path: &str) -> &'static [(&'static str, &'static str)] {
    match path {
        "/v1/events" => {
            &[("type", "Of a kind."), ("severity", "Of a severity."), ("source", "About an identifier.")]
        }
        "/v1/audit" => &[
            ("action", "Of an action."),
            ("actor", "Of an actor, by name."),
            ("targetType", "About a kind of target."),
            ("targetId", "About an identifier."),
        ],
        "/v1/sessions" => &[("status", "Of a status."), ("user", "Of a user."), ("server", "On a server.")],
        "/v1/devices" => &[("status", "Of a status."), ("user", "Of a user.")],
        "/v1/servers"
        | "/v1/{kind}"
        | "/v1/approvals"
        | "/v1/revocations"
        | "/v1/keyrotations"
        | "/v1/devicedecisions" => &[("namespace", "In a namespace; in all unless said.")],
        "/v1/{kind}/{name}" => &[("namespace", "The namespace; `default` unless said.")],
        _ => &[],
    }
}

/// What the entries of a list are, as the names of schemas, where the answer is a page of one.
fn entries(gives: &str) -> Option<Vec<&str>> {
    Some(gives.strip_prefix('[')?.strip_suffix(']')?.split('|').collect())
}

/// The name of the schema of a page.
fn page_of(entries: &[&str]) -> String {
    format!("{}Page", entries.join("Or"))
}

fn text() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).into()
}

fn parameter(name: &str, place: ParameterIn, description: &str) -> openapi::path::Parameter {
    let required = if matches!(place, ParameterIn::Path) { Required::True } else { Required::False };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .description(Some(description))
        .schema(Some(text()))
        .build()
}

fn content(name: &str) -> Content {
    let schema = match name {
        "" => ObjectBuilder::new().schema_type(Type::Object).into(),
        name => match entries(name) {
            Some(entries) => RefOr::Ref(Ref::from_schema_name(page_of(&entries))),
            None => RefOr::Ref(Ref::from_schema_name(name)),
        },
    };
    Content::new(Some(schema))
}

fn operation(route: &Route) -> openapi::path::Operation {
    let mut operation = OperationBuilder::new().summary(Some(route.summary)).operation_id(Some(id(route)));
    for name in route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
        operation = operation.parameter(parameter(name, ParameterIn::Path, "Which."));
    }
    let paging = if entries(route.gives.1).is_some() { &PAGING[..] } else { &[] };
    for (name, description) in
        filters(route.path).iter().chain(paging).filter(|_| route.method == http::Method::GET)
    {
        operation = operation.parameter(parameter(name, ParameterIn::Query, description));
    }
    if route.method == http::Method::POST && matches!(route.access, Access::May(_) | Access::MayOne(_)) {
        let description = "A request that is repeated with its key within 24 h is answered as before, and does nothing more.";
        operation = operation.parameter(parameter("Idempotency-Key", ParameterIn::Header, description));
    }
    if route.method == http::Method::PATCH {
        let description = "The ETag of the version that is changed.";
        operation = operation.parameter(parameter("If-Match", ParameterIn::Header, description));
    }
    if !route.takes.is_empty() {
        let body = RequestBodyBuilder::new().content("application/json", content(route.takes));
        operation = operation.request_body(Some(body.required(Some(Required::True)).build()));
    }
    let (status, gives) = route.gives;
    let mut done = ResponseBuilder::new().description("Done.");
    done = match route.path {
        _ if status == 204 => done,
        "/v1/events/stream" => done.content("text/event-stream", Content::new(Some(text()))),
        _ => done.content("application/json", content(gives)),
    };
    let problem =
        ResponseBuilder::new().description("Not done, and why.").content(PROBLEM_JSON, content("Problem"));
    operation = operation.response(status.to_string(), done.build()).response("default", problem.build());
    let permission = match route.access {
        Access::Anyone | Access::Stranger => None,
        Access::SignedIn | Access::Settled => Some("Any administrator who is signed in.".to_owned()),
        Access::May(permission) => Some(format!("Takes the permission `{permission}`.")),
        Access::MayOne(some) => {
            let names: Vec<String> = some.iter().map(|permission| format!("`{permission}`")).collect();
            Some(format!("Takes one of the permissions {}.", names.join(", ")))
        }
        Access::Device => Some("Takes a token of a device.".to_owned()),
        Access::DeviceOr(permission) => {
            Some(format!("Takes a token of a device, or the permission `{permission}`."))
        }
    };
    if permission.is_some() {
        operation = operation.security(SecurityRequirement::new::<&str, [&str; 0], &str>("token", []));
    }
    operation.description(permission).build()
}

/// A name of its own for each operation: `get_v1_admins_admin`.
fn id(route: &Route) -> String {
    let words = route.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let words = words.filter(|word| *word != "v1").collect::<Vec<_>>().join("_");
    format!("{}_{words}", route.method.as_str().to_lowercase())
}

fn method(route: &Route) -> HttpMethod {
    match route.method.as_str() {
        "POST" => HttpMethod::Post,
        "PUT" => HttpMethod::Put,
        "PATCH" => HttpMethod::Patch,
        "DELETE" => HttpMethod::Delete,
        _ => HttpMethod::Get,
    }
}

macro_rules! schemas {
    ($components:expr; $($type:ty),+ $(,)?) => {
        $components$(.schema(<$type as ToSchema>::name(), <$type as PartialSchema>::schema()))+
    };
}

/// The document of the API.
pub fn document() -> OpenApi {
    let components = schemas! { ComponentsBuilder::new();
        Problem, Jwks, schema::Login, schema::Refresh, schema::Tokens, schema::Me, schema::PasswordChange,
        schema::EnrolTotp, schema::ConfirmTotp, schema::MakeAdmin, schema::OneTime, schema::ChangeAdmin, schema::Reason,
        schema::PutRole, schema::RotateKeys, schema::AskChallenge, schema::Challenge, schema::Proof, schema::FactorOf,
        schema::Register, schema::Registered, schema::Authenticate, schema::DeviceTokens, schema::ServerForDevice,
        store::SessionView, store::DeviceView, store::SecurityEvent, store::AuditEntry, store::AdminView, store::RoleView,
        store::AdminSessionView, store::Anomaly, store::Notification, store::Block, store::Flag, store::Task,
        store::Service, store::Report,
        security::BlockRequest, security::UnblockRequest, security::Handling, security::Verdict, security::Acting,
        security::FlagRequest,
        model::Detail, model::TokenRequest, model::InvitationRequest, model::Issued, model::ApprovalRequest,
        model::RevocationRequest, model::RotationRequest, model::DeviceDecisionRequest, model::DeviceDetail,
        model::Recorded, model::Done,
    };
    let components =
        components.security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    let mut paths = PathsBuilder::new();
    for route in routes::all() {
        paths = paths.path(route.path, PathItem::new(method(&route), operation(&route)));
    }
    let info = InfoBuilder::new()
        .title("Horizon")
        .version("v1")
        .description(Some(
            "What administrators, appliances and devices may ask a controller. See docs/api.md.",
        ))
        .license(Some(License::new("Apache-2.0")));
    OpenApiBuilder::new().info(info.build()).paths(paths.build()).components(Some(components.build())).build()
}

/// A resource of a kind: its schema is that of the CustomResourceDefinition, without what is Kubernetes' own.
fn resource(kind: KindName) -> Value {
    let schema = &horizon_crds::crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let (mut spec, mut status) = (schema["spec"].clone(), schema["status"].clone());
    plain(&mut spec);
    plain(&mut status);
    let text = json!({ "type": "string" });
    let texts = json!({ "type": "object", "additionalProperties": text });
    json!({
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": { "type": "string", "enum": [horizon_crds::API_VERSION] },
            "kind": { "type": "string", "enum": [kind.to_string()] },
            "metadata": {
                "type": "object",
                "required": ["name", "namespace", "uid", "generation", "creationTimestamp"],
                "properties": {
                    "name": text, "namespace": text, "uid": text, "generation": { "type": "integer" },
                    "creationTimestamp": text, "labels": texts, "annotations": texts,
                },
            },
            "spec": spec,
            "status": status,
        },
    })
}

/// Leaves out what only Kubernetes reads.
fn plain(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.retain(|name, _| !name.starts_with("x-"));
            map.values_mut().for_each(plain);
        }
        Value::Array(items) => items.iter_mut().for_each(plain),
        _ => {}
    }
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// One of several schemas.
fn one_of<'a>(names: impl IntoIterator<Item = &'a str>) -> Value {
    let names: Vec<Value> = names.into_iter().map(reference).collect();
    if let [one] = &names[..] { one.clone() } else { json!({ "oneOf": names }) }
}

/// The schemas that follow from the kinds and from the table of routes.
fn derived() -> Vec<(String, Value)> {
    let kinds: Vec<String> = KindName::ALL.iter().map(ToString::to_string).collect();
    let mut schemas: Vec<_> = KindName::ALL.iter().map(|kind| (kind.to_string(), resource(*kind))).collect();
    schemas.push(("Resource".to_owned(), one_of(kinds.iter().map(String::as_str))));
    for entries in routes::all().iter().filter_map(|route| entries(route.gives.1)) {
        let page = json!({
            "type": "object",
            "required": ["items"],
            "properties": {
                "items": { "type": "array", "items": one_of(entries.iter().copied()) },
                "next": {
                    "type": "string",
                    "description": "What to send as `cursor` for the next page; absent on the last one.",
                },
            },
        });
        schemas.push((page_of(&entries), page));
    }
    schemas
}

/// The document as it is committed.
pub(super) fn text_of(document: &OpenApi) -> String {
    // It consists of maps, lists and texts.
    let mut document = serde_json::to_value(document).unwrap_or_default();
    let schemas = &mut document["components"]["schemas"];
    for (name, schema) in derived() {
        schemas[name] = schema;
    }
    schemas["Detail"]["properties"]["object"] = reference("Resource");
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}

pub(super) async fn serve() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text_of(&document())).into_response()
}
