//! Writing documents.

use serde_json::Value;
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table};

use crate::Resource;

/// Writes resources as one TOML file: one document at its top, several under `[[resource]]`. Reading it gives the same
/// resources.
pub fn to_toml(resources: &[Resource]) -> String {
    let mut document = DocumentMut::new();
    match resources {
        [resource] => *document.as_table_mut() = table(&resource.to_json()),
        _ => {
            let many: ArrayOfTables = resources.iter().map(|resource| table(&resource.to_json())).collect();
            document.insert("resource", Item::ArrayOfTables(many));
        }
    }
    document.to_string()
}

/// The fields of a JSON object in the order people expect: identity first, then plain values, then tables.
fn table(json: &Value) -> Table {
    let mut table = Table::new();
    for (name, value) in json.as_object().into_iter().flatten() {
        table.insert(name, item(value));
    }
    let rank = |key: &str, item: &Item| {
        let first =
            ["apiVersion", "kind", "name", "namespace", "metadata"].iter().position(|name| *name == key);
        (item.is_table() || item.is_array_of_tables(), first.unwrap_or(usize::MAX))
    };
    table.sort_values_by(|a, a_item, b, b_item| rank(a, a_item).cmp(&rank(b, b_item)).then_with(|| a.cmp(b)));
    table
}

fn item(json: &Value) -> Item {
    match json {
        Value::Object(_) => Item::Table(table(json)),
        Value::Array(items) if !items.is_empty() && items.iter().all(Value::is_object) => {
            Item::ArrayOfTables(items.iter().map(table).collect())
        }
        _ => Item::Value(value(json)),
    }
}

fn value(json: &Value) -> toml_edit::Value {
    match json {
        Value::Bool(value) => (*value).into(),
        Value::Number(number) => number.as_i64().unwrap_or_default().into(),
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => items.iter().map(value).collect::<Array>().into(),
        Value::Object(fields) => {
            fields.iter().map(|(name, json)| (name.as_str(), value(json))).collect::<InlineTable>().into()
        }
        // Documents have no nulls: an absent field is left out.
        Value::Null => "".into(),
    }
}

/// Writes resources as one YAML stream. Reading it gives the same resources.
///
/// # Errors
/// When the writer refuses; it has no reason to for documents of these kinds.
pub fn to_yaml(resources: &[Resource]) -> Result<String, serde_saphyr::ser::Error> {
    let documents = resources.iter().map(|resource| serde_saphyr::to_string(&resource.to_json()));
    Ok(documents.collect::<Result<Vec<_>, _>>()?.join("---\n"))
}
