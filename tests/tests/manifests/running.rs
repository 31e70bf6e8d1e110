//! What manifests/ says about a running organisation, held against one: two replicas as the production overlay starts them.

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::BASE64;
use horizon_tests::lab::eventually;
use horizon_tests::production::{Cluster, ClusterOptions, Estate, NAMESPACE};
use horizon_tests::products::{Appliance, Client, repository};
use serde_json::{Value, json};

use crate::tools::{argument, published, text};

/// Objects in every state of health, beside those of the quickstart: a file of manifests/ may be wrong about any of them.
const MORE: &str = "
[[resource]]
kind = 'Server'
metadata.name = 'spare'
spec = {}
[[resource]]
kind = 'Server'
metadata.name = 'old'
spec.lifecycle = { state = 'decommissioned', reason = 'sold' }
[[resource]]
kind = 'AccessPolicy'
metadata.name = 'typo'
[resource.spec]
subjects.groups = ['friends']
servers = ['nowhere']
destinations = [{ cidr = '0.0.0.0/0' }]
[[resource]]
kind = 'Approval'
metadata.name = 'early'
[resource.spec]
serverRef = 'gateway'
identityDigest = 'sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08'
decision = 'approve'
reason = 'it will come'
[[resource]]
kind = 'PersonalKey'
metadata.name = 'ada-lost'
spec = { userRef = 'ada' }
[[resource]]
kind = 'PersonalKey'
metadata.name = 'ada-leaked'
[resource.spec]
userRef = 'ada'
revocation = { reason = 'found on a wall', compromised = true }
[[resource]]
kind = 'Revocation'
metadata.name = 'lost'
[resource.spec]
target = { kind = 'PersonalKey', name = 'ada-lost' }
reason = 'lost'
[[resource]]
kind = 'RegistrationKey'
metadata.name = 'spare-1'
spec = { serverRef = 'spare' }
[[resource]]
kind = 'SecurityPolicy'
metadata.name = 'bounds'
spec = {}
[[resource]]
kind = 'VirtualNetwork'
metadata.name = 'games'
spec.addressRanges = ['10.77.0.0/16']
";

/// Kind and name, then what Argo CD and Flux are to make of it.
const HEALTH: [(&str, &str, &str); 15] = [
    ("AccessPolicy/friends", "Healthy", "Current"),
    ("AccessPolicy/typo", "Degraded", "Failed"),
    ("Approval/early", "Progressing", "InProgress"),
    ("PersonalKey/ada-first", "Healthy", "Current"),
    ("PersonalKey/ada-leaked", "Degraded", "Failed"),
    ("PersonalKey/ada-lost", "Healthy", "Current"),
    ("RegistrationKey/gateway-first", "Healthy", "Current"),
    ("RegistrationKey/spare-1", "Healthy", "Current"),
    ("Revocation/lost", "Healthy", "Current"),
    ("SecurityPolicy/bounds", "Healthy", "Current"),
    ("Server/gateway", "Healthy", "Current"),
    ("Server/old", "Healthy", "Current"),
    ("Server/spare", "Suspended", "Current"),
    ("User/ada", "Healthy", "Current"),
    ("VirtualNetwork/games", "Healthy", "Current"),
];

pub(crate) fn declare_more(cluster: &Cluster) {
    let documents: toml::Table = toml::from_str(MORE).unwrap();
    for mut document in documents["resource"].as_array().unwrap().clone() {
        let table = document.as_table_mut().unwrap();
        table.insert("apiVersion".into(), "horizon.dev/v1alpha1".into());
        cluster.apply(&serde_json::to_value(&document).unwrap()).unwrap();
    }
}

/// What a tool makes of objects, by kind and name.
fn health(tool: &str, rules: &str, objects: &[Value]) -> BTreeMap<String, (String, String)> {
    let lines: String = objects.iter().map(|object| format!("{object}\n")).collect();
    let said = published(&[tool, &argument(rules)], &lines);
    let found = said.lines().map(|line| {
        let found: Value = serde_json::from_str(line).unwrap();
        let name = format!("{}/{}", text(&found, "/kind"), text(&found, "/name"));
        (name, (text(&found, "/status").to_owned(), text(&found, "/message").to_owned()))
    });
    found.collect()
}

fn argo(objects: &[Value]) -> BTreeMap<String, (String, String)> {
    health("argo", "examples/argocd/argocd-cm.yaml", objects)
}

fn flux(objects: &[Value]) -> BTreeMap<String, (String, String)> {
    health("flux", "examples/flux/organisation.yaml", objects)
}

fn statuses(health: &BTreeMap<String, (String, String)>) -> BTreeMap<&str, &str> {
    health.iter().map(|(name, (status, _))| (name.as_str(), status.as_str())).collect()
}

/// Health rules on real statuses.
fn tools_understand(estate: &Estate) {
    let all = || -> Vec<Value> {
        estate.cluster.kube.get(["horizon", "-n", NAMESPACE]).unwrap()["items"].as_array().unwrap().clone()
    };
    let expected = |column: fn(&(&'static str, &'static str, &'static str)) -> &'static str| {
        HEALTH.iter().map(|row| (row.0, column(row))).collect::<BTreeMap<_, _>>()
    };
    let (for_argo, for_flux) = (expected(|row| row.1), expected(|row| row.2));
    let mut last = (BTreeMap::new(), BTreeMap::new());
    let reached = eventually("everything is as healthy as it should be", || {
        let objects = all();
        last = (argo(&objects), flux(&objects));
        (statuses(&last.0) == for_argo && statuses(&last.1) == for_flux).then_some(())
    });
    assert!(reached.is_ok(), "Argo CD: {:#?}\nFlux: {:#?}\n{}", last.0, last.1, estate.logs());
    let typo = &last.0["AccessPolicy/typo"].1;
    assert!(typo.contains("nowhere"), "people see the reason: {typo}");

    // An object that changed and was not looked at yet, and one that never was.
    let mut objects = all();
    for object in &mut objects {
        object["metadata"]["generation"] = json!(99);
    }
    assert!(statuses(&argo(&objects)).values().all(|status| *status == "Progressing"));
    assert!(statuses(&flux(&objects)).values().all(|status| *status == "InProgress"));
    for object in &mut objects {
        object.as_object_mut().unwrap().remove("status");
    }
    assert!(statuses(&argo(&objects)).values().all(|status| *status == "Progressing"));
    assert!(statuses(&flux(&objects)).values().all(|status| *status == "Unknown"), "Flux asks again");
}

/// What is counted only when there is trouble that no test can make at will, or after minutes of a session.
const RARE: [&str; 2] = ["horizon_controller_store_retries", "horizon_controller_session_looks"];

/// Lets happen what is counted only when it happens: a family of figures without one is not served.
fn stir(estate: &mut Estate, laptop: &Client) {
    // The second time from a cache.
    for _ in 0..2 {
        laptop.cli(["servers"]).ok().unwrap();
    }
    laptop.disconnect().unwrap();
    for pod in &estate.pods {
        pod.exec(["status"]).ok().unwrap();
    }
    // A token that is used twice, on two machines.
    let secret = estate.cluster.kube.get(["secret/spare-1-token", "-n", NAMESPACE]).unwrap();
    let token = String::from_utf8(BASE64.decode(text(&secret, "/data/token").as_bytes()).unwrap()).unwrap();
    let [first, second] = ["spare", "stranger"]
        .map(|name| Appliance::new(estate.lab.public_host(name).unwrap(), &estate.programs));
    first.enroll(token.trim()).unwrap();
    second.enroll(token.trim()).unwrap_err();
    // Whatever each service is to its clients, it is that again in a moment.
    estate.cluster.postgres.drop_connections().unwrap();
    estate.cluster.kube.kill().unwrap();
    estate.cluster.kube.revive().unwrap();
}

/// The families of figures that the replicas serve, together.
fn served(estate: &Estate) -> BTreeSet<String> {
    let texts = estate.pods.iter().map(|pod| pod.metrics().unwrap());
    let families = texts.flat_map(|text| {
        let lines = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_whitespace().next());
        lines.map(str::to_owned).collect::<Vec<_>>()
    });
    families.collect()
}

/// The figures that rules and dashboard read.
fn read() -> BTreeSet<String> {
    let files = [argument("monitoring/rules.yaml"), argument("monitoring/dashboard.json")];
    let asked = published(&["promql", &files[0], &files[1]], "");
    let family = |metric: &str| {
        let ends = ["_total", "_bucket", "_count", "_sum"];
        ends.iter().find_map(|end| metric.strip_suffix(end)).unwrap_or(metric).to_owned()
    };
    asked.lines().filter(|metric| *metric != "up").map(family).collect()
}

/// The figures that docs/metrics.md lists.
fn documented() -> BTreeSet<String> {
    let document = std::fs::read_to_string(repository().join("docs/metrics.md")).unwrap();
    let (_, table) = document.split_once("## What is counted").unwrap();
    let (table, _) = table.split_once("## Alerts").unwrap();
    let names = table.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let names = names.flat_map(|cell| cell.split("`, `")).map(|name| name.trim_matches(['`', ' ']));
    names.map(|name| format!("horizon_controller_{name}")).collect()
}

fn figures_exist(estate: &mut Estate, laptop: &Client) {
    stir(estate, laptop);
    let mut wanted = &read() | &documented();
    assert!(wanted.len() > 40, "{wanted:?}");
    let source = std::fs::read_to_string(repository().join("controller/src/metrics/mod.rs")).unwrap();
    for rare in RARE {
        wanted.remove(rare);
        let name = rare.trim_start_matches("horizon_controller_");
        assert!(source.contains(&format!("\"{name}\",")), "{name}");
    }
    let lacking = || wanted.difference(&served(estate)).cloned().collect::<Vec<_>>();
    let reached = eventually("everything is counted", || lacking().is_empty().then_some(()));
    assert!(reached.is_ok(), "not served: {:#?}", lacking());
}

#[test]
fn health_rules_and_figures_fit_what_runs() {
    let mut estate = Estate::for_test(ClusterOptions::default()).unwrap();
    let laptop = estate.connected_device().unwrap();
    declare_more(&estate.cluster);
    tools_understand(&estate);
    figures_exist(&mut estate, &laptop);
}
