//! docs/upgrade.md, word by word: in a cluster, one replica after the other, there and back.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use horizon_tests::lab::within;
use horizon_tests::production::{ClusterOptions, Estate, SYSTEM};
use horizon_tests::products::Client;
use horizon_tests::services::http_get;
use serde_json::Value;

use crate::page::Page;
use crate::terminal::Terminal;

/// How long peers may take to find another replica.
const RETURN: Duration = Duration::from_secs(90);

/// What the Deployment's controller does, which is not here: pods end one after the other, and others take their places.
fn roll(estate: &mut Estate, laptop: &Client, egress: &str) {
    for n in 0..estate.pods.len() {
        let pod = &mut estate.pods[n];
        pod.process().unwrap().stop().unwrap();
        pod.initialise().unwrap();
        pod.start().unwrap();
        pod.wait_until_ready().unwrap();
        within(RETURN, "traffic flows", || {
            (http_get(laptop.host(), estate.web_host.v4()).ok()? == egress).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}\n{}\n{}", laptop.log(), estate.logs()));
    }
}

#[test]
fn a_rolling_update_and_its_undoing_end_no_session() {
    let page = Page::read("upgrade.md");
    let mut estate = Estate::for_test(ClusterOptions::default()).unwrap();
    let laptop = estate.connected_device().unwrap();
    let session = |laptop: &Client| -> Value { laptop.status().unwrap()["session"]["id"].clone() };
    let (first, egress) = (session(&laptop), estate.appliance.host().v4().to_string());
    let shelf = estate.lab.dir().join("sources");
    fs::create_dir(&shelf).unwrap();
    symlink(estate.cluster.host().dir().join("overlay").canonicalize().unwrap(), shelf.join("my-horizon"))
        .unwrap();
    let types = |estate: &Estate, typed: &str| {
        Terminal::of_admin(estate.pods[0].host(), &estate.cluster, &estate.programs, &shelf).types(typed)
    };

    // The new image's tag is written into the overlay.
    let file = shelf.join("my-horizon/kustomization.yaml");
    let mut overlay: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    overlay["images"] =
        serde_json::json!([{ "name": "horizon-controller", "newTag": "of-the-next-version" }]);
    fs::write(&file, overlay.to_string()).unwrap();
    types(&estate, &page.blocks(&["In Kubernetes"])[0]);
    let wanted = estate.cluster.kube.get(["deployment", "horizon-controller", "-n", SYSTEM]).unwrap();
    let image = &wanted["spec"]["template"]["spec"]["containers"][0]["image"];
    assert!(image.as_str().unwrap().ends_with(":of-the-next-version"), "{image}");
    roll(&mut estate, &laptop, &egress);
    assert_eq!(session(&laptop), first, "the session went on");

    // And back.
    types(&estate, &page.span(&["Going back"], "kubectl rollout undo"));
    roll(&mut estate, &laptop, &egress);
    assert_eq!(session(&laptop), first, "the session went on");
    estate.cluster.apply(&super::user("grace")).unwrap();
    estate.cluster.wait("condition=Accepted", "user/grace").unwrap();
    laptop.disconnect().unwrap();
    within(RETURN, "a session is granted", || laptop.connect("gateway").ok()).unwrap();
}
