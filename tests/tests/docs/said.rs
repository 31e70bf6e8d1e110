//! What the documents say exists: the files they link to, and the commands they show.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use horizon_tests::products::{Programs, repository};

/// Every document of the repository, generated ones included.
fn documents() -> Vec<PathBuf> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    let root = repository();
    let mut found = Vec::new();
    for folder in ["docs", "examples"] {
        collect(&root.join(folder), &mut found);
    }
    found.extend(
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root.join(name)),
    );
    found
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            let here = document.parent().unwrap();
            if !target.is_empty() && !target.contains("://") && !here.join(target).exists() {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Every promise of the security model names the tests that hold it: each is there.
#[test]
fn tests_that_the_security_model_names_exist() {
    fn sources(folder: &Path, text: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target" && name != ".git") {
                sources(&path, text);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut all = String::new();
    sources(&repository(), &mut all);
    let text = fs::read_to_string(repository().join("docs/security.md")).unwrap();
    let (mut of_promises, mut missing) = (false, Vec::new());
    for line in text.lines() {
        let Some(row) = line.trim_end().strip_suffix('|').filter(|row| row.starts_with('|')) else {
            of_promises = false;
            continue;
        };
        let last = row.rsplit('|').next().unwrap().trim();
        of_promises |= last == "test";
        let named = last.split('`').skip(1).step_by(2).filter(|_| of_promises);
        // A test, or a scenario that a macro makes tests of.
        missing.extend(named.filter(|name| !all.contains(&format!("fn {name}("))).map(str::to_owned));
    }
    assert!(missing.is_empty(), "docs/security.md names tests that are not there: {missing:?}");
}

#[test]
fn commands_in_documents_exist() {
    let programs = Programs::for_tests().unwrap();
    let mut wrong = Vec::new();
    for (name, program) in [
        ("horizon-controller", &programs.controller),
        ("horizon-appliance", &programs.appliance),
        ("horizon", &programs.client),
    ] {
        let known = commands(program);
        for document in documents() {
            let text = fs::read_to_string(&document).unwrap();
            for said in mentioned(&text, name) {
                if !known.contains(&said) {
                    wrong.push(format!("{}: {name} {said}", document.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The first words after a program's name, in code spans and code blocks: `NAME [--config FILE] WORD`.
fn mentioned(text: &str, name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut in_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
            continue;
        }
        let codes: Vec<&str> =
            if in_block { vec![line] } else { line.split('`').skip(1).step_by(2).collect() };
        for code in codes {
            let mut words = code.split_whitespace().skip_while(|word| *word != name).skip(1).peekable();
            if words.peek() == Some(&"--config") {
                words.next();
                words.next();
            }
            let word = words.next().unwrap_or_default();
            if !word.is_empty()
                && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
                && !word.starts_with('-')
            {
                found.insert(word.to_owned());
            }
        }
    }
    found
}

/// The subcommands that a program's help lists.
fn commands(program: &Path) -> BTreeSet<String> {
    let output = Command::new(program).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let list = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let entries = list.take_while(|line| line.starts_with(' '));
    entries.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}
