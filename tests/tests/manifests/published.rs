//! What manifests/ has for other projects' programs, checked against their CRDs and by their code.

use std::collections::BTreeSet;
use std::fs;

use horizon_tests::products::repository;

use crate::tools::{STRICT, argument, installed, manifests, objects, published, template, text};

#[test]
fn examples_fit_the_published_crds() {
    let api = installed();
    let crds = published(&["crds"], "");
    api.kubectl_with(&crds, ["apply", "--server-side", "-f", "-"]).unwrap();
    api.kubectl_with(&crds, ["wait", "--for=condition=Established", "--timeout=60s", "-f", "-"]).unwrap();
    for namespace in ["argocd", "flux-system"] {
        api.kubectl(["create", "namespace", namespace]).unwrap();
    }
    let [a, b, c, d] = STRICT;
    let examples =
        ["argocd", "flux", "cloudnative-pg", "redis", "backup"].map(|name| format!("examples/{name}"));
    for folder in examples.iter().map(String::as_str).chain(["monitoring"]) {
        api.kubectl([a, b, c, d, "-k", &argument(folder)]).unwrap();
    }
    let config = argument("examples/argocd/argocd-cm.yaml");
    api.kubectl([a, b, c, d, "-f", &config]).unwrap();
    // The chart brings the same monitoring.
    let all = template(&["monitoring={\"enabled\":true,\"labels\":{\"release\":\"prometheus\"}}"]);
    let monitoring: String = objects(&all)
        .iter()
        .filter(|o| text(o, "/apiVersion").starts_with("monitoring.coreos.com/"))
        .map(|o| format!("{o}\n---\n"))
        .collect();
    assert_eq!(monitoring.matches("\"release\":\"prometheus\"").count(), 2);
    api.kubectl_with(&monitoring, [a, b, c, "--force-conflicts", "-f", "-"]).unwrap();
    // What is wrong is refused: the schemas are in force.
    let wrong = fs::read_to_string(manifests("examples/argocd/applications.yaml")).unwrap();
    let wrong = wrong.replace("selfHeal: true", "selfHeals: true");
    api.kubectl_refused(&wrong, [a, b, c, "-f", "-"]).unwrap();
}

#[test]
fn queries_of_rules_and_dashboard_are_well_formed_and_ask_for_our_figures() {
    let files = [argument("monitoring/rules.yaml"), argument("monitoring/dashboard.json")];
    let metrics = published(&["promql", &files[0], &files[1]], "");
    assert!(metrics.lines().count() > 20, "{metrics}");
    for metric in metrics.lines() {
        assert!(metric == "up" || metric.starts_with("horizon_controller_"), "{metric}");
    }
}

#[test]
fn every_alert_is_explained() {
    let text = fs::read_to_string(repository().join("docs/metrics.md")).unwrap();
    let explained: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("### Horizon")).collect();
    let rules = fs::read_to_string(manifests("monitoring/rules.yaml")).unwrap();
    let alerts: BTreeSet<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: Horizon")).collect();
    assert!(alerts.len() > 10);
    assert_eq!(explained, alerts);
}

#[test]
fn the_compose_file_loads() {
    let folder = tempfile::tempdir().unwrap();
    let project = published_compose(folder.path());
    assert!(project.contains("\"horizon_postgres\"") && project.contains("\"horizon_redis\""), "{project}");
}

/// As somebody has it who followed its comment: passwords in .env.
fn published_compose(folder: &std::path::Path) -> String {
    let environment = fs::read_to_string(manifests("compose/env.example")).unwrap();
    let filled: String = environment
        .lines()
        .map(|line| if line.ends_with('=') { format!("{line}secret\n") } else { format!("{line}\n") })
        .collect();
    fs::write(folder.join(".env"), filled).unwrap();
    fs::copy(manifests("compose.yaml"), folder.join("compose.yaml")).unwrap();
    for part in ["compose", "examples/redis"] {
        fs::create_dir_all(folder.join(part)).unwrap();
        for file in fs::read_dir(manifests(part)).unwrap() {
            let path = file.unwrap().path();
            fs::copy(&path, folder.join(part).join(path.file_name().unwrap())).unwrap();
        }
    }
    published(&["compose", &folder.join("compose.yaml").display().to_string()], "")
}
