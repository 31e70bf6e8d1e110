//! What Kubernetes is told: the CustomResourceDefinitions.

use kube::core::CustomResourceExt;
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{
    AccessPolicy, AccessPolicyStatus, Approval, ApprovalStatus, DeviceDecision, DeviceDecisionStatus,
    KeyRotation, KeyRotationStatus, KindName, PersonalKey, PersonalKeyStatus, RegistrationKey,
    RegistrationKeyStatus, Revocation, RevocationStatus, RotationPolicy, RotationPolicyStatus,
    SecurityPolicy, SecurityPolicyStatus, Server, ServerStatus, TimeSpan, User, UserStatus, VirtualNetwork,
    VirtualNetworkStatus, resource,
};

/// The schema of a kind's spec: structural, without nulls, and with the `x-horizon-*` keywords of this crate.
pub(crate) fn spec_schema(kind: KindName) -> Value {
    schema(|generator| resource::spec_schema(kind, generator))
}

fn schema(make: impl FnOnce(&mut SchemaGenerator) -> Schema) -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
        settings.transforms.clear();
    });
    let mut schema = make(&mut settings.into_generator()).to_value();
    simplify(&mut schema);
    schema
}

/// Brings a schema into the structural form: no nulls (an absent field is left out), choices as plain enums, and nothing
/// about additional properties, which the API server prunes or refuses by itself.
fn simplify(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    for key in ["title", "additionalProperties", "$schema"] {
        object.remove(key);
    }
    if object.get("default").is_some_and(Value::is_null) {
        object.remove("default");
    }
    // Formats of integers, like uint16, say nothing beyond minimum and maximum; Kubernetes does not know them.
    if object.get("format").is_some_and(|format| format != "date-time") {
        object.remove("format");
    }
    if let Some(types) = object.get("type").and_then(Value::as_array) {
        let other = types.iter().find(|name| *name != "null").cloned();
        object.insert("type".into(), other.unwrap_or_default());
    }
    for key in ["anyOf", "oneOf"] {
        let Some(Value::Array(options)) = object.remove(key) else { continue };
        let mut choices = Vec::new();
        for option in options.into_iter().filter(|option| option["type"] != "null") {
            match option {
                Value::Object(option) if option.contains_key("const") => {
                    choices.extend(option.get("const").cloned())
                }
                Value::Object(mut option) => {
                    // The one option that is not null: its keywords become the field's, which keeps its own text.
                    option.remove("description");
                    choices.extend(option.get("enum").and_then(Value::as_array).cloned().unwrap_or_default());
                    option.append(object);
                    *object = option;
                }
                _ => {}
            }
        }
        if !choices.is_empty() {
            object.insert("type".into(), "string".into());
            object.insert("enum".into(), choices.into());
        }
    }
    if let Some(Value::Array(choices)) = object.get_mut("enum") {
        choices.retain(|choice| !choice.is_null());
    }
    if let Some(choice) = object.remove("const") {
        object.insert("enum".into(), vec![choice].into());
    }
    if let Some(Value::String(text)) = object.get_mut("description") {
        *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    for nested in
        object.get_mut("properties").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut)
    {
        simplify(nested);
    }
    if let Some(items) = object.get_mut("items") {
        simplify(items);
    }
}

/// Replaces the keywords of this crate by what the API server understands.
fn translate(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    object.remove("x-horizon-format");
    let bound = |json: Option<Value>| json?.as_str()?.parse::<TimeSpan>().ok();
    if let Some((least, most)) =
        bound(object.remove("x-horizon-min")).zip(bound(object.remove("x-horizon-max")))
    {
        let rules = object.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
        if let Some(rules) = rules.as_array_mut() {
            rules.push(duration_rule(least, most));
        }
    }
    guard(object);
    for nested in
        object.get_mut("properties").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut)
    {
        translate(nested);
    }
    if let Some(items) = object.get_mut("items") {
        translate(items);
    }
}

/// A rule about a text must not fail on one that the pattern forbids: the pattern says so already, and an object that was
/// stored under a looser schema takes no status while a rule fails on it instead of answering.
fn guard(object: &mut Map<String, Value>) {
    let Some(pattern) = object.get("pattern").and_then(Value::as_str) else { return };
    let quoted = pattern.replace('\\', "\\\\").replace('\'', "\\'");
    let rules = object.get_mut("x-kubernetes-validations").and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten() {
        let guarded = rule["rule"].as_str().map(|rule| format!("!self.matches('{quoted}') || ({rule})"));
        rule["rule"] = guarded.into();
    }
}

/// CEL's durations have no days, so a number of days is compared as a number.
fn duration_rule(least: TimeSpan, most: TimeSpan) -> Value {
    const DAY: u64 = TimeSpan::from_days(1).as_millis();
    let (first, last) = (least.as_millis().div_ceil(DAY), most.as_millis() / DAY);
    let days = "int(self.substring(0, size(self) - 1))";
    let spans = format!(
        "duration(self) >= duration('{}ms') && duration(self) <= duration('{}ms')",
        least.as_millis(),
        most.as_millis()
    );
    json!({
        "rule": format!("self.endsWith('d') ? {days} >= {first} && {days} <= {last} : {spans}"),
        "message": format!("write a duration from {least} to {most}"),
    })
}

/// The schema of a kind's status, in the same form.
pub(crate) fn status_schema(kind: KindName) -> Value {
    schema(match kind {
        KindName::Server => ServerStatus::json_schema,
        KindName::RegistrationKey => RegistrationKeyStatus::json_schema,
        KindName::User => UserStatus::json_schema,
        KindName::PersonalKey => PersonalKeyStatus::json_schema,
        KindName::AccessPolicy => AccessPolicyStatus::json_schema,
        KindName::VirtualNetwork => VirtualNetworkStatus::json_schema,
        KindName::SecurityPolicy => SecurityPolicyStatus::json_schema,
        KindName::Approval => ApprovalStatus::json_schema,
        KindName::Revocation => RevocationStatus::json_schema,
        KindName::RotationPolicy => RotationPolicyStatus::json_schema,
        KindName::KeyRotation => KeyRotationStatus::json_schema,
        KindName::DeviceDecision => DeviceDecisionStatus::json_schema,
    })
}

/// The definition of a kind, ready to be applied.
pub fn crd(kind: KindName) -> Value {
    let definition = match kind {
        KindName::Server => Server::crd(),
        KindName::RegistrationKey => RegistrationKey::crd(),
        KindName::User => User::crd(),
        KindName::PersonalKey => PersonalKey::crd(),
        KindName::AccessPolicy => AccessPolicy::crd(),
        KindName::VirtualNetwork => VirtualNetwork::crd(),
        KindName::SecurityPolicy => SecurityPolicy::crd(),
        KindName::Approval => Approval::crd(),
        KindName::Revocation => Revocation::crd(),
        KindName::RotationPolicy => RotationPolicy::crd(),
        KindName::KeyRotation => KeyRotation::crd(),
        KindName::DeviceDecision => DeviceDecision::crd(),
    };
    // A definition consists of strings, numbers, lists and maps: nothing that JSON lacks.
    let mut definition = serde_json::to_value(definition).unwrap_or_default();
    let mut status = status_schema(kind);
    let mut spec = spec_schema(kind);
    translate(&mut spec);
    translate(&mut status);
    if let Some(columns) = definition["spec"]["versions"][0]["additionalPrinterColumns"].as_array_mut() {
        show_acceptance(kind, columns);
    }
    let root = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    root["properties"]["spec"] = spec;
    root["properties"]["status"] = status;
    root["x-kubernetes-validations"] = json!([{
        "rule": "size(self.metadata.name) <= 63 && !self.metadata.name.contains('.')",
        "message": "use a name of 1 to 63 characters of a-z, 0-9 and '-', without dots",
    }]);
    definition
}

/// Whether an object is in force is a column of every kind, before its age. Servers have more urgent ones: wide output only.
fn show_acceptance(kind: KindName, columns: &mut Vec<Value>) {
    if columns.iter().any(|column| column["name"] == "Accepted") {
        return;
    }
    let mut column = json!({
        "name": "Accepted",
        "type": "string",
        "jsonPath": ".status.conditions[?(@.type==\"Accepted\")].status",
    });
    if kind == KindName::Server {
        column["priority"] = 1.into();
    }
    columns.insert(columns.len().saturating_sub(1), column);
}

/// The definition of a kind as the text of a YAML file.
///
/// # Errors
/// When the YAML writer refuses; it has no reason to.
pub fn crd_yaml(kind: KindName) -> Result<String, serde_saphyr::ser::Error> {
    let yaml = serde_saphyr::to_string(&crd(kind))?;
    Ok(format!(
        "# Generated by `cargo run -p horizon-crds --bin crdgen`: change the types in crds/src, not this file.\n{yaml}"
    ))
}
