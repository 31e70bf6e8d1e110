//! Detection: baselines, anomalies and what was said of them, flags, blocks, notifications, tasks, services.

use horizon_controller_core::detect::{Detector, country, force, session};
use horizon_crds::{DetectionSpec, TimeSpan};
use jiff::SignedDuration;
use uuid::Uuid;

use super::kit::{Kit, at, conformance};
use crate::store::{
    Actor, BlockSeverity, BlockSource, Channel, EventFilter, LeaderEpoch, Look, NewBlock, NewEvent,
    NewNotification, Noted, ServiceNote, ServiceState, Severity, Source, StoreError, Subject, TaskSpec,
    Urgency,
};

const ANN: Uuid = Uuid::from_u128(7);

fn admin() -> Actor {
    Actor::Admin("ann".into())
}

async fn at_country(kit: &Kit, subject: &Subject, country: &str, second: i64) -> Option<Noted> {
    let policy = DetectionSpec::default();
    let about = Look { detector: Detector::NewCountry, subject, address: None, policy: &policy };
    let look = |baseline: &mut country::Baseline| country::observe(baseline, country, at(second));
    kit.store.take_in(about, look, at(second)).await.unwrap()
}

async fn an_anomaly_is_recorded_with_its_ground_and_an_administrator_has_the_last_word() {
    let kit = Kit::new().await;
    let subject = Subject::user(ANN, "ann");
    for second in 0..12 {
        assert_eq!(at_country(&kit, &subject, "DE", second).await, None);
    }
    let noted = at_country(&kit, &subject, "FR", 20).await.unwrap();
    let anomalies = kit.store.list_anomalies(10).await.unwrap();
    let [anomaly] = &anomalies[..] else { panic!("{anomalies:?}") };
    assert_eq!(
        (anomaly.id, anomaly.kind.as_str(), anomaly.subject.as_str()),
        (noted.id, "new_country", "ann")
    );
    assert_eq!((anomaly.feature.as_str(), anomaly.baseline["countries"][0].as_str()), ("FR", Some("DE")));
    let events = kit.store.list_security_events(&EventFilter { source: Some(ANN), limit: 0 }).await.unwrap();
    assert_eq!((events.len(), events[0].kind.as_str()), (1, "new_country"));
    assert_eq!(events[0].data["anomaly"], noted.id);

    // The baseline is the database's: another replica goes on with it.
    let replica = Kit { store: kit.replica().await, place: super::place::Place::new() };
    assert_eq!(at_country(&replica, &subject, "FR", 21).await, None);

    // A false positive silences the same of this subject, and of nobody else.
    let said =
        kit.store.judge_anomaly(noted.id, true, "on holiday", &admin(), at(30)).await.unwrap().unwrap();
    assert_eq!(
        (said.verdict.as_deref(), said.addressed_by.as_deref()),
        (Some("false positive"), Some("ann"))
    );
    kit.place.admin("UPDATE detector_baselines SET baseline = '{\"countries\":{\"DE\":\"2027-01-15T08:00:00Z\"},\"seen\":50}'").await;
    assert_eq!(at_country(&kit, &subject, "FR", 40).await, None);
    assert_eq!(kit.store.list_anomalies(10).await.unwrap().len(), 1);
    let other = Subject::user(Uuid::from_u128(8), "bob");
    for second in 0..12 {
        at_country(&kit, &other, "DE", second).await;
    }
    assert!(at_country(&kit, &other, "FR", 41).await.is_some());
    // Confirmed instead, it is told again, and surer.
    kit.store.judge_anomaly(noted.id, false, "", &admin(), at(50)).await.unwrap().unwrap();
    kit.place.admin("UPDATE detector_baselines SET baseline = '{\"countries\":{\"DE\":\"2027-01-15T08:00:00Z\"},\"seen\":50}'").await;
    let again = at_country(&kit, &subject, "FR", 60).await.unwrap();
    assert!(again.finding.confidence > noted.finding.confidence, "{again:?}");
    assert!(again.flagged, "it is sure enough now");
    let audit = kit.store.list_audit(20).await.unwrap();
    let actions: Vec<_> = audit.iter().map(|entry| (entry.action.as_str(), entry.actor.as_str())).collect();
    assert!(
        actions.contains(&("judge_anomaly", "ann")) && actions.contains(&("flag", "new_country")),
        "{actions:?}"
    );
    assert_eq!(kit.store.judge_anomaly(999, true, "", &admin(), at(70)).await.unwrap(), None);
}

async fn a_baseline_that_cannot_be_read_is_learned_anew() {
    let kit = Kit::new().await;
    let subject = Subject::user(ANN, "ann");
    at_country(&kit, &subject, "DE", 0).await;
    kit.place.admin("UPDATE detector_baselines SET baseline = 'what is this'").await;
    assert_eq!(at_country(&kit, &subject, "FR", 1).await, None);
    let policy = DetectionSpec::default();
    let about =
        Look { detector: Detector::SessionPattern, subject: &subject, address: None, policy: &policy };
    let look = |baseline: &mut session::Baseline| session::began(baseline, at(0));
    assert_eq!(kit.store.take_in(about, look, at(0)).await.unwrap(), None);
}

fn blocking() -> DetectionSpec {
    let mut policy = DetectionSpec::default();
    policy.blocking.failures = 30;
    policy.blocking.duration = TimeSpan::from_secs(100);
    policy
}

async fn tries(kit: &Kit, address: &str, count: u32, second: i64) -> Option<Noted> {
    let policy = blocking();
    let address = address.parse().unwrap();
    let subject = Subject::address(address);
    let threshold = force::Threshold { failures: 10, window: 600_000 };
    let about =
        Look { detector: Detector::BruteForce, subject: &subject, address: Some(address), policy: &policy };
    let tries = force::Tries { count, other: None };
    let look =
        |baseline: &mut force::Baseline| force::observe(baseline, "address", &tries, threshold, at(second));
    kit.store.take_in(about, look, at(second)).await.unwrap()
}

async fn an_address_is_blocked_by_threshold_until_its_time_is_over() {
    let kit = Kit::new().await;
    assert_eq!(tries(&kit, "203.0.113.9", 5, 0).await, None);
    let told = tries(&kit, "203.0.113.9", 10, 1).await.unwrap();
    assert_eq!((told.blocked, kit.store.blocks_in_force(at(1)).await.unwrap().len()), (None, 0));
    let blocked = tries(&kit, "203.0.113.9", 40, 2).await.unwrap();
    assert_eq!(blocked.blocked.map(|range| range.to_string()).as_deref(), Some("203.0.113.9/32"));
    let in_force = kit.store.blocks_in_force(at(3)).await.unwrap();
    assert_eq!(in_force, [("203.0.113.9/32".parse().unwrap(), Some(at(102)))]);
    assert_eq!(kit.store.blocks_in_force(at(102)).await.unwrap(), []);
    // Of IPv6, what one party holds.
    let blocked = tries(&kit, "2001:db8::7", 50, 3).await.unwrap();
    assert_eq!(blocked.blocked.map(|range| range.to_string()).as_deref(), Some("2001:db8::/64"));
    // Not where nobody is blocked, nor where somebody is who proved who they are.
    let spared = tries(&kit, "127.0.0.1", 50, 4).await.unwrap();
    assert_eq!(spared.blocked, None);
    kit.put(super::kit::BASICS).await;
    kit.register(horizon_model::PublicKey([9; 32])).await;
    let known = tries(&kit, "192.0.2.7", 50, 5).await.unwrap();
    assert_eq!(known.blocked, None);
    let events = kit.store.list_security_events(&EventFilter::default()).await.unwrap();
    let reason = events[0].data["notBlocked"].as_str().unwrap();
    assert!(reason.contains("an appliance"), "{reason}");

    // What is over is history after the next upkeep, and may be blocked again.
    kit.store.note_block_hits(&[("203.0.113.9/32".parse().unwrap(), 5)]).await.unwrap();
    kit.store.maintain(at(200), &Default::default()).await.unwrap();
    let blocks = kit.store.list_blocks(10).await.unwrap();
    let first = blocks.iter().find(|block| block.range.to_string() == "203.0.113.9/32").unwrap();
    assert_eq!((first.hits, first.lifted_by.as_deref(), first.lifted_at), (5, Some("system"), Some(at(102))));
}

async fn administrators_block_and_unblock() {
    let kit = Kit::new().await;
    let block = |until, source| NewBlock {
        range: "198.51.100.0/24".parse().unwrap(),
        reason: "a test".into(),
        severity: BlockSeverity::Malicious,
        source,
        until,
    };
    let range = block(None, BlockSource::Manual).range;
    kit.store.block_range(&block(Some(at(100)), BlockSource::Manual), &admin(), at(0)).await.unwrap();
    // Blocked again it stays so for the longer time, and what a person said of it stays.
    kit.store.block_range(&block(Some(at(50)), BlockSource::Manual), &admin(), at(1)).await.unwrap();
    assert_eq!(kit.store.blocks_in_force(at(2)).await.unwrap(), [(range, Some(at(100)))]);
    let threshold = NewBlock { reason: "too many".into(), ..block(Some(at(500)), BlockSource::Threshold) };
    kit.store.block_range(&threshold, &Actor::System("brute_force"), at(3)).await.unwrap();
    let blocks = kit.store.list_blocks(10).await.unwrap();
    assert_eq!((blocks.len(), blocks[0].reason.as_str(), blocks[0].by.as_str()), (1, "a test", "ann"));
    assert_eq!(blocks[0].until, Some(at(500)));
    assert!(kit.store.unblock_range(range, &admin(), at(4)).await.unwrap());
    assert!(!kit.store.unblock_range(range, &admin(), at(5)).await.unwrap());
    assert_eq!(kit.store.blocks_in_force(at(6)).await.unwrap(), []);
    let actions: Vec<_> = kit.store.list_audit(10).await.unwrap().into_iter().map(|e| e.action).collect();
    assert_eq!(actions, ["unblock", "block", "block", "block"]);
}

async fn flags_stand_once_until_they_are_cleared() {
    let kit = Kit::new().await;
    let subject = Subject::user(ANN, "ann");
    assert!(kit.store.flag(&subject, "odd", &admin(), at(0)).await.unwrap());
    assert!(!kit.store.flag(&subject, "odd again", &admin(), at(1)).await.unwrap());
    assert!(kit.store.clear_flag(&subject, "it was her", &admin(), at(2)).await.unwrap());
    assert!(!kit.store.clear_flag(&subject, "", &admin(), at(3)).await.unwrap());
    assert!(kit.store.flag(&subject, "odd", &admin(), at(4)).await.unwrap());
    let flags = kit.store.list_flags(10).await.unwrap();
    assert_eq!(flags.iter().map(|f| f.cleared_at).collect::<Vec<_>>(), [None, Some(at(2))]);
}

async fn events_are_handled_with_a_note() {
    let kit = Kit::new().await;
    record(&kit, "clone", 0).await;
    let id = kit.store.list_security_events(&EventFilter::default()).await.unwrap()[0].id;
    let handled = kit.store.handle_event(id, "a copied disk", &admin(), at(5)).await.unwrap().unwrap();
    assert_eq!(
        (handled.handled_by.as_deref(), handled.notes.as_deref()),
        (Some("ann"), Some("a copied disk"))
    );
    assert_eq!(kit.store.handle_event(999, "", &admin(), at(6)).await.unwrap(), None);
    assert_eq!(kit.store.list_audit(10).await.unwrap()[0].action, "handle_event");
}

async fn record(kit: &Kit, kind: &'static str, second: i64) {
    let event = NewEvent {
        kind,
        severity: Severity::High,
        source: Source::System,
        address: None,
        description: "something".into(),
        data: serde_json::Value::Null,
    };
    kit.store.record_event(&event, at(second)).await.unwrap();
}

async fn leader(kit: &Kit) -> LeaderEpoch {
    kit.store.take_leadership(super::kit::REPLICA, "one", at(0)).await.unwrap()
}

fn notification(key: &str) -> NewNotification {
    NewNotification {
        kind: "security",
        urgency: Urgency::High,
        key: key.into(),
        subject: format!("about {key}"),
        content: "text".into(),
        occurrences: 2,
        action_required: true,
    }
}

async fn events_become_notifications_once_and_are_delivered_with_retries() {
    let kit = Kit::new().await;
    let epoch = leader(&kit).await;
    let hour = SignedDuration::from_hours(1);
    // A way for what is critical is not used for this.
    let channels = [(Channel::Webhook, Urgency::High), (Channel::Smtp, Urgency::Critical)];
    let take = async |second| {
        let compose =
            |events: &[_], _| vec![NewNotification { occurrences: events.len() as u64, ..notification("x") }];
        kit.store.take_notice(epoch, &channels, hour, compose, at(second)).await
    };
    assert_eq!(take(0).await.unwrap(), 0);
    record(&kit, "a", 1).await;
    record(&kit, "b", 1).await;
    assert_eq!(take(2).await.unwrap(), 2);
    assert_eq!(take(3).await.unwrap(), 0, "nobody is told twice");
    record(&kit, "c", 4).await;
    assert_eq!(take(5).await.unwrap(), 1);
    // The same within the hour is one, and sent once.
    let stored = kit.store.list_notifications(10).await.unwrap();
    assert_eq!((stored.len(), stored[0].occurrences), (1, 3));
    let due = kit.store.due_deliveries(Channel::Webhook, 10, at(6)).await.unwrap();
    assert_eq!((due.len(), due[0].attempts), (1, 0));
    assert_eq!(kit.store.due_deliveries(Channel::Smtp, 10, at(6)).await.unwrap(), []);
    let id = stored[0].id;
    assert!(!kit.store.note_delivery(id, Channel::Webhook, Err("no answer"), at(6)).await.unwrap());
    assert_eq!(kit.store.due_deliveries(Channel::Webhook, 10, at(7)).await.unwrap(), []);
    let due = kit.store.due_deliveries(Channel::Webhook, 10, at(16)).await.unwrap();
    assert_eq!(due[0].attempts, 1);
    kit.store.note_delivery(id, Channel::Webhook, Ok(()), at(16)).await.unwrap();
    assert_eq!(kit.store.delivery_counts(Channel::Webhook).await.unwrap(), Default::default());

    // Read and acted on, the same is new again.
    let read = kit.store.address_notification(id, None, &admin(), at(20)).await.unwrap().unwrap();
    assert_eq!((read.read_by.as_deref(), read.action.as_deref()), (Some("ann"), None));
    let done = kit.store.address_notification(id, Some("blocked"), &admin(), at(21)).await.unwrap().unwrap();
    assert_eq!((done.action.as_deref(), done.read_at), (Some("blocked"), Some(at(20))));
    kit.store.notify_admins(&notification("x"), &channels, hour, at(22)).await.unwrap();
    assert_eq!(kit.store.list_notifications(10).await.unwrap().len(), 2);
    // A delivery that never arrives is given up.
    let id = kit.store.list_notifications(1).await.unwrap()[0].id;
    let mut given_up = 0;
    for i in 0..20 {
        let tried = kit.store.note_delivery(id, Channel::Webhook, Err("no"), at(100 + i)).await.unwrap();
        given_up += i32::from(tried);
    }
    assert_eq!(given_up, 1);
    assert_eq!(kit.store.delivery_counts(Channel::Webhook).await.unwrap().failed, 1);
    // Who leads no more makes none.
    leader(&kit).await;
    record(&kit, "d", 200).await;
    assert!(matches!(take(201).await, Err(StoreError::Fenced)));
}

const TASK: TaskSpec = TaskSpec {
    name: "test",
    kind: "maintenance",
    description: "tests",
    every: SignedDuration::from_secs(600),
    first: SignedDuration::from_secs(30),
    retries: 2,
};

async fn tasks_are_due_once_and_tried_again() {
    let kit = Kit::new().await;
    let epoch = leader(&kit).await;
    kit.store.declare_task(&TASK, at(0)).await.unwrap();
    kit.store.declare_task(&TASK, at(20)).await.unwrap();
    assert!(!kit.store.begin_task(&TASK, epoch, at(29)).await.unwrap());
    assert!(kit.store.begin_task(&TASK, epoch, at(30)).await.unwrap());
    assert!(!kit.store.begin_task(&TASK, epoch, at(31)).await.unwrap(), "it was taken");
    let fail =
        async |second| kit.store.finish_task(&TASK, epoch, Err("broken".into()), at(second)).await.unwrap();
    assert!(!fail(32).await);
    let task = kit.store.list_tasks().await.unwrap().remove(0);
    assert_eq!((task.last_status.as_deref(), task.retries, task.next_run), (Some("failed"), 1, at(47)));
    assert!(kit.store.begin_task(&TASK, epoch, at(47)).await.unwrap());
    assert!(!fail(48).await);
    assert!(kit.store.begin_task(&TASK, epoch, at(78)).await.unwrap());
    assert!(fail(79).await, "it is given up until its next time");
    let task = kit.store.list_tasks().await.unwrap().remove(0);
    assert_eq!((task.retries, task.next_run), (0, at(679)));
    assert!(kit.store.begin_task(&TASK, epoch, at(679)).await.unwrap());
    assert!(!kit.store.finish_task(&TASK, epoch, Ok("fine".into()), at(680)).await.unwrap());
    let task = kit.store.list_tasks().await.unwrap().remove(0);
    assert_eq!((task.last_output.as_deref(), task.last_run), (Some("fine"), Some(at(679))));
    // It waits no longer than it ever does when the clock was early by a year, and is set back.
    let year = 365 * 24 * 3600;
    assert!(kit.store.begin_task(&TASK, epoch, at(year)).await.unwrap());
    assert!(kit.store.begin_task(&TASK, epoch, at(700)).await.unwrap());
    assert!(!kit.store.begin_task(&TASK, epoch, at(701)).await.unwrap());
    leader(&kit).await;
    assert!(matches!(kit.store.begin_task(&TASK, epoch, at(9999)).await, Err(StoreError::Fenced)));
}

async fn a_part_that_fails_and_comes_back_is_an_event_each() {
    let kit = Kit::new().await;
    let note = async |state, detail: &str, second| {
        let note = ServiceNote { name: "redis".into(), state, detail: detail.into() };
        kit.store.note_services(&[note], at(second)).await.unwrap();
    };
    note(ServiceState::Operational, "", 0).await;
    note(ServiceState::Degraded, "away", 10).await;
    note(ServiceState::Degraded, "still away", 20).await;
    let [service] = &kit.store.list_services().await.unwrap()[..] else { panic!() };
    assert_eq!((service.state.as_str(), service.since, service.checked), ("degraded", at(10), at(20)));
    note(ServiceState::Operational, "", 30).await;
    let events = kit.store.list_security_events(&EventFilter::default()).await.unwrap();
    let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["service_recovered", "service_degraded"]);
    kit.store.forget_services(at(31)).await.unwrap();
    assert_eq!(kit.store.list_services().await.unwrap(), []);
}

async fn a_day_is_summarised_and_kept() {
    let kit = Kit::new().await;
    record(&kit, "clone", 10).await;
    record(&kit, "clone", 11).await;
    record(&kit, "late", 500).await;
    kit.store.flag(&Subject::user(ANN, "ann"), "odd", &admin(), at(0)).await.unwrap();
    let summary = kit.store.summarise(at(0), at(100)).await.unwrap();
    assert_eq!(summary.events, [("high".to_owned(), "clone".to_owned(), 2)]);
    assert_eq!((summary.flags, summary.unhandled, summary.blocked), (1, 3, 0));
    kit.store.keep_report(("Day", "security"), (at(0), at(100)), "text", at(100)).await.unwrap();
    assert_eq!(kit.store.list_reports(10).await.unwrap()[0].content, "text");
}

conformance!(
    an_anomaly_is_recorded_with_its_ground_and_an_administrator_has_the_last_word,
    a_baseline_that_cannot_be_read_is_learned_anew,
    an_address_is_blocked_by_threshold_until_its_time_is_over,
    administrators_block_and_unblock,
    flags_stand_once_until_they_are_cleared,
    events_are_handled_with_a_note,
    events_become_notifications_once_and_are_delivered_with_retries,
    tasks_are_due_once_and_tried_again,
    a_part_that_fails_and_comes_back_is_an_event_each,
    a_day_is_summarised_and_kept,
);
