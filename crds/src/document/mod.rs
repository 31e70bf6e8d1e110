//! Documents: resources as people write them, in TOML or YAML.
//!
//! A TOML file holds one document (`apiVersion`, `kind`, `metadata` and `spec` at its top) or many under `[[resource]]`; a
//! YAML file holds one or many, separated by `---`. Both are the same documents. Everything that is wrong is reported with
//! its place and a remedy, and one wrong document does not take the others of its file with it.

mod node;
mod object;
mod origin;
mod problem;
mod read;
mod render;
mod shape;
mod split;
mod toml;
mod yaml;

pub use object::{CHANGED_BY, from_object};
pub use origin::{Origin, Position};
pub use problem::{KUBERNETES_PREFIX, Problem};
pub use render::{to_toml, to_yaml};
pub(crate) use shape::{Field, Shape, spec_shape};

use std::sync::Arc;

use serde_json::Value;

use crate::{Issue, Resource, ResourceId};
use read::Reader;

/// The largest file that is read, in bytes.
pub const MAX_FILE_BYTES: usize = 1 << 20;
/// The most resources in one file.
pub const MAX_RESOURCES_PER_FILE: usize = 4096;
/// The most problems reported for one file. The last one then says that there are more.
pub const MAX_PROBLEMS_PER_FILE: usize = 200;

/// The language a document is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// TOML 1.1.
    Toml,
    /// YAML 1.2.
    Yaml,
}

impl Format {
    /// The format a file's name stands for: `.toml`, `.yaml` or `.yml`.
    pub fn of_file_name(name: &str) -> Option<Self> {
        match name.rsplit_once('.')?.1 {
            "toml" => Some(Self::Toml),
            "yaml" | "yml" => Some(Self::Yaml),
            _ => None,
        }
    }
}

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// The resources without a problem, in the order of the file.
    pub resources: Vec<(Resource, Origin)>,
    /// What is wrong, in the order of the file.
    pub problems: Vec<Problem>,
    unidentified: bool,
}

impl Parsed {
    /// Whether every document could at least be told by kind and name. Only then is a resource that used to be in this file,
    /// and is in neither list now, really gone; otherwise it may be one that cannot be read.
    pub fn is_complete(&self) -> bool {
        !self.unidentified
    }

    /// The resources that are in the file but have problems: their last good state stays in force.
    pub fn broken(&self) -> impl Iterator<Item = &ResourceId> {
        self.problems.iter().filter_map(|problem| problem.resource.as_ref())
    }
}

/// Reads a file. Its name decides the format (TOML unless it ends in `.yaml` or `.yml`) and appears in every problem.
///
/// Never fails as a whole and never panics: whatever the bytes are, the answer lists what could be read and what could not.
pub fn parse(file: &str, bytes: &[u8]) -> Parsed {
    parse_as(file, Format::of_file_name(file).unwrap_or(Format::Toml), bytes)
}

/// Reads a file of a known format.
pub fn parse_as(file: &str, format: Format, bytes: &[u8]) -> Parsed {
    let mut reader = Reader::new(Arc::from(file));
    if bytes.len() > MAX_FILE_BYTES {
        let message =
            format!("the file has {} bytes, more than the {MAX_FILE_BYTES} that are read", bytes.len());
        reader.fail(None, &message, "split it into several files");
        return reader.finish();
    }
    match std::str::from_utf8(bytes) {
        Err(error) => {
            let place = split::LineIndex::new(&String::from_utf8_lossy(&bytes[..error.valid_up_to()])).last();
            reader.fail(Some(place), "the file is not UTF-8 text", "save it as UTF-8");
        }
        Ok(text) => match format {
            Format::Toml => toml::read(text, &mut reader),
            Format::Yaml => yaml::read(text, &mut reader),
        },
    }
    reader.finish()
}

/// Reads one resource from JSON in the shape of a document, as the API receives it, by the same rules as a file.
///
/// # Errors
/// Everything that is wrong, at least one issue.
pub fn from_json(json: &Value) -> Result<Resource, Vec<Issue>> {
    let mut reader = Reader::new(Arc::from(""));
    reader.document(&node::Node::from_json(json, 0));
    let mut parsed = reader.finish();
    match parsed.resources.pop() {
        Some((resource, _)) if parsed.problems.is_empty() => Ok(resource),
        _ => Err(parsed.problems.into_iter().map(Problem::into_issue).collect()),
    }
}
