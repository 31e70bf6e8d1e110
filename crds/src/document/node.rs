//! A tree of values with their places, the same for TOML, YAML and JSON.

use serde_json::Value;

use super::Position;

/// How deep values may be nested. The schema needs 6.
pub(super) const MAX_DEPTH: usize = 32;

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) position: Position,
    pub(super) value: NodeValue,
}

/// What a place holds.
#[derive(Clone, Debug)]
pub(super) enum NodeValue {
    Table(Vec<Entry>),
    List(Vec<Node>),
    Text(String),
    Integer(i64),
    Bool(bool),
    /// Something no document may contain, by its name: a float, a date, a null.
    Foreign(&'static str),
}

/// A key of a table and what it holds.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) position: Position,
    pub(super) node: Node,
}

impl NodeValue {
    /// What it is, with its article.
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Self::Table(_) => "a table",
            Self::List(_) => "a list",
            Self::Text(_) => "a text",
            Self::Integer(_) => "a number",
            Self::Bool(_) => "true or false",
            Self::Foreign(name) => name,
        }
    }
}

impl Node {
    /// The entries of a table.
    pub(super) fn entries(&self) -> Option<&[Entry]> {
        match &self.value {
            NodeValue::Table(entries) => Some(entries),
            _ => None,
        }
    }

    /// The value of a key of a table.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entries()?.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    /// The text, when it is one.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            NodeValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Takes over JSON, which has no places.
    pub(super) fn from_json(json: &Value, depth: usize) -> Self {
        let position = Position { line: 1, column: 1 };
        let value = match json {
            _ if depth > MAX_DEPTH => NodeValue::Foreign("a value nested too deep"),
            Value::Null => NodeValue::Foreign("a null"),
            Value::Bool(value) => NodeValue::Bool(*value),
            Value::Number(number) => match number.as_i64() {
                Some(value) => NodeValue::Integer(value),
                None => NodeValue::Foreign("a number with a fraction or out of range"),
            },
            Value::String(text) => NodeValue::Text(text.clone()),
            Value::Array(items) => {
                NodeValue::List(items.iter().map(|i| Self::from_json(i, depth + 1)).collect())
            }
            Value::Object(fields) => NodeValue::Table(
                fields
                    .iter()
                    .map(|(key, json)| Entry {
                        key: key.clone(),
                        position,
                        node: Self::from_json(json, depth + 1),
                    })
                    .collect(),
            ),
        };
        Self { position, value }
    }
}
