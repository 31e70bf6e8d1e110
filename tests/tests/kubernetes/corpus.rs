//! The corpus of crds/tests, judged by the API server.

use std::collections::BTreeMap;
use std::fs;

use horizon_services::KubeApi;
use horizon_tests::products::repository;
use serde::Deserialize;

#[derive(Deserialize)]
struct Corpus {
    case: Vec<Case>,
}

/// See crds/tests/corpus.rs, which judges the same documents by Horizon's own reading of them.
#[derive(Deserialize)]
struct Case {
    name: String,
    file: Option<String>,
    document: String,
    #[serde(default)]
    problems: Vec<String>,
    accepted: Option<usize>,
    kubernetes: Option<bool>,
}

impl Case {
    /// The documents of the case's file as JSON; nothing for what is no TOML or YAML. (kubectl reads YAML 1.1, in which
    /// `yes` is no text: what is judged here are documents, not spellings.)
    fn documents(&self) -> Vec<String> {
        if self.file.is_some() {
            let read = |text| {
                let options = serde_saphyr::options! { strict_booleans: true };
                serde_saphyr::from_str_with_options::<serde_json::Value>(text, options)
            };
            let documents = self.document.split("---\n").map(read);
            return documents.flatten().filter(|it| !it.is_null()).map(|it| it.to_string()).collect();
        }
        let table: toml::Table = toml::from_str(&self.document).unwrap_or_default();
        let whole = || if table.is_empty() { Vec::new() } else { vec![toml::Value::Table(table.clone())] };
        let documents = table.get("resource").and_then(toml::Value::as_array).cloned().unwrap_or_else(whole);
        documents.iter().map(|document| serde_json::to_string(document).unwrap()).collect()
    }

    fn accepted(&self) -> usize {
        self.accepted.unwrap_or(usize::from(self.problems.is_empty()))
    }
}

#[test]
fn the_api_server_gives_every_document_the_same_verdict() {
    let api = KubeApi::shared().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut cases = BTreeMap::new();
    let mut files: Vec<_> = fs::read_dir(repository().join("crds/tests/corpus")).unwrap().collect();
    files.sort_by_key(|file| file.as_ref().unwrap().path());
    for file in files {
        let path = file.unwrap().path();
        let corpus: Corpus = toml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        for (n, case) in corpus.case.into_iter().enumerate() {
            let name = format!("{}-{n}", path.file_stem().unwrap().display());
            for (m, document) in case.documents().into_iter().enumerate() {
                fs::write(folder.path().join(format!("{name}-{m}.json")), document).unwrap();
            }
            cases.insert(name, case);
        }
    }

    // kubectl goes on after an error, and says in each error which file it is about.
    let folder_name = folder.path().display().to_string();
    let create = ["create", "--dry-run=server", "--validate=strict", "-f", &folder_name];
    let said = api.kubectl_refused("", create).unwrap();
    let mut wrong = String::new();
    for (name, case) in cases.iter().filter(|(_, case)| case.kubernetes != Some(false)) {
        let count = case.documents().len();
        let refused = (0..count).filter(|m| {
            let file = format!("{folder_name}/{name}-{m}.json");
            said.lines().any(|line| line.contains(&file))
        });
        let accepted = count - refused.count();
        if accepted != case.accepted() {
            wrong += &format!("{name}: {}: {accepted} accepted instead of {}\n", case.name, case.accepted());
        }
    }
    assert!(cases.len() > 80, "the corpus has only {} cases", cases.len());
    assert!(wrong.is_empty(), "{wrong}\nkubectl said:\n{said}");
}
