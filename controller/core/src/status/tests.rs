use horizon_crds::{
    ConditionStatus, ConditionType, KindName, PersonalKeyPhase, Problem, RegistrationKeyPhase, ServerPhase,
};
use horizon_model::{EntryId, EntryProblem, ProblemCode};
use jiff::{SignedDuration, Timestamp};

use super::{
    BEHIND_DAMPING, Computed, DecisionFacts, Facts, ONLINE_DAMPING, PersonalKeyFacts, Presence,
    RegistrationKeyFacts, ServerFacts, Status, StatusInput, UserFacts, notices, refused, status,
};
use crate::testing::{World, document};

const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

fn after(span: SignedDuration) -> Timestamp {
    NOW.saturating_add(span).unwrap()
}

fn compute(
    world: &World,
    kind: KindName,
    name: &str,
    facts: &Facts,
    before: Option<&Status>,
    now: Timestamp,
) -> Computed {
    let stored = world.index.get(kind, "default", name).unwrap();
    status(StatusInput { index: &world.index, stored, facts, problems: &[], before, now })
}

fn condition(status: &Status, kind: ConditionType) -> (ConditionStatus, String) {
    let condition = status.condition(kind).unwrap();
    (condition.status, condition.reason.to_string())
}

fn online() -> ServerFacts {
    ServerFacts {
        registered_at: Some(NOW),
        verified: Some(true),
        identity_digest: Some([1; 32]),
        presence: Some(Presence { connected: true, since: NOW }),
        state_generation: 3,
        applied_generation: 3,
        ..ServerFacts::default()
    }
}

fn server(spec: &str, facts: ServerFacts) -> Status {
    let world = World::of(&[("s", document("Server", "s", spec))]);
    compute(&world, KindName::Server, "s", &Facts::Server(Box::new(facts)), None, NOW).write.unwrap()
}

fn phase(status: &Status) -> ServerPhase {
    match status {
        Status::Server(status) => status.phase.unwrap(),
        _ => panic!(),
    }
}

#[test]
fn phases_and_availability_of_a_server() {
    use ServerPhase as P;
    let gone = Presence { connected: false, since: NOW };
    for (spec, facts, expected, reason) in [
        ("", ServerFacts::default(), P::Pending, "NotRegistered"),
        ("", online(), P::Active, "Available"),
        ("", ServerFacts { presence: Some(gone), ..online() }, P::Unavailable, "Offline"),
        ("", ServerFacts { presence: None, ..online() }, P::Unavailable, "Offline"),
        ("", ServerFacts { verified: Some(false), ..online() }, P::Unavailable, "NotVerified"),
        ("", ServerFacts { verified: None, ..online() }, P::Active, "Available"),
        ("", ServerFacts { requires_verification: true, ..online() }, P::Unavailable, "ApprovalNeeded"),
        ("lifecycle.state = \"maintenance\"", online(), P::Maintenance, "Maintenance"),
        (
            "lifecycle = { state = \"decommissioned\", reason = \"x\" }",
            online(),
            P::Decommissioned,
            "Decommissioned",
        ),
        ("", ServerFacts { revoked_at: Some(NOW), ..online() }, P::Decommissioned, "Revoked"),
        ("", ServerFacts { revoked_at: Some(NOW), compromised: true, ..online() }, P::Compromised, "Revoked"),
        (
            "",
            ServerFacts { unreachable: Some("no answer".into()), ..online() },
            P::Active,
            "PerhapsUnreachable",
        ),
    ] {
        let status = server(spec, facts);
        let (available, why) = condition(&status, ConditionType::Available);
        assert_eq!((phase(&status), why.as_str()), (expected, reason));
        assert_eq!(available == ConditionStatus::True, expected == P::Active);
        assert_eq!(Status::from_json(KindName::Server, status.to_json()).unwrap(), status);
    }
}

#[test]
fn online_is_damped_and_nothing_is_written_meanwhile() {
    let world = World::of(&[("s", document("Server", "s", ""))]);
    let at = |facts: &ServerFacts, before: Option<&Status>, now| {
        compute(&world, KindName::Server, "s", &Facts::Server(Box::new(facts.clone())), before, now)
    };
    let first = at(&online(), None, NOW).write.unwrap();
    assert_eq!(at(&online(), Some(&first), after(SignedDuration::from_secs(5))).write, None);

    let lost = after(SignedDuration::from_secs(10));
    let facts = ServerFacts { presence: Some(Presence { connected: false, since: lost }), ..online() };
    let damped = at(&facts, Some(&first), lost);
    let end = lost.saturating_add(ONLINE_DAMPING).unwrap();
    assert_eq!((damped.write, damped.again_at), (None, Some(end)));
    let offline = at(&facts, Some(&first), end).write.unwrap();
    assert_eq!(condition(&offline, ConditionType::Online).0, ConditionStatus::False);
    assert_eq!(offline.condition(ConditionType::Online).unwrap().last_transition_time, end.into());
    let registered = offline.condition(ConditionType::Registered).unwrap();
    assert_eq!(registered.last_transition_time, NOW.into(), "what did not change keeps its time");

    // Who was offline stays so until it connects.
    let still = ServerFacts { presence: Some(Presence { connected: false, since: end }), ..online() };
    assert_eq!(at(&still, Some(&offline), end).write, None);
}

#[test]
fn being_behind_shows_after_a_while() {
    let world = World::of(&[("s", document("Server", "s", ""))]);
    let at = |facts: ServerFacts, before: Option<&Status>, now| {
        compute(&world, KindName::Server, "s", &Facts::Server(Box::new(facts)), before, now)
    };
    let first = at(online(), None, NOW).write.unwrap();
    let behind = ServerFacts { state_generation: 4, behind_since: Some(NOW), ..online() };
    let soon = at(behind.clone(), Some(&first), NOW);
    assert_eq!((soon.write, soon.again_at), (None, Some(after(BEHIND_DAMPING))));
    let late = at(behind, Some(&first), after(BEHIND_DAMPING)).write.unwrap();
    assert_eq!(condition(&late, ConditionType::UpToDate), (ConditionStatus::False, "Behind".into()));
    let applied = ServerFacts { state_generation: 4, applied_generation: 4, ..online() };
    let better = at(applied.clone(), Some(&late), after(BEHIND_DAMPING)).write.unwrap();
    assert_eq!(condition(&better, ConditionType::UpToDate).0, ConditionStatus::True);
    let more = ServerFacts { state_generation: 9, applied_generation: 9, ..online() };
    assert_eq!(at(more, Some(&better), NOW).write, None, "numbers alone are not worth a write");

    let problem =
        EntryProblem { entry: EntryId::tunnel(), code: ProblemCode::System, message: "port in use".into() };
    let broken = at(ServerFacts { problems: vec![problem], ..applied }, Some(&better), NOW).write.unwrap();
    let up_to_date = broken.condition(ConditionType::UpToDate).unwrap();
    assert_eq!(up_to_date.message.as_str(), "tunnel is not in force: port in use");
}

#[test]
fn a_new_document_that_is_wrong_shows() {
    let mut world = World::of(&[
        ("u", document("User", "ana", "")),
        (
            "p",
            document(
                "AccessPolicy",
                "p",
                "subjects.users = [\"ana\"]\nservers = [\"*\"]\ndestinations = [{ cidr = \"::/0\" }]",
            ),
        ),
    ]);
    let stored = world.index.get(KindName::AccessPolicy, "default", "p").unwrap().clone();
    let problem = Problem {
        file: "p.toml".into(),
        position: None,
        resource: Some(stored.id()),
        field: "spec.servers".into(),
        message: "is wrong".into(),
        remedy: "correct it".into(),
    };
    let input = |world: &World, problems: &[&Problem]| {
        let stored = world.index.get(KindName::AccessPolicy, "default", "p").unwrap();
        let input = StatusInput {
            index: &world.index,
            stored,
            facts: &Facts::None,
            problems,
            before: None,
            now: NOW,
        };
        status(input).write.unwrap()
    };
    let bad = input(&world, &[&problem]);
    assert_eq!(condition(&bad, ConditionType::Accepted), (ConditionStatus::False, "Invalid".into()));
    let message = bad.condition(ConditionType::Accepted).unwrap().message.to_string();
    assert!(message.starts_with("p.toml") && message.contains("last good"), "{message}");
    assert_eq!(condition(&bad, ConditionType::Ready).1, "NoServers");

    world.delete("u");
    let plan = world.plan_all();
    world.commit(&plan);
    let dangling = input(&world, &[]);
    assert_eq!(condition(&dangling, ConditionType::Accepted).1, "ReferenceNotFound");
    assert_eq!(condition(&dangling, ConditionType::Ready).1, "NoUsers");
}

#[test]
fn policies_say_what_they_amount_to() {
    let world = |policy: &str, server: &str| {
        World::of(&[
            ("a", document("User", "ana", "groups = [\"staff\"]")),
            ("b", document("User", "ben", "groups = [\"staff\"]")),
            ("s", document("Server", "s", server)),
            ("n", document("VirtualNetwork", "n", "addressRanges = [\"10.5.0.0/16\"]")),
            (
                "p",
                document(
                    "AccessPolicy",
                    "p",
                    &format!(
                        "subjects.groups = [\"staff\"]\nsubjects.users = [\"ana\"]\nservers = [\"*\"]\n{policy}"
                    ),
                ),
            ),
        ])
    };
    let ask =
        |world: &World| compute(world, KindName::AccessPolicy, "p", &Facts::None, None, NOW).write.unwrap();
    let anywhere = "destinations = [{ cidr = \"::/0\" }]";
    let fine = ask(&world(anywhere, ""));
    let Status::AccessPolicy(inner) = &fine else { panic!() };
    assert_eq!((inner.matched_users, inner.matched_servers), (2, 1));
    assert_eq!(condition(&fine, ConditionType::Ready), (ConditionStatus::True, "InForce".into()));
    let lan = "capabilities = [\"lanEmulation\"]\nnetworks = [\"n\"]";
    for (policy, server, expected) in [
        (lan, "", "networks need the capability lanEmulation"),
        ("networks = [\"n\"]", lan, "networks need the capability lanEmulation"),
        (anywhere, lan, "destinations need the capability vpn or trafficRouting"),
        (lan, "capabilities = [\"lanEmulation\"]", "none of the servers lists the network \"n\""),
    ] {
        let status = ask(&world(policy, server));
        let ready = status.condition(ConditionType::Ready).unwrap();
        assert_eq!(ready.reason.as_str(), "WithoutEffect");
        assert!(ready.message.as_str().contains(expected), "{}", ready.message);
    }
    let carried = world(lan, lan);
    let facts = Facts::VirtualNetwork { addresses_in_use: 7 };
    let network = compute(&carried, KindName::VirtualNetwork, "n", &facts, None, NOW).write.unwrap();
    let Status::VirtualNetwork(inner) = &network else { panic!() };
    assert_eq!((inner.members, inner.addresses_in_use), (2, 7));
    assert_eq!(condition(&network, ConditionType::Ready).1, "Carried");
}

#[test]
fn keys_live_and_end() {
    let world = World::of(&[
        ("s", document("Server", "s", "")),
        ("u", document("User", "ana", "")),
        ("r", document("RegistrationKey", "r", "serverRef = \"s\"")),
        ("k", document("PersonalKey", "k", "userRef = \"ana\"")),
    ]);
    let (soon, past) = (after(SignedDuration::from_secs(9)), after(SignedDuration::from_secs(-9)));
    use RegistrationKeyPhase as R;
    let key = RegistrationKeyFacts { expires_at: Some(soon), ..RegistrationKeyFacts::default() };
    // One that was made long ago ends soon from a week before its end on.
    let (later, nearly) = (after(SignedDuration::from_hours(240)), after(SignedDuration::from_hours(72)));
    for (facts, expected, again) in [
        (RegistrationKeyFacts { expires_at: Some(later), ..key.clone() }, R::Unused, Some(nearly)),
        (RegistrationKeyFacts { expires_at: Some(past), ..key.clone() }, R::Expired, None),
        (RegistrationKeyFacts { used_at: Some(past), expires_at: Some(past), ..key.clone() }, R::Used, None),
        (RegistrationKeyFacts { revoked_at: Some(past), ..key }, R::Revoked, None),
    ] {
        let computed =
            compute(&world, KindName::RegistrationKey, "r", &Facts::RegistrationKey(facts), None, NOW);
        let Some(Status::RegistrationKey(status)) = computed.write else { panic!() };
        assert_eq!((status.phase, computed.again_at), (Some(expected), again));
    }
    for (now, reason, again) in [
        (nearly, ("True", "Expiring"), Some(later)),
        (after(SignedDuration::from_hours(71)), ("False", "Later"), Some(nearly)),
        (later, ("False", "Expired"), None),
    ] {
        let facts = RegistrationKeyFacts { expires_at: Some(later), ..RegistrationKeyFacts::default() };
        let facts = Facts::RegistrationKey(facts);
        let computed = compute(&world, KindName::RegistrationKey, "r", &facts, None, now);
        assert_eq!(computed.again_at, again);
        let shown = condition(computed.write.as_ref().unwrap(), ConditionType::ExpiresSoon);
        assert_eq!((format!("{:?}", shown.0).as_str(), shown.1.as_str()), reason);
    }
    use PersonalKeyPhase as K;
    let key = PersonalKeyFacts { expires_at: Some(soon), ..PersonalKeyFacts::default() };
    for (facts, expected, again) in [
        (key.clone(), K::Pending, Some(soon)),
        (PersonalKeyFacts { activated_at: Some(past), ..key.clone() }, K::Active, Some(soon)),
        (PersonalKeyFacts { expires_at: Some(past), ..key.clone() }, K::Expired, None),
        (PersonalKeyFacts { deactivated_at: Some(past), ..key.clone() }, K::Deactivated, None),
        (PersonalKeyFacts { deactivated_at: Some(past), compromised: true, ..key }, K::Compromised, None),
    ] {
        let computed =
            compute(&world, KindName::PersonalKey, "k", &Facts::PersonalKey(facts.clone()), None, NOW);
        let Some(Status::PersonalKey(status)) = computed.write else { panic!() };
        assert_eq!((status.phase, computed.again_at), (Some(expected), again));
        let facts = UserFacts { keys: vec![("k".parse().unwrap(), facts)], devices: Vec::new() };
        let computed = compute(&world, KindName::User, "ana", &Facts::User(facts), None, NOW);
        let Some(Status::User(status)) = computed.write else { panic!() };
        assert_eq!((status.keys[0].phase, computed.again_at), (expected, again));
    }
}

#[test]
fn decisions_say_whether_they_took_effect() {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let world = World::of(&[
        ("s", document("Server", "s", "")),
        ("a", document("Approval", "a", &format!("serverRef = \"s\"\nidentityDigest = \"{digest}\""))),
        ("r", document("Revocation", "r", "target = { kind = \"Server\", name = \"s\" }\nreason = \"lost\"")),
    ]);
    let facts = |effective_at| DecisionFacts { effective_at, applied_servers: Vec::new() };
    for (effective, expected) in [(None, ConditionStatus::False), (Some(NOW), ConditionStatus::True)] {
        let approval =
            compute(&world, KindName::Approval, "a", &Facts::Approval(facts(effective)), None, NOW);
        let revocation =
            compute(&world, KindName::Revocation, "r", &Facts::Revocation(facts(effective)), None, NOW);
        for computed in [approval, revocation] {
            assert_eq!(condition(&computed.write.unwrap(), ConditionType::Ready).0, expected);
        }
    }
}

#[test]
fn a_status_speaks_of_the_generation_of_the_object() {
    let status = server("", online()).observing(41);
    let Status::Server(inner) = &status else { panic!() };
    assert_eq!(inner.observed_generation, 41);
    assert!(inner.conditions.iter().all(|condition| condition.observed_generation == 41));
}

#[test]
fn an_object_that_is_not_in_force_says_why_and_since_when() {
    let mut parsed = horizon_crds::document::from_object(
        &"kubernetes/default/User/ana/1".into(),
        serde_json::json!({
            "apiVersion": "horizon.dev/v1alpha1", "kind": "User", "metadata": { "name": "ana" }, "spec": { "groups": 3 },
        }),
    );
    let problem = parsed.problems.remove(0);
    let early = after(SignedDuration::from_secs(-60));
    for (since, expected) in [
        (None, NOW),
        (Some((ConditionStatus::False, early)), early),
        (Some((ConditionStatus::True, early)), NOW),
    ] {
        let status = refused(KindName::User, &[&problem, &problem], 3, since, NOW);
        let accepted = status.condition(ConditionType::Accepted).unwrap();
        assert_eq!((accepted.status, accepted.observed_generation), (ConditionStatus::False, 3));
        assert_eq!(accepted.last_transition_time.get(), expected);
        assert!(
            accepted.message.as_str().starts_with("spec.groups: this is a number"),
            "{}",
            accepted.message
        );
        assert!(accepted.message.as_str().contains("(and 1 more)"));
    }
    let status = refused(KindName::User, &[], 3, None, NOW);
    assert_eq!(condition(&status, ConditionType::Accepted).0, ConditionStatus::Unknown);
}

#[test]
fn a_delivered_string_is_found_by_file_or_secret() {
    let world = World::of(&[
        ("s", document("Server", "s", "")),
        ("r", document("RegistrationKey", "r", "serverRef = \"s\"")),
    ]);
    let delivered = |place: &str| {
        let facts =
            RegistrationKeyFacts { secret_file: Some(place.to_owned()), ..RegistrationKeyFacts::default() };
        let computed =
            compute(&world, KindName::RegistrationKey, "r", &Facts::RegistrationKey(facts), None, NOW);
        let Some(Status::RegistrationKey(status)) = computed.write else { panic!() };
        (
            status.secret_file.map(|file| file.to_string()),
            status.secret_ref.map(|secret| secret.name.to_string()),
        )
    };
    assert_eq!(delivered("/data/secrets/r"), (Some("/data/secrets/r".to_owned()), None));
    assert_eq!(delivered("secret:r-token/1234"), (None, Some("r-token".to_owned())));
}

#[test]
fn an_administrator_notices_what_turned() {
    let reasons = |before: Option<&Status>, after: &Status| -> Vec<(String, bool)> {
        notices(before, after).into_iter().map(|notice| (notice.reason, notice.warning)).collect()
    };
    let pending = server("", ServerFacts::default());
    let serving = server("", online());
    assert_eq!(reasons(None, &serving), [], "a first status may be old news");
    let came = reasons(Some(&pending), &serving);
    assert!(came.contains(&("Registered".to_owned(), false)), "{came:?}");
    assert_eq!(reasons(Some(&serving), &serving), []);
    let changed =
        server("", ServerFacts { requires_verification: true, pending_digest: Some([2; 32]), ..online() });
    assert!(reasons(Some(&serving), &changed).contains(&("IdentityChanged".to_owned(), true)));
    assert!(reasons(Some(&changed), &serving).contains(&("IdentityApproved".to_owned(), false)));
}
