//! Lines of a text, and its division into documents.

use super::Position;

/// Finds line and column of a byte, in a time that does not grow with the length of its line.
pub(super) struct LineIndex<'a> {
    text: &'a str,
    starts: Vec<usize>,
    /// How many characters begin before each [`STRIDE`] of bytes.
    characters: Vec<usize>,
}

const STRIDE: usize = 256;

/// How many characters begin in these bytes of UTF-8.
fn count(bytes: &[u8]) -> usize {
    bytes.iter().filter(|b| **b & 0xc0 != 0x80).count()
}

impl<'a> LineIndex<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0)
            .chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1));
        let mut before = 0;
        let counted = |chunk| {
            let characters = before;
            before += count(chunk);
            characters
        };
        let characters = text.as_bytes().chunks(STRIDE).map(counted).collect();
        Self { text, starts: starts.collect(), characters }
    }

    /// How many characters begin before the byte at `offset`.
    fn characters_before(&self, offset: usize) -> usize {
        let stride = offset / STRIDE;
        match self.characters.get(stride) {
            Some(before) => before + count(&self.text.as_bytes()[stride * STRIDE..offset]),
            None => self.text.chars().count(),
        }
    }

    /// The position of the byte at `offset`, counted from the first line.
    pub(super) fn position(&self, offset: usize) -> Position {
        let offset = offset.min(self.text.len());
        let line = self.starts.partition_point(|start| *start <= offset).max(1);
        let start = self.starts.get(line - 1).copied().unwrap_or_default();
        let column = self.characters_before(offset) - self.characters_before(start) + 1;
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Position { line: number(line), column: number(column) }
    }

    /// The position just behind the text.
    pub(super) fn last(&self) -> Position {
        self.position(self.text.len())
    }
}

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    /// How many lines come before it.
    pub(super) lines_before: u32,
    /// The text.
    pub(super) text: &'a str,
}

/// Cuts `text` before every line for which `begins` holds. The part before the first such line comes first, even when empty.
pub(super) fn cut_before<'a>(text: &'a str, begins: impl Fn(&str) -> bool) -> Vec<Part<'a>> {
    let (mut parts, mut start, mut lines_before, mut offset, mut lines) = (Vec::new(), 0, 0, 0, 0_u32);
    for line in text.split_inclusive('\n') {
        if begins(line) {
            parts.push(Part { lines_before, text: &text[start..offset] });
            (start, lines_before) = (offset, lines);
        }
        offset += line.len();
        lines += 1;
    }
    parts.push(Part { lines_before, text: &text[start..] });
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters() {
        let index = LineIndex::new("ab\nüx\n");
        let at = |offset| index.position(offset).to_string();
        assert_eq!([at(0), at(1), at(3), at(5), at(99)], ["1:1", "1:2", "2:1", "2:2", "3:1"]);
        assert_eq!(LineIndex::new("").last().to_string(), "1:1");
        let long = "ü".repeat(1000);
        for character in [0, 127, 128, 500, 999, 1000] {
            let position = LineIndex::new(&long).position(2 * character);
            assert_eq!(usize::try_from(position.column).unwrap(), character + 1);
        }
    }

    #[test]
    fn texts_are_cut_before_lines() {
        let part = |lines_before, text| Part { lines_before, text };
        let parts = cut_before("a\n---\nb\n---\n", |line| line.starts_with("---"));
        assert_eq!(parts, [part(0, "a\n"), part(1, "---\nb\n"), part(3, "---\n")]);
        assert_eq!(cut_before("", |_| true), [part(0, "")]);
    }
}
