//! The corpus of documents through the API server: it refuses what the reader refuses, and takes what that takes.

use std::{fs, path::Path};

use horizon_crds::{GROUP, KindName, VERSION};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::kit::{api, cluster};

#[derive(Deserialize)]
struct Corpus {
    case: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    #[serde(default)]
    file: Option<String>,
    document: String,
    #[serde(default)]
    problems: Vec<String>,
    #[serde(default = "yes")]
    kubernetes: bool,
}

fn yes() -> bool {
    true
}

/// What is written in the case's file, when it is one document in TOML.
fn document(case: &Case) -> Option<Map<String, Value>> {
    if case.file.as_ref().is_some_and(|file| !file.ends_with(".toml")) {
        return None;
    }
    let table: toml::Table = case.document.parse().ok()?;
    match serde_json::to_value(table).ok()? {
        Value::Object(document) if !document.contains_key("resource") => Some(document),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_judges_documents_as_the_reader_does() {
    let api = api();
    let namespace = api.fresh_namespace().unwrap();
    let client = cluster(&api.kubeconfig()).await.client;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/tests/corpus");
    let (mut judged, mut wrong) = (0, Vec::new());
    for entry in fs::read_dir(folder).unwrap() {
        let corpus: Corpus = toml::from_str(&fs::read_to_string(entry.unwrap().path()).unwrap()).unwrap();
        for case in corpus.case.iter().filter(|case| case.kubernetes) {
            let Some(mut document) = document(case) else { continue };
            let kind =
                document.get("kind").and_then(Value::as_str).and_then(|kind| kind.parse::<KindName>().ok());
            // What is of no kind of ours has no address to be sent to.
            let Some(kind) = kind else { continue };
            if let Some(Value::Object(metadata)) = document.get_mut("metadata") {
                let valid = |name: &Value| {
                    name.as_str().is_some_and(|name| name.parse::<horizon_crds::Name>().is_ok())
                };
                if metadata.get("namespace").is_none_or(valid) {
                    metadata.insert("namespace".into(), namespace.as_str().into());
                }
            }
            judged += 1;
            let address = format!(
                "/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{}?dryRun=All&fieldValidation=Strict",
                kind.plural()
            );
            let request = http::Request::post(address).header("content-type", "application/json");
            let request = request.body(serde_json::to_vec(&document).unwrap()).unwrap();
            let refused = match client.request::<Value>(request).await {
                Ok(_) => None,
                Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => {
                    Some(status.message.clone())
                }
                Err(error) => panic!("{}: {error}", case.name),
            };
            if refused.is_some() == case.problems.is_empty() {
                wrong.push(format!(
                    "{}: the reader: {:?}; the API server: {refused:?}",
                    case.name, case.problems
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(judged > 60, "only {judged} cases were judged");
}

/// A rule about changes: the kind, what is there, the change, and what the answer says.
const CHANGES: [(KindName, &str, &str, &str); 6] = [
    (
        KindName::Server,
        r#"{"lifecycle":{"state":"decommissioned","reason":"sold"}}"#,
        r#"{"lifecycle":{"state":"active","reason":""}}"#,
        "declare a new server under another name",
    ),
    (KindName::RegistrationKey, r#"{"serverRef":"a"}"#, r#"{"serverRef":"b"}"#, "make a new one"),
    (
        KindName::RegistrationKey,
        r#"{"serverRef":"a","revocation":{"reason":"lost"}}"#,
        r#"{"revocation":null}"#,
        "make a new registration key",
    ),
    (KindName::PersonalKey, r#"{"userRef":"a"}"#, r#"{"userRef":"b"}"#, "make a new key for the other user"),
    (
        KindName::PersonalKey,
        r#"{"userRef":"a","revocation":{"reason":"lost"}}"#,
        r#"{"revocation":null}"#,
        "make a new personal key",
    ),
    (
        KindName::Revocation,
        r#"{"target":{"kind":"Server","name":"a"},"reason":"lost"}"#,
        r#"{"reason":"found"}"#,
        "write a new one",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_final_stays_final_and_the_answer_says_what_to_do() {
    let api = api();
    let namespace = api.fresh_namespace().unwrap();
    let client = cluster(&api.kubeconfig()).await.client;
    for (number, (kind, before, change, says)) in CHANGES.into_iter().enumerate() {
        let name = format!("case-{number}");
        crate::kit::create(&client, kind, &namespace, &name, serde_json::from_str(before).unwrap()).await;
        let patch = format!(r#"{{"spec":{change}}}"#);
        let target = format!("{}.{GROUP}/{name}", kind.plural());
        let said = api
            .kubectl_refused("", ["patch", &target, "-n", &namespace, "--type=merge", "-p", &patch])
            .unwrap();
        assert!(said.contains(says), "{kind}: {said}");
    }
}
