//! Words from outside that mean something to a database, a terminal or a reader of logs.

use horizon_tests::lab::{Host, within};
use horizon_tests::products::{Appliance, Client, World};

use super::{SOON, assert_served};

/// What a machine may be called by whoever runs it.
const NAMES: [&str; 3] =
    ["x'; DROP TABLE devices; --", "\u{1b}]0;owned\u{7}\u{1b}[2J", "a\nERROR forged line"];

/// Gives a host a name, as its root can.
fn call(host: &Host, name: &'static str) {
    host.run(move || {
        nix::unistd::sethostname(name).unwrap();
        let _ = std::fs::write("/etc/hostname", name);
    });
}

/// Asserts that nothing of a name does what it was made for.
#[track_caller]
fn assert_plain(said: &str) {
    assert!(!said.contains('\u{1b}') && !said.contains('\u{7}'), "{said:?}");
    assert!(!said.lines().any(|line| line.starts_with("ERROR forged")), "{said}");
}

#[test]
fn names_of_machines_are_only_text() {
    let mut world = World::for_test().unwrap();
    let other =
        "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"Server\"\nmetadata.name = \"other\"\n[spec]\n";
    world.controller.put("other.toml", other).unwrap();
    let token =
        within(SOON, "the other server is declared", || world.controller.token("other").ok()).unwrap();
    for (n, name) in NAMES.into_iter().enumerate() {
        let host = world.home.host(&format!("device-{n}")).unwrap();
        call(&host, name);
        let mut device = Client::new(host, &world.programs);
        device.start().unwrap();
        let key = world.controller.invite("ada").unwrap();
        // Refused in words, or enrolled under what is left of the name.
        let _ = device.cli(["key", "add"]).stdin(format!("{key}\n")).run().unwrap();
        let host = world.lab.public_host(&format!("server-{n}")).unwrap();
        call(&host, name);
        let _ = Appliance::new(host, &world.programs).cli(["enroll", &token]).run().unwrap();
    }
    for what in ["devices", "events", "audit", "sessions", "servers"] {
        assert_plain(&world.controller.cli(["get", what]).ok().unwrap());
    }
    assert_plain(&world.controller.process().unwrap().log());
    assert_served(&mut world, "laptop");
}

#[test]
fn arguments_and_names_in_requests_are_only_text() {
    let mut world = World::for_test().unwrap();
    let laptop = world.device("laptop", "ada").unwrap();
    for name in NAMES.into_iter().chain(["../../etc/passwd", "gateway' OR '1'='1", "%00", "gateway\u{202e}"])
    {
        let refusals = [
            laptop.cli(["connect", name]).refused().unwrap(),
            world.controller.cli(["token", name]).refused().unwrap(),
            world.controller.cli(["get", "server", name]).refused().unwrap(),
            world.controller.cli(["describe", "user", name]).refused().unwrap(),
            world.controller.cli(["revoke", "device", name, "--reason", "x"]).refused().unwrap(),
        ];
        assert!(refusals.iter().all(|said| !said.contains("panicked")), "{refusals:?}");
    }
    let log = world.controller.process().unwrap().log();
    assert_plain(&log);
    assert!(!log.contains("panicked"), "{log}");
    assert_served(&mut world, "tablet");
}
