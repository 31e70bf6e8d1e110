//! States' numbers, what appliances applied, settings, events.

use horizon_model::{Digest, EntryId, EntryProblem, ProblemCode, PublicKey, ServerId};

use super::kit::{Kit, at, conformance};
use crate::store::{
    AppliedState, EventFilter, NewEvent, Revision, Severity, Source, StateNumber, StateNumbering,
};

async fn states_are_numbered_by_what_they_say() {
    let kit = Kit::with_basics().await;
    let server = kit.register(PublicKey([1; 32])).await.server;
    let lease = kit.lease(server).await;
    let number = async |digest: u8| {
        let done = kit.store.number_state(server, lease, Digest([digest; 32]), Revision(4)).await.unwrap();
        let StateNumbering::Numbered(number) = done else { panic!("{done:?}") };
        number
    };
    assert_eq!(number(1).await, StateNumber { epoch: 1, generation: 1 });
    assert_eq!(number(1).await, StateNumber { epoch: 1, generation: 1 });
    assert_eq!(number(2).await, StateNumber { epoch: 1, generation: 2 });
    assert_eq!(number(1).await, StateNumber { epoch: 1, generation: 3 });
    // The appliance is ahead, as after a backup of this database was restored.
    let ahead =
        AppliedState { epoch: 1, generation: 9, digest: None, problems: Vec::new(), addresses: Vec::new() };
    kit.store.note_applied(server, lease, &ahead).await.unwrap();
    assert_eq!(number(1).await, StateNumber { epoch: 1, generation: 10 });
    assert_eq!(number(1).await, StateNumber { epoch: 1, generation: 10 });
    let nobody = ServerId(uuid::Uuid::from_u128(1));
    let done = kit.store.number_state(nobody, lease, Digest([1; 32]), Revision(4)).await.unwrap();
    assert_eq!(done, StateNumbering::NoServer);
    // One that was made from older resources than the newest is stale, unless it says the same.
    let older = async |digest: u8| {
        kit.store.number_state(server, lease, Digest([digest; 32]), Revision(3)).await.unwrap()
    };
    assert_eq!(older(2).await, StateNumbering::Stale(Revision(4)));
    assert!(matches!(older(1).await, StateNumbering::Numbered(number) if number.generation == 10));
}

async fn what_was_applied_is_noted_when_it_is_news() {
    let kit = Kit::with_basics().await;
    let server = kit.register(PublicKey([1; 32])).await.server;
    let lease = kit.lease(server).await;
    kit.store.number_state(server, lease, Digest([4; 32]), Revision(1)).await.unwrap();
    let problem =
        EntryProblem { entry: EntryId::tunnel(), code: ProblemCode::System, message: "no device".into() };
    let applied = AppliedState {
        epoch: 1,
        generation: 1,
        digest: Some(Digest([4; 32])),
        problems: vec![problem.clone()],
        addresses: vec!["192.0.2.7:7443".parse().unwrap()],
    };
    assert!(kit.store.note_applied(server, lease, &applied).await.unwrap());
    assert!(!kit.store.note_applied(server, lease, &applied).await.unwrap());
    let facts = kit.store.server_facts(server).await.unwrap();
    assert_eq!((facts.state_generation, facts.applied_generation), (1, 1));
    assert_eq!(facts.problems, [problem]);
    let lease = kit.attach(server).await.lease;
    assert!(kit.store.note_unreachable(server, lease, Some("closed")).await.unwrap());
    assert!(!kit.store.note_unreachable(server, lease, Some("closed")).await.unwrap());
    let facts = kit.store.server_facts(server).await.unwrap();
    assert_eq!(facts.public_address, Some("203.0.113.4".parse().unwrap()));
    assert_eq!((facts.version.as_deref(), facts.unreachable.as_deref()), (Some("0.2.0"), Some("closed")));
    let nobody = ServerId(uuid::Uuid::from_u128(1));
    let mut many = kit.store.facts_of_servers(&[nobody, server]).await.unwrap();
    assert_eq!((many.len(), many.remove(&server).unwrap().unwrap()), (1, facts));
    assert!(kit.store.facts_of_servers(&[]).await.unwrap().is_empty());
    assert!(kit.store.note_unreachable(server, lease, None).await.unwrap());
}

async fn nothing_known_is_no_error() {
    let kit = Kit::new().await;
    let nobody = uuid::Uuid::from_u128(1);
    assert_eq!(kit.store.server_facts(ServerId(nobody)).await.unwrap(), Default::default());
    assert_eq!(kit.store.registration_key_facts(nobody).await.unwrap(), Default::default());
    assert_eq!(kit.store.personal_key_facts(nobody).await.unwrap(), Default::default());
    assert_eq!(kit.store.user_facts(nobody).await.unwrap(), Default::default());
    assert_eq!(kit.store.decision_facts(nobody).await.unwrap(), Default::default());
}

async fn the_newest_keyset_is_remembered() {
    let kit = Kit::new().await;
    assert_eq!(kit.store.note_keyset(2, at(0)).await.unwrap(), 2);
    assert_eq!(
        kit.store.note_keyset(1, at(1)).await.unwrap(),
        2,
        "a key directory that was rolled back shows"
    );
    assert_eq!(kit.store.note_keyset(3, at(2)).await.unwrap(), 3);
}

async fn events_are_listed_newest_first_and_by_source() {
    let kit = Kit::new().await;
    let server = ServerId(uuid::Uuid::from_u128(1));
    for (kind, source) in [("a", Source::Unknown), ("b", Source::Server(server)), ("c", Source::System)] {
        let event = NewEvent {
            kind,
            severity: Severity::Low,
            source,
            address: Some("192.0.2.1".parse().unwrap()),
            description: "x".repeat(5000),
            data: serde_json::json!({ "n": 1 }),
        };
        kit.store.record_event(&event, at(1)).await.unwrap();
    }
    let kinds = async |filter: EventFilter| -> Vec<String> {
        kit.store.list_security_events(&filter).await.unwrap().into_iter().map(|e| e.kind).collect()
    };
    assert_eq!(kinds(EventFilter::default()).await, ["c", "b", "a"]);
    assert_eq!(kinds(EventFilter { limit: 1, ..Default::default() }).await, ["c"]);
    assert_eq!(kinds(EventFilter { source: Some(server.0), limit: 5 }).await, ["b"]);
    let event = &kit.store.list_security_events(&EventFilter::default()).await.unwrap()[0];
    assert_eq!((event.description.len(), event.component.as_str()), (1024, "system"));
}

async fn the_file_of_a_secret_is_noted_until_it_is_gone() {
    let kit = Kit::with_basics().await;
    for (kind, name) in [("RegistrationKey", "berlin-1"), ("PersonalKey", "ana-1")] {
        let uid = kit.uid(kind, name).await;
        let file = async || {
            let registration = kit.store.registration_key_facts(uid).await.unwrap().secret_file;
            registration.or(kit.store.personal_key_facts(uid).await.unwrap().secret_file)
        };
        kit.store.note_secret_file(uid, Some("/tmp/secret"), None).await.unwrap();
        assert_eq!(file().await.as_deref(), Some("/tmp/secret"));
        kit.store.note_secret_file(uid, None, None).await.unwrap();
        assert_eq!(file().await, None);
    }
}

conformance!(
    states_are_numbered_by_what_they_say,
    what_was_applied_is_noted_when_it_is_news,
    nothing_known_is_no_error,
    the_newest_keyset_is_remembered,
    events_are_listed_newest_first_and_by_source,
    the_file_of_a_secret_is_noted_until_it_is_gone,
);
