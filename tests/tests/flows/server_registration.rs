//! Server Registration Process, 1 and 2.

use horizon_tests::lab::Lab;
use horizon_tests::products::{Appliance, Controller, Programs, WorldOptions};

use crate::kit::{Seen, soon, step};

#[test]
fn server_registration_process() {
    let programs = Programs::for_tests().unwrap().clone();
    let mut lab = Lab::new().unwrap();
    let host = lab.public_host("controller").unwrap();
    let mut controller = Controller::init(host, &programs, &WorldOptions::default().resources).unwrap();
    controller.start().unwrap();

    // 1. Initial Setup
    let token = step("Administrator generates one-time registration key in broker", || {
        let token = controller.token("gateway").unwrap();
        let unused =
            controller.row("SELECT CAST(COUNT(*) AS TEXT) FROM registration_keys WHERE used_date IS NULL");
        assert_eq!(unused.as_deref(), Some("1"));
        let name = controller.row("SELECT name FROM registration_keys").unwrap();
        assert!(controller.audited("create", &name) || controller.audited("issue", &name));
        let plain = controller
            .row("SELECT CAST(COUNT(*) AS TEXT) FROM registration_keys WHERE secret_hash IS NOT NULL");
        assert_eq!(plain.as_deref(), Some("1"), "a hash is kept, and not the token");
        token
    });
    let mut appliance = Appliance::new(lab.public_host("appliance").unwrap(), &programs);
    step("Administrator provides key to server operator", || assert!(token.starts_with("hzn-reg-")));
    step("Server operator inputs key during initial setup", || appliance.enroll(&token).unwrap());
    let key = step("Server generates encryption keypair", || {
        let key = controller.row("SELECT lower(hex(public_key)) FROM servers").unwrap();
        assert_eq!(key.len(), 64, "an Ed25519 key");
        let state = appliance
            .host()
            .cmd("sh", ["-c", "find /var/lib/horizon* -type f -perm /077 | head"])
            .ok()
            .unwrap();
        assert_eq!(state.trim(), "", "nobody else reads what the appliance keeps");
        key
    });
    step("Server collects hardware/network identity information", || {
        let kinds = controller.row(
            "SELECT group_concat(factor_type) FROM (SELECT DISTINCT factor_type FROM server_identity_factors \
             ORDER BY factor_type)",
        );
        let kinds = kinds.unwrap();
        assert!(kinds.contains("network_signature") && kinds.contains("runtime_environment"), "{kinds}");
    });

    // 2. First-Time Registration
    step("Server connects to broker registration endpoint", || {
        assert!(controller.audited("register", "gateway"));
    });
    step("Server provides one-time registration key, public key, and identity factors", || {
        let bound = controller.row("SELECT lower(hex(used_by_public_key)) FROM registration_keys");
        assert_eq!(bound.as_ref(), Some(&key));
    });
    step("Broker validates registration key", || {
        let other = Appliance::new(lab.public_host("other").unwrap(), &programs);
        let refusal = other.cli(["enroll", &token]).refused().unwrap();
        assert!(refusal.contains("used"), "{refusal}");
        soon("the second use is an event", || controller.events("registration_token_reused") > 0);
    });
    step("Broker extracts public IP from connection", || {
        let seen = controller.row("SELECT public_ip FROM servers").unwrap();
        let (v4, v6) = (appliance.host().v4().to_string(), appliance.host().v6().to_string());
        assert!(seen == v4 || seen == v6, "{seen}");
    });
    step("Broker uses public IP to generate other information about server", || {
        // Without a file of places nothing is known, and nothing is guessed.
        let places = controller.row(
            "SELECT CAST(COUNT(*) AS TEXT) FROM server_identity_factors WHERE factor_type = 'geolocation'",
        );
        assert_eq!(places.as_deref(), Some("0"));
    });
    step("Broker binds registration key to server's multiple identity factors", || {
        let sql = "SELECT CAST(COUNT(*) AS TEXT) FROM registration_keys k JOIN servers s ON s.server_id = k.used_by_server_id \
                   WHERE k.used_date IS NOT NULL AND s.identity_digest IS NOT NULL";
        assert_eq!(controller.row(sql).as_deref(), Some("1"));
        let approved = "SELECT CAST(MIN(is_approved) AS TEXT) FROM server_identity_factors WHERE is_current";
        assert_eq!(controller.row(approved).as_deref(), Some("1"));
    });
    step("Broker generates verification secret for future authentication", || {
        let sql = "SELECT CAST(COUNT(*) AS TEXT) FROM servers WHERE length(verification_secret) > 32";
        assert_eq!(controller.row(sql).as_deref(), Some("1"), "sealed, so longer than it is");
    });
    step("Broker registers server and returns verification secret", || {
        let sql = "SELECT CAST(COUNT(*) AS TEXT) FROM servers WHERE registration_date IS NOT NULL";
        assert_eq!(controller.row(sql).as_deref(), Some("1"));
        soon("the status says so", || controller.condition("server", "gateway", "Registered") == Some(true));
    });
    step("Server stores verification secret securely", || {
        appliance.start().unwrap();
        appliance.wait_until_applied().unwrap();
        soon("it proves that it has it", || {
            controller.condition("server", "gateway", "Verified") == Some(true)
        });
    });
}
