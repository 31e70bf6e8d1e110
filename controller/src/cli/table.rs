//! Columns on a terminal.

use std::io::{self, Write};

/// The longest cell, in characters; longer ones end in `…`.
const MAX_CELL: usize = 80;

/// Rows under headings, each column as wide as its widest cell. Control characters, which a peer might have put into its
/// name to play with somebody's terminal, are replaced.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with headings, which are shown in upper case.
    pub(super) fn new(headings: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        Self { rows: vec![headings.into_iter().map(|h| h.as_ref().to_uppercase()).collect()] }
    }

    /// Adds a row. Empty cells are shown as `-`.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| shown(&cell)).collect());
    }

    /// Writes the table.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |i: usize| {
            self.rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let line: String =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}   ")).collect();
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

fn shown(cell: &str) -> String {
    let clean = clean(cell);
    if clean.is_empty() {
        return "-".into();
    }
    if clean.chars().count() <= MAX_CELL {
        return clean;
    }
    clean.chars().take(MAX_CELL - 1).chain(['…']).collect()
}

/// The text with control characters replaced.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(table: &Table) -> String {
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_aligned_and_harmless() {
        let mut table = Table::new(["name", "online"]);
        table.row(["köln".into(), "True".into()]);
        table.row(["a\u{1b}[2Jb".into(), String::new()]);
        assert_eq!(text(&table), "NAME     ONLINE\nköln     True\na\u{fffd}[2Jb   -\n");
    }

    #[test]
    fn long_cells_are_cut() {
        let mut table = Table::new(["x"]);
        table.row(["y".repeat(500)]);
        assert_eq!(text(&table).lines().nth(1).unwrap().chars().count(), MAX_CELL);
    }
}
