//! Registration, identity, challenges, heartbeats.

use horizon_crds::IdentityDigest;
use horizon_model::{Capability, Factor, FactorKind, KeyId, PublicKey, Secret};
use horizon_wire::proto::Metrics;

use super::kit::{Kit, REPLICA, at, conformance, device_info, factors, reported, request};
use crate::store::{
    Answered, Beat, ChallengeId, ChallengeType, Heartbeats, IdentityOutcome, IssueError, Observation,
    RegisterError, RegisterRequest, ReplicaId, ServerRecord, StoreError, dialect::query,
};

const KEY: PublicKey = PublicKey([5; 32]);
const OTHER: PublicKey = PublicKey([6; 32]);

async fn record(kit: &Kit) -> ServerRecord {
    kit.store.server(kit.server().await).await.unwrap().unwrap()
}

async fn secrets_are_issued_once_and_only_for_keys_that_live() {
    let kit = Kit::with_basics().await;
    let key = kit.uid("RegistrationKey", "berlin-1").await;
    let secret = kit.store.issue_registration_secret(key, at(0)).await.unwrap();
    let again = kit.store.issue_registration_secret(key, at(0)).await;
    assert!(matches!(again, Err(IssueError::AlreadyIssued)));
    let unknown = kit.store.issue_registration_secret(uuid::Uuid::from_u128(1), at(0)).await;
    assert!(matches!(unknown, Err(IssueError::Unknown)));
    // The secret itself is nowhere in the database, and neither is a hash that anybody could compute.
    kit.store.close().await;
    assert!(!kit.place.holds(secret.expose()));
    assert!(!kit.place.holds(&horizon_wire::key::sha256(secret.expose()).0));

    let kit = Kit::with_basics().await;
    let key = kit.uid("RegistrationKey", "berlin-1").await;
    let late = kit.store.issue_registration_secret(key, at(90_000)).await;
    assert!(matches!(late, Err(IssueError::Ended)));
}

/// A secret that was made to be delivered and was not is made anew by whoever leads next; no other is.
async fn an_undelivered_secret_is_replaced() {
    let kit = Kit::with_basics().await;
    let store = &kit.store;
    let (token, personal) =
        (kit.uid("RegistrationKey", "berlin-1").await, KeyId(kit.uid("PersonalKey", "ana-1").await));
    let old = store.take_leadership(REPLICA, "one", at(0)).await.unwrap();
    let lost = store.registration_secret_to_deliver(token, old, at(0)).await.unwrap();
    let lost_too = store.personal_secret_to_deliver(personal, old, at(0)).await.unwrap().secret;
    assert_eq!(store.registration_key_facts(token).await.unwrap().secret_file, None, "it is nowhere");
    assert_eq!(store.personal_key_facts(personal.0).await.unwrap().secret_file, None);
    // Somebody who asks for it gets none, and who does not lead any more does not either.
    let asked = store.issue_registration_secret(token, at(0)).await;
    assert!(matches!(asked, Err(IssueError::AlreadyIssued)));
    let new = store.take_leadership(ReplicaId::random(), "two", at(1)).await.unwrap();
    let late = store.registration_secret_to_deliver(token, old, at(1)).await;
    assert!(matches!(late, Err(IssueError::Store(StoreError::Fenced))));
    let late = store.personal_secret_to_deliver(personal, old, at(1)).await;
    assert!(matches!(late, Err(IssueError::Store(StoreError::Fenced))));
    let late = store.note_secret_file(token, Some("/old"), Some(old)).await;
    assert!(matches!(late, Err(StoreError::Fenced)));

    let secret = store.registration_secret_to_deliver(token, new, at(2)).await.unwrap();
    let secret_too = store.personal_secret_to_deliver(personal, new, at(2)).await.unwrap().secret;
    for uid in [token, personal.0] {
        store.note_secret_file(uid, Some("/place"), Some(new)).await.unwrap();
    }
    let refused = store.register_server(&request(lost, KEY), at(3)).await;
    assert!(matches!(refused, Err(RegisterError::Unknown)));
    assert!(store.register_server(&request(secret, KEY), at(3)).await.unwrap().fresh);
    let enrol = async |secret| {
        store.enrol_device(personal, &secret, PublicKey([9; 32]), &device_info("phone"), at(3)).await
    };
    assert!(enrol(lost_too).await.is_err());
    enrol(secret_too).await.unwrap();
    // Once they are in a place they stay what they are, also when they were taken away.
    for place in [Some("/place"), None] {
        store.note_secret_file(token, place, Some(new)).await.unwrap();
        store.note_secret_file(personal.0, place, Some(new)).await.unwrap();
        let again = store.registration_secret_to_deliver(token, new, at(4)).await;
        assert!(matches!(again, Err(IssueError::AlreadyIssued)));
        let again = store.personal_secret_to_deliver(personal, new, at(4)).await;
        assert!(matches!(again, Err(IssueError::AlreadyIssued)));
    }

    // What a person was given is not taken from them.
    let kit = Kit::with_basics().await;
    let leader = kit.store.take_leadership(REPLICA, "one", at(0)).await.unwrap();
    let token = kit.uid("RegistrationKey", "berlin-1").await;
    kit.store.issue_registration_secret(token, at(0)).await.unwrap();
    let (personal, _) = kit.personal_key().await;
    let given = kit.store.registration_secret_to_deliver(token, leader, at(1)).await;
    assert!(matches!(given, Err(IssueError::AlreadyIssued)));
    let given = kit.store.personal_secret_to_deliver(personal, leader, at(1)).await;
    assert!(matches!(given, Err(IssueError::AlreadyIssued)));
}

async fn a_token_binds_to_the_first_key_and_answers_it_again() {
    let kit = Kit::with_basics().await;
    let secret = kit.token().await;
    let first = kit.store.register_server(&request(secret.clone(), KEY), at(1)).await.unwrap();
    assert!(first.fresh);
    let again = kit.store.register_server(&request(secret.clone(), KEY), at(2)).await.unwrap();
    assert!(!again.fresh);
    assert_eq!((again.server, again.secret.expose()), (first.server, first.secret.expose()));
    let other = kit.store.register_server(&request(secret.clone(), OTHER), at(3)).await;
    assert!(matches!(other, Err(RegisterError::Used(_))));
    let events = kit.store.list_security_events(&Default::default()).await.unwrap();
    assert_eq!(events[0].kind, "registration_token_reused");
    let record = record(&kit).await;
    assert_eq!((record.public_key, record.hostname.as_deref()), (Some(KEY), Some("box")));
    assert_eq!(record.capabilities, [Capability::Vpn, Capability::LanEmulation]);
    let key = kit.uid("RegistrationKey", "berlin-1").await;
    let facts = kit.store.registration_key_facts(key).await.unwrap();
    assert_eq!((facts.used_at, facts.used_by), (Some(at(1)), Some(KEY)));
    // Revoking the key afterwards does not concern the appliance.
    kit.remove("RegistrationKey", "berlin-1").await;
    assert!(kit.store.register_server(&request(secret.clone(), KEY), at(4)).await.is_ok());
    // Whoever has the token and the key of one that has been heard is given its secret, and that is told.
    let told = async || {
        let events = kit.store.list_security_events(&Default::default()).await.unwrap();
        events.iter().filter(|event| event.kind == "registration_repeated").count()
    };
    assert_eq!(told().await, 0);
    let mut tx = kit.store.begin().await.unwrap();
    query("UPDATE servers SET last_heartbeat = $1").bind(1_i64).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    kit.store.register_server(&request(secret, KEY), at(5)).await.unwrap();
    assert_eq!(told().await, 1);
}

async fn of_a_hundred_at_once_one_wins() {
    let kit = Kit::with_basics().await;
    let secret = kit.token().await;
    let mut tries = tokio::task::JoinSet::new();
    for n in 0..100_u8 {
        let (store, request) = (kit.store.clone(), request(secret.clone(), PublicKey([n; 32])));
        tries.spawn(async move { store.register_server(&request, at(1)).await });
    }
    let results = tries.join_all().await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    assert!(results.iter().all(|r| matches!(r, Ok(_) | Err(RegisterError::Used(_)))));
}

async fn registrations_are_refused_for_the_right_reason() {
    let kit = Kit::with_basics().await;
    let secret = kit.token().await;
    let wrong = kit.store.register_server(&request(Secret::new([1; 32]), KEY), at(1)).await;
    assert!(matches!(wrong, Err(RegisterError::Unknown)));
    let mut misnamed = request(secret.clone(), KEY);
    misnamed.key_name = "paris-1".into();
    assert!(matches!(kit.store.register_server(&misnamed, at(1)).await, Err(RegisterError::Unknown)));
    let late = kit.store.register_server(&request(secret.clone(), KEY), at(86_400)).await;
    assert!(matches!(late, Err(RegisterError::Expired(_))));
    kit.remove("RegistrationKey", "berlin-1").await;
    let revoked = kit.store.register_server(&request(secret, KEY), at(1)).await;
    assert!(matches!(revoked, Err(RegisterError::Revoked(_))));

    let kit = Kit::with_basics().await;
    let secret = kit.token().await;
    kit.remove("Server", "berlin").await;
    let gone = kit.store.register_server(&request(secret, KEY), at(1)).await;
    assert!(matches!(gone, Err(RegisterError::Revoked(_))));
}

async fn a_second_token_replaces_the_appliance() {
    let kit = Kit::with_basics().await;
    let first_secret = kit.token().await;
    kit.store.register_server(&request(first_secret.clone(), KEY), at(1)).await.unwrap();
    kit.put("apiVersion = 'horizon.dev/v1alpha1'\nkind = 'RegistrationKey'\nmetadata.name = 'berlin-2'\nspec.serverRef = 'berlin'\n")
        .await;
    let key = kit.uid("RegistrationKey", "berlin-2").await;
    let secret = kit.store.issue_registration_secret(key, at(2)).await.unwrap();
    let mut second = request(secret, OTHER);
    second.key_name = "berlin-2".into();
    kit.store.register_server(&second, at(3)).await.unwrap();
    assert_eq!(record(&kit).await.public_key, Some(OTHER));
    let old = kit.store.register_server(&request(first_secret, KEY), at(4)).await;
    assert!(matches!(old, Err(RegisterError::Superseded(_))));
}

async fn secrets_move_on_with_durable_beats() {
    let kit = Kit::with_basics().await;
    let registered = kit.register(KEY).await;
    let beats = Heartbeats::start(kit.store.clone());
    let lease = kit.lease(registered.server).await;
    let beat = |counter: u64, secret: u8| Beat {
        server: registered.server,
        lease,
        counter,
        sent: at(10),
        received: at(10 + counter as i64),
        generation: 4,
        active_sessions: 2,
        metrics: Metrics { load_percent: 7, ..Default::default() },
        key: KEY,
        secret: Secret::new([secret; 32]),
        previous: Secret::new([secret - 1; 32]),
    };
    let (one, two) = tokio::join!(beats.submit(beat(1, 11)), beats.submit(beat(2, 12)));
    one.unwrap();
    two.unwrap();
    assert_eq!(record(&kit).await.last_heartbeat, Some(at(12)));
    let history = kit.store.list_beats(registered.server, 10).await.unwrap();
    assert_eq!((history.len(), history[0].counter, history[0].active_sessions), (2, 2, 2));
    assert_eq!(history[0].metrics["loadPercent"], 7);
    // A beat of an appliance that was replaced since changes nothing.
    let late = Beat { key: OTHER, ..beat(3, 13) };
    assert!(matches!(beats.submit(late).await, Err(StoreError::Replaced)));
    assert_eq!(kit.store.list_beats(registered.server, 10).await.unwrap().len(), 2);
    // Whoever lost the channel writes no beats.
    let attached = kit.attach(registered.server).await;
    assert_eq!(attached.secret.expose(), &[12; 32]);
    assert_eq!(attached.previous.unwrap().expose(), &[11; 32]);
    assert!(matches!(beats.submit(beat(4, 14)).await, Err(StoreError::LostChannel)));
    assert_eq!(kit.attach(registered.server).await.secret.expose(), &[12; 32]);
}

async fn challenges_count_once() {
    let kit = Kit::with_basics().await;
    let server = kit.register(KEY).await.server;
    let attached = kit.attach(server).await;
    let challenge = ChallengeId(uuid::Uuid::from_u128(1));
    let right = Answered {
        challenge,
        kind: ChallengeType::PublicKey,
        asked: at(2),
        right: true,
        detail: String::new(),
        tolerated: 2,
        newest_secret: false,
        arrival: None,
    };
    assert!(kit.store.note_challenge(server, attached.lease, &right, at(3)).await.unwrap());
    let wrong = Answered { right: false, ..right };
    assert!(
        !kit.store.note_challenge(server, attached.lease, &wrong, at(4)).await.unwrap(),
        "it was answered"
    );
    let facts = record(&kit).await;
    assert_eq!(
        (facts.verified, facts.last_verified, facts.requires_verification),
        (Some(true), Some(at(3)), false)
    );
    let events = async || kit.store.list_security_events(&Default::default()).await.unwrap();
    assert!(kit.answer(&attached, server, false, 6).await);
    let facts = record(&kit).await;
    assert_eq!(
        (facts.verified, facts.requires_verification),
        (Some(false), false),
        "one failure is tolerated"
    );
    assert_eq!(events().await.len(), 0);
    // That a port cannot be reached is no failure of the identity, and does not come between two of them.
    let unreachable = Answered {
        challenge: ChallengeId(uuid::Uuid::from_u128(2)),
        kind: ChallengeType::Capability,
        detail: "nothing came".into(),
        ..wrong
    };
    assert!(kit.store.note_challenge(server, attached.lease, &unreachable, at(7)).await.unwrap());
    assert!(!record(&kit).await.requires_verification);
    assert!(kit.answer(&attached, server, false, 8).await);
    let facts = record(&kit).await;
    assert_eq!((facts.verified, facts.requires_verification), (Some(false), true));
    assert_eq!(facts.pending_digest, facts.identity_digest);
    let kinds: Vec<_> = events().await.into_iter().map(|e| e.kind).collect();
    assert_eq!(kinds, ["challenge_failed", "capability_check_failed"]);
    let listed = kit.store.list_challenges(server, 10).await.unwrap();
    let seen: Vec<_> = listed.iter().map(|c| (c.kind.as_str(), c.right)).collect();
    assert_eq!(seen, [("hmac", false), ("hmac", false), ("capability_check", false), ("public_key", true)]);
    assert_eq!(listed[2].detail.as_deref(), Some("nothing came"));
}

async fn a_changed_machine_waits_for_the_approval_of_its_digest() {
    let kit = Kit::with_basics().await;
    let token = kit.token().await;
    let server = kit.store.register_server(&request(token.clone(), KEY), at(1)).await.unwrap().server;
    let lease = kit.lease(server).await;
    let same = factors(&[("processor/model", "b"), ("dmi/board_serial", "a"), ("disk/0/serial", "c")]);
    assert_eq!(
        kit.store.observe_factors(server, lease, reported(&same), at(2)).await.unwrap(),
        IdentityOutcome::Same
    );
    let little = factors(&[("dmi/board_serial", "a"), ("processor/model", "b"), ("disk/0/serial", "d")]);
    let outcome = kit.store.observe_factors(server, lease, reported(&little), at(3)).await.unwrap();
    assert!(matches!(outcome, IdentityOutcome::Absorbed(changes) if changes.len() == 1));
    // What was noted counts again, with all that comes after it.
    let much = factors(&[("dmi/board_serial", "x"), ("processor/model", "y"), ("disk/0/serial", "d")]);
    let IdentityOutcome::Pending { digest, changes } =
        kit.store.observe_factors(server, lease, reported(&much), at(4)).await.unwrap()
    else {
        panic!("not pending")
    };
    assert_eq!(changes.len(), 3);
    let facts = record(&kit).await;
    assert_eq!((facts.pending_digest, facts.requires_verification), (Some(digest), true));
    let attached = kit.attach(server).await;
    assert_eq!((attached.factors.len(), attached.reissued), (3, false));
    let lease = attached.lease;

    let approve = |name: &str, digest: [u8; 32]| {
        format!(
            "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Approval'\nmetadata.name = '{name}'\n\
             [spec]\nserverRef = 'berlin'\nidentityDigest = '{}'\n",
            IdentityDigest::from(digest)
        )
    };
    let wrong = kit.put(&approve("wrong", [0; 32])).await[0].uid;
    assert!(record(&kit).await.requires_verification, "another digest approves nothing");
    assert_eq!(kit.store.decision_facts(wrong).await.unwrap().effective_at, None);
    let right = kit.put(&approve("right", digest)).await[0].uid;
    let facts = record(&kit).await;
    assert_eq!(
        (facts.identity_digest, facts.pending_digest, facts.requires_verification),
        (Some(digest), None, false)
    );
    assert!(kit.store.decision_facts(right).await.unwrap().effective_at.is_some());
    assert_eq!(
        kit.store.observe_factors(server, lease, reported(&much), at(5)).await.unwrap(),
        IdentityOutcome::Same
    );
    // A new secret is due until the appliance has proved that it has it.
    let (first, second) = (kit.attach(server).await, kit.attach(server).await);
    assert!(first.reissued && second.reissued);
    assert_ne!(first.secret.expose(), second.secret.expose());
    assert_eq!(second.previous.as_ref().unwrap().expose(), first.secret.expose());
    kit.answer(&second, server, true, 7).await;
    let proved = kit.attach(server).await;
    assert_eq!((proved.reissued, proved.secret.expose()), (false, second.secret.expose()));
    let lease = proved.lease;
    // The digest that waits is approved while the machine reports the old factors again.
    let third = factors(&[("dmi/board_serial", "1"), ("processor/model", "2"), ("disk/0/serial", "3")]);
    let IdentityOutcome::Pending { digest, .. } =
        kit.store.observe_factors(server, lease, reported(&third), at(7)).await.unwrap()
    else {
        panic!("not pending")
    };
    assert_eq!(
        kit.store.observe_factors(server, lease, reported(&much), at(7)).await.unwrap(),
        IdentityOutcome::Same
    );
    kit.put(&approve("third", digest)).await;
    assert_eq!(
        kit.store.observe_factors(server, lease, reported(&third), at(7)).await.unwrap(),
        IdentityOutcome::Same
    );
    assert!(!record(&kit).await.requires_verification);
    // One that was withdrawn before it took effect does not.
    let fourth = factors(&[("dmi/board_serial", "6"), ("processor/model", "7"), ("disk/0/serial", "8")]);
    kit.put(&approve("fourth", crate::store::identity::digest(&fourth))).await;
    kit.remove("Approval", "fourth").await;
    let outcome = kit.store.observe_factors(server, lease, reported(&fourth), at(7)).await.unwrap();
    assert!(matches!(outcome, IdentityOutcome::Pending { .. }));
    let repeated = kit.store.register_server(&request(token, KEY), at(7)).await;
    assert!(matches!(repeated, Err(RegisterError::Quarantined(_))), "a token is no approval");
    // An approval that came first takes effect when the identity comes.
    let later = factors(&[("dmi/board_serial", "p"), ("processor/model", "q"), ("disk/0/serial", "r")]);
    kit.put(&approve("early", crate::store::identity::digest(&later))).await;
    assert_eq!(
        kit.store.observe_factors(server, lease, reported(&later), at(8)).await.unwrap(),
        IdentityOutcome::Same
    );
    assert!(!record(&kit).await.requires_verification);
}

/// Each step alone is a small one; together they are another machine.
async fn small_steps_add_up_to_a_quarantine() {
    let kit = Kit::with_basics().await;
    let names = [
        "dmi/board_serial",
        "processor/model",
        "disk/0/serial",
        "disk/1/serial",
        "network-card/eth0/address",
    ];
    let machine = |steps: &[&str]| {
        let value =
            |name: &str| if steps.contains(&name) { format!("b {name}") } else { format!("a {name}") };
        let values: Vec<_> = names.iter().map(|name| (*name, value(name))).collect();
        factors(&values.iter().map(|(name, value)| (*name, value.as_str())).collect::<Vec<_>>())
    };
    let asked = RegisterRequest { factors: machine(&[]), ..request(kit.token().await, KEY) };
    let server = kit.store.register_server(&asked, at(1)).await.unwrap().server;
    let lease = kit.lease(server).await;
    let mut done = Vec::new();
    for (i, (step, drift)) in
        [("disk/0/serial", 11), ("disk/1/serial", 23), ("network-card/eth0/address", 47)]
            .into_iter()
            .enumerate()
    {
        done.push(step);
        let (now, time) = (machine(&done), at(2 + i as i64));
        let outcome = kit.store.observe_factors(server, lease, reported(&now), time).await.unwrap();
        assert!(matches!(outcome, IdentityOutcome::Absorbed(changes) if changes.len() == done.len()));
        let facts = record(&kit).await;
        assert_eq!((facts.identity_drift, facts.requires_verification), (drift, false));
    }
    done.push("processor/model");
    let last = machine(&done);
    let outcome = kit.store.observe_factors(server, lease, reported(&last), at(9)).await.unwrap();
    assert!(matches!(outcome, IdentityOutcome::Pending { .. }));
    let facts = record(&kit).await;
    assert_eq!((facts.identity_drift, facts.requires_verification), (58, true));
    let events = kit.store.list_security_events(&Default::default()).await.unwrap();
    let kinds: Vec<_> = events.iter().map(|e| e.kind.as_str()).collect();
    assert_eq!(kinds, ["identity_pending", "identity_changed", "identity_changed", "identity_changed"]);
    assert_eq!(events[0].data["drift"], 58);
    // The history says since when each holds, and what was approved.
    let listed = kit.store.list_factors(server).await.unwrap();
    assert_eq!(listed.iter().filter(|f| f.current).count(), 5);
    assert_eq!(listed.iter().filter(|f| f.approved).count(), 5);
    let old = listed.iter().find(|f| f.factor.value == "a disk/0/serial").unwrap();
    assert_eq!((old.current, old.approved, old.first_seen, old.confidence), (false, true, at(1), 90));
    // Back again it still waits, and what is approved then is what is there.
    let first = machine(&[]);
    let outcome = kit.store.observe_factors(server, lease, reported(&first), at(10)).await.unwrap();
    assert_eq!(outcome, IdentityOutcome::Same);
    let facts = record(&kit).await;
    assert!(facts.requires_verification && facts.pending_digest == facts.identity_digest);
}

/// Where a server is and what its TPM signed come from the controller; its own word for them counts for nothing.
async fn places_and_quotes_are_the_controllers_own_findings() {
    let kit = Kit::with_basics().await;
    let server = kit.register(KEY).await.server;
    let lease = kit.lease(server).await;
    let factor = |kind, name: &str, value: &str| Factor { kind, name: name.into(), value: value.into() };
    let tpm = |value| [factor(FactorKind::CryptographicAttestation, "tpm/key", value)];
    let place = |value| [factor(FactorKind::Geolocation, "country", value)];
    let mut machine = request(Secret::new([0; 32]), KEY).factors;
    machine.extend(tpm("claimed"));
    machine.extend(place("XX"));
    let observe = async |place: &[Factor], attested: Option<&[Factor]>, time| {
        let observed = Observation { place, attested, ..reported(&machine) };
        kit.store.observe_factors(server, lease, observed, at(time)).await.unwrap()
    };
    // Both are taken in when they are found out first.
    assert_eq!(observe(&place("DE"), Some(&tpm("one")), 2).await, IdentityOutcome::Same);
    let facts = record(&kit).await;
    assert_eq!((facts.location.as_deref(), facts.identity_drift), (Some("DE"), 0));
    // Unknown is no change; nor is a question that was not put.
    assert_eq!(observe(&[], None, 3).await, IdentityOutcome::Same);
    assert_eq!(record(&kit).await.location, None);
    for (place, tpm) in [(place("FR"), &tpm("one")[..]), (place("DE"), &tpm("two")[..]), (place("DE"), &[])] {
        let kit = &kit;
        let outcome = observe(&place, Some(tpm), 4).await;
        assert!(matches!(outcome, IdentityOutcome::Pending { .. }), "{outcome:?}");
        assert!(record(kit).await.requires_verification);
    }
    let listed = kit.store.list_factors(server).await.unwrap();
    assert!(listed.iter().all(|f| f.factor.value != "claimed" && f.factor.value != "XX"));
}

async fn final_facts_survive_every_later_word() {
    let kit = Kit::with_basics().await;
    let server = kit.server().await;
    let document = |spec: &str| {
        format!(
            "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Server'\nmetadata.name = 'berlin'\n[spec]\n{spec}\n"
        )
    };
    kit.put(&document("lifecycle = { state = 'decommissioned', reason = 'sold' }")).await;
    kit.put(&document("lifecycle = { state = 'active' }")).await;
    let record = kit.store.server(server).await.unwrap().unwrap();
    assert_eq!(record.decommission_reason.as_deref(), Some("sold"));
    let key = kit.uid("PersonalKey", "ana-1").await;
    let pkey = |spec: &str| {
        format!(
            "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'PersonalKey'\nmetadata.name = 'ana-1'\n[spec]\nuserRef = 'ana'\n{spec}\n"
        )
    };
    kit.put(&pkey("revocation = { reason = 'lost', compromised = true }")).await;
    kit.put(&pkey("")).await;
    let facts = kit.store.personal_key_facts(key).await.unwrap();
    assert!(facts.compromised && facts.deactivated_at.is_some());
}

conformance!(
    secrets_are_issued_once_and_only_for_keys_that_live,
    an_undelivered_secret_is_replaced,
    a_token_binds_to_the_first_key_and_answers_it_again,
    of_a_hundred_at_once_one_wins,
    registrations_are_refused_for_the_right_reason,
    a_second_token_replaces_the_appliance,
    secrets_move_on_with_durable_beats,
    challenges_count_once,
    a_changed_machine_waits_for_the_approval_of_its_digest,
    small_steps_add_up_to_a_quarantine,
    places_and_quotes_are_the_controllers_own_findings,
    final_facts_survive_every_later_word,
);
