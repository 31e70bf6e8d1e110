use horizon_model::SessionConflict;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::plan::tests::ticket as plain_ticket;

fn ticket(session: u128) -> Box<Ticket> {
    let mut ticket = plain_ticket(&[(0, &["100.64.0.5/32"], &["0.0.0.0/0"])]);
    ticket.session = SessionId(Uuid::from_u128(session));
    Box::new(ticket)
}

fn wish(server: &str) -> Wish {
    Wish { server: server.into(), take_over: None, confirm_within: None, failover: WishedFailover::No }
}

fn path() -> Option<Path> {
    Some(Path { remote: "203.0.113.9:7443".parse().unwrap() })
}

fn refused(kind: FailureKind) -> Answer {
    Answer::Failed(Failure::new(kind, "no", "ask"))
}

fn effects(machine: &mut Machine) -> Vec<String> {
    std::iter::from_fn(|| machine.poll_effect())
        .map(|e| match e {
            Effect::Request { attempt, server, .. } => format!("request {server} {attempt}"),
            Effect::Find { attempt, instead_of } => format!("find {instead_of} {attempt}"),
            Effect::Start(t) => format!("start {}", t.session.0.as_u128()),
            Effect::Renew(t) => format!("renew {}", t.session.0.as_u128()),
            Effect::Stop => "stop".into(),
            Effect::End(s) => format!("end {}", s.0.as_u128()),
        })
        .collect()
}

fn connected(now: Instant, wish: Wish) -> Machine {
    let mut machine = Machine::default();
    machine.handle_connect(now, wish).unwrap();
    machine.handle_answer(now, 1, Answer::Granted(ticket(7)));
    machine.handle_host(now, Ok(()));
    machine.handle_path(now, path());
    assert_eq!(machine.phase(), Phase::Connected);
    effects(&mut machine);
    machine
}

#[test]
fn a_session_moves_to_another_server_when_its_own_stays_away_and_only_if_that_is_wanted() {
    let now = Instant::now();
    let mut machine = connected(now, Wish { failover: WishedFailover::Asked, ..wish("paris-1") });
    machine.handle_trouble("timed out");
    machine.handle_path(now, None);
    machine.handle_timeout(now + REFRESH_AFTER);
    assert_eq!(effects(&mut machine), ["request paris-1 2"]);
    // The controller knows that the server is away: there is nothing to wait for.
    machine.handle_answer(now + REFRESH_AFTER, 2, refused(FailureKind::Failed));
    machine.handle_timeout(now + REFRESH_AFTER);
    assert_eq!(effects(&mut machine), ["find paris-1 3"]);
    machine.handle_found(now, 3, Some("rome-1".into()));
    assert_eq!(effects(&mut machine), ["request rome-1 4"]);
    // The old session is replaced by the new one, which is no reason to stop.
    machine.handle_session_ended(SessionId(Uuid::from_u128(7)), "the device connected again");
    machine.handle_answer(now, 4, Answer::Granted(ticket(8)));
    assert_eq!(
        effects(&mut machine),
        ["renew 8"],
        "the host stays as it is: nothing leaves beside the tunnel"
    );
    machine.handle_host(now, Ok(()));
    machine.handle_path(now, path());
    assert_eq!((machine.phase(), machine.server()), (Phase::Connected, Some("rome-1")));
    let moved = machine.moved().unwrap();
    assert_eq!((moved.from.as_str(), moved.reason.as_str()), ("paris-1", "timed out"));

    let mut machine = connected(now, wish("paris-1"));
    machine.handle_path(now, None);
    machine.handle_timeout(now + FAILOVER_AFTER);
    assert_eq!(effects(&mut machine), ["request paris-1 2"], "nobody wanted another server");
}

#[test]
fn the_organisations_word_on_failover_comes_before_the_users() {
    let now = Instant::now();
    let of = |policy: Failover| {
        let mut ticket = ticket(7);
        ticket.failover = policy;
        Answer::Granted(ticket)
    };
    let seeks = |policy: Failover, failover: WishedFailover| {
        let mut machine = Machine::default();
        machine.handle_connect(now, Wish { failover, ..wish("paris-1") }).unwrap();
        machine.handle_answer(now, 1, of(policy));
        if machine.phase() == Phase::Failed {
            assert_eq!(
                effects(&mut machine),
                ["request paris-1 1", "end 7"],
                "what was granted is given back"
            );
            let failure = machine.failure().unwrap().clone();
            assert_eq!(failure.kind, FailureKind::Refused);
            assert!(failure.message.contains("forbids failover from paris-1"), "{failure}");
            return None;
        }
        assert_eq!(machine.failover(), Some(policy));
        machine.handle_host(now, Ok(()));
        machine.handle_path(now, path());
        effects(&mut machine);
        machine.handle_path(now, None);
        machine.handle_timeout(now + FAILOVER_AFTER);
        Some(effects(&mut machine).iter().any(|effect| effect.starts_with("find")))
    };
    use {Failover as F, WishedFailover as W};
    for (policy, wished, expected) in [
        (F::Allowed, W::No, Some(false)),
        (F::Allowed, W::Liked, Some(true)),
        (F::Allowed, W::Asked, Some(true)),
        (F::Required, W::No, Some(true)),
        (F::Required, W::Asked, Some(true)),
        (F::Never, W::No, Some(false)),
        (F::Never, W::Liked, Some(false)),
        (F::Never, W::Asked, None),
    ] {
        assert_eq!(seeks(policy, wished), expected, "{policy:?} {wished:?}");
    }
    // What a fresh ticket says holds from then on.
    let mut machine = connected(now, Wish { failover: W::Asked, ..wish("paris-1") });
    machine.handle_path(now, None);
    machine.handle_timeout(now + REFRESH_AFTER);
    machine.handle_answer(now + REFRESH_AFTER, 2, of(F::Never));
    effects(&mut machine);
    machine.handle_timeout(now + FAILOVER_AFTER);
    assert!(!effects(&mut machine).iter().any(|effect| effect.starts_with("find")));
}

#[test]
fn a_path_that_comes_back_ends_the_search_and_another_search_follows_one_in_vain() {
    let now = Instant::now();
    let mut machine = connected(now, Wish { failover: WishedFailover::Asked, ..wish("paris-1") });
    machine.handle_path(now, None);
    let late = now + FAILOVER_AFTER;
    machine.handle_timeout(late);
    assert_eq!(effects(&mut machine), ["find paris-1 2", "request paris-1 3"]);
    machine.handle_found(late, 2, None);
    machine.handle_timeout(late + FAILOVER_EVERY);
    assert_eq!(effects(&mut machine), ["find paris-1 4"]);
    machine.handle_path(late, path());
    machine.handle_found(late, 4, Some("rome-1".into()));
    assert_eq!((machine.phase(), effects(&mut machine).len()), (Phase::Connected, 0));
    assert_eq!(machine.poll_timeout(), None);
}

#[test]
fn a_session_is_connected_only_when_host_and_path_are_ready() {
    let now = Instant::now();
    for host_first in [true, false] {
        let mut machine = Machine::default();
        machine.handle_connect(now, wish("paris-1")).unwrap();
        assert_eq!(effects(&mut machine), ["request paris-1 1"]);
        machine.handle_answer(now, 1, Answer::Granted(ticket(7)));
        assert_eq!(effects(&mut machine), ["start 7"]);
        if host_first {
            machine.handle_host(now, Ok(()))
        } else {
            machine.handle_path(now, path())
        }
        assert_eq!(machine.phase(), Phase::Connecting);
        if host_first {
            machine.handle_path(now, path())
        } else {
            machine.handle_host(now, Ok(()))
        }
        assert_eq!(machine.phase(), Phase::Connected);
        assert_eq!(machine.poll_timeout(), None);
        machine.handle_disconnect();
        assert_eq!(effects(&mut machine), ["end 7", "stop"]);
        machine.handle_stopped(now);
        let events: Vec<_> = std::iter::from_fn(|| machine.poll_event()).collect();
        use Phase::{Connected, Connecting, Disconnected, Disconnecting, Requesting};
        let expected = [Requesting, Connecting, Connected, Disconnecting, Disconnected];
        assert_eq!(events, expected.map(Event::Phase));
    }
}

#[test]
fn refusals_and_conflicts_are_kept_for_the_user() {
    let now = Instant::now();
    let mut machine = Machine::default();
    machine.handle_connect(now, wish("paris-1")).unwrap();
    machine.handle_answer(now, 1, refused(FailureKind::Refused));
    assert_eq!(machine.phase(), Phase::Failed);
    assert_eq!(machine.failure().unwrap().kind, FailureKind::Refused);
    machine.handle_connect(now, wish("paris-1")).unwrap();
    let conflict = SessionConflict {
        session: SessionId(Uuid::from_u128(3)),
        device_name: "desktop".into(),
        server_name: "paris-1".into(),
        since: jiff::Timestamp::UNIX_EPOCH,
    };
    machine.handle_answer(now, 2, Answer::Conflict(conflict.clone()));
    assert_eq!(machine.failure().unwrap().conflict, Some(Box::new(conflict)));
    machine.handle_disconnect();
    assert_eq!(machine.phase(), Phase::Disconnected);
}

#[test]
fn an_answer_that_comes_too_late_is_given_back() {
    let now = Instant::now();
    let mut machine = Machine::default();
    machine.handle_connect(now, wish("paris-1")).unwrap();
    machine.handle_timeout(now + REQUEST_TIMEOUT);
    assert_eq!(machine.failure().unwrap().kind, FailureKind::Unreachable);
    effects(&mut machine);
    machine.handle_answer(now, 1, Answer::Granted(ticket(7)));
    assert_eq!(effects(&mut machine), ["end 7"]);
    assert_eq!(machine.phase(), Phase::Failed);
}

#[test]
fn a_server_that_does_not_answer_is_given_up() {
    let now = Instant::now();
    let mut machine = Machine::default();
    machine.handle_connect(now, wish("paris-1")).unwrap();
    machine.handle_answer(now, 1, Answer::Granted(ticket(7)));
    machine.handle_host(now, Ok(()));
    effects(&mut machine);
    let deadline = machine.poll_timeout().unwrap();
    assert_eq!(deadline, now + CONNECT_TIMEOUT);
    machine.handle_timeout(deadline);
    assert_eq!(effects(&mut machine), ["end 7", "stop"]);
    machine.handle_stopped(deadline);
    assert!(machine.failure().unwrap().message.contains("did not answer"));
}

#[test]
fn a_lost_path_is_waited_for_and_renewed() {
    let now = Instant::now();
    let mut machine = connected(now, wish("paris-1"));
    machine.handle_path(now, None);
    assert_eq!(machine.phase(), Phase::Reconnecting);
    machine.handle_timeout(now + REFRESH_AFTER);
    assert_eq!(effects(&mut machine), ["request paris-1 2"]);
    // The controller is away too: the session goes on.
    machine.handle_answer(now, 2, refused(FailureKind::Unreachable));
    assert_eq!(machine.phase(), Phase::Reconnecting);
    let again = machine.poll_timeout().unwrap();
    machine.handle_timeout(again);
    assert_eq!(effects(&mut machine), ["request paris-1 3"]);
    machine.handle_answer(again, 3, Answer::Granted(ticket(8)));
    assert_eq!(effects(&mut machine), ["renew 8"]);
    machine.handle_path(again, path());
    assert_eq!(machine.phase(), Phase::Connected);
    assert_eq!(machine.session(), Some(SessionId(Uuid::from_u128(8))));
}

#[test]
fn a_session_that_is_no_longer_granted_ends_with_the_reason() {
    let now = Instant::now();
    let mut machine = connected(now, wish("paris-1"));
    machine.handle_session_ended(SessionId(Uuid::from_u128(99)), "another");
    assert_eq!(machine.phase(), Phase::Connected);
    machine.handle_session_ended(SessionId(Uuid::from_u128(7)), "the policy changed");
    assert_eq!(effects(&mut machine), ["stop"]);
    machine.handle_stopped(now);
    assert!(machine.failure().unwrap().message.contains("the policy changed"));

    let mut machine = connected(now, wish("paris-1"));
    machine.handle_path(now, None);
    machine.handle_timeout(now + REFRESH_AFTER);
    effects(&mut machine);
    machine.handle_answer(now, 2, refused(FailureKind::Refused));
    assert_eq!(effects(&mut machine), ["stop"]);
}

#[test]
fn an_unconfirmed_connection_is_reverted_and_a_confirmed_one_stays() {
    let now = Instant::now();
    let within = Duration::from_secs(30);
    let ssh = || Wish { confirm_within: Some(within), ..wish("paris-1") };
    let mut machine = connected(now, ssh());
    assert_eq!(machine.poll_timeout(), Some(now + within));
    machine.handle_timeout(now + within);
    assert_eq!(effects(&mut machine), ["end 7", "stop"]);
    machine.handle_stopped(now);
    assert!(machine.failure().unwrap().message.contains("not confirmed"));
    assert!(machine.handle_confirm().is_err());

    let mut machine = connected(now, ssh());
    machine.handle_confirm().unwrap();
    assert_eq!(machine.poll_timeout(), None);
    machine.handle_timeout(now + within * 2);
    assert_eq!(machine.phase(), Phase::Connected);
}

#[test]
fn another_server_replaces_the_first_and_the_same_changes_nothing() {
    let now = Instant::now();
    let mut machine = connected(now, wish("paris-1"));
    machine.handle_connect(now, wish("paris-1")).unwrap();
    assert_eq!(effects(&mut machine), Vec::<String>::new());
    machine.handle_connect(now, wish("oslo-1")).unwrap();
    assert_eq!(effects(&mut machine), ["request oslo-1 2"]);
    assert!(machine.handle_connect(now, wish("rome-1")).is_err());
    machine.handle_session_ended(SessionId(Uuid::from_u128(7)), "replaced");
    machine.handle_answer(now, 2, Answer::Granted(ticket(8)));
    assert_eq!(effects(&mut machine), ["stop"]);
    machine.handle_stopped(now);
    assert_eq!(effects(&mut machine), ["start 8"]);
    assert_eq!((machine.phase(), machine.server()), (Phase::Connecting, Some("oslo-1")));
}

#[test]
fn another_server_that_is_not_granted_leaves_the_session_alone() {
    let now = Instant::now();
    let mut machine = connected(now, wish("paris-1"));
    std::iter::from_fn(|| machine.poll_event()).for_each(drop);
    machine.handle_connect(now, wish("oslo-1")).unwrap();
    machine.handle_answer(now, 2, refused(FailureKind::Refused));
    let declined = Event::Declined(Failure::new(FailureKind::Refused, "no", "ask"));
    assert_eq!((machine.phase(), machine.poll_event()), (Phase::Connected, Some(declined)));
    machine.handle_connect(now, wish("oslo-1")).unwrap();
    assert_eq!(machine.poll_timeout(), Some(now + REQUEST_TIMEOUT));
    machine.handle_timeout(now + REQUEST_TIMEOUT);
    assert!(matches!(machine.poll_event(), Some(Event::Declined(_))));
    effects(&mut machine);
    machine.handle_answer(now, 3, Answer::Granted(ticket(9)));
    assert_eq!(effects(&mut machine), ["end 9"]);
    assert_eq!(machine.phase(), Phase::Connected);
}

#[test]
fn a_failed_host_is_put_back() {
    let now = Instant::now();
    let mut machine = Machine::default();
    machine.handle_connect(now, wish("paris-1")).unwrap();
    machine.handle_answer(now, 1, Answer::Granted(ticket(7)));
    effects(&mut machine);
    machine.handle_host(now, Err(Failure::failed("no TUN", "load the module")));
    assert_eq!(effects(&mut machine), ["end 7", "stop"]);
    machine.handle_stopped(now);
    assert_eq!(machine.failure().unwrap().message, "no TUN");
}

#[test]
fn a_resumed_session_waits_for_its_path_and_keys_wait_for_its_end() {
    let now = Instant::now();
    let mut machine = Machine::default();
    machine.handle_resume(now, *ticket(7));
    assert_eq!((machine.phase(), machine.server()), (Phase::Connecting, Some("paris-1")));
    assert_eq!(effects(&mut machine), ["start 7"]);
    assert_eq!(machine.handle_enrol(now).unwrap_err().kind, FailureKind::Usage);
    machine.handle_host(now, Ok(()));
    machine.handle_path(now, path());
    assert_eq!(machine.phase(), Phase::Connected);

    let mut machine = Machine::default();
    machine.handle_enrol(now).unwrap();
    assert!(machine.handle_connect(now, wish("paris-1")).is_err());
    machine.handle_enrolled();
    assert_eq!(machine.phase(), Phase::Disconnected);
}

/// What may happen to the machine.
#[derive(Clone, Debug)]
enum Step {
    Found(u64, bool),
    Connect(u8),
    Disconnect,
    Confirm,
    Enrol,
    Enrolled,
    Grant(u64),
    Refuse(u64, FailureKind),
    Host(bool),
    Path(bool),
    Ended(u8),
    Stopped,
    Wait(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    use FailureKind::{Failed, Refused, Unreachable};
    prop_oneof![
        3 => (0u8..3).prop_map(Step::Connect),
        1 => Just(Step::Disconnect),
        1 => Just(Step::Confirm),
        1 => Just(Step::Enrol),
        1 => Just(Step::Enrolled),
        4 => (0u64..6).prop_map(Step::Grant),
        2 => (0u64..6, prop::sample::select(vec![Failed, Refused, Unreachable])).prop_map(|(a, k)| Step::Refuse(a, k)),
        3 => any::<bool>().prop_map(Step::Host),
        4 => any::<bool>().prop_map(Step::Path),
        1 => (0u8..4).prop_map(Step::Ended),
        3 => Just(Step::Stopped),
        2 => (0u64..6, any::<bool>()).prop_map(|(attempt, found)| Step::Found(attempt, found)),
        2 => (0u64..60).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_a_disconnect_leads_to_rest(
        steps in prop::collection::vec(any_step(), 0..60),
    ) {
        let mut now = Instant::now();
        let mut machine = Machine::default();
        // What the shell believes: how often the host was changed and not put back.
        let mut started = 0i32;
        let mut serial = 100u128;
        let mut apply = |machine: &mut Machine| {
            while let Some(effect) = machine.poll_effect() {
                match effect {
                    Effect::Start(_) => started += 1,
                    Effect::Stop => started -= 1,
                    Effect::End(_) | Effect::Renew(_) | Effect::Request { .. } | Effect::Find { .. } => {}
                }
                assert!((0..=1).contains(&started), "started twice or stopped twice");
            }
            started
        };
        for step in steps {
            match step {
                Step::Connect(n) => {
                    let failover = [WishedFailover::No, WishedFailover::Liked, WishedFailover::Asked][n as usize];
                    let wish = Wish { failover, ..wish(["a", "b", "c"][n as usize]) };
                    let _ = machine.handle_connect(now, wish);
                }
                Step::Found(attempt, found) => machine.handle_found(now, attempt, found.then(|| "d".to_owned())),
                Step::Disconnect => machine.handle_disconnect(),
                Step::Confirm => { let _ = machine.handle_confirm(); }
                Step::Enrol => { let _ = machine.handle_enrol(now); }
                Step::Enrolled => machine.handle_enrolled(),
                Step::Grant(attempt) => {
                    serial += 1;
                    let granted = ticket(serial);
                    machine.handle_answer(now, attempt, Answer::Granted(granted));
                }
                Step::Refuse(attempt, kind) => machine.handle_answer(now, attempt, refused(kind)),
                Step::Host(ok) => machine.handle_host(now, if ok { Ok(()) } else { Err(Failure::failed("x", "")) }),
                Step::Path(up) => machine.handle_path(now, if up { path() } else { None }),
                Step::Ended(n) => machine.handle_session_ended(SessionId(Uuid::from_u128(101 + u128::from(n))), "x"),
                Step::Stopped => machine.handle_stopped(now),
                Step::Wait(seconds) => {
                    now += Duration::from_secs(seconds);
                    machine.handle_timeout(now);
                }
            }
            apply(&mut machine);
            // A phase that waits for the outside has a limit or is the user's to end.
            if matches!(machine.phase(), Phase::Requesting | Phase::Connecting | Phase::Enrolling | Phase::Reconnecting) {
                prop_assert!(machine.poll_timeout().is_some());
            }
        }
        machine.handle_disconnect();
        apply(&mut machine);
        machine.handle_enrolled();
        machine.handle_stopped(now);
        prop_assert_eq!(apply(&mut machine), 0);
        prop_assert_eq!(machine.phase(), Phase::Disconnected);
        prop_assert_eq!(machine.poll_timeout(), None);
        prop_assert_eq!(machine.session(), None);
    }
}
