use horizon_crds::KindName;
use horizon_model::{
    EntryBody, EntryId, Inbound, NetworkId, PublicKey, Secret, ServerId, SessionId, SessionKind,
};
use uuid::Uuid;

use crate::{
    GrantFacts, SessionFacts, appliance_address, base_state, grant_named, session_entry,
    testing::{World, document, name},
    ticket_networks,
};

fn world() -> World {
    World::of(&[
        (
            "berlin",
            document(
                "Server",
                "berlin",
                "capabilities = [\"vpn\", \"lanEmulation\"]\nnetworks = [\"games\"]\ntunnel.port = 4000",
            ),
        ),
        ("games", document("VirtualNetwork", "games", "addressRanges = [\"10.77.0.0/24\"]\nmtu = 1300")),
        ("security", document("SecurityPolicy", "bounds", "heartbeatInterval = \"5s\"")),
        ("ana", document("User", "ana", "")),
        (
            "p",
            document(
                "AccessPolicy",
                "p",
                "capabilities = [\"vpn\", \"lanEmulation\"]\nsubjects.users = [\"ana\"]\nservers = [\"*\"]\nnetworks = [\"games\"]\ndestinations = [{ cidr = \"10.0.0.0/8\" }]",
            ),
        ),
    ])
}

fn session(addresses: &[(u16, &str)]) -> SessionFacts {
    SessionFacts {
        id: SessionId(Uuid::from_u128(9)),
        kind: SessionKind::Access,
        peer_key: PublicKey([1; 32]),
        secret: Secret::new([2; 32]),
        addresses: addresses.iter().map(|(n, a)| (NetworkId(*n), vec![a.parse().unwrap()])).collect(),
    }
}

#[test]
fn a_server_is_composed_from_its_resources() {
    let world = world();
    let state = base_state(&world.index, ServerId(world.uid(KindName::Server, "berlin"))).unwrap();
    assert_eq!(state.settings().unwrap().heartbeat_seconds, 5);
    let tunnel = state.tunnel().unwrap();
    assert_eq!((tunnel.port, tunnel.mtu), (4000, 1420));
    let addresses: Vec<_> = tunnel.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["100.96.0.1/16", "fd68:6f72:697a:6f6e::1/64"]);
    assert!(state.egress().unwrap().masquerade);
    let networks: Vec<_> = state.networks().map(|n| (n.id, n.name.as_str(), n.mtu)).collect();
    assert_eq!(networks, [(NetworkId(1), "games", 1300)]);
    assert_eq!(state.entries.len(), 4);
    assert!(state.entries.contains_key(&EntryId::network(NetworkId(1))));
    assert_eq!(base_state(&world.index, ServerId(Uuid::nil())), None);
}

#[test]
fn a_decommissioned_server_is_asked_to_be_nothing() {
    let mut world = world();
    let end = "lifecycle = { state = \"decommissioned\", reason = \"sold\" }";
    world.write("berlin", &document("Server", "berlin", end));
    world.settle();
    let state = base_state(&world.index, ServerId(world.uid(KindName::Server, "berlin"))).unwrap();
    assert!(state.entries.is_empty());
}

#[test]
fn the_appliance_holds_the_first_address() {
    for (range, expected) in
        [("10.0.0.0/8", "10.0.0.1/8"), ("192.0.2.4/30", "192.0.2.5/30"), ("fd00::/126", "fd00::1/126")]
    {
        assert_eq!(appliance_address(range.parse().unwrap()).unwrap().to_string(), expected);
    }
}

#[test]
fn a_session_holds_what_is_granted_and_given() {
    let world = world();
    let grant =
        grant_named(&world.index, GrantFacts::POLICY_ONLY, &name("default"), &name("ana"), &name("berlin"))
            .unwrap();
    let both = session(&[(0, "100.96.0.7"), (1, "10.77.0.9")]);
    let Some(EntryBody::Session(entry)) = session_entry(&grant, &both) else { panic!() };
    assert_eq!(entry.networks.len(), 2);
    assert_eq!(entry.networks[0].addresses[0].to_string(), "100.96.0.7/32");
    assert_eq!((entry.networks[0].inbound, entry.networks[1].inbound), (Inbound::AnswersOnly, Inbound::Any));
    assert_eq!(entry.rules.len(), 1);

    let tickets = ticket_networks(&grant, &both);
    assert_eq!(tickets[0].addresses[0].to_string(), "100.96.0.7/16");
    assert_eq!(tickets[0].routes.len(), 2);
    assert_eq!(
        (tickets[1].name.as_str(), tickets[1].routes[0].to_string()),
        ("games", "10.77.0.0/24".into())
    );

    let Some(EntryBody::Session(lan)) = session_entry(&grant, &session(&[(1, "10.77.0.9")])) else {
        panic!()
    };
    assert!(lan.rules.is_empty(), "rules are for the access network");
    assert_eq!(session_entry(&grant, &session(&[(7, "10.1.1.1")])), None, "nothing left");
}
