//! Server Change Detection.

use horizon_tests::lab::{Host, Lab};
use horizon_tests::products::{Appliance, Controller, Programs, WorldOptions};
use serde_json::Value;

use crate::kit::{Seen, soon, step};

/// Makes an appliance's host another machine with the same disk.
fn be(host: &Host, machine: &str) {
    let files = [
        ("sys/class/dmi/id/board_serial", format!("board of {machine}\n")),
        ("sys/class/dmi/id/product_uuid", format!("uuid of {machine}\n")),
        ("sys/class/dmi/id/product_name", format!("model of {machine}\n")),
        ("sys/block/sda/size", "1000\n".to_owned()),
        ("sys/block/sda/device/serial", "one disk\n".to_owned()),
        ("proc/cpuinfo", format!("processor : 0\nmodel name : cpu of {machine}\n")),
        ("etc/os-release", "ID=horizon\nIMAGE_VERSION=1\n".to_owned()),
        ("etc/machine-id", "0123456789abcdef0123456789abcdef\n".to_owned()),
    ];
    for (file, text) in files {
        let path = host.dir().join("host").join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}

#[test]
fn server_change_detection() {
    let programs = Programs::for_tests().unwrap().clone();
    let mut lab = Lab::new().unwrap();
    let host = lab.public_host("controller").unwrap();
    let mut controller = Controller::init(host, &programs, &WorldOptions::default().resources).unwrap();
    controller.start().unwrap();
    let appliance = Appliance::new(lab.public_host("gateway").unwrap(), &programs);
    let root = appliance.host().dir().join("host");
    be(appliance.host(), "one");
    let token = controller.token("gateway").unwrap();
    appliance.cli(["enroll", &token]).env("HORIZON_APPLIANCE_HOST_ROOT", &root).ok().unwrap();
    let run = || appliance.cli(["run"]).env("HORIZON_APPLIANCE_HOST_ROOT", &root).spawn("appliance").unwrap();
    let mut running = run();
    soon("the server is available", || controller.condition("server", "gateway", "Available") == Some(true));
    let secret = || controller.row("SELECT hex(verification_secret) FROM servers").unwrap();

    // 1. Change Monitoring
    step("Broker tracks multiple server identity factors", || {
        let sql =
            "SELECT CAST(COUNT(DISTINCT factor_name) AS TEXT) FROM server_identity_factors WHERE is_current";
        let factors: u64 = controller.row(sql).unwrap().parse().unwrap();
        assert!(factors >= 4, "{factors}");
    });
    step("Server reports identity information with each heartbeat", || {
        assert!(controller.status("server", "gateway", "/identity").is_object());
    });
    step("Significant changes trigger verification requirement", || {
        be(appliance.host(), "two");
        running.stop().unwrap();
        running = run();
        soon("the identity is not stable", || {
            controller.condition("server", "gateway", "IdentityStable") == Some(false)
        });
    });

    // 2. Verification Process
    step("Broker flags server as requiring verification", || {
        let sql = "SELECT CAST(requires_verification AS TEXT) FROM servers";
        assert_eq!(controller.row(sql).as_deref(), Some("1"));
        soon("an event tells of it", || controller.events("identity_pending") > 0);
    });
    step("Administrator reviews change details", || {
        let changes = controller.status("server", "gateway", "/identity/changes");
        let changed = |name: &str| {
            let all = changes.as_array().unwrap();
            all.iter().find(|change| change["factor"].as_str().unwrap().ends_with(name)).cloned().unwrap()
        };
        assert_eq!(changed("processor/model")["to"], "cpu of two");
    });
    step("Manual verification process initiated", || {
        assert!(controller.status("server", "gateway", "/identity/pendingDigest").is_string());
    });
    step("Server remains unavailable until verified", || {
        soon("it takes no sessions", || {
            controller.condition("server", "gateway", "Available") == Some(false)
        });
        running.stop().unwrap();
        running = run();
        soon("a restart changes nothing", || {
            controller.condition("server", "gateway", "Online") == Some(true)
        });
        assert_eq!(controller.condition("server", "gateway", "Available"), Some(false));
    });
    step("New verification credentials issued after approval", || {
        let before = secret();
        controller.cli(["approve", "gateway"]).ok().unwrap();
        soon("it is available again", || {
            controller.condition("server", "gateway", "Available") == Some(true)
        });
        soon("the secret is another one", || secret() != before);
        assert_eq!(controller.status("server", "gateway", "/identity/pendingDigest"), Value::Null);
    });
    running.stop().unwrap();
}
