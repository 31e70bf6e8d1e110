//! A thousand appliances and a controller that is killed, and its database that is killed: what was acknowledged is there
//! afterwards, and everybody comes back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod security;

use std::collections::HashMap;
use std::time::Duration;

use horizon_model::ServerId;
use horizon_tests::fleet::{Acknowledged, Group, OrganisationOptions, Trial};
use horizon_tests::products::Programs;

const APPLIANCES: usize = 1000;
/// A few more, in another namespace.
const BYSTANDERS: usize = 20;
/// How long anything may take before it counts as broken: tests share the machine with compilers.
const LIMIT: Duration = Duration::from_secs(240);

fn start(postgres: bool) -> Trial {
    let programs = Programs::for_tests().unwrap();
    let options = OrganisationOptions {
        appliances: APPLIANCES,
        bystanders: BYSTANDERS,
        heartbeat: Duration::from_secs(4),
        ..OrganisationOptions::default()
    };
    let trial = Trial::with_tokens(&programs.controller, options, postgres, true).unwrap();
    trial
        .bring_up(Duration::from_secs(10), LIMIT)
        .unwrap_or_else(|e| panic!("{e:#}\n{}", trial.controller.log()));
    let fleet = trial.fleet.counts(Group::Fleet);
    assert_eq!((fleet.registered, fleet.verified), (APPLIANCES as u64, APPLIANCES));
    trial
}

/// The heartbeats each appliance was acknowledged so far.
fn acknowledged(trial: &Trial) -> HashMap<ServerId, Vec<Acknowledged>> {
    trial.fleet.ledger().unwrap().into_iter().map(|entry| (entry.server, entry.all)).collect()
}

/// Waits until each appliance was acknowledged some more heartbeats than it had been.
fn beat_on(trial: &Trial, before: &HashMap<ServerId, Vec<Acknowledged>>, more: usize) {
    trial
        .fleet
        .wait(Group::Fleet, "every appliance has beaten again", LIMIT, |_| {
            let now = acknowledged(trial);
            let had = |server| before.get(server).map_or(0, Vec::len);
            now.len() == APPLIANCES + BYSTANDERS
                && now.iter().all(|(server, beats)| beats.len() >= had(server) + more)
        })
        .unwrap_or_else(|e| panic!("{e:#}\n{}", trial.controller.log()));
}

/// Kills the controller while everybody beats, and looks into the database before it is started again.
fn survive_the_controller(trial: &mut Trial) {
    beat_on(trial, &HashMap::new(), 2);
    trial.fleet.hold(true).unwrap();
    trial.controller.kill().unwrap();
    assert!(trial.audit().unwrap() > APPLIANCES / 2);
    assert!(trial.audit_history().unwrap() >= 2 * APPLIANCES);
    // A secret that the database had lost would show now: no heartbeat of its appliance could be accepted again.
    let before = acknowledged(trial);
    trial.fleet.hold(false).unwrap();
    trial.controller.start(LIMIT).unwrap();
    beat_on(trial, &before, 1);
    trial.wait_for_all(Group::Fleet, LIMIT).unwrap();
}

#[test]
fn no_acknowledged_heartbeat_is_lost_with_sqlite() {
    let mut trial = start(false);
    survive_the_controller(&mut trial);
}

#[test]
fn no_acknowledged_heartbeat_is_lost_with_postgres() {
    let mut trial = start(true);
    survive_the_controller(&mut trial);

    trial.fleet.hold(true).unwrap();
    trial.kill_database().unwrap();
    trial.revive_database().unwrap();
    assert!(trial.audit().unwrap() > APPLIANCES / 2);
    assert!(trial.audit_history().unwrap() >= 3 * APPLIANCES);
    let before = acknowledged(&trial);
    trial.fleet.hold(false).unwrap();
    beat_on(&trial, &before, 1);
    trial.wait_for_all(Group::Fleet, LIMIT).unwrap();
}
