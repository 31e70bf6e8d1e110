//! One document, by its headings.

use std::fs;

use horizon_tests::products::repository;

/// A document of docs/.
pub(crate) struct Page {
    name: String,
    lines: Vec<Line>,
}

/// A line, with the headings it is below.
struct Line {
    headings: Vec<String>,
    text: String,
    in_block: bool,
}

impl Page {
    /// Reads `docs/NAME`.
    pub(crate) fn read(name: &str) -> Self {
        let text = fs::read_to_string(repository().join("docs").join(name)).unwrap();
        let (mut headings, mut lines, mut in_block) = (Vec::new(), Vec::new(), false);
        for line in text.lines() {
            if line.trim_start().starts_with("```") {
                in_block = !in_block;
                lines.push(Line { headings: headings.clone(), text: String::new(), in_block: false });
                continue;
            }
            let level = line.chars().take_while(|c| *c == '#').count();
            if level > 0 && !in_block {
                headings.truncate(level - 1);
                headings.resize(level - 1, String::new());
                headings.push(line[level..].trim().to_owned());
            }
            lines.push(Line { headings: headings.clone(), text: line.to_owned(), in_block });
        }
        Self { name: name.to_owned(), lines }
    }

    /// The blocks of commands directly below a heading, which the last headings of its path name, as they are printed.
    #[track_caller]
    pub(crate) fn blocks(&self, headings: &[&str]) -> Vec<String> {
        let mut blocks = vec![String::new()];
        for line in self.lines.iter().filter(|line| line.headings.ends_with(&headings.map_owned())) {
            if line.in_block {
                let block = blocks.last_mut().unwrap();
                block.push_str(&line.text);
                block.push('\n');
            } else if !blocks.last().unwrap().is_empty() {
                blocks.push(String::new());
            }
        }
        blocks.pop();
        let blocks: Vec<_> = blocks.iter().map(|block| dedent(block)).collect();
        assert!(!blocks.is_empty(), "{}: no commands below {headings:?}", self.name);
        blocks
    }

    /// The command in the prose below a heading that begins with `start`, as it is printed.
    #[track_caller]
    pub(crate) fn span(&self, headings: &[&str], start: &str) -> String {
        let here = self.lines.iter().filter(|line| line.headings.ends_with(&headings.map_owned()));
        let prose: Vec<_> = here.filter(|line| !line.in_block).map(|line| line.text.as_str()).collect();
        let prose = prose.join("\n");
        let found = prose.split('`').skip(1).step_by(2).find(|code| code.starts_with(start));
        found.unwrap_or_else(|| panic!("{}: no `{start}…` below {headings:?}", self.name)).to_owned()
    }
}

/// Owned copies, to compare with.
trait MapOwned {
    fn map_owned(&self) -> Vec<String>;
}

impl MapOwned for [&str] {
    fn map_owned(&self) -> Vec<String> {
        self.iter().map(|text| (*text).to_owned()).collect()
    }
}

/// Takes away the indentation that a list gives a block.
fn dedent(block: &str) -> String {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let least = block.lines().filter(|line| !line.trim().is_empty()).map(indent).min().unwrap_or(0);
    block.lines().map(|line| format!("{}\n", line.get(least..).unwrap_or_default())).collect()
}
