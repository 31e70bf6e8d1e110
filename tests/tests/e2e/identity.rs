//! Who an appliance is: machines that change, TPMs that are replaced, and the one approval that mends it.

use std::path::PathBuf;

use horizon_tests::lab::{Lab, Proc, within};
use horizon_tests::products::{Appliance, Controller, Programs, WorldOptions};
use serde_json::Value;

use super::PROMPTLY;

/// A controller and an appliance whose machine is what the files below `root` say.
struct Office {
    appliance: Appliance,
    running: Option<Proc>,
    controller: Controller,
    root: PathBuf,
    tpm: PathBuf,
    _lab: Lab,
}

impl Office {
    fn open() -> Self {
        let mut lab = Lab::new().unwrap();
        let programs = Programs::for_tests().unwrap().clone();
        let host = lab.public_host("controller").unwrap();
        let mut controller = Controller::init(host, &programs, &WorldOptions::default().resources).unwrap();
        controller.start().unwrap();
        let appliance = Appliance::new(lab.public_host("gateway").unwrap(), &programs);
        let (root, tpm) = (appliance.host().dir().join("host"), appliance.host().dir().join("tpm.sock"));
        let office = Self { appliance, running: None, controller, root, tpm, _lab: lab };
        office.be("one");
        office
    }

    /// Makes the host another machine, with the same disk.
    fn be(&self, machine: &str) {
        let write = |path: &str, text: &str| {
            let path = self.root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("sys/class/dmi/id/board_serial", &format!("board of {machine}\n"));
        write("sys/class/dmi/id/product_uuid", &format!("uuid of {machine}\n"));
        write("sys/class/dmi/id/product_name", &format!("model of {machine}\n"));
        write("sys/block/sda/size", "1000\n");
        write("sys/block/sda/device/serial", "one disk\n");
        write("proc/cpuinfo", &format!("processor : 0\nmodel name : cpu of {machine}\n"));
        write("etc/os-release", "ID=horizon\nIMAGE_VERSION=1\n");
        write("etc/machine-id", "0123456789abcdef0123456789abcdef\n");
    }

    fn enroll(&self) {
        let token = self.controller.token("gateway").unwrap();
        self.appliance.cli(["enroll", &token]).env("HORIZON_APPLIANCE_HOST_ROOT", &self.root).ok().unwrap();
    }

    /// Starts the appliance, or starts it again.
    fn start(&mut self) {
        self.running = None;
        let run = self.appliance.cli(["run"]).env("HORIZON_APPLIANCE_HOST_ROOT", &self.root);
        self.running = Some(run.env("HORIZON_APPLIANCE_TPM", &self.tpm).spawn("appliance").unwrap());
    }

    fn status(&self) -> Option<Value> {
        Some(self.controller.get("server", "gateway").ok()?["status"].clone())
    }

    fn holds(&self, condition: &str, status: &str) -> bool {
        let found = self.status();
        let conditions = found.as_ref().and_then(|s| s["conditions"].as_array());
        conditions.is_some_and(|all| all.iter().any(|c| c["type"] == condition && c["status"] == status))
    }

    fn wait_for(&self, condition: &str, status: &str) {
        let reached =
            within(PROMPTLY, "a condition of the server", || self.holds(condition, status).then_some(()));
        reached.unwrap_or_else(|error| {
            panic!("{condition} is not {status}: {error}\n{:#?}\n{}", self.status(), self.log())
        });
    }

    fn log(&self) -> String {
        self.running.as_ref().map(Proc::tail).unwrap_or_default()
    }

    fn describe(&self) -> String {
        self.controller.cli(["describe", "server", "gateway"]).ok().unwrap()
    }

    fn approve(&self) {
        self.controller.cli(["approve", "gateway"]).ok().unwrap();
        self.wait_for("IdentityStable", "True");
        self.wait_for("Verified", "True");
        self.wait_for("Available", "True");
    }
}

#[test]
fn a_disk_in_another_machine_is_quarantined_until_one_approval() {
    let mut office = Office::open();
    office.enroll();
    office.start();
    office.wait_for("Available", "True");
    assert!(office.holds("IdentityStable", "True"));
    let described = office.describe();
    assert!(described.contains("identity_verification"), "{described}");
    assert!(!described.contains("board of one"), "serial numbers are hashed:\n{described}");

    office.be("two");
    office.start();
    office.wait_for("IdentityStable", "False");
    office.wait_for("Available", "False");
    let status = office.status().unwrap();
    let changes = status["identity"]["changes"].as_array().unwrap().clone();
    let named = |name: &str| changes.iter().find(|c| c["factor"].as_str().unwrap().ends_with(name)).unwrap();
    assert_eq!(named("processor/model")["from"], "cpu of one");
    assert_eq!(named("processor/model")["to"], "cpu of two");
    assert!(changes.iter().all(|c| !c["factor"].as_str().unwrap().contains("disk")), "{changes:?}");
    let events = office.controller.cli(["get", "events"]).ok().unwrap();
    assert!(events.contains("identity_pending"), "{events}");

    office.approve();
    let audit = office.controller.cli(["get", "audit", "-o", "json"]).ok().unwrap();
    assert!(audit.contains("new credentials are due"), "{audit}");
    assert!(office.status().unwrap()["identity"].get("pendingDigest").is_none());
}

#[test]
fn a_replaced_tpm_takes_one_approval_and_bricks_nothing() {
    let mut office = Office::open();
    let tpm = |office: &Office, state: &str| {
        let dir = office.appliance.host().dir().join(state);
        std::fs::create_dir_all(&dir).unwrap();
        let _ = std::fs::remove_file(&office.tpm);
        let (state, server) =
            (format!("dir={}", dir.display()), format!("type=unixio,path={}", office.tpm.display()));
        let args = [
            "socket",
            "--tpm2",
            "--tpmstate",
            &state,
            "--server",
            &server,
            "--flags",
            "not-need-init,startup-clear",
        ];
        let running = office.appliance.host().cmd("swtpm", args).spawn("swtpm").unwrap();
        within(PROMPTLY, "the TPM listens", || office.tpm.exists().then_some(())).unwrap();
        running
    };
    let first = tpm(&office, "tpm-one");
    office.enroll();
    office.start();
    office.wait_for("Available", "True");
    let described = office.describe();
    assert!(described.contains("tpm/key") && described.contains("with a quote of its TPM"), "{described}");
    // The same TPM has the same key after a restart.
    office.start();
    office.wait_for("Available", "True");
    assert!(office.holds("IdentityStable", "True"), "{:?}", office.status());

    drop(first);
    let second = tpm(&office, "tpm-two");
    office.start();
    office.wait_for("IdentityStable", "False");
    let changes = office.status().unwrap()["identity"]["changes"].to_string();
    assert!(changes.contains("tpm/key"), "{changes}");
    office.approve();

    // And one that is taken out.
    drop(second);
    std::fs::remove_file(&office.tpm).unwrap();
    office.start();
    office.wait_for("IdentityStable", "False");
    office.approve();
}
