use horizon_crds::KindName;
use horizon_model::{Capability, Failover, Inbound, NetworkId, Protocol, ServerId};

use crate::{
    Denial, DeviceStanding, Grant, GrantFacts, Purpose, ServerStanding, grant, grant_named, servers_for,
    testing::{World, document, name},
};

const LAN: &str = "capabilities = [\"vpn\", \"lanEmulation\"]\nnetworks = [\"games\"]";
const EVERYWHERE: &str = "destinations = [{ cidr = \"0.0.0.0/0\" }, { cidr = \"::/0\" }]";

fn world(extra: &[(&str, String)]) -> World {
    let mut files = vec![
        ("berlin", document("Server", "berlin", LAN)),
        (
            "oslo",
            document("Server", "oslo", "limits.sessionRate = \"100mbit\"\negress.dns = [\"10.0.0.53\"]"),
        ),
        ("games", document("VirtualNetwork", "games", "addressRanges = [\"10.77.0.0/24\"]")),
        ("ana", document("User", "ana", "groups = [\"staff\"]")),
        ("ben", document("User", "ben", "")),
    ];
    files.extend(extra.iter().cloned());
    World::of(&files)
}

fn policy(name: &str, spec: &str) -> (&'static str, String) {
    (Box::leak(name.to_owned().into_boxed_str()), document("AccessPolicy", name, spec))
}

fn ask(world: &World, user: &str, server: &str) -> Result<Grant, Denial> {
    grant_named(&world.index, GrantFacts::POLICY_ONLY, &name("default"), &name(user), &name(server))
}

#[test]
fn nothing_is_granted_by_default() {
    let world = world(&[]);
    let denial = ask(&world, "ana", "berlin").unwrap_err();
    assert_eq!(denial.to_string(), "no policy allows user 'ana' to use server 'berlin'");
    assert!(matches!(ask(&world, "eve", "berlin"), Err(Denial::UnknownUser { .. })));
    assert!(matches!(ask(&world, "ana", "paris"), Err(Denial::UnknownServer { .. })));
}

#[test]
fn the_printed_document_allows_it() {
    let mut world = world(&[]);
    for (user, server) in [("ana", "berlin"), ("ben", "oslo")] {
        let text = ask(&world, user, server).unwrap_err().document().unwrap();
        world.write(&format!("{user}.allow.toml"), &text);
        let plan = world.settle();
        assert!(plan.rejected.is_empty(), "{:?}", plan.rejected);
        assert!(ask(&world, user, server).is_ok(), "{text}");
    }
    assert_eq!(ask(&world, "ana", "berlin").unwrap().networks.len(), 2);
    assert!(ask(&world, "ben", "berlin").is_err());
}

#[test]
fn policies_add_up() {
    let world = world(&[
        policy(
            "by-name",
            "subjects.users = [\"ana\"]\nservers = [\"oslo\"]\ndestinations = [{ cidr = \"10.0.0.0/8\", protocol = \"tcp\", ports = [\"443\"] }]",
        ),
        policy(
            "by-group",
            "subjects.groups = [\"staff\"]\nservers = [\"*\"]\ndestinations = [{ cidr = \"192.0.2.0/24\" }]\nallowInbound = true",
        ),
        policy("of-others", &format!("subjects.users = [\"ben\"]\nservers = [\"*\"]\n{EVERYWHERE}")),
    ]);
    let grant = ask(&world, "ana", "oslo").unwrap();
    assert_eq!(grant.rules.len(), 2);
    assert!(grant.rules.iter().any(|r| r.protocol == Protocol::Tcp && r.ports.len() == 1));
    assert_eq!(grant.networks[0].inbound, Inbound::Any);
    assert_eq!(grant.rate_limit, Some(100_000_000));
    assert_eq!(grant.dns, ["10.0.0.53".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(ask(&world, "ana", "berlin").unwrap().rules.len(), 1);
}

#[test]
fn routes_follow_capabilities() {
    let split = "capabilities = [\"trafficRouting\"]";
    let world = World::of(&[
        ("hub", document("Server", "hub", "capabilities = [\"vpn\", \"trafficRouting\"]")),
        ("ana", document("User", "ana", "")),
        ("ben", document("User", "ben", "")),
        policy(
            "all",
            "subjects.users = [\"ana\"]\nservers = [\"*\"]\ndestinations = [{ cidr = \"10.0.0.0/8\" }]",
        ),
        policy(
            "some",
            &format!(
                "{split}\nsubjects.users = [\"ben\"]\nservers = [\"*\"]\ndestinations = [{{ cidr = \"10.0.0.0/9\" }}, {{ cidr = \"10.128.0.0/9\" }}]"
            ),
        ),
    ]);
    let routes = |user| -> Vec<String> {
        ask(&world, user, "hub").unwrap().networks[0].routes.iter().map(ToString::to_string).collect()
    };
    assert_eq!(routes("ana"), ["0.0.0.0/0", "::/0"]);
    assert_eq!(routes("ben"), ["10.0.0.0/8"]);
}

#[test]
fn networks_need_the_server_the_policy_and_the_capability() {
    let with = |policy_spec: &str, server: &str| {
        let mut world = world(&[policy(
            "p",
            &format!("subjects.users = [\"ben\"]\nservers = [\"*\"]\nnetworks = [\"games\"]\n{policy_spec}"),
        )]);
        world.write("berlin", &document("Server", "berlin", server));
        world.settle();
        ask(&world, "ben", "berlin")
    };
    let grant = with("capabilities = [\"lanEmulation\"]", LAN).unwrap();
    assert_eq!(grant.capabilities, [Capability::LanEmulation]);
    assert_eq!((grant.networks[0].id, grant.networks[0].name.as_str()), (NetworkId(1), "games"));
    assert_eq!(grant.networks[0].inbound, Inbound::Any);
    assert!(grant.rules.is_empty());
    let missing = |result: Result<Grant, Denial>| result.unwrap_err().to_string();
    assert!(
        missing(with("capabilities = [\"lanEmulation\"]", "networks = [\"games\"]"))
            .contains("the capability lanEmulation")
    );
    let lost = missing(with("capabilities = [\"lanEmulation\"]", "capabilities = [\"lanEmulation\"]"));
    assert!(lost.contains("the network 'games'"), "{lost}");
    assert!(missing(with("capabilities = [\"vpn\"]", LAN)).contains("policies do not list the capability"));
}

#[test]
fn the_changed_server_document_allows_it() {
    let mut world = world(&[policy(
        "p",
        "capabilities = [\"lanEmulation\"]\nsubjects.users = [\"ben\"]\nservers = [\"oslo\"]\nnetworks = [\"games\"]",
    )]);
    let denial = ask(&world, "ben", "oslo").unwrap_err();
    world.write("oslo", &denial.document().unwrap());
    world.settle();
    assert_eq!(ask(&world, "ben", "oslo").unwrap().networks.len(), 1, "{}", denial.remedy());
}

#[test]
fn facts_and_lifecycle_decide_too() {
    let allowed = policy("p", &format!("subjects.users = [\"ana\"]\nservers = [\"*\"]\n{EVERYWHERE}"));
    let world = |server: &str, user: &str| {
        let mut world = world(std::slice::from_ref(&allowed));
        world.write("oslo", &document("Server", "oslo", server));
        world.write("ana", &document("User", "ana", user));
        world.settle();
        world
    };
    use DeviceStanding as D;
    use Purpose::{LiveSession as Live, NewSession as New};
    use ServerStanding as S;
    let maintenance = "lifecycle = { state = \"maintenance\", reason = \"disk\" }";
    let ended = "lifecycle = { state = \"decommissioned\", reason = \"sold\" }";
    let suspended = "suspended = true\nsuspensionReason = \"left\"";
    for (server, user, purpose, standing, device, expected) in [
        ("", "", New, S::Good, D::Good, None),
        ("", "", New, S::Unregistered, D::Good, Some("has no appliance")),
        ("", "", New, S::Quarantined, D::Good, Some("changed identity")),
        ("", "", Live, S::Quarantined, D::Good, None),
        ("", "", New, S::Revoked, D::Good, Some("was revoked")),
        ("", "", Live, S::Revoked, D::Good, Some("was revoked")),
        (maintenance, "", New, S::Good, D::Good, Some("in maintenance: disk")),
        (maintenance, "", Live, S::Good, D::Good, None),
        (ended, "", Live, S::Good, D::Good, Some("decommissioned: sold")),
        ("", suspended, Live, S::Good, D::Good, Some("suspended: left")),
        ("", "", Live, S::Good, D::Revoked, Some("this device was revoked")),
        ("", "", Live, S::Good, D::KeyRevoked, Some("was revoked")),
        ("", "", New, S::Good, D::KeyExpired, Some("has expired")),
    ] {
        let world = world(server, user);
        let facts = GrantFacts { purpose, server: standing, device, traits: None };
        let (user, server) =
            (world.uid(KindName::User, "ana"), ServerId(world.uid(KindName::Server, "oslo")));
        let answer = grant(&world.index, facts, user, server);
        match (&answer, expected) {
            (Ok(_), None) => {}
            (Err(denial), Some(text)) => {
                assert!(denial.to_string().contains(text), "{denial}");
                assert!(!denial.remedy().is_empty());
            }
            _ => panic!("{facts:?}: {answer:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn a_user_sees_the_servers_that_policies_name() {
    let world =
        world(&[policy("p", &format!("subjects.groups = [\"staff\"]\nservers = [\"*\"]\n{EVERYWHERE}"))]);
    let names = |user| -> Vec<String> {
        let ids = servers_for(&world.index, world.uid(KindName::User, user));
        ids.iter().map(|id| world.index.server_by_id(*id).unwrap().0.resource.name().to_string()).collect()
    };
    assert_eq!(names("ana"), ["berlin", "oslo"]);
    assert!(names("ben").is_empty());
}

#[test]
fn the_strictest_word_on_failover_holds() {
    let words = |list: &[&str]| {
        let policies: Vec<_> = list
            .iter()
            .enumerate()
            .map(|(i, word)| {
                let spec = format!(
                    "subjects.users = [\"ana\"]\nservers = [\"berlin\"]\nfailover = \"{word}\"\n{EVERYWHERE}"
                );
                policy(&format!("p{i}"), &spec)
            })
            .collect();
        ask(&world(&policies), "ana", "berlin").unwrap().failover
    };
    assert_eq!(words(&["allowed"]), Failover::Allowed);
    assert_eq!(words(&["required", "allowed"]), Failover::Required);
    assert_eq!(words(&["allowed", "never", "required"]), Failover::Never);
}

#[test]
fn rules_are_bounded_and_the_widest_stay() {
    let mut extra = Vec::new();
    for i in 0..6 {
        let rules: Vec<_> = (0..256).map(|k| format!("{{ cidr = \"10.{i}.{k}.0/24\" }}")).collect();
        let spec = format!(
            "subjects.users = [\"ana\"]\nservers = [\"oslo\"]\ndestinations = [{}]",
            rules.join(", ")
        );
        extra.push(policy(&format!("p{i}"), &spec));
    }
    extra.push(policy("wide", &format!("subjects.users = [\"ana\"]\nservers = [\"oslo\"]\n{EVERYWHERE}")));
    let rules = ask(&world(&extra), "ana", "oslo").unwrap().rules;
    assert_eq!(rules.len(), crate::MAX_RULES);
    assert!(rules.iter().any(|rule| rule.prefix.to_string() == "0.0.0.0/0"));
}
