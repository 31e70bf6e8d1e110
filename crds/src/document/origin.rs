//! Where a resource was written.

use std::{fmt, sync::Arc};

use serde::Serialize;

/// A place in a file. Lines and columns count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// The place of a resource: its file, its first line, and where each of its fields is.
#[derive(Clone, Debug)]
pub struct Origin {
    file: Arc<str>,
    position: Position,
    /// Hashes of field paths, sorted. A collision would only show another line.
    fields: Arc<[(u64, Position)]>,
}

impl Origin {
    pub(super) fn new(file: Arc<str>, position: Position, mut fields: Vec<(u64, Position)>) -> Self {
        fields.sort_unstable();
        Self { file, position, fields: fields.into() }
    }

    /// The origin of a resource that is in no file, named after whatever made it.
    pub fn elsewhere(source: impl Into<Arc<str>>) -> Self {
        Self::new(source.into(), Position { line: 1, column: 1 }, Vec::new())
    }

    /// The file, as it was named to the parser.
    pub fn file(&self) -> &str {
        &self.file
    }

    pub(crate) fn shared_file(&self) -> Arc<str> {
        self.file.clone()
    }

    /// Where the document begins.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Where a field is, like `spec.networks[0]`; for a field that is not written, where the nearest one around it is.
    pub fn locate(&self, field: &str) -> Position {
        let mut path = field;
        loop {
            if let Ok(index) = self.fields.binary_search_by_key(&hash(path), |(hash, _)| *hash) {
                return self.fields[index].1;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return self.position,
            }
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.position.line)
    }
}

/// FNV-1a, 64 bits.
pub(super) fn hash(path: &str) -> u64 {
    path.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_field_is_located_by_its_surroundings() {
        let at = |line| Position { line, column: 1 };
        let origin = Origin::new(
            "a.toml".into(),
            at(1),
            vec![(hash("spec"), at(4)), (hash("spec.networks[0]"), at(6))],
        );
        assert_eq!(origin.locate("spec.networks[0]"), at(6));
        assert_eq!(origin.locate("spec.egress.dns[3]"), at(4));
        assert_eq!(origin.locate("metadata.name"), at(1));
        assert_eq!(origin.to_string(), "a.toml:1");
    }
}
