//! `validate`: resource files without a controller.

use std::{fs, io::Write, path::Path, process::ExitCode, sync::Arc};

use anyhow::Context;
use horizon_crds::{Parsed, Problem, check_set, parse};

use super::table::clean;
use crate::{
    api::model::FileText,
    source::{self, Listing},
};

/// Reads, checks and tells. What resources say of one another is checked in a directory only: a single file may speak of
/// what others declare. The exit status is 1 if anything is wrong.
pub(super) fn validate(path: &Path, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let listing = read(path)?;
    let parsed: Vec<Parsed> = listing.files.iter().map(|(name, bytes)| parse(name, bytes)).collect();
    let set: Vec<_> = parsed.iter().flat_map(|file| file.resources.iter().map(|(r, o)| (r, o))).collect();
    let mut problems: Vec<Problem> = listing.problems;
    problems.extend(parsed.iter().flat_map(|file| file.problems.iter().cloned()));
    let whole = path.is_dir();
    if whole {
        problems.extend(check_set(&set).into_iter().map(|found| found.problem));
    }
    problems.sort_by(|a, b| (&a.file, a.position).cmp(&(&b.file, b.position)));
    for problem in &problems {
        writeln!(out, "{}", clean(&problem.to_string()))?;
    }
    let (files, resources) = (count(parsed.len(), "file"), count(set.len(), "resource"));
    if problems.is_empty() {
        let note = if whole { "" } else { " (references are checked when a directory is)" };
        writeln!(out, "{files}, {resources}: all is well{note}")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "{} in {files}; {resources} could be read", count(problems.len(), "problem"))?;
    Ok(ExitCode::FAILURE)
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// The files of a directory as texts, for a controller to compare.
pub(super) fn read_files(path: &Path) -> anyhow::Result<Vec<FileText>> {
    let listing = read(path)?;
    if let Some(problem) = listing.problems.first() {
        anyhow::bail!("the directory cannot be read as a whole: {problem}");
    }
    let text = |(path, bytes): (Arc<str>, Vec<u8>)| FileText {
        path: path.to_string(),
        text: String::from_utf8_lossy(&bytes).into_owned(),
    };
    Ok(listing.files.into_iter().map(text).collect())
}

fn read(path: &Path) -> anyhow::Result<Listing> {
    let unreadable = || format!("cannot read {}", path.display());
    if fs::metadata(path).with_context(unreadable)?.is_dir() {
        return source::read_directory(path).with_context(unreadable);
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    source::read_file(path, &name).with_context(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: &str =
        "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"User\"\nmetadata.name = \"ann\"\n[spec]\n";

    fn run(path: &Path) -> (bool, String) {
        let mut out = Vec::new();
        let code = validate(path, &mut out).unwrap();
        (code == ExitCode::SUCCESS, String::from_utf8(out).unwrap())
    }

    #[test]
    fn valid_files_are_well() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("users")).unwrap();
        fs::write(dir.path().join("users/ann.toml"), USER).unwrap();
        assert_eq!(run(dir.path()), (true, "1 file, 1 resource: all is well\n".into()));
        let (ok, text) = run(&dir.path().join("users/ann.toml"));
        assert!(ok && text.starts_with("1 file, 1 resource: all is well (references"), "{text}");
    }

    #[test]
    fn every_problem_is_listed_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.toml"), USER).unwrap();
        fs::write(dir.path().join("b.toml"), USER).unwrap();
        fs::write(dir.path().join("c.toml"), format!("{USER}groupz = []\n")).unwrap();
        fs::write(dir.path().join("d.toml"), "kind = ").unwrap();
        let (ok, text) = run(dir.path());
        assert!(!ok);
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[0].starts_with("b.toml:3:") && lines[0].contains("already declared at a.toml:1"),
            "{text}"
        );
        assert!(lines[1].starts_with("c.toml:5:") && lines[1].contains("did you mean \"groups\"?"), "{text}");
        assert!(lines[2].starts_with("d.toml:1"), "{text}");
        assert!(lines.last().unwrap().contains("problems in 4 files"), "{text}");
    }
}
