//! The corpus: documents and what becomes of them. Each file in `corpus/` holds cases; a case is refused with exactly the
//! listed problems or, when none is listed, accepted.

use std::{fs, path::Path};

use horizon_crds::parse;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Corpus {
    case: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Case {
    /// What the case shows.
    name: String,
    /// The file the document would be in; its ending decides the format.
    #[serde(default = "default_file")]
    file: String,
    /// The bytes of that file.
    document: String,
    /// The problems, as they are shown.
    #[serde(default)]
    problems: Vec<String>,
    /// How many resources are accepted: one without problems and none otherwise, unless told.
    accepted: Option<usize>,
    /// Whether an API server with the CRDs refuses it too. Syntax, and what takes two fields of a list, it cannot judge alike.
    #[serde(default = "yes")]
    kubernetes: bool,
}

fn default_file() -> String {
    "case.toml".into()
}

fn yes() -> bool {
    true
}

#[test]
fn every_document_gets_its_verdict() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let (mut count, mut wrong) = (0, String::new());
    for path in paths {
        let corpus: Corpus = toml::from_str(&fs::read_to_string(&path).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for case in corpus.case {
            count += 1;
            let parsed = parse(&case.file, case.document.as_bytes());
            let shown: Vec<String> = parsed.problems.iter().map(ToString::to_string).collect();
            if shown != case.problems {
                let lines: Vec<String> =
                    shown.iter().map(|problem| format!("    '''{problem}''',\n")).collect();
                wrong +=
                    &format!("# {} of {}\nproblems = [\n{}]\n", case.name, path.display(), lines.concat());
            }
            let accepted = case.accepted.unwrap_or(usize::from(case.problems.is_empty()));
            assert_eq!(parsed.resources.len(), accepted, "{}: resources accepted", case.name);
            assert!(case.kubernetes || !shown.is_empty(), "{}: nothing to refuse", case.name);
        }
    }
    assert!(wrong.is_empty(), "these cases have other problems than listed:\n{wrong}");
    assert!(count > 80, "the corpus has only {count} cases");
}
