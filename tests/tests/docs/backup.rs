//! docs/backup-restore.md, word by word: what was backed up comes back, and nobody enrols anew.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;

use horizon_services::until;
use horizon_tests::lab::eventually;
use horizon_tests::production::{ClusterOptions, Estate, SYSTEM};
use horizon_tests::products::{Client, World};
use horizon_tests::services::{http, http_get};
use serde_json::Value;

use crate::page::Page;
use crate::terminal::{Terminal, parts};

#[test]
fn a_folder_comes_back_from_its_backup() {
    let page = Page::read("backup-restore.md");
    let mut world = World::for_test().unwrap();
    let often = "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"SecurityPolicy\"\nmetadata.name = \"often\"\n\
                 spec.heartbeatInterval = \"1s\"\n";
    world.controller.put("often.toml", often).unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    laptop.connect("gateway").unwrap();
    let egress = world.appliance.host().v4().to_string();
    let folder = world.controller.config().parent().unwrap().to_owned();
    let link = folder.clone();
    world.controller.host().run(move || symlink(link, "/var/lib/horizon")).unwrap();
    let shelf = world.lab.dir().join("shelf");
    fs::create_dir(&shelf).unwrap();
    let type_all = |world: &World, headings: &[&str]| {
        let typed = page.blocks(headings).remove(0).replace("DATE", "*");
        Terminal::new(world.controller.host(), &world.programs, &shelf).types(&typed)
    };

    // While it runs, and people are connected.
    type_all(&world, &["A key for backups"]);
    type_all(&world, &["Back up", "A folder"]);
    let told = type_all(&world, &["Back up", "Look whether it is good"]);
    let audit = page.span(&["Back up", "Look whether it is good"], "horizon-controller audit verify");
    let audit =
        Terminal::new(world.controller.host(), &world.programs, &shelf).types(&audit.replace("DATE", "*"));
    assert!(audit.contains("The audit trail is as it was written"), "{audit}");
    assert!(told.contains("The backup is whole"), "{told}");
    assert_eq!(http_get(laptop.host(), world.web_host.v4()).unwrap(), egress);

    // What is decided afterwards is not in the backup: another key, and secrets that heartbeats have made since.
    let late = world.controller.invite("ada").unwrap();
    let heard = heartbeats(&world);
    eventually("more heartbeats", || (heartbeats(&world) >= heard + 2).then_some(())).unwrap();
    let before = state_epoch(&world);
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
                let said = terminal.types(&typed.replace("DATE", "*"));
                assert!(said.contains("is restored"), "{said}");
            }
        }
    }
    // Nobody approves anything and nobody enrols: the appliance serves, and traffic flows.
    world
        .wait_until_available("gateway")
        .unwrap_or_else(|error| panic!("{error:#}\n{}", world.controller.log()));
    eventually("the appliance has a state of the new epoch", || (state_epoch(&world) > before).then_some(()))
        .unwrap_or_else(|error| panic!("{error:#}\n{}", world.controller.log()));
    eventually("traffic flows again", || {
        (http_get(laptop.host(), world.web_host.v4()).ok()? == egress).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", laptop.log()));
    assert_eq!(laptop.status().unwrap()["phase"], "connected");
    let events = world.controller.cli(["get", "events", "-o", "json"]).ok().unwrap();
    assert!(events.contains("backup_restored") && !events.contains("challenge_failed"), "{events}");
    // What came after the backup is not known.
    let tablet = world.home.host("tablet").unwrap();
    let mut tablet = Client::new(tablet, &world.programs);
    tablet.start().unwrap();
    tablet.cli(["key", "add"]).stdin(format!("{late}\n")).refused().unwrap();
}

/// How many heartbeats the controller took since it started.
fn heartbeats(world: &World) -> u64 {
    let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, 7441));
    let (_, text) = http(world.controller.host(), metrics, "/metrics").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("horizon_controller_heartbeats_total "));
    line.and_then(|count| count.parse().ok()).unwrap_or_default()
}

/// The epoch of the state that the appliance has applied.
fn state_epoch(world: &World) -> u64 {
    let said = world.appliance.cli(["status", "--output", "json"]).ok().unwrap();
    let status: Value = serde_json::from_str(&said).unwrap();
    status["state"]["epoch"].as_u64().unwrap()
}

#[test]
fn a_postgres_comes_back_from_its_backup() {
    let page = Page::read("backup-restore.md");
    let mut estate = Estate::for_test(ClusterOptions::default()).unwrap();
    let laptop = estate.connected_device().unwrap();
    let shelf = estate.lab.dir().join("shelf");
    fs::create_dir(&shelf).unwrap();
    {
        let admin = Terminal::beside(&estate.pods[0], &estate.cluster, &estate.programs, &shelf);
        admin.types(&page.blocks(&["A key for backups"])[0]);
        admin.types(&page.blocks(&["Back up", "Kubernetes"])[0]);
    }

    // Declared and begun after the backup.
    laptop.disconnect().unwrap();
    laptop.connect("gateway").unwrap();
    estate.cluster.apply(&super::user("grace")).unwrap();
    estate.cluster.wait("condition=Accepted", "user/grace").unwrap();

    let steps = page.blocks(&["Restore", "Kubernetes"]).concat().replace("DATE", "*");
    estate.cluster.kube.kubectl(["delete", "secret", "horizon-keys", "-n", SYSTEM]).unwrap();
    let [_, migration] = estate.cluster.database_urls();
    for part in parts(&steps, "kubectl scale") {
        let mut admin = Terminal::of_admin(estate.pods[0].host(), &estate.cluster, &estate.programs, &shelf);
        admin.set("MIGRATION_URL", &migration);
        admin.types(&part);
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
    estate
        .cluster
        .wait("condition=Online", "server/gateway")
        .unwrap_or_else(|error| panic!("{error:#}\n{}", estate.logs()));
    estate
        .cluster
        .wait("jsonpath={.status.phase}=active", "server/gateway")
        .unwrap_or_else(|error| panic!("{error:#}\n{}", estate.logs()));
    let server: Value = estate.cluster.object("server", "gateway").unwrap();
    assert!(server.pointer("/status/identity/pendingDigest").is_none(), "nobody is to approve anything");
    let egress = estate.appliance.host().v4().to_string();
    until("traffic flows again", || {
        (http_get(laptop.host(), estate.web_host.v4()).ok()? == egress).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", laptop.log()));
    assert_eq!(laptop.status().unwrap()["phase"], "connected");
    estate.cluster.wait("condition=Accepted", "user/grace").unwrap();
}
