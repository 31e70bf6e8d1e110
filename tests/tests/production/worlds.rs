//! From Kubernetes to a folder of TOML files and back, with the appliance online: nothing is enrolled again, nobody's
//! session ends.

use std::path::Path;

use horizon_tests::lab::within;
use horizon_tests::production::{ClusterOptions, Estate, NAMESPACE, SYSTEM};
use serde_json::Value;

use super::{RETURN, SOON, assert_in_force, assert_served, seen_by};

/// What does not change by itself: who the resources are and what became of them.
fn statuses(estate: &Estate) -> Vec<(String, Value)> {
    let all = estate.cluster.kube.get(["horizon", "-n", NAMESPACE]).unwrap();
    let mut statuses: Vec<_> = (all["items"].as_array().unwrap().iter())
        .map(|object| {
            let name = format!(
                "{}/{}",
                object["kind"].as_str().unwrap(),
                object["metadata"]["name"].as_str().unwrap()
            );
            let status = &object["status"];
            let conditions: Vec<_> = (status["conditions"].as_array().into_iter().flatten())
                .map(|condition| [&condition["type"], &condition["status"], &condition["reason"]])
                .collect();
            let kept = ["phase", "devices", "publicAddress", "usedBy"].map(|field| &status[field]);
            (name, serde_json::json!({ "conditions": conditions, "kept": kept }))
        })
        .collect();
    statuses.sort_by(|a, b| a.0.cmp(&b.0));
    statuses
}

fn stop_all(estate: &mut Estate) {
    for pod in &mut estate.pods {
        pod.process().unwrap().stop().unwrap();
    }
}

#[test]
fn kubernetes_to_files_and_back_drops_no_session() {
    let mut estate = Estate::for_test(ClusterOptions::default()).unwrap();
    let laptop = estate.connected_device().unwrap();
    let before = statuses(&estate);
    assert!(before.len() >= 5, "{before:?}");

    // To files: the same database and keys, and another source.
    let folder = estate.pods[0].host().dir().join("exported");
    let shown = folder.display().to_string();
    estate.pods[0].exec(["export", "--output", &shown]).ok().unwrap();
    stop_all(&mut estate);
    let config = estate.cluster.kube.kubeconfig_of_account(SYSTEM, "horizon-controller").unwrap();
    let pod = &mut estate.pods[0];
    pod.unset("HORIZON_KUBERNETES_NAMESPACES");
    pod.set("HORIZON_SOURCE", "files");
    pod.set("HORIZON_RESOURCES", &shown);
    pod.set("HORIZON_KUBECONFIG", &config.display().to_string());
    pod.start().unwrap();
    pod.wait_until_ready().unwrap();
    assert_served(&laptop, &estate);
    let policy = find(&folder, "AccessPolicy");
    for (from, to, seen) in [("0.0.0.0/0", "192.0.2.0/24", false), ("192.0.2.0/24", "0.0.0.0/0", true)] {
        let text = std::fs::read_to_string(&policy).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&policy, text.replace(from, to)).unwrap();
        within(RETURN, "the file is in force", || {
            (seen_by(&laptop, &estate).is_some() == seen).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", estate.logs()));
    }
    assert_eq!(laptop.status().unwrap()["phase"], "connected");

    // And back, into a namespace from which every object has vanished meanwhile.
    let yaml = estate.pods[0].exec(["export", "-o", "yaml"]).ok().unwrap();
    stop_all(&mut estate);
    estate.cluster.kube.kubectl(["delete", "horizon", "--all", "-n", NAMESPACE]).unwrap();
    estate.cluster.kube.apply(NAMESPACE, &yaml).unwrap();
    let pod = &mut estate.pods[0];
    pod.set("HORIZON_KUBERNETES_NAMESPACES", NAMESPACE);
    ["HORIZON_SOURCE", "HORIZON_RESOURCES", "HORIZON_KUBECONFIG"].iter().for_each(|name| pod.unset(name));
    estate.pods.iter_mut().for_each(|pod| pod.start().unwrap());
    estate.pods.iter_mut().for_each(|pod| pod.wait_until_ready().unwrap());
    assert_served(&laptop, &estate);
    estate.cluster.wait("condition=Online", "server/gateway").unwrap();
    assert_in_force(&estate, &laptop, RETURN);
    within(SOON, "the statuses are as before", || (statuses(&estate) == before).then_some(()))
        .unwrap_or_else(|error| panic!("{error}\n{:#?}\n{before:#?}", statuses(&estate)));
    assert_eq!(laptop.status().unwrap()["phase"], "connected");
}

/// The file below a folder that declares a resource of a kind.
fn find(folder: &Path, kind: &str) -> std::path::PathBuf {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::read_to_string(&path).unwrap().contains(&format!("kind = \"{kind}\"")) {
                return path;
            }
        }
    }
    panic!("no {kind} was exported");
}
