//! Reading TOML.

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    MAX_RESOURCES_PER_FILE, Position,
    node::{Entry, MAX_DEPTH, Node, NodeValue},
    read::Reader,
    split::{LineIndex, Part, cut_before},
};
use crate::check::nearest;

/// The key under which a file holds many documents.
const MANY: &str = "resource";

/// Reads a TOML file.
pub(super) fn read(text: &str, reader: &mut Reader) {
    match parse(text, 0) {
        Ok(root) => documents(&root, reader),
        Err(error) => recover(text, &error, reader),
    }
}

struct SyntaxError {
    position: Position,
    message: String,
}

fn parse(text: &str, lines_before: u32) -> Result<Node, SyntaxError> {
    let lines = LineIndex::new(text);
    let place = |offset: usize| {
        let position = lines.position(offset);
        Position { line: position.line.saturating_add(lines_before), ..position }
    };
    match DeTable::parse(text) {
        Ok(table) => {
            let start = table.span().start;
            Ok(Node { position: place(start), value: table_value(table.into_inner(), &place, 0) })
        }
        Err(error) => Err(SyntaxError {
            position: place(error.span().map_or(0, |span| span.start)),
            message: error.message().trim().replace('\n', ", "),
        }),
    }
}

fn table_value(table: DeTable<'_>, place: &impl Fn(usize) -> Position, depth: usize) -> NodeValue {
    let entry = |(key, value): (Spanned<_>, _)| {
        let position = place(key.span().start);
        let key: std::borrow::Cow<'_, str> = key.into_inner();
        Entry { key: key.into_owned(), position, node: node(value, place, depth + 1) }
    };
    NodeValue::Table(table.into_iter().map(entry).collect())
}

fn node(value: Spanned<DeValue<'_>>, place: &impl Fn(usize) -> Position, depth: usize) -> Node {
    let position = place(value.span().start);
    let value = match value.into_inner() {
        _ if depth > MAX_DEPTH => NodeValue::Foreign("a value nested too deep"),
        DeValue::String(text) => NodeValue::Text(text.into_owned()),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(value) => NodeValue::Integer(value),
            Err(_) => NodeValue::Foreign("a number out of range"),
        },
        DeValue::Boolean(value) => NodeValue::Bool(value),
        DeValue::Float(_) => NodeValue::Foreign("a number with a fraction"),
        DeValue::Datetime(_) => NodeValue::Foreign("a date without quotes"),
        DeValue::Array(items) => {
            NodeValue::List(items.into_iter().map(|item| node(item, place, depth + 1)).collect())
        }
        DeValue::Table(table) => table_value(table, place, depth),
    };
    Node { position, value }
}

/// Reads the documents of a file: one at its top, or those under `[[resource]]`.
fn documents(root: &Node, reader: &mut Reader) {
    let entries = root.entries().unwrap_or_default();
    if entries.is_empty() {
        return;
    }
    let Some(many) = root.get(MANY) else {
        return match entries.iter().find(|entry| is_nearly_many(entry)) {
            Some(entry) => reader.fail(
                Some(entry.position),
                &format!("unknown table [[{}]]", entry.key),
                "write [[resource]] before each document",
            ),
            None => reader.document(root),
        };
    };
    for other in entries.iter().filter(|entry| entry.key != MANY) {
        let message = format!("\"{}\" stands beside [[resource]]", other.key);
        reader.fail(Some(other.position), &message, "move it into a [[resource]] document or remove it");
    }
    let items = match &many.value {
        NodeValue::List(items) => items.as_slice(),
        _ => {
            let message = format!("resource is {}, not a list of documents", many.value.describe());
            return reader.fail(Some(many.position), &message, "write [[resource]], with two brackets");
        }
    };
    if items.len() > MAX_RESOURCES_PER_FILE {
        let message = format!("the file holds {} resources, more than {MAX_RESOURCES_PER_FILE}", items.len());
        return reader.fail(None, &message, "split it into several files");
    }
    items.iter().for_each(|item| reader.document(item));
}

/// Whether an entry looks like a misspelt `[[resource]]`.
fn is_nearly_many(entry: &Entry) -> bool {
    let tables =
        matches!(&entry.node.value, NodeValue::List(items) if items.iter().all(|i| i.entries().is_some()));
    tables && nearest(&entry.key, [MANY]).is_some()
}

/// Whether a line opens the next document.
fn opens_document(line: &str) -> bool {
    let line = line.trim_start();
    line.strip_prefix("[[")
        .and_then(|rest| rest.trim_start().strip_prefix(MANY))
        .is_some_and(|rest| rest.trim_start().starts_with("]]"))
}

/// Reads what can be read of a file that is not TOML as a whole: each `[[resource]]` on its own. A file with multi-line strings
/// is not cut, since such a line may be inside one.
fn recover(text: &str, error: &SyntaxError, reader: &mut Reader) {
    let remedy = "correct the syntax: texts need quotes, lists need brackets, each key stands once";
    let parts = cut_before(text, opens_document);
    let cuttable = parts.len() > 1 && !text.contains("\"\"\"") && !text.contains("'''");
    if !cuttable || parts.len() > MAX_RESOURCES_PER_FILE {
        return reader.fail(Some(error.position), &error.message, remedy);
    }
    let mut failed = false;
    for Part { lines_before, text } in parts {
        match parse(text, lines_before) {
            Ok(root) => documents(&root, reader),
            Err(error) => {
                failed = true;
                reader.fail(Some(error.position), &error.message, remedy);
            }
        }
    }
    if !failed {
        // Each part is TOML and together they are not.
        reader.fail(Some(error.position), &error.message, remedy);
    }
}
