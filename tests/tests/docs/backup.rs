//! docs/backup-restore.md, word by word: what was backed up comes back, and nobody enrols anew.

use std::fs;
use std::os::unix::fs::symlink;

use horizon_services::until;
use horizon_tests::lab::eventually;
use horizon_tests::production::{ClusterOptions, Estate, SYSTEM};
use horizon_tests::products::World;
use horizon_tests::services::http_get;
use serde_json::{Value, json};

use crate::page::Page;
use crate::terminal::{Terminal, parts};

#[test]
fn a_folder_comes_back_from_its_archive() {
    let page = Page::read("backup-restore.md");
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    let folder = world.controller.config().parent().unwrap().to_owned();
    let link = folder.clone();
    world.controller.host().run(move || symlink(link, "/var/lib/horizon")).unwrap();
    let shelf = world.lab.dir().join("shelf");
    fs::create_dir(&shelf).unwrap();

    for part in parts(&page.blocks(&["Back up", "A folder"])[0], "systemctl") {
        match part.as_str() {
            "systemctl stop horizon-controller" => drop(world.controller.process().unwrap().stop().unwrap()),
            "systemctl start horizon-controller" => world.controller.start().unwrap(),
            typed => drop(Terminal::new(world.controller.host(), &world.programs, &shelf).types(typed)),
        }
    }
    // What is decided afterwards is not in the archive.
    world.wait_until_available("gateway").unwrap();
    let late = world.controller.invite("ada").unwrap();
    world.controller.process().unwrap().kill().unwrap();

    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    for part in parts(&page.blocks(&["Restore", "A folder"])[0], "systemctl") {
        match part.as_str() {
            "systemctl start horizon-controller" => world.controller.start().unwrap(),
            typed => {
                let terminal = Terminal::new(world.controller.host(), &world.programs, &shelf);
                terminal.types(&typed.replace("DATE", "*"));
            }
        }
    }
    let back = eventually("the appliance is heard from", || {
        let server = world.controller.get("server", "gateway").ok()?;
        online(&server).then_some(server)
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", world.controller.log()));
    approve_if_asked(&world, &back);
    let egress = world.appliance.host().v4().to_string();
    assert_eq!(http_get(laptop.host(), world.web_host.v4()).unwrap(), egress, "{}", laptop.log());
    assert_eq!(laptop.status().unwrap()["phase"], "connected");
    let tablet = world.home.host("tablet").unwrap();
    let mut tablet = horizon_tests::products::Client::new(tablet, &world.programs);
    tablet.start().unwrap();
    tablet.cli(["key", "add"]).stdin(format!("{late}\n")).refused().unwrap();
}

fn online(server: &Value) -> bool {
    condition(server, "Online") == Some(true)
}

fn condition(server: &Value, kind: &str) -> Option<bool> {
    let conditions = server["status"]["conditions"].as_array()?;
    conditions
        .iter()
        .find(|condition| condition["type"] == kind)
        .map(|condition| condition["status"] == "True")
}

/// What the last section of the document says about appliances that are ahead of their backup.
fn approve_if_asked(world: &World, server: &Value) {
    if server["status"]["phase"] != "active" {
        world.controller.cli(["approve", "gateway"]).ok().unwrap();
    }
    world.wait_until_available("gateway").unwrap();
}

#[test]
fn a_postgres_comes_back_from_its_dump() {
    let page = Page::read("backup-restore.md");
    let mut estate = Estate::for_test(ClusterOptions::default()).unwrap();
    let laptop = estate.connected_device().unwrap();
    let shelf = estate.lab.dir().join("shelf");
    fs::create_dir(&shelf).unwrap();
    let steps = page.blocks(&["Back up", "Postgres"]);
    let [keys, dump, objects] = &steps[..] else { panic!("other steps: {steps:?}") };
    {
        let admin = admin(&estate, &shelf);
        admin.types(keys);
        admin.types(dump);
        admin.types(objects);
    }
    assert!(fs::read_to_string(shelf.join("horizon-objects.yaml")).unwrap().contains("name: gateway"));

    // Declared after the backup.
    estate.cluster.apply(&super::user("grace")).unwrap();
    estate.cluster.wait("condition=Accepted", "user/grace").unwrap();

    let restore = page.blocks(&["Restore", "Postgres"]).remove(0).replace("DATE", "*");
    estate.cluster.kube.kubectl(["delete", "secret", "horizon-keys", "-n", SYSTEM]).unwrap();
    for part in parts(&restore, "kubectl scale") {
        admin(&estate, &shelf).types(&part);
        if part.contains("--replicas 0") {
            for pod in &mut estate.pods {
                pod.process().unwrap().stop().unwrap();
            }
        } else if part.contains("--replicas 3") {
            for pod in &mut estate.pods {
                pod.initialise().unwrap();
                pod.start().unwrap();
            }
        }
    }
    for pod in &mut estate.pods {
        pod.wait_until_ready().unwrap();
    }
    let server = until("the appliance is heard from", || {
        let server = estate.cluster.object("server", "gateway").ok()?;
        (online(&server) && condition(&server, "Verified").is_some()).then_some(server)
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", estate.logs()));
    if let Some(digest) = server.pointer("/status/identity/pendingDigest") {
        let approval = json!({
            "apiVersion": "horizon.dev/v1alpha1", "kind": "Approval", "metadata": {"name": "after-restore"},
            "spec": {"serverRef": "gateway", "identityDigest": digest, "decision": "approve", "reason": "restored"},
        });
        estate.cluster.apply(&approval).unwrap();
    }
    estate
        .cluster
        .wait("jsonpath={.status.phase}=active", "server/gateway")
        .unwrap_or_else(|error| panic!("{error:#}\n{}", estate.logs()));
    let egress = estate.appliance.host().v4().to_string();
    assert_eq!(http_get(laptop.host(), estate.web_host.v4()).unwrap(), egress, "{}", laptop.log());
    assert_eq!(laptop.status().unwrap()["phase"], "connected");
    estate.cluster.wait("condition=Accepted", "user/grace").unwrap();
}

/// The admin's terminal, with what the document tells the admin to have at hand.
fn admin<'e>(estate: &'e Estate, shelf: &std::path::Path) -> Terminal<'e> {
    let mut terminal = Terminal::beside(&estate.pods[0], &estate.cluster, &estate.programs, shelf);
    let [_, migration] = estate.cluster.database_urls();
    terminal.set("MIGRATION_URL", &migration);
    terminal
}
