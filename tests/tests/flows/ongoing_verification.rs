//! Server Registration Process, 3: Ongoing Communication & Verification.

use horizon_tests::products::World;

use crate::kit::{Seen, items, soon, step};

/// Beats and challenges often, so that the test need not wait for minutes at each.
const POLICY: &str = "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"SecurityPolicy\"\nmetadata.name = \"default\"\n\
                      [spec]\nheartbeatInterval = \"5s\"\nchallengeInterval = \"10s\"\n";

#[test]
fn ongoing_communication_and_verification() {
    let mut world = World::for_test().unwrap();
    world.controller.put("security.toml", POLICY).unwrap();
    let policy = ("securitypolicy", "default", "Accepted");
    soon("the policy holds", || {
        world.controller.get(policy.0, policy.1).is_ok()
            && world.controller.condition(policy.0, policy.1, policy.2) == Some(true)
    });
    // When the next challenge comes was settled with the last one: a reconnection brings one, and the new interval.
    world.appliance.process().unwrap().kill().unwrap();
    world.appliance.start().unwrap();
    world.appliance.wait_until_applied().unwrap();
    let controller = &world.controller;
    let beats = || -> u64 {
        controller.row("SELECT CAST(COUNT(*) AS TEXT) FROM heartbeats").unwrap().parse().unwrap()
    };
    let secret = || controller.row("SELECT hex(verification_secret) FROM servers").unwrap();
    let first = secret();

    step("Server sends heartbeat every 30 seconds", || {
        let explained =
            std::fs::read_to_string(horizon_tests::products::repository().join("docs/reference.md")).unwrap();
        assert!(explained.contains("heartbeatInterval"), "the interval is a setting");
        let begin = beats();
        soon("two more beats", || beats() >= begin + 2);
    });
    step("Server includes HMAC signature using verification secret", || {
        assert_eq!(controller.events("heartbeat_failed"), 0);
        let sql = "SELECT CAST(heartbeat_counter AS TEXT) FROM servers";
        let counter: u64 = controller.row(sql).unwrap().parse().unwrap();
        assert!(counter > 0, "each counts on");
    });
    step("Server reports capabilities, version, and identity information", || {
        assert!(!controller.row("SELECT version FROM servers").unwrap().is_empty());
        let sql = "SELECT CAST(COUNT(*) AS TEXT) FROM server_capabilities WHERE enabled AND capability_type = 'vpn'";
        assert_eq!(controller.row(sql).as_deref(), Some("1"));
        let metrics =
            controller.row("SELECT system_metrics FROM heartbeats ORDER BY heartbeat_id DESC LIMIT 1");
        assert!(metrics.unwrap().starts_with('{'));
    });
    step("Broker validates HMAC signature and identity factors", || {
        soon("both hold", || {
            controller.condition("server", "gateway", "Verified") == Some(true)
                && controller.condition("server", "gateway", "IdentityStable") == Some(true)
        });
    });
    step("Broker periodically issues new challenges during heartbeats", || {
        let asked = "SELECT CAST(COUNT(DISTINCT challenge_type) AS TEXT) FROM verification_challenges";
        soon("questions of several types", || controller.row(asked).unwrap().parse::<u64>().unwrap() >= 2);
    });
    step("Server responds to challenges using verification secret", || {
        // Each of these is answered under the secret.
        let right = "SELECT CAST(COUNT(*) AS TEXT) FROM verification_challenges WHERE verification_success \
                     AND challenge_type IN ('hmac', 'public_key', 'identity_verification')";
        soon("the answer is right", || controller.row(right).as_deref() != Some("0"));
        assert_eq!(controller.events("challenge_failed"), 0);
    });
    step("Broker tracks last-seen and last-verified timestamps", || {
        let sql = "SELECT CAST(COUNT(*) AS TEXT) FROM servers WHERE last_heartbeat IS NOT NULL AND last_verified IS NOT NULL";
        assert_eq!(controller.row(sql).as_deref(), Some("1"));
        let told = controller.cli(["describe", "server", "gateway"]).ok().unwrap();
        assert!(told.to_lowercase().contains("heartbeat"), "{told}");
    });
    step("Broker updates server status", || {
        assert_eq!(controller.status("server", "gateway", "/phase"), "active");
        assert_eq!(controller.condition("server", "gateway", "Online"), Some(true));
    });
    step("Broker periodically updates verification secret, and server recieves and updates this", || {
        soon("it is another one", || secret() != first);
        let begin = beats();
        soon("beats go on under it", || beats() >= begin + 2);
        assert!(items(controller, "events").iter().all(|event| event["severity"] != "high"));
    });
}
