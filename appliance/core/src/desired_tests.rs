use horizon_model::{EgressEntry, NetworkEntry, PublicKey, Secret, SessionKind, SettingsEntry, TunnelEntry};
use uuid::Uuid;

use super::*;

fn tunnel() -> EntryBody {
    EntryBody::Tunnel(TunnelEntry {
        port: 7443,
        mtu: 1420,
        addresses: vec!["10.64.0.1/16".parse().unwrap(), "fd00:a::1/64".parse().unwrap()],
    })
}

fn egress() -> EntryBody {
    EntryBody::Egress(EgressEntry { masquerade: true, ranges: vec!["10.64.0.0/16".parse().unwrap()] })
}

fn network(id: u16) -> EntryBody {
    let id = NetworkId(id);
    EntryBody::Network(NetworkEntry { id, name: "lan".into(), ranges: Vec::new(), mtu: 1420 })
}

fn session(id: u128, networks: &[(u16, &str)]) -> EntryBody {
    let networks = networks.iter().map(|(network, address)| SessionNetwork {
        network: NetworkId(*network),
        addresses: vec![address.parse().unwrap()],
        inbound: Inbound::AnswersOnly,
    });
    EntryBody::Session(Box::new(SessionEntry {
        id: SessionId(Uuid::from_u128(id)),
        kind: SessionKind::Access,
        peer_key: PublicKey([3; 32]),
        secret: Secret::new([4; 32]),
        networks: networks.collect(),
        rules: Vec::new(),
        rate_limit: None,
    }))
}

fn state(bodies: Vec<EntryBody>) -> ApplianceState {
    ApplianceState { entries: bodies.into_iter().map(|b| (name_of(&b), b)).collect() }
}

#[test]
fn a_whole_state_is_taken_as_it_is() {
    let settings = EntryBody::Settings(SettingsEntry { heartbeat_seconds: 5 });
    let one = session(1, &[(0, "10.64.0.2/32"), (3, "10.80.0.2/32")]);
    // The same address in another network is another address.
    let two = session(2, &[(0, "10.80.0.2/32")]);
    let (desired, problems) =
        resolve(&state(vec![settings, tunnel(), egress(), network(3), one, two]), "hzn0");
    assert_eq!(problems, []);
    assert_eq!(desired.heartbeat_seconds, 5);
    assert_eq!((desired.networks.len(), desired.sessions.len()), (1, 2));
    assert!(desired.tunnel.unwrap().ruleset.forwards());
}

#[test]
fn an_empty_state_asks_for_nothing() {
    assert_eq!(resolve(&ApplianceState::default(), "hzn0"), (Desired::default(), Vec::new()));
}

#[test]
fn a_session_that_accepts_flows_opens_the_filter_for_itself_alone() {
    let (mut one, two) = (session(1, &[(0, "10.64.0.2/32")]), session(2, &[(0, "10.64.0.3/32")]));
    if let EntryBody::Session(session) = &mut one {
        session.networks[0].inbound = Inbound::Any;
    }
    let script =
        resolve(&state(vec![tunnel(), egress(), one, two]), "hzn0").0.tunnel.unwrap().ruleset.script();
    assert!(script.contains("daddr 10.64.0.2/32") && !script.contains("10.64.0.3"), "{script}");
}

#[test]
fn without_egress_nothing_is_forwarded() {
    let (desired, problems) = resolve(&state(vec![tunnel()]), "hzn0");
    assert_eq!(problems, []);
    assert!(!desired.tunnel.unwrap().ruleset.forwards());
}

#[test]
fn entries_that_cannot_be_are_left_out_and_named() {
    let cases: [(&str, Vec<EntryBody>, &str); 4] = [
        ("no tunnel", vec![session(1, &[])], "no tunnel"),
        ("unknown network", vec![tunnel(), session(1, &[(3, "10.80.0.2/32")])], "network 3, which is not"),
        ("a network twice", vec![tunnel(), session(1, &[(0, "10.64.0.2/32"), (0, "10.64.0.3/32")])], "twice"),
        (
            "an address twice",
            vec![tunnel(), session(1, &[(0, "10.64.0.2/32")]), session(2, &[(0, "10.64.0.2/32")])],
            "belongs to session",
        ),
    ];
    for (name, bodies, message) in cases {
        let sessions = bodies.iter().filter(|b| matches!(b, EntryBody::Session(_))).count();
        let (desired, problems) = resolve(&state(bodies), "hzn0");
        assert_eq!(problems.len(), 1, "{name}: {problems:?}");
        assert!(problems[0].message.contains(message), "{name}: {problems:?}");
        assert_eq!(desired.sessions.len(), sessions - 1, "{name}");
    }
}

#[test]
fn an_entry_under_anothers_name_is_refused() {
    let mut state = state(vec![tunnel()]);
    state.entries.insert(EntryId::network(NetworkId(4)), network(3));
    state.entries.insert(EntryId::session(SessionId(Uuid::from_u128(9))), session(1, &[]));
    let (desired, problems) = resolve(&state, "hzn0");
    assert_eq!(problems.len(), 2);
    assert!(desired.networks.is_empty() && desired.sessions.is_empty());
}
