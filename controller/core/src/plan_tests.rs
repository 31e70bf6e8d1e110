use std::{collections::BTreeSet, sync::Arc};

use horizon_crds::{KindName, ResourceId};
use horizon_model::ServerId;
use proptest::prelude::*;

use crate::{
    Origin, Plan, plan_put, preview,
    testing::{World, document, id, resource},
};

fn messages(plan: &Plan) -> Vec<String> {
    plan.rejected.values().flatten().map(ToString::to_string).collect()
}

#[test]
fn edits_move_what_they_say() {
    let mut world =
        World::of(&[("a.toml", document("User", "ana", "")), ("b.toml", document("Server", "berlin", ""))]);
    assert!(world.plan_all().is_empty());
    let touched = world.write("a.toml", &document("User", "ana", "suspended = true"));
    assert_eq!(touched, BTreeSet::from([id(KindName::User, "ana")]));
    let plan = world.plan(&touched, &BTreeSet::new());
    assert_eq!(plan.puts.keys().collect::<Vec<_>>(), [&id(KindName::User, "ana")]);
    assert_eq!(plan.scope.users, BTreeSet::from([world.uid(KindName::User, "ana")]));
    assert!(plan.scope.servers.is_empty());
    world.commit(&plan);
    assert!(world.plan_all().is_empty());
}

#[test]
fn a_name_change_concerns_no_session() {
    let mut world = World::of(&[("a.toml", document("User", "ana", ""))]);
    world.write("a.toml", &document("User", "ana", "displayName = \"Ana\""));
    let plan = world.plan_all();
    assert!(plan.scope.users.is_empty() && plan.scope.servers.is_empty());
    assert!(plan.scope.statuses.contains(&id(KindName::User, "ana")));
}

#[test]
fn only_servers_that_are_concerned_are_told() {
    let servers = ["berlin", "oslo", "rome"];
    let mut files: Vec<_> = servers.map(|s| (s, document("Server", s, ""))).to_vec();
    files.push((
        "lan",
        document("Server", "lan", "capabilities = [\"lanEmulation\"]\nnetworks = [\"games\"]"),
    ));
    files.push(("games", document("VirtualNetwork", "games", "addressRanges = [\"10.77.0.0/24\"]")));
    files.push(("ana", document("User", "ana", "groups = [\"staff\"]")));
    let policy = |servers: &str, cidr: &str| {
        document(
            "AccessPolicy",
            "p",
            &format!(
                "subjects.groups = [\"staff\"]\nservers = [{servers}]\ndestinations = [{{ cidr = \"{cidr}\" }}]"
            ),
        )
    };
    files.push(("p", policy("\"berlin\", \"oslo\"", "0.0.0.0/0")));
    let world = World::of(&files);
    let server = |name| ServerId(world.uid(KindName::Server, name));
    let told = |path: &str, text: &str| {
        let mut world = world.clone();
        let touched = world.write(path, text);
        world.plan(&touched, &BTreeSet::new()).scope
    };
    let scope = told("p", &policy("\"berlin\", \"oslo\"", "10.0.0.0/8"));
    assert_eq!(scope.servers, BTreeSet::from([server("berlin"), server("oslo")]));
    assert!(scope.users.is_empty());
    assert_eq!(told("p", &policy("\"rome\"", "0.0.0.0/0")).servers.len(), 3, "old and new");
    let any = told("p", &policy("\"*\"", "0.0.0.0/0"));
    assert!(any.users.contains(&world.uid(KindName::User, "ana")));
    let mtu = document("VirtualNetwork", "games", "addressRanges = [\"10.77.0.0/24\"]\nmtu = 1300");
    assert_eq!(told("games", &mtu).servers, BTreeSet::from([server("lan")]));
    let beat = told("s", &document("SecurityPolicy", "s", "heartbeatInterval = \"5s\""));
    assert_eq!(beat.servers.len(), 4, "everybody beats faster");
    let lockout = told("s", &document("SecurityPolicy", "s", "lockout.threshold = 3"));
    assert!(lockout.servers.is_empty());
    let revoked = told(
        "r",
        &document("Revocation", "r", "target = { kind = \"Server\", name = \"rome\" }\nreason = \"lost\""),
    );
    assert_eq!(revoked.servers, BTreeSet::from([server("rome")]));
}

#[test]
fn a_broken_file_keeps_what_it_held() {
    let mut world =
        World::of(&[("a.toml", document("User", "ana", "")), ("b.toml", document("User", "ben", ""))]);
    for text in ["not toml", "", &document("User", "ana", "suspnded = true"), &document("Usr", "ana", "")] {
        world.write("a.toml", text);
        let plan = world.plan_all();
        if text.is_empty() {
            assert_eq!(plan.removals.len(), 1, "an empty file holds nothing");
            continue;
        }
        assert!(plan.is_empty(), "{text}");
    }
}

#[test]
fn what_another_run_left_is_found_and_broken_files_protect_it() {
    let mut world =
        World::of(&[("a.toml", document("User", "ana", "")), ("b.toml", document("User", "ben", ""))]);
    world.desired = crate::Desired::new();
    assert!(world.plan_all().is_empty(), "nothing is listed yet");
    world.write("a.toml", "not toml");
    let plan = world.plan_all();
    assert_eq!(plan.removals, BTreeSet::from([id(KindName::User, "ben")]));
}

#[test]
fn an_incomplete_listing_removes_nothing() {
    let mut world =
        World::of(&[("a.toml", document("User", "ana", "")), ("b.toml", document("User", "ben", ""))]);
    let touched = world.delete("a.toml");
    world.desired.set_complete(false);
    assert!(world.plan(&touched, &BTreeSet::new()).is_empty());
    assert!(world.plan_all().is_empty());
    world.desired.set_complete(true);
    assert_eq!(world.plan_all().removals.len(), 1);
}

#[test]
fn of_two_documents_the_one_in_force_stays() {
    let mut world = World::of(&[("b.toml", document("User", "ana", ""))]);
    world.write("a.toml", &document("User", "ana", "suspended = true"));
    let plan = world.plan_all();
    assert!(plan.is_empty());
    let problem = &messages(&plan)[0];
    assert!(
        problem.starts_with("a.toml:") && problem.contains("the document at b.toml:1 holds"),
        "{problem}"
    );
    world.delete("b.toml");
    let plan = world.settle();
    assert_eq!((plan.puts.len(), plan.removals.len()), (1, 0), "it moved");
    assert!(world.plan_all().rejected.is_empty());
}

#[test]
fn a_moved_document_is_the_same_resource() {
    let mut world =
        World::of(&[("a.toml", document("User", "ana", "")), ("c.toml", document("User", "ben", ""))]);
    let before = world.uid(KindName::User, "ana");
    world.delete("a.toml");
    world.write("b.toml", &document("User", "ana", ""));
    let plan = world.settle();
    assert!(plan.removals.is_empty());
    assert_eq!(world.uid(KindName::User, "ana"), before);
    assert_eq!(world.index.user("default", "ana").unwrap().0.origin, Origin::File("b.toml".into()));
}

#[test]
fn what_contradicts_is_rejected_until_it_fits() {
    let mut world = World::of(&[("u.toml", document("User", "ana", ""))]);
    let policy = document(
        "AccessPolicy",
        "p",
        "subjects.users = [\"anna\"]\nservers = [\"*\"]\ndestinations = [{ cidr = \"::/0\" }]",
    );
    world.write("p.toml", &policy);
    let plan = world.settle();
    assert!(messages(&plan)[0].contains("did you mean \"ana\"?"), "{:?}", messages(&plan));
    world.write("anna.toml", &document("User", "anna", ""));
    let plan = world.settle();
    assert!(plan.rejected.is_empty() && plan.puts.len() == 2);
    // What is in force stays so when what it names goes, and can still be changed.
    world.delete("anna.toml");
    world.settle();
    world.write("p.toml", &policy.replace("::/0", "fd00::/8"));
    let plan = world.settle();
    assert_eq!((plan.puts.len(), plan.rejected.len()), (1, 0));
}

#[test]
fn a_chain_of_missing_names_is_rejected_together() {
    let mut world = World::of(&[("u.toml", document("User", "ana", ""))]);
    world.write("s.toml", &document("Server", "s", "networks = [\"nowhere\"]"));
    world.write("k.toml", &document("RegistrationKey", "k", "serverRef = \"s\""));
    let plan = world.settle();
    assert_eq!(
        plan.rejected.keys().map(|id| id.kind).collect::<Vec<_>>(),
        [KindName::Server, KindName::RegistrationKey]
    );
    assert!(plan.is_empty());
}

#[test]
fn networks_do_not_collide() {
    let network =
        |name: &str, range: &str| document("VirtualNetwork", name, &format!("addressRanges = [\"{range}\"]"));
    let mut world = World::of(&[("b", network("b", "10.1.0.0/16"))]);
    world.write("a", &network("a", "10.0.0.0/8"));
    let plan = world.settle();
    let texts = messages(&plan);
    assert!(
        texts.iter().any(|t| t.contains("10.0.0.0/8 overlaps 10.1.0.0/16 of VirtualNetwork default/b")),
        "{texts:?}"
    );
    // Two newcomers: the first by name.
    world.write("x", &network("x", "192.168.0.0/16"));
    world.write("y", &network("y", "192.168.3.0/24"));
    let plan = world.settle();
    assert!(plan.puts.contains_key(&id(KindName::VirtualNetwork, "x")));
    assert!(plan.rejected.contains_key(&id(KindName::VirtualNetwork, "y")));
    // A swap fits only as a whole.
    world.delete("a");
    world.write("x", &network("x", "10.1.0.0/16"));
    assert!(world.settle().is_empty());
    world.write("b", &network("b", "172.16.0.0/16"));
    let plan = world.settle();
    assert_eq!(plan.puts.len(), 3, "x, b, and y, which waited: {:?}", messages(&plan));
}

#[test]
fn servers_keep_clear_of_networks() {
    let server = |range: &str| {
        document(
            "Server",
            "s",
            &format!(
                "capabilities = [\"lanEmulation\"]\nnetworks = [\"n\"]\negress.addressRanges = [\"{range}\"]"
            ),
        )
    };
    let network = |range: &str| document("VirtualNetwork", "n", &format!("addressRanges = [\"{range}\"]"));
    let mut world = World::of(&[("s", server("10.1.0.0/16")), ("n", network("10.2.0.0/16"))]);
    world.write("s", &server("10.0.0.0/8"));
    assert!(messages(&world.settle())[0].contains("overlaps 10.2.0.0/16"));
    world.write("s", &server("10.1.0.0/16"));
    world.write("n", &network("10.1.2.0/24"));
    assert!(messages(&world.settle())[0].contains("which carries this network"));
}

#[test]
fn what_is_final_stays() {
    let mut world = World::of(&[(
        "s",
        document("Server", "s", "lifecycle = { state = \"decommissioned\", reason = \"sold\" }"),
    )]);
    world.write("s", &document("Server", "s", ""));
    assert!(messages(&world.settle())[0].contains("does not come back"));
}

#[test]
fn the_interface_and_files_keep_apart() {
    let mut world = World::of(&[("s", document("Server", "s", ""))]);
    let key = Arc::new(resource("RegistrationKey", "k", "serverRef = \"s\""));
    let plan = plan_put(&world.index, key.clone()).unwrap();
    world.commit(&plan);
    assert!(plan_put(&world.index, key).unwrap().is_empty());
    assert!(world.plan_all().is_empty(), "files do not remove it");
    world.write("k", &document("RegistrationKey", "k", "serverRef = \"s\""));
    assert!(messages(&world.settle())[0].contains("belongs to the controller's own records"));
    let server = Arc::new(resource("Server", "s", "tunnel.port = 1"));
    assert!(plan_put(&world.index, server).unwrap_err()[0].message.contains("already belongs to s"));
    let lost = Arc::new(resource("RegistrationKey", "l", "serverRef = \"t\""));
    assert_eq!(plan_put(&world.index, lost).unwrap_err()[0].field, "spec.serverRef");
}

#[test]
fn a_preview_numbers_new_networks() {
    let mut world = World::of(&[("n", document("VirtualNetwork", "n", "addressRanges = [\"10.2.0.0/16\"]"))]);
    world.write("m", &document("VirtualNetwork", "m", "addressRanges = [\"10.3.0.0/16\"]"));
    let next = preview(&world.index, &world.plan_all());
    let numbers: BTreeSet<_> = next.all(KindName::VirtualNetwork).iter().map(|s| s.number.unwrap()).collect();
    assert_eq!(numbers.len(), 2);
}

/// Documents by file; every file has several versions, the first of them fits with the first of all others.
const FILES: usize = 7;

fn version(file: usize, version: usize) -> String {
    let policy =
        |rest: &str| format!("servers = [\"berlin\"]\n{rest}\ndestinations = [{{ cidr = \"::/0\" }}]");
    match (file, version) {
        (0, 0) => document("User", "ana", "groups = [\"staff\"]"),
        (0, 1) => document("User", "ana", ""),
        (1, 0) => document("User", "ben", ""),
        (1, 1) => document("User", "ben", "groups = [\"staff\"]\nsuspended = true"),
        (2, 0) => {
            document("Server", "berlin", "networks = [\"a\"]\negress.addressRanges = [\"10.8.0.0/16\"]")
        }
        (2, 1) => document(
            "Server",
            "berlin",
            "networks = [\"a\", \"b\"]\negress.addressRanges = [\"10.2.0.0/16\"]",
        ),
        (3, 0) => document("VirtualNetwork", "a", "addressRanges = [\"10.1.0.0/16\"]"),
        (3, 1) => document("VirtualNetwork", "a", "addressRanges = [\"10.2.0.0/16\"]"),
        (4, 0) => document("VirtualNetwork", "b", "addressRanges = [\"10.2.0.0/16\"]"),
        (4, 1) => document("VirtualNetwork", "b", "addressRanges = [\"10.1.0.0/16\"]"),
        (5, 0) => document("AccessPolicy", "p", &policy("subjects.groups = [\"staff\"]")),
        (5, 1) => document("AccessPolicy", "p", &policy("subjects.users = [\"nobody\"]\nnetworks = [\"b\"]")),
        (6, 0) => document("PersonalKey", "k", "userRef = \"ben\""),
        (6, 1) => document("PersonalKey", "k", "userRef = \"ana\""),
        (_, 2) => "broken".to_owned(),
        _ => document("User", &format!("extra-{file}"), ""),
    }
}

#[derive(Clone, Copy, Debug)]
enum Edit {
    Write(usize, usize),
    Delete(usize),
    Incomplete(bool),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        6 => (0..FILES, 0..4_usize).prop_map(|(file, v)| Edit::Write(file, v)),
        2 => (0..FILES).prop_map(Edit::Delete),
        1 => any::<bool>().prop_map(Edit::Incomplete),
    ]
}

/// The engine's way of planning: what was touched, with what was rejected or held before.
struct Engine {
    world: World,
    again: BTreeSet<ResourceId>,
}

impl Engine {
    fn apply(&mut self, edit: Edit) -> Plan {
        let path = |file| format!("{file}.toml");
        let complete = self.world.desired.is_complete();
        let mut touched = match edit {
            Edit::Write(file, v) => self.world.desired.set_file(
                &path(file).into(),
                Some(crate::File::from(horizon_crds::parse(&path(file), version(file, v).as_bytes()))),
            ),
            Edit::Delete(file) => self.world.delete(&path(file)),
            Edit::Incomplete(incomplete) => {
                self.world.desired.set_complete(!incomplete);
                BTreeSet::new()
            }
        };
        if let Edit::Write(file, _) | Edit::Delete(file) = edit {
            touched.extend(crate::declared_by(&self.world.index, &BTreeSet::from([path(file).into()])));
        }
        if self.world.desired.is_complete() && !complete {
            touched.extend(crate::everything(&self.world.index, &self.world.desired));
        }
        touched.extend(std::mem::take(&mut self.again));
        let plan = self.world.plan(&touched, &BTreeSet::new());
        self.again =
            plan.rejected.keys().cloned().chain(plan.held.iter().flat_map(|h| h.resources.clone())).collect();
        self.world.commit(&plan);
        plan
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// After every edit, planning everything again finds nothing that the incremental plan missed.
    #[test]
    fn planning_again_yields_nothing(edits in prop::collection::vec(edit(), 1..30)) {
        let mut engine = Engine { world: World::default(), again: BTreeSet::new() };
        engine.world.desired.set_complete(true);
        for edit in edits {
            engine.apply(edit);
            let again = engine.world.plan_all();
            prop_assert!(again.is_empty(), "{edit:?}: {:?} {:?}", again.puts.keys(), again.removals);
            prop_assert_eq!(again.rejected.keys().cloned().collect::<Vec<_>>(),
                engine.again.iter().filter(|id| again.rejected.contains_key(*id)).cloned().collect::<Vec<_>>());
        }
    }

    /// Whatever happened before, files that fit together come into force as they are, in any order.
    #[test]
    fn any_order_converges(
        edits in prop::collection::vec(edit(), 0..20),
        order in Just((0..FILES).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let mut engine = Engine { world: World::default(), again: BTreeSet::new() };
        engine.world.desired.set_complete(true);
        for edit in edits {
            engine.apply(edit);
        }
        // A personal key belongs to its user for good, so a wrong one has to go first.
        engine.apply(Edit::Incomplete(false));
        engine.apply(Edit::Delete(6));
        if let Some(held) = engine.world.plan_all().held {
            let plan = engine.world.plan(&held.resources, &held.resources);
            engine.world.commit(&plan);
        }
        for file in order {
            engine.apply(Edit::Write(file, 0));
        }
        let mut fresh = World::default();
        for file in 0..FILES {
            fresh.write(&format!("{file}.toml"), &version(file, 0));
        }
        let plan = fresh.settle();
        prop_assert!(plan.rejected.is_empty(), "{:?}", plan.rejected);
        prop_assert_eq!(engine.world.in_force(), fresh.in_force());
        prop_assert!(engine.again.is_empty(), "{:?}", engine.again);
    }

    /// The lookups of an index that was changed step by step are those of one made at once.
    #[test]
    fn lookups_follow(edits in prop::collection::vec(edit(), 1..30)) {
        let mut engine = Engine { world: World::default(), again: BTreeSet::new() };
        engine.world.desired.set_complete(true);
        for edit in edits {
            engine.apply(edit);
        }
        let index = &engine.world.index;
        let made = crate::Index::new(index.iter().map(|s| (**s).clone()));
        prop_assert_eq!(format!("{index:?}").len(), format!("{made:?}").len());
        for user in index.all(KindName::User) {
            let (namespace, name) = (user.resource.namespace(), user.resource.name());
            let names = |index: &crate::Index| -> Vec<String> {
                index.policies_of_user(namespace, name).iter().map(|(s, _)| s.id().to_string()).collect()
            };
            prop_assert_eq!(names(index), names(&made));
            prop_assert_eq!(index.by_uid(user.uid).map(|s| s.id()), Some(user.id()));
        }
    }
}

/// A Kubernetes object of a kind and name, with its path.
fn object(kind: &str, name: &str, uid: &str, spec: &str) -> (String, String) {
    (format!("kubernetes/default/{kind}/{name}/{uid}"), document(kind, name, spec))
}

#[test]
fn an_object_recreated_under_a_name_inherits_nothing() {
    let (path, text) = object("Server", "paris", "1", "");
    let mut world = World::of(&[(&path, text)]);
    let first = world.uid(KindName::Server, "paris");
    world.delete(&path);
    let (path, text) = object("Server", "paris", "2", "location = \"Paris\"");
    world.write(&path, &text);
    let plan = world.settle();
    let paris = BTreeSet::from([id(KindName::Server, "paris")]);
    assert_eq!((&plan.removals, &plan.again), (&paris, &paris));
    assert!(plan.puts.is_empty());
    let plan = world.plan(&plan.again, &BTreeSet::new());
    assert_eq!(plan.puts.keys().cloned().collect::<BTreeSet<_>>(), paris);
    world.commit(&plan);
    assert_ne!(world.uid(KindName::Server, "paris"), first);
    assert!(world.plan_all().is_empty());
}

#[test]
fn an_object_that_says_which_resource_it_is_stays_that() {
    let (path, text) = object("Server", "paris", "1", "");
    let mut world = World::of(&[(&path, text)]);
    let first = world.uid(KindName::Server, "paris");
    world.delete(&path);
    let (path, text) = object("Server", "paris", "2", "");
    let claimed = format!("metadata.annotations.\"horizon.dev/id\" = \"{first}\"\n{text}");
    world.write(&path, &claimed);
    let plan = world.settle();
    assert!(plan.removals.is_empty() && plan.puts.len() == 1);
    assert_eq!(world.uid(KindName::Server, "paris"), first);
}

#[test]
fn a_resource_moves_between_files_and_objects() {
    let mut world = World::of(&[("a.toml", document("Server", "paris", ""))]);
    let first = world.uid(KindName::Server, "paris");
    world.delete("a.toml");
    let (path, text) = object("Server", "paris", "1", "");
    world.write(&path, &text);
    assert!(world.settle().removals.is_empty());
    world.delete(&path);
    world.write("b.toml", &document("Server", "paris", ""));
    assert!(world.settle().removals.is_empty());
    assert_eq!(world.uid(KindName::Server, "paris"), first);
}

#[test]
fn a_malformed_object_keeps_only_what_it_was_itself() {
    let (path, text) = object("User", "ana", "1", "");
    let (other, other_text) = object("User", "ben", "1", "");
    let mut world = World::of(&[(&path, text), (&other, other_text)]);
    world.write(&path, &document("User", "ana", "groups = 3"));
    assert!(world.plan_all().is_empty(), "the last good version stays in force");
    world.delete(&path);
    world.write(&object("User", "ana", "2", "").0, &document("User", "ana", "groups = 3"));
    let plan = world.settle();
    assert_eq!(plan.removals, BTreeSet::from([id(KindName::User, "ana")]));
    assert!(plan.again.is_empty());
}

#[test]
fn many_objects_recreated_at_once_wait_for_a_word() {
    let objects =
        |uid: &str| -> Vec<_> { (0..20).map(|i| object("User", &format!("u{i}"), uid, "")).collect() };
    let files = objects("1");
    let mut world =
        World::of(&files.iter().map(|(path, text)| (path.as_str(), text.clone())).collect::<Vec<_>>());
    for ((old, _), (new, text)) in files.iter().zip(objects("2")) {
        world.delete(old);
        world.write(&new, &text);
    }
    let plan = world.plan_all();
    assert!(plan.is_empty() && plan.again.is_empty());
    assert_eq!(plan.held.map(|held| held.resources.len()), Some(20));
}

/// A document that claims an identity.
fn claiming(kind: &str, name: &str, claim: &str) -> String {
    document(kind, name, "")
        .replace("[spec]", &format!("metadata.annotations = {{ \"horizon.dev/id\" = \"{claim}\" }}\n[spec]"))
}

#[test]
fn a_moved_document_keeps_its_resource_and_a_record_can_be_taken_over() {
    let mut world = World::of(&[("a.toml", document("User", "ana", ""))]);
    let uid = world.uid(KindName::User, "ana");
    world.delete("a.toml");
    world.write("kubernetes/default/User/ana/1", &document("User", "ana", ""));
    let plan = world.settle();
    assert!(plan.removals.is_empty());
    assert_eq!(world.uid(KindName::User, "ana"), uid);
    world.delete("kubernetes/default/User/ana/1");
    world.write("b.toml", &document("User", "ana", ""));
    assert!(world.settle().removals.is_empty());
    assert_eq!(world.uid(KindName::User, "ana"), uid);

    // The controller's own record is nobody else's, unless a document says that it is this very one.
    let plan = plan_put(&world.index, Arc::new(resource("User", "ben", ""))).unwrap();
    world.commit(&plan);
    let ben = world.uid(KindName::User, "ben");
    world.write("ben.toml", &document("User", "ben", ""));
    assert!(messages(&world.plan_all())[0].contains("the controller's own records"));
    world.write("ben.toml", &claiming("User", "ben", &ben.to_string()));
    let plan = world.settle();
    assert_eq!((messages(&plan), world.uid(KindName::User, "ben")), (vec![], ben));
    assert_eq!(
        world.index.get(KindName::User, "default", "ben").unwrap().origin,
        Origin::File("ben.toml".into())
    );
}

#[test]
fn an_identity_has_one_document() {
    let mut world = World::of(&[("a.toml", document("Server", "paris", ""))]);
    let (paris, gone) = (world.uid(KindName::Server, "paris").to_string(), uuid::Uuid::from_u128(77));
    let gone_text = gone.to_string();
    for (name, claim, wanted) in [
        (
            "berlin",
            paris.as_str(),
            "berlin.toml:4:24: Server default/berlin: metadata.annotations[\"horizon.dev/id\"]: \
            it claims the identity of Server default/paris, which keeps it: ",
        ),
        ("berlin", gone_text.as_str(), "it claims the identity of Server default/rome, which keeps it"),
        ("paris", gone_text.as_str(), "it claims the identity of Server default/rome, which keeps it"),
        ("berlin", "7", "it claims an identity that is none"),
    ] {
        let mut world = world.clone();
        let path = if name == "paris" { "a.toml" } else { "berlin.toml" };
        let touched = world.write(path, &claiming("Server", name, claim));
        let asked = world.desired.unknown_identities(&world.index, &touched);
        let known = [(gone, id(KindName::Server, "rome"))].into();
        world.desired.learn_identities(&asked, &known);
        let plan = world.plan(&touched, &BTreeSet::new());
        let told = messages(&plan);
        assert!(told.len() == 1 && told[0].contains(wanted), "{told:?}");
        assert!(plan.is_empty(), "what is in force stays");
    }
    // One that was removed under the name comes back; one that nothing ever had is no claim.
    for (claim, owner) in [(gone, Some(id(KindName::Server, "rome"))), (uuid::Uuid::from_u128(78), None)] {
        let mut world = world.clone();
        let touched = world.write("rome.toml", &claiming("Server", "rome", &claim.to_string()));
        let asked = world.desired.unknown_identities(&world.index, &touched);
        assert_eq!(asked, [claim]);
        world.desired.learn_identities(&asked, &owner.into_iter().map(|owner| (claim, owner)).collect());
        assert!(world.desired.unknown_identities(&world.index, &touched).is_empty(), "asked once");
        assert_eq!(world.plan(&touched, &BTreeSet::new()).puts.len(), 1);
    }
    // A name that was made anew since is not mistaken for its predecessor.
    let touched = world.write("a.toml", &claiming("Server", "paris", &gone_text));
    world.desired.learn_identities(&[gone], &[(gone, id(KindName::Server, "paris"))].into());
    let told = messages(&world.plan(&touched, &BTreeSet::new()));
    assert!(told[0].contains("an earlier Server default/paris, which was made anew since"), "{told:?}");
}
