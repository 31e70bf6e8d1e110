//! Registration tokens that must not work, and the one that must.

use std::thread;

use horizon_tests::lab::{Lab, within};
use horizon_tests::products::{Appliance, Controller, Programs, WorldOptions};

use super::PROMPTLY;

/// A running controller with the quickstart, and hosts that are not enrolled.
struct Office {
    controller: Controller,
    programs: Programs,
    lab: Lab,
}

fn office() -> Office {
    let mut lab = Lab::new().unwrap();
    let programs = Programs::for_tests().unwrap().clone();
    let host = lab.public_host("controller").unwrap();
    let mut controller = Controller::init(host, &programs, &WorldOptions::default().resources).unwrap();
    controller.start().unwrap();
    Office { controller, programs, lab }
}

impl Office {
    fn appliance(&mut self, name: &str) -> Appliance {
        Appliance::new(self.lab.public_host(name).unwrap(), &self.programs)
    }

    fn refused(&mut self, token: &str) -> String {
        let n = self.lab.hosts();
        self.appliance(&format!("refused-{n}")).cli(["enroll", token]).refused().unwrap()
    }
}

#[test]
fn a_token_works_once_and_its_owner_may_repeat_it() {
    let mut office = office();
    let token = office.controller.token("gateway").unwrap();
    let first = office.appliance("first");
    first.enroll(&token).unwrap();
    first.enroll(&token).unwrap();
    let refusal = office.refused(&token);
    assert!(refusal.contains("used"), "{refusal}");
}

#[test]
fn a_mangled_token_is_refused_before_anything_is_sent() {
    let mut office = office();
    let token = office.controller.token("gateway").unwrap();
    let swapped = if token.ends_with('a') { 'b' } else { 'a' };
    let mangled = format!("{}{swapped}", &token[..token.len() - 1]);
    for wrong in [&mangled, &token[..token.len() / 2], "hzn-key-aaaa", "nonsense"] {
        let refusal = office.refused(wrong);
        assert!(refusal.contains("damaged") || refusal.contains("registration token"), "{refusal}");
    }
}

#[test]
fn revoked_and_forged_tokens_are_refused_and_leave_an_event() {
    let mut office = office();
    let token = office.controller.token("gateway").unwrap();
    let keys = office.controller.cli(["get", "registrationkeys", "-o", "json"]).ok().unwrap();
    let name = names(&keys).pop().unwrap();
    office.controller.cli(["revoke", "registrationkey", &name, "--reason", "lost"]).ok().unwrap();
    let refusal = office.refused(&token);
    assert!(refusal.contains("revoked"), "{refusal}");
    within(PROMPTLY, "a refused registration is a security event", || {
        (office.controller.cli(["get", "events"]).ok().ok()?.lines().count() > 1).then_some(())
    })
    .unwrap();
}

#[test]
fn of_a_hundred_appliances_with_one_token_exactly_one_wins() {
    let mut office = office();
    let policy = "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"SecurityPolicy\"\nmetadata.name = \"default\"\n\
                  [spec]\nrateLimits.registrationsPerMinute = 1000\nlockout.threshold = 1000\n";
    office.controller.put("security.toml", policy).unwrap();
    within(PROMPTLY, "the limits are raised", || {
        let found = office.controller.get("securitypolicy", "default").ok()?;
        let conditions = found["status"]["conditions"].as_array()?.clone();
        conditions.iter().any(|c| c["type"] == "Accepted" && c["status"] == "True").then_some(())
    })
    .unwrap();
    let token = office.controller.token("gateway").unwrap();
    let host = office.appliance("crowd");
    let outcomes: Vec<bool> = thread::scope(|scope| {
        let tries: Vec<_> = (0..100)
            .map(|n| {
                let (host, token) = (&host, &token);
                scope.spawn(move || {
                    let state = host.host().dir().join(format!("state-{n}"));
                    let enroll = host.cli(["enroll", token]).env("HORIZON_APPLIANCE_STATE_DIR", state);
                    enroll.run().unwrap().success()
                })
            })
            .collect();
        tries.into_iter().map(|attempt| attempt.join().unwrap()).collect()
    });
    assert_eq!(outcomes.iter().filter(|won| **won).count(), 1);
    let winner = outcomes.iter().position(|won| *won).unwrap();
    let state = host.host().dir().join(format!("state-{winner}"));
    host.cli(["enroll", &token]).env("HORIZON_APPLIANCE_STATE_DIR", state).ok().unwrap();
}

/// The names of the resources in a JSON list.
pub(crate) fn names(list: &str) -> Vec<String> {
    let list: serde_json::Value = serde_json::from_str(list).unwrap();
    let items = list.as_array().or_else(|| list["items"].as_array()).unwrap();
    items.iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}
