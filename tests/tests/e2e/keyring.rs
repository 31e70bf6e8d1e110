//! The personal key in the keyring of a person's session, on a device that really connects.

use std::io::Write;

use horizon_tests::lab::{Cmd, Host, Proc, eventually};
use horizon_tests::products::{Client, World};

use super::{connected, rotation::settled, tokens::names};

/// A person's session: a bus, and a keyring on it that is open.
struct Session {
    _keyring: Proc,
    _bus: Proc,
    address: String,
}

impl Session {
    /// `None` where the machine lacks what it takes; in CI that is a failure.
    fn open(host: &Host) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let installed = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).exists());
        if !["dbus-daemon", "dbus-send", "gnome-keyring-daemon"].into_iter().all(installed) {
            let why = "dbus and gnome-keyring are missing: see tests/setup.sh";
            assert!(std::env::var_os("CI").is_none(), "{why}");
            let _ = writeln!(std::io::stderr(), "NOT RUN: {why}");
            return None;
        }
        let dir = host.dir().display().to_string();
        // A bus that starts no service by itself: the keyring is the one below.
        let config = format!("{dir}/bus.conf");
        let text = format!(
            "<busconfig><type>session</type><listen>unix:dir={dir}</listen><auth>EXTERNAL</auth><policy context='default'>\
             <allow send_destination='*' eavesdrop='true'/><allow eavesdrop='true'/><allow own='*'/></policy></busconfig>"
        );
        std::fs::write(&config, text).unwrap();
        let bus = ["--config-file", &config, "--nofork", "--print-address"];
        let mut bus = host.cmd("dbus-daemon", bus).spawn("bus").unwrap();
        bus.wait_for("guid=").unwrap();
        let address = bus.log().lines().find(|line| line.starts_with("unix:")).unwrap().to_owned();
        let keyring = ["--foreground", "--unlock", "--components=secrets"];
        let keyring = host.cmd("gnome-keyring-daemon", keyring).env("DBUS_SESSION_BUS_ADDRESS", &address);
        let keyring = keyring.env("HOME", &dir).env("XDG_DATA_HOME", &dir).env("XDG_RUNTIME_DIR", &dir);
        let keyring = keyring.stdin("password of the test").spawn("keyring").unwrap();
        let session = Self { _keyring: keyring, _bus: bus, address };
        eventually("the keyring is open", || {
            let service = "/org/freedesktop/secrets";
            let call = ["org.freedesktop.Secret.Service.ReadAlias", "string:default"];
            let send = ["--session", "--print-reply", "--dest=org.freedesktop.secrets", service];
            let said = session.inside(host.cmd("dbus-send", send.into_iter().chain(call))).ok().ok()?;
            said.contains("collection").then_some(())
        })
        .unwrap();
        Some(session)
    }

    fn inside<'h>(&self, command: Cmd<'h>) -> Cmd<'h> {
        command.env("DBUS_SESSION_BUS_ADDRESS", &self.address)
    }

    /// The key that is kept.
    fn kept(&self, client: &Client) -> String {
        self.inside(client.cli(["export-key", "--yes"])).ok().unwrap().trim().to_owned()
    }
}

#[test]
fn a_rotated_key_moves_into_the_keyring_and_outlives_a_restart() {
    let mut world = World::for_test().unwrap();
    let mut laptop = Client::new(world.home.host("laptop").unwrap(), &world.programs);
    laptop.start().unwrap();
    let Some(session) = Session::open(laptop.host()) else { return };
    let old = world.controller.invite("ada").unwrap();
    let said = session.inside(laptop.cli(["key", "add"])).stdin(format!("{old}\n")).ok().unwrap();
    assert!(said.contains("is kept in"), "{said}");
    assert_eq!(session.kept(&laptop), old);
    laptop.connect("gateway").unwrap();

    let key =
        names(&world.controller.cli(["get", "personalkeys", "-o", "json"]).ok().unwrap()).pop().unwrap();
    world.controller.cli(["rotate", "personalkey", &key, "--reason", "every now and then"]).ok().unwrap();
    eventually("the device has confirmed the new key", || settled(&world, &key).then_some(())).unwrap();
    // It waits with the service, over a restart too, for a command that can open the keyring.
    laptop.service().unwrap().kill().unwrap();
    laptop.start().unwrap();
    assert_eq!(session.kept(&laptop), old);
    session.inside(laptop.cli(["status"])).ok().unwrap();
    let new = session.kept(&laptop);
    assert!(new.starts_with("hzn-key-") && new != old, "the keyring has another key");

    // After another restart the device connects, and the keyring still has the key.
    laptop.service().unwrap().kill().unwrap();
    laptop.start().unwrap();
    if !connected(&laptop) {
        session.inside(laptop.cli(["connect", "gateway"])).ok().unwrap();
    }
    assert_eq!(session.kept(&laptop), new);

    // It is the key in force: it makes another device one of Ada's, which the one before does no longer.
    let mut tablet = Client::new(world.home.host("tablet").unwrap(), &world.programs);
    tablet.start().unwrap();
    let refusal = tablet.cli(["key", "add"]).stdin(format!("{old}\n")).refused().unwrap();
    assert!(refusal.contains("replaced"), "{refusal}");
    tablet.add_key(&new).unwrap();
    tablet.connect("gateway").unwrap_err();
    tablet.cli(["connect", "gateway", "--take-over"]).ok().unwrap();
}
