use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn session() -> EntryBody {
    EntryBody::Session(Box::new(SessionEntry {
        id: SessionId(Uuid::from_u128(7)),
        kind: SessionKind::Access,
        peer_key: PublicKey([1; 32]),
        secret: Secret::new([2; 32]),
        networks: vec![SessionNetwork {
            network: NetworkId::ACCESS,
            addresses: vec!["100.96.0.2/32".parse().unwrap(), "fd00::2/128".parse().unwrap()],
            inbound: Inbound::AnswersOnly,
        }],
        rules: vec![DestinationRule {
            prefix: "0.0.0.0/0".parse().unwrap(),
            protocol: Protocol::Tcp,
            ports: vec!["80".parse().unwrap(), "8000-8100".parse().unwrap()],
        }],
        rate_limit: Some(1_000_000),
    }))
}

fn entries() -> Vec<EntryBody> {
    vec![
        EntryBody::Settings(SettingsEntry { heartbeat_seconds: 30 }),
        EntryBody::Tunnel(TunnelEntry {
            port: 7443,
            mtu: 1420,
            addresses: vec!["100.96.0.1/16".parse().unwrap()],
        }),
        EntryBody::Egress(EgressEntry { masquerade: true, ranges: vec!["100.96.0.0/16".parse().unwrap()] }),
        EntryBody::Network(NetworkEntry {
            id: NetworkId(3),
            name: "lan".into(),
            ranges: vec!["10.7.0.0/24".parse().unwrap()],
            mtu: 1280,
        }),
        session(),
    ]
}

#[test]
fn entries_return_as_they_were() {
    for entry in entries() {
        assert_eq!(decode_entry(&encode_entry(&entry)), Ok(entry));
    }
}

#[test]
fn one_session_is_small() {
    // A session added to a thousand moves one entry and two digests: far below 2 KiB.
    assert!(encode_entry(&session()).len() < 400);
}

#[test]
fn unknown_features_are_named() {
    let raw = proto::EntryBody {
        features: vec!["session.v1".into(), "session.teleport.v9".into()],
        body: Some(proto::entry_body::Body::Settings(proto::Settings { heartbeat_seconds: 30 })),
    };
    assert_eq!(
        decode_entry(&raw.encode_to_vec()),
        Err(EntryError::UnknownFeature("session.teleport.v9".into()))
    );
}

#[test]
fn out_of_range_values_are_refused() {
    use proto::entry_body::Body;
    let bad = [
        Body::Settings(proto::Settings { heartbeat_seconds: 0 }),
        Body::Tunnel(proto::Tunnel { port: 0, mtu: 1420, addresses: vec![] }),
        Body::Tunnel(proto::Tunnel { port: 65536, mtu: 1420, addresses: vec![] }),
        Body::Tunnel(proto::Tunnel { port: 1, mtu: 1279, addresses: vec![] }),
        Body::Tunnel(proto::Tunnel { port: 1, mtu: 1420, addresses: vec!["here".into()] }),
        Body::Network(proto::Network { id: 0, name: "x".into(), ranges: vec![], mtu: 1420 }),
        Body::Network(proto::Network { id: 1, name: "x\n".into(), ranges: vec![], mtu: 1420 }),
        Body::Session(proto::Session { kind: 1, ..Default::default() }),
    ];
    for body in bad {
        let raw = proto::EntryBody { features: vec![], body: Some(body) }.encode_to_vec();
        assert!(matches!(decode_entry(&raw), Err(EntryError::Invalid(_))), "{raw:?}");
    }
}

#[test]
fn secrets_of_messages_do_not_show() {
    let raw = proto::EntryBody::decode(&encode_entry(&session())[..]).unwrap();
    assert!(format!("{raw:?}").contains("Session(..)"));
}

proptest! {
    #[test]
    fn perturbed_entries_never_panic(which in 0usize..5, at in any::<usize>(), value in any::<u8>()) {
        let mut bytes = encode_entry(&entries()[which]).to_vec();
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = decode_entry(&bytes);
    }

    #[test]
    fn random_tickets_and_reports_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_ticket(&bytes);
        if let Ok(raw) = proto::Report::decode(&bytes[..]) {
            let _ = decode_report(raw);
        }
    }
}
