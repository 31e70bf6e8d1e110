//! The way to a controller: enrolled once, found again, left for another.

use std::path::Path;

use horizon_wire::proto::{self, from_controller::Message as Say};
use nix::sys::signal::Signal;

use crate::{
    kit::{Controller, Program, enrolled, isolated, sh, status},
    states::{base, session},
};

#[test]
fn enrolling_again_is_harmless_and_mistakes_are_named() {
    isolated("finding::enrolling_again_is_harmless_and_mistakes_are_named", || async {
        let dir = tempfile::tempdir().unwrap();
        let controller = Controller::new();
        let state = enrolled(&controller, &dir).await;
        let enrolment = std::fs::read(state.join("enrolment.json")).unwrap();
        let key = std::fs::read(state.join("identity.key")).unwrap();
        enrolled(&controller, &dir).await;
        assert_eq!(std::fs::read(state.join("enrolment.json")).unwrap(), enrolment);
        assert_eq!(std::fs::read(state.join("identity.key")).unwrap(), key);
        let said = |arguments: &[&str], state: &Path| {
            let output = std::process::Command::new(env!("CARGO_BIN_EXE_horizon-appliance"))
                .args(arguments)
                .arg("--state-dir")
                .arg(state)
                .output()
                .unwrap();
            assert!(!output.status.success(), "{arguments:?}");
            String::from_utf8(output.stderr).unwrap()
        };
        assert!(said(&["enroll", "hzn-key-x"], &state).contains("should start with 'hzn-reg-'"));
        let token = controller.token();
        assert!(said(&["enroll", &token[..60]], &state).contains("copy it again, whole"));
        let other = dir.path().join("other");
        assert!(said(&["run"], &other).contains("horizon-appliance enroll TOKEN"));
        assert!(said(&["status"], &state).contains("horizon-appliance run"));
        let program = Program::run(&state);
        let _attached = controller.attach().await;
        status(&state).await;
        assert!(said(&["run"], &state).contains("another horizon-appliance works in"));
        program.signal(Signal::SIGTERM);
        assert!(program.ended().await);
    });
}

#[test]
fn a_new_address_is_a_reason_to_try_the_controller_at_once() {
    isolated("finding::a_new_address_is_a_reason_to_try_the_controller_at_once", || async {
        let dir = tempfile::tempdir().unwrap();
        let mut controller = Controller::new();
        controller.address = [10, 9, 9, 9].into();
        let home = "ip link add v0 type veth peer name v1; ip link set v1 up; ip link set v0 up";
        let (plug, unplug) = ("ip address add 10.9.9.9/24 dev v0", "ip address delete 10.9.9.9/24 dev v0");
        sh(&format!("{home}; {plug}"));
        let state = enrolled(&controller, &dir).await;
        sh(unplug);
        let _program = Program::run(&state);
        // Nothing leads to the controller, so the attempt would last for many seconds.
        assert!(!status(&state).await.controller.connected);
        sh(plug);
        let started = tokio::time::Instant::now();
        let (_peer, _) = controller.attach().await;
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    });
}

#[test]
fn an_appliance_goes_elsewhere_when_asked_and_comes_back_later() {
    isolated("finding::an_appliance_goes_elsewhere_when_asked_and_comes_back_later", || async {
        let dir = tempfile::tempdir().unwrap();
        let mut controller = Controller::new();
        let mut replica = Controller::new();
        let state = enrolled(&controller, &dir).await;
        for side in [&mut controller, &mut replica] {
            side.change([base(7443), vec![session(1, "10.64.0.2/32")]].concat());
        }
        let _program = Program::run(&state);
        let (mut peer, _) = controller.attach().await;
        peer.say(0, controller.snapshot()).await;
        peer.report(|r| r.generation == 1).await;
        // The other replica takes it in where it was, under the same start of the process; its session goes on.
        let addresses = vec!["127.0.0.1:1".to_owned(), replica.place()];
        peer.say(0, Say::GoElsewhere(proto::GoElsewhere { addresses })).await;
        let (there, attach) = replica.attach().await;
        assert_eq!((attach.generation, &attach.digest[..]), (1, &controller.state.entries.digest().0[..]));
        let now = status(&state).await;
        assert_eq!((now.sessions.len(), now.state.generation), (1, 1));
        // When that one goes without a word, it comes back to the controller that was set up.
        drop((there, replica));
        let (_peer, again) = controller.attach().await;
        assert_eq!(again.incarnation, attach.incarnation);
    });
}

#[test]
fn a_controller_that_falls_silent_is_left_for_another_before_its_connection_times_out() {
    isolated(
        "a_controller_that_falls_silent_is_left_for_another_before_its_connection_times_out",
        || async {
            let dir = tempfile::tempdir().unwrap();
            let mut controller = Controller::new();
            let replica = Controller::new();
            (controller.ping_seconds, controller.others) = (1, vec![replica.place()]);
            let state = enrolled(&controller, &dir).await;
            controller.change(base(7443));
            let _program = Program::run(&state);
            let (mut peer, attach) = controller.attach().await;
            peer.say(0, controller.snapshot()).await;
            peer.report(|r| r.generation == 1).await;
            // Its packets are lost from now on, as if its machine had lost its power.
            let port = controller.place().rsplit_once(':').unwrap().1.to_owned();
            sh(&format!(
            "nft add table inet lost; nft 'add chain inet lost in {{ type filter hook input priority 0; }}'
             nft add rule inet lost in udp dport {port} drop"
        ));
            let since = std::time::Instant::now();
            let (_there, again) = replica.attach().await;
            let took = since.elapsed();
            assert_eq!((again.incarnation, again.generation), (attach.incarnation, 1));
            assert!(took.as_secs() < 15, "{took:?}");
        },
    );
}
