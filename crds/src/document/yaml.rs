//! Reading YAML.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Error, Location, MergeKeyPolicy, Options, Spanned, UserMessageFormatter};

use super::{
    MAX_RESOURCES_PER_FILE, Position,
    node::{Entry, MAX_DEPTH, Node, NodeValue},
    read::Reader,
    split::{Part, cut_before},
};
use crate::value::quoted;

/// Reads a YAML file. At the beginning of a line `---` always separates documents (YAML 1.2.2, section 9.1), so each can be
/// read on its own and one that is no YAML leaves the others alone.
pub(super) fn read(text: &str, reader: &mut Reader) {
    let parts = cut_before(text, opens_document);
    if parts.len() > MAX_RESOURCES_PER_FILE {
        let message = format!("the file holds {} documents, more than {MAX_RESOURCES_PER_FILE}", parts.len());
        return reader.fail(None, &message, "split it into several files");
    }
    for Part { lines_before, text } in parts.into_iter().filter(|part| !part.text.lines().all(is_blank)) {
        match parse(text, lines_before) {
            Ok(node) => reader.document(&node),
            Err((position, message)) => {
                reader.fail(
                    Some(position),
                    &message,
                    "correct the syntax: check indentation, colons and quotes",
                );
            }
        }
    }
}

fn opens_document(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Whether a line holds nothing but a document marker, a comment or spaces.
fn is_blank(line: &str) -> bool {
    let line = line.strip_prefix("---").unwrap_or(line).trim();
    line.is_empty() || line.starts_with('#') || line == "..."
}

fn options() -> Options {
    serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
        merge_keys: MergeKeyPolicy::Error,
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_aliases: 0,
            max_anchors: 0,
            max_merge_keys: 0,
        },
    }
}

fn parse(text: &str, lines_before: u32) -> Result<Node, (Position, String)> {
    let mut node = match serde_saphyr::from_str_with_options::<Spanned<NodeValue>>(text, options()) {
        Ok(spanned) => into_node(spanned),
        Err(error) => {
            let mut position = error.location().map_or(Position { line: 1, column: 1 }, place);
            position.line = position.line.saturating_add(lines_before);
            return Err((position, explain(&error)));
        }
    };
    shift(&mut node, lines_before);
    Ok(node)
}

/// An error of the YAML library in our words. Its own text names its options and repeats the place.
fn explain(error: &Error) -> String {
    match error.without_snippet() {
        Error::DuplicateMappingKey { key: Some(key), .. } => format!("the key {} stands twice", quoted(key)),
        Error::MergeKeyNotAllowed { .. } => "merge keys (<<) are not read: write the fields out".to_owned(),
        Error::Budget { .. } => {
            "the document uses anchors, is nested too deep or holds too many values".to_owned()
        }
        error => {
            let text = error.render_with_formatter(&UserMessageFormatter);
            let text = text.split(" at line ").next().unwrap_or_default();
            text.trim().replace('\n', ", ")
        }
    }
}

fn place(location: Location) -> Position {
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX).max(1);
    Position { line: number(location.line()), column: number(location.column()) }
}

fn into_node(spanned: Spanned<NodeValue>) -> Node {
    Node { position: place(spanned.referenced), value: spanned.value }
}

/// Moves the places of a tree down by the lines before its document.
fn shift(node: &mut Node, lines: u32) {
    node.position.line = node.position.line.saturating_add(lines);
    match &mut node.value {
        NodeValue::Table(entries) => entries.iter_mut().for_each(|entry| {
            entry.position.line = entry.position.line.saturating_add(lines);
            shift(&mut entry.node, lines);
        }),
        NodeValue::List(items) => items.iter_mut().for_each(|item| shift(item, lines)),
        _ => {}
    }
}

impl<'de> Deserialize<'de> for NodeValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = NodeValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<NodeValue, E> {
        Ok(NodeValue::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<NodeValue, E> {
        Ok(NodeValue::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<NodeValue, E> {
        Ok(i64::try_from(value).map_or(NodeValue::Foreign("a number out of range"), NodeValue::Integer))
    }

    fn visit_i128<E>(self, _: i128) -> Result<NodeValue, E> {
        Ok(NodeValue::Foreign("a number out of range"))
    }

    fn visit_u128<E>(self, _: u128) -> Result<NodeValue, E> {
        Ok(NodeValue::Foreign("a number out of range"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<NodeValue, E> {
        Ok(NodeValue::Foreign("a number with a fraction"))
    }

    fn visit_str<E>(self, text: &str) -> Result<NodeValue, E> {
        Ok(NodeValue::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<NodeValue, E> {
        Ok(NodeValue::Text(text))
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<NodeValue, E> {
        Ok(NodeValue::Foreign("binary data"))
    }

    fn visit_unit<E>(self) -> Result<NodeValue, E> {
        Ok(NodeValue::Foreign("nothing"))
    }

    fn visit_none<E>(self) -> Result<NodeValue, E> {
        Ok(NodeValue::Foreign("nothing"))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<NodeValue, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<NodeValue, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<NodeValue, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Spanned<NodeValue>>()? {
            list.push(into_node(item));
        }
        Ok(NodeValue::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<NodeValue, A::Error> {
        let mut entries: Vec<Entry> = Vec::new();
        while let Some(key) = fields.next_key::<Spanned<String>>()? {
            let node = into_node(fields.next_value()?);
            entries.push(Entry { key: key.value, position: place(key.referenced), node });
        }
        Ok(NodeValue::Table(entries))
    }
}
