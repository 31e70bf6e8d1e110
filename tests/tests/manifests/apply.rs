//! Overlays and chart, applied.

use std::collections::BTreeMap;

use horizon_tests::products::repository;
use serde_json::{Value, json};

use crate::tools::{STRICT, argument, cluster, installed, kustomize, objects, template, text, try_template};

#[test]
fn overlays_apply_strictly_and_applying_again_changes_nothing() {
    let api = installed();
    let folder = argument("overlays/production");
    let versions = || {
        let everything = api.get(["-k", &folder]).unwrap();
        let versions: BTreeMap<String, String> = everything["items"]
            .as_array()
            .unwrap()
            .iter()
            // Controllers write into these: their statuses, and the rules of aggregated roles.
            .filter(|o| o["kind"] != "CustomResourceDefinition" && o.get("aggregationRule").is_none())
            .map(|o| (text(o, "/metadata/uid").into(), text(o, "/metadata/resourceVersion").into()))
            .collect();
        assert!(versions.len() > 30, "{versions:?}");
        versions
    };
    let before = versions();
    let [a, b, c, d] = STRICT;
    api.kubectl([a, b, c, d, "-k", &folder]).unwrap();
    assert_eq!(versions(), before);
}

#[test]
fn pods_meet_the_restricted_standard() {
    let api = installed();
    for overlay in ["overlays/embedded", "overlays/production"] {
        let all = objects(&kustomize(overlay));
        let deployment = all.iter().find(|o| o["kind"] == "Deployment").unwrap();
        let mut pod = deployment["spec"]["template"].clone();
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!("horizon-controller-0");
        let create = ["create", "--dry-run=server", "-n", "horizon-system", "-f", "-"];
        api.kubectl_with(&pod.to_string(), create).unwrap();
        // The same pod as root is refused: the standard is in force.
        pod["spec"]["securityContext"]["runAsNonRoot"] = json!(false);
        let said = api.kubectl_refused(&pod.to_string(), create).unwrap();
        assert!(said.contains("violates PodSecurity \"restricted"), "{said}");
    }
}

#[test]
fn components_change_what_they_say() {
    let folder = tempfile::tempdir_in(argument("overlays")).unwrap();
    let lines = "resources: [../embedded]\n\
                 components: [../../components/all-namespaces, ../../components/before-1.36]\n";
    std::fs::write(folder.path().join("kustomization.yaml"), lines).unwrap();
    let name = folder.path().file_name().unwrap().to_str().unwrap();
    let all = objects(&kustomize(&format!("overlays/{name}")));
    let bound = |kind: &str| {
        all.iter()
            .filter(|o| o["kind"] == kind && text(o, "/roleRef/name") == "horizon-controller")
            .map(|o| text(o, "/metadata/namespace").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(bound("ClusterRoleBinding"), [""]);
    assert_eq!(bound("RoleBinding"), ["horizon-system"]);
    assert!(!all.iter().any(|o| text(o, "/kind").starts_with("MutatingAdmission")));
    assert!(!all.iter().any(|o| o.pointer("/data/HORIZON_KUBERNETES_NAMESPACES").is_some()));
}

/// What an object comes to, without what differs between Kustomize and helm by nature: hashes in names, helm's labels,
/// what restarts pods when their ConfigMap changes, and defaults that helm writes out.
fn essence(mut object: Value) -> (String, Value) {
    let generated = ["horizon-config", "horizon-settings"];
    let name = text(&object, "/metadata/name");
    let name = generated.into_iter().find(|n| name.starts_with(n)).unwrap_or(name).to_owned();
    let key = format!("{} {}/{name}", text(&object, "/kind"), text(&object, "/metadata/namespace"));
    object["metadata"]["name"] = json!(name);
    let helm = ["helm.sh/chart", "instance", "managed-by", "version"];
    if let Some(labels) = object["metadata"]["labels"].as_object_mut() {
        labels.retain(|label, _| !helm.contains(&label.trim_start_matches("app.kubernetes.io/")));
    }
    for annotation in ["/metadata", "/spec/template/metadata"] {
        if let Some(metadata) = object.pointer_mut(annotation).and_then(Value::as_object_mut) {
            metadata.remove("annotations");
        }
    }
    sort(&mut object);
    if let Some(pod) = object.pointer_mut("/spec/template/spec") {
        for list in ["containers", "initContainers"] {
            for container in pod[list].as_array_mut().into_iter().flatten() {
                container.as_object_mut().unwrap().remove("imagePullPolicy");
                for source in container["envFrom"].as_array_mut().into_iter().flatten() {
                    source["configMapRef"]["name"] = json!("horizon-settings");
                }
            }
        }
        pod.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        for volume in pod["volumes"].as_array_mut().unwrap() {
            if volume["name"] == "config" {
                volume["configMap"]["name"] = json!("horizon-config");
            }
        }
    }
    (key, object)
}

/// Orders lists of named things, whose order says nothing.
fn sort(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(sort),
        Value::Array(items) => {
            items.iter_mut().for_each(sort);
            if items.iter().all(|item| item.get("name").is_some()) {
                items.sort_by_key(|item| item["name"].to_string());
            }
        }
        _ => {}
    }
}

#[test]
fn the_chart_has_the_same_objects_as_the_overlays() {
    let all = |yaml: &str| objects(yaml).into_iter().map(essence).collect::<BTreeMap<_, _>>();
    for mode in ["embedded", "production"] {
        let mut overlay = all(&kustomize(&format!("overlays/{mode}")));
        overlay.retain(|key, _| !key.starts_with("CustomResourceDefinition"));
        // helm's own way is `--create-namespace`.
        overlay.remove("Namespace /horizon-system").unwrap();
        let chart = all(&template(&[&format!("mode=\"{mode}\"")]));
        assert_eq!(chart.keys().collect::<Vec<_>>(), overlay.keys().collect::<Vec<_>>());
        for (key, object) in &overlay {
            let (ours, theirs) = (format!("{object:#}"), format!("{:#}", chart[key]));
            assert_eq!(ours, theirs, "{mode}: {key}");
        }
    }
}

#[test]
fn the_chart_installs_upgrades_and_leaves_what_must_stay() {
    let api = cluster();
    let source = argument("helm/horizon");
    api.helm(["lint", "--strict", &source]).unwrap();
    // As it would be published: the links in it are followed.
    let folder = tempfile::tempdir().unwrap();
    let folder_name = folder.path().display().to_string();
    api.helm(["package", &source, "--destination", &folder_name]).unwrap();
    let package = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap();
    let chart = package.path().display().to_string();
    let name = ["--namespace", "horizon-system"];
    let set = ["--set-json", "advertise=[\"horizon.example.org\"]"];
    let installed = api
        .helm(["install", "horizon", &chart, name[0], name[1], "--create-namespace", set[0], set[1]])
        .unwrap();
    assert!(installed.contains("It waits for these Secrets"), "{installed}");
    assert!(!installed.contains("NOTE: `advertise` is not set"), "{installed}");
    let settings = api.get(["configmap/horizon-settings", "-n", "horizon-system"]).unwrap();
    assert_eq!(settings["data"]["HORIZON_ADVERTISE"], "horizon.example.org");
    let definitions = std::fs::read_dir(repository().join("crds/yaml")).unwrap().count();
    assert_eq!(api.get(["crds"]).unwrap()["items"].as_array().unwrap().len(), definitions);

    let hash = || {
        let deployment = api.get(["deployment/horizon-controller", "-n", "horizon-system"]).unwrap();
        text(&deployment, "/spec/template/metadata/annotations/horizon.dev~1config").to_owned()
    };
    let before = hash();
    let set = ["--set-json", "settings={\"takeover_grace\":\"2m\",\"max_connections\":50000}"];
    api.helm(["upgrade", "horizon", &chart, name[0], name[1], set[0], set[1]]).unwrap();
    assert_ne!(hash(), before, "changed settings restart the pods");
    let config = api.get(["configmap/horizon-config", "-n", "horizon-system"]).unwrap();
    let config = text(&config, "/data/config.toml").to_owned();
    assert!(config.contains("max_connections = 50000\ntakeover_grace = \"2m\""), "{config}");

    api.helm(["upgrade", "horizon", &chart, name[0], name[1], "--set", "mode=embedded"]).unwrap();
    api.helm(["uninstall", "horizon", name[0], name[1]]).unwrap();
    for kept in ["namespace/horizon", "crd/servers.horizon.dev", "persistentvolumeclaim/horizon-data"] {
        api.get([kept, "-n", "horizon-system"]).unwrap();
    }
    api.kubectl_refused("", ["get", "deployment/horizon-controller", "-n", "horizon-system"]).unwrap();
}

#[test]
fn wrong_values_are_refused_by_name() {
    for (values, why) in [
        ("mode=\"large\"", "value must be one of 'production', 'embedded'"),
        ("replicas=0", "at '/replicas': minimum: got 0, want 1"),
        ("replicaCount=2", "additional properties 'replicaCount' not allowed"),
        ("advertise=\"a.example\"", "at '/advertise': got string, want array"),
        ("namespaces=[\"No\"]", "at '/namespaces/0'"),
        ("settings={\"keys_secret\":\"a/b\"}", "invalid propertyName 'keys_secret'"),
    ] {
        let (success, _, stderr) = try_template(&[values]);
        assert!(!success && stderr.contains(why), "{values}: {stderr}");
    }
}
