//! From a tree of values to a resource, by the schema.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::{Map, Value};

use super::{
    Field, MAX_PROBLEMS_PER_FILE, Origin, Parsed, Position, Problem, Shape,
    node::{Entry, Node, NodeValue},
    origin::hash,
    spec_shape,
};
use crate::{
    API_VERSION, DEFAULT_NAMESPACE, Issue, KindName, Metadata, Name, Resource, ResourceId, TimeSpan,
    check::did_you_mean,
    value::{check_format, format_name, quoted},
};

/// Collects what a file holds.
pub(super) struct Reader {
    file: Arc<str>,
    parsed: Parsed,
}

impl Reader {
    pub(super) fn new(file: Arc<str>) -> Self {
        Self { file, parsed: Parsed::default() }
    }

    /// Notes a problem after which it is unknown which resources the file holds.
    pub(super) fn fail(&mut self, position: Option<Position>, message: &str, remedy: &str) {
        self.parsed.unidentified = true;
        self.problem(position, None, String::new(), message.to_owned(), remedy.to_owned());
    }

    fn problem(
        &mut self,
        position: Option<Position>,
        resource: Option<ResourceId>,
        field: String,
        message: String,
        remedy: String,
    ) {
        self.parsed.problems.push(Problem {
            file: self.file.clone(),
            position,
            resource,
            field,
            message,
            remedy,
        });
    }

    /// Reads one document.
    pub(super) fn document(&mut self, node: &Node) {
        let mut walk = Walk::default();
        let (id, resource) = walk.document(node);
        if id.is_none() {
            self.parsed.unidentified = true;
        }
        let mut complaints = std::mem::take(&mut walk.complaints);
        complaints.sort_by_key(|complaint| complaint.position);
        for Complaint { position, issue } in complaints {
            self.problem(Some(position), id.clone(), issue.field, issue.message, issue.remedy);
        }
        if let Some(resource) = resource {
            let origin = Origin::new(self.file.clone(), node.position, walk.places);
            let issues = resource.check();
            if issues.is_empty() {
                self.parsed.resources.push((resource, origin));
                return;
            }
            for issue in issues {
                self.parsed.problems.push(Problem::from_issue(issue, &resource, &origin));
            }
        }
    }

    pub(super) fn finish(mut self) -> Parsed {
        let problems = &mut self.parsed.problems;
        if problems.len() > MAX_PROBLEMS_PER_FILE {
            let more = problems.len() - MAX_PROBLEMS_PER_FILE + 1;
            problems.truncate(MAX_PROBLEMS_PER_FILE - 1);
            self.fail(None, &format!("{more} more problems are not shown"), "correct these first");
        }
        self.parsed
    }
}

struct Complaint {
    position: Position,
    issue: Issue,
}

/// One pass over a document.
#[derive(Default)]
struct Walk {
    complaints: Vec<Complaint>,
    places: Vec<(u64, Position)>,
}

impl Walk {
    fn complain(
        &mut self,
        position: Position,
        field: &str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let issue = Issue { field: field.to_owned(), message: message.into(), remedy: remedy.into() };
        self.complaints.push(Complaint { position, issue });
    }

    fn note(&mut self, path: &str, position: Position) {
        self.places.push((hash(path), position));
    }

    /// The document's identity, when it can be told, and the resource, when nothing is wrong with the single fields.
    fn document(&mut self, node: &Node) -> (Option<ResourceId>, Option<Resource>) {
        let Some(entries) = node.entries() else {
            let message = format!("the document is {}, not a table", node.value.describe());
            self.complain(node.position, "", message, "write apiVersion, kind, metadata and spec");
            return (None, None);
        };
        self.only(entries, "", &["apiVersion", "kind", "metadata", "spec"]);
        self.api_version(node);
        let kind = self.kind(node);
        let metadata = self.metadata(node);
        let id = kind.zip(metadata.as_ref()).map(|(kind, metadata)| ResourceId {
            kind,
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
        });
        let spec = match (kind, node.get("spec")) {
            (Some(kind), Some(spec)) => self.value(spec, spec_shape(kind), "spec"),
            (_, Some(_)) => None,
            (_, None) => {
                self.complain(
                    node.position,
                    "spec",
                    "the document has no spec",
                    "add a spec, even an empty one",
                );
                None
            }
        };
        let resource = match (kind, metadata, spec) {
            (Some(kind), Some(metadata), Some(spec)) if self.complaints.is_empty() => {
                match Resource::from_json(kind, metadata, spec) {
                    Ok(resource) => Some(resource),
                    Err(error) => {
                        self.complain(node.position, "spec", error.to_string(), "correct the value");
                        None
                    }
                }
            }
            _ => None,
        };
        (id, resource)
    }

    fn api_version(&mut self, document: &Node) {
        let remedy = format!("write \"{API_VERSION}\"");
        match document.get("apiVersion") {
            None => self.complain(document.position, "apiVersion", "the document has no apiVersion", remedy),
            Some(node) if node.text() == Some(API_VERSION) => {}
            Some(node) => {
                let message = match node.text() {
                    Some(text) => format!("unknown apiVersion {}", quoted(text)),
                    None => format!("apiVersion is {}, not a text", node.value.describe()),
                };
                self.complain(node.position, "apiVersion", message, remedy);
            }
        }
    }

    fn kind(&mut self, document: &Node) -> Option<KindName> {
        let all = || format!("write one of {}", KindName::ALL.map(KindName::as_str).join(", "));
        let Some(node) = document.get("kind") else {
            self.complain(document.position, "kind", "the document has no kind", all());
            return None;
        };
        let Some(text) = node.text() else {
            self.complain(
                node.position,
                "kind",
                format!("kind is {}, not a text", node.value.describe()),
                all(),
            );
            return None;
        };
        match text.parse::<KindName>() {
            Ok(kind) => Some(kind),
            Err(error) => {
                self.complain(node.position, "kind", format!("unknown kind {}", quoted(text)), error.remedy);
                None
            }
        }
    }

    fn metadata(&mut self, document: &Node) -> Option<Metadata> {
        let Some(node) = document.get("metadata") else {
            let remedy = "add metadata with a name";
            self.complain(document.position, "metadata", "the document has no metadata", remedy);
            return None;
        };
        let Some(entries) = node.entries() else {
            let message = format!("metadata is {}, not a table", node.value.describe());
            self.complain(node.position, "metadata", message, "write metadata with a name");
            return None;
        };
        self.note("metadata", node.position);
        self.only(entries, "metadata", &["name", "namespace", "labels", "annotations"]);
        let name = match node.get("name") {
            Some(name) => self.name(name, "metadata.name"),
            None => {
                self.complain(
                    node.position,
                    "metadata.name",
                    "the document has no name",
                    "add a name to metadata",
                );
                None
            }
        };
        let namespace = match node.get("namespace") {
            Some(namespace) => self.name(namespace, "metadata.namespace"),
            None => DEFAULT_NAMESPACE.parse().ok(),
        };
        let labels = self.strings(node, "labels", Metadata::MAX_LABEL_BYTES, is_label_value);
        let annotations = self.strings(node, "annotations", Metadata::MAX_ANNOTATION_BYTES, |_| true);
        Some(Metadata { name: name?, namespace: namespace?, labels, annotations })
    }

    fn name(&mut self, node: &Node, field: &str) -> Option<Name> {
        self.note(field, node.position);
        let Some(text) = node.text() else {
            let message = format!("{} is not a name", node.value.describe());
            self.complain(node.position, field, message, "write a text in quotes");
            return None;
        };
        match text.parse() {
            Ok(name) => Some(name),
            Err(error) => {
                self.complain(node.position, field, error.message, error.remedy);
                None
            }
        }
    }

    fn strings(
        &mut self,
        metadata: &Node,
        field: &str,
        longest: usize,
        is_value: impl Fn(&str) -> bool,
    ) -> BTreeMap<String, String> {
        let path = format!("metadata.{field}");
        let Some(node) = metadata.get(field) else { return BTreeMap::new() };
        self.note(&path, node.position);
        let Some(entries) = node.entries() else {
            let message = format!("{field} is {}, not a table", node.value.describe());
            self.complain(node.position, &path, message, "write keys with texts");
            return BTreeMap::new();
        };
        if entries.len() > Metadata::MAX_ENTRIES {
            let message = format!("{} {field} are more than {}", entries.len(), Metadata::MAX_ENTRIES);
            self.complain(node.position, &path, message, "remove some");
            return BTreeMap::new();
        }
        let mut strings = BTreeMap::new();
        for entry in entries {
            if !is_qualified_name(&entry.key) {
                let message = format!("{} is not a key of {field}", quoted(&entry.key));
                let remedy =
                    "use up to 63 letters, digits, '-', '_' and '.', after a domain and '/' if need be";
                self.complain(entry.position, &path, message, remedy);
            }
            match entry.node.text() {
                Some(text) if text.len() <= longest && is_value(text) => {
                    strings.insert(entry.key.clone(), text.to_owned());
                }
                Some(_) => {
                    let message = format!("the value of {} is not allowed in {field}", quoted(&entry.key));
                    let remedy =
                        format!("use at most {longest} bytes; in labels, letters, digits, '-', '_' and '.'");
                    self.complain(entry.node.position, &path, message, remedy);
                }
                None => {
                    let message =
                        format!("the value of {} is {}", quoted(&entry.key), entry.node.value.describe());
                    self.complain(entry.node.position, &path, message, "write a text in quotes");
                }
            }
        }
        strings
    }

    /// Complains about every key that is not allowed.
    fn only(&mut self, entries: &[Entry], path: &str, allowed: &[&str]) {
        for entry in entries.iter().filter(|entry| !allowed.contains(&entry.key.as_str())) {
            let field = join(path, &entry.key);
            let message = format!("unknown field {}", quoted(&entry.key));
            let remedy = match (path, entry.key.as_str()) {
                ("", "status") => "remove it: the controller writes the status".to_owned(),
                (
                    "metadata",
                    "uid"
                    | "resourceVersion"
                    | "generation"
                    | "creationTimestamp"
                    | "managedFields"
                    | "selfLink"
                    | "ownerReferences"
                    | "finalizers"
                    | "deletionTimestamp"
                    | "deletionGracePeriodSeconds",
                ) => "remove it: the API server writes it".to_owned(),
                _ => did_you_mean(&entry.key, allowed.iter().copied(), || match allowed {
                    [] => "remove it".to_owned(),
                    _ => format!("use one of {}", allowed.join(", ")),
                }),
            };
            self.complain(entry.position, &field, message, remedy);
        }
    }

    /// Reads a value of a known shape. `None` after a complaint about it as a whole.
    fn value(&mut self, node: &Node, shape: &Shape, path: &str) -> Option<Value> {
        self.note(path, node.position);
        match (shape, &node.value) {
            (Shape::Object(fields), NodeValue::Table(entries)) => {
                Some(self.object(node, entries, fields, path))
            }
            (Shape::List { item, least, most, unique }, NodeValue::List(items)) => {
                self.list(node, items, (item, *least, *most, *unique), path)
            }
            (Shape::Text { least, most, format, range }, NodeValue::Text(text)) => {
                self.text(node, text, (*least, *most), path)?;
                let format = format.as_deref().unwrap_or_default();
                if let Some(Err(error)) = check_format(format, text) {
                    self.complain(node.position, path, error.message, error.remedy);
                    return None;
                }
                if let Some((least, most)) = range {
                    self.span(node, text, (*least, *most), path)?;
                }
                Some(Value::from(text.as_str()))
            }
            (Shape::Choice(choices), NodeValue::Text(text)) => {
                if choices.contains(text) {
                    return Some(Value::from(text.as_str()));
                }
                let message = format!("{} is not one of the choices", quoted(text));
                let remedy = did_you_mean(text, choices.iter().map(String::as_str), || one_of(choices));
                self.complain(node.position, path, message, remedy);
                None
            }
            (Shape::Integer { least, most }, NodeValue::Integer(value)) => {
                if (least..=most).contains(&value) {
                    return Some(Value::from(*value));
                }
                let remedy = format!("write a number from {least} to {most}");
                self.complain(node.position, path, format!("{value} is out of range"), remedy);
                None
            }
            (Shape::Bool, NodeValue::Bool(value)) => Some(Value::from(*value)),
            _ => {
                let (expected, remedy) = expectation(shape);
                let message = format!("this is {}, where {expected} is expected", node.value.describe());
                self.complain(node.position, path, message, remedy);
                None
            }
        }
    }

    fn object(&mut self, node: &Node, entries: &[Entry], fields: &[Field], path: &str) -> Value {
        let names: Vec<&str> = fields.iter().map(|field| field.name.as_str()).collect();
        self.only(entries, path, &names);
        let mut object = Map::new();
        for field in fields {
            match node.get(&field.name) {
                Some(node) => {
                    if let Some(value) = self.value(node, &field.shape, &join(path, &field.name)) {
                        object.insert(field.name.clone(), value);
                    }
                }
                None if field.required => {
                    let message = format!("{} is missing", field.name);
                    let (expected, _) = expectation(&field.shape);
                    self.complain(
                        node.position,
                        &join(path, &field.name),
                        message,
                        format!("add {expected}"),
                    );
                }
                None => {}
            }
        }
        Value::Object(object)
    }

    fn list(
        &mut self,
        node: &Node,
        items: &[Node],
        (item, least, most, unique): (&Shape, usize, usize, bool),
        path: &str,
    ) -> Option<Value> {
        if !(least..=most).contains(&items.len()) {
            let message = match items.len() {
                0 => "the list is empty".to_owned(),
                count => format!("the list has {count} entries"),
            };
            let remedy = match least {
                0 => format!("keep at most {most}"),
                _ => format!("write {least} to {most} entries"),
            };
            self.complain(node.position, path, message, remedy);
            return None;
        }
        let mut values: Vec<Value> = Vec::with_capacity(items.len());
        for (i, node) in items.iter().enumerate() {
            let path = format!("{path}[{i}]");
            let Some(value) = self.value(node, item, &path) else { continue };
            if unique && values.contains(&value) {
                let shown = value.as_str().map_or_else(|| value.to_string(), quoted);
                self.complain(node.position, &path, format!("{shown} stands twice"), "remove one of the two");
            }
            values.push(value);
        }
        Some(Value::Array(values))
    }

    fn text(&mut self, node: &Node, text: &str, (least, most): (usize, usize), path: &str) -> Option<()> {
        let length = text.chars().count();
        if length > most {
            let message = format!("the text has {length} characters");
            self.complain(node.position, path, message, format!("shorten it to {most}"));
            return None;
        }
        if length < least && length == 0 {
            self.complain(node.position, path, "the text is empty", "write something");
            return None;
        }
        Some(())
    }

    fn span(
        &mut self,
        node: &Node,
        text: &str,
        (least, most): (TimeSpan, TimeSpan),
        path: &str,
    ) -> Option<()> {
        if text.parse().is_ok_and(|span: TimeSpan| (least..=most).contains(&span)) {
            return Some(());
        }
        let remedy = format!("write a duration from {least} to {most}");
        self.complain(node.position, path, format!("{} is out of range", quoted(text)), remedy);
        None
    }
}

/// What a shape wants, with its article, and how to write it.
fn expectation(shape: &Shape) -> (String, String) {
    let (what, how) = match shape {
        Shape::Object(_) => ("a table".to_owned(), "write its fields".to_owned()),
        Shape::List { .. } => ("a list".to_owned(), "put the values in brackets".to_owned()),
        Shape::Text { format, .. } => {
            let name = format_name(format.as_deref().unwrap_or_default());
            let article = if name.starts_with(['a', 'e', 'i', 'I']) { "an" } else { "a" };
            (format!("{article} {name}"), "write it in quotes".to_owned())
        }
        Shape::Choice(choices) => ("a text".to_owned(), one_of(choices)),
        Shape::Integer { least, most } => {
            ("a whole number".to_owned(), format!("write a number from {least} to {most}, without quotes"))
        }
        Shape::Bool => ("true or false".to_owned(), "write it without quotes".to_owned()),
    };
    (what, how)
}

fn one_of(choices: &[String]) -> String {
    match choices {
        [only] => format!("write \"{only}\""),
        _ => format!("write one of {}", choices.join(", ")),
    }
}

fn join(path: &str, key: &str) -> String {
    const SHOWN: usize = 64;
    let key: String = key.chars().take(SHOWN).collect();
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// A key of labels or annotations: a name, after a domain and a slash if need be.
fn is_qualified_name(key: &str) -> bool {
    let (domain, name) = match key.split_once('/') {
        Some((domain, name)) => (Some(domain), name),
        None => (None, key),
    };
    domain.is_none_or(|domain| domain.parse::<crate::DomainName>().is_ok())
        && !name.is_empty()
        && is_label_value(name)
}

/// A value of a label: empty, or letters, digits, `-`, `_` and `.`, with a letter or digit at both ends.
fn is_label_value(value: &str) -> bool {
    let end = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    bytes.len() <= Metadata::MAX_LABEL_BYTES
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && end(bytes.first())
        && end(bytes.last())
}
