//! The schema of specs in the form the reader walks. It is compiled from the same JSON schema the API server gets, so that
//! both refuse the same.

use std::sync::LazyLock;

use serde_json::Value;

use crate::{KindName, TimeSpan, crd};

/// What a value must look like.
#[derive(Clone, Debug)]
pub(crate) enum Shape {
    Object(Vec<Field>),
    List { item: Box<Shape>, least: usize, most: usize, unique: bool },
    Text { least: usize, most: usize, format: Option<String>, range: Option<(TimeSpan, TimeSpan)> },
    Choice(Vec<String>),
    Integer { least: i64, most: i64 },
    Bool,
}

/// A field of an object.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) shape: Shape,
    pub(crate) required: bool,
}

/// The shape of a kind's spec.
pub(crate) fn spec_shape(kind: KindName) -> &'static Shape {
    static SHAPES: LazyLock<Vec<Shape>> =
        LazyLock::new(|| KindName::ALL.iter().map(|kind| compile(&crd::spec_schema(*kind))).collect());
    &SHAPES[kind as usize]
}

/// Compiles a structural schema. What our own types do not produce counts as an object without fields, which accepts
/// nothing; a test walks all schemas and finds that there is none.
fn compile(schema: &Value) -> Shape {
    let size =
        |key: &str, default| schema[key].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(default);
    match schema["type"].as_str() {
        Some("object") => Shape::Object(fields(schema)),
        Some("array") => Shape::List {
            item: Box::new(compile(&schema["items"])),
            least: size("minItems", 0),
            most: size("maxItems", usize::MAX),
            unique: schema["x-kubernetes-list-type"] == "set",
        },
        Some("string") => match schema["enum"].as_array() {
            Some(choices) => {
                Shape::Choice(choices.iter().filter_map(Value::as_str).map(str::to_owned).collect())
            }
            None => Shape::Text {
                least: size("minLength", 0),
                most: size("maxLength", usize::MAX),
                format: schema["x-horizon-format"].as_str().map(str::to_owned),
                range: span(&schema["x-horizon-min"]).zip(span(&schema["x-horizon-max"])),
            },
        },
        Some("integer") => Shape::Integer {
            least: schema["minimum"].as_i64().unwrap_or(i64::MIN),
            most: schema["maximum"].as_i64().unwrap_or(i64::MAX),
        },
        Some("boolean") => Shape::Bool,
        _ => Shape::Object(Vec::new()),
    }
}

fn span(json: &Value) -> Option<TimeSpan> {
    json.as_str()?.parse().ok()
}

fn fields(schema: &Value) -> Vec<Field> {
    let required =
        |name: &str| schema["required"].as_array().is_some_and(|names| names.iter().any(|n| n == name));
    let properties = schema["properties"].as_object();
    properties
        .into_iter()
        .flatten()
        .map(|(name, schema)| Field { name: name.clone(), shape: compile(schema), required: required(name) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::check_format;

    fn walk(shape: &Shape, path: &str) {
        match shape {
            Shape::Object(fields) => {
                assert!(!fields.is_empty(), "{path} has no fields");
                for field in fields {
                    let path = format!("{path}.{}", field.name);
                    walk(&field.shape, &path);
                }
            }
            Shape::List { item, most, .. } => {
                assert!(*most <= 1024, "{path} is unbounded");
                walk(item, path);
            }
            Shape::Text { most, format, range, .. } => {
                assert!(*most <= 1024, "{path} is unbounded");
                let format = format.as_deref().unwrap_or_else(|| panic!("{path} has no format"));
                assert!(check_format(format, "").is_some(), "{path} has the unknown format {format}");
                assert!(format == "duration" || range.is_none(), "{path}");
            }
            Shape::Choice(choices) => assert!(!choices.is_empty(), "{path}"),
            Shape::Integer { least, most } => assert!(*least >= 0 && *most < i64::MAX, "{path} is unbounded"),
            Shape::Bool => {}
        }
    }

    #[test]
    fn every_value_is_bounded_and_documented() {
        for kind in KindName::ALL {
            walk(spec_shape(kind), kind.as_str());
        }
    }

    #[test]
    fn shapes_belong_to_their_kinds() {
        for (kind, field) in [(KindName::Server, "tunnel"), (KindName::Revocation, "target")] {
            let Shape::Object(fields) = spec_shape(kind) else { panic!("no object") };
            assert!(fields.iter().any(|f| f.name == field));
        }
    }
}
