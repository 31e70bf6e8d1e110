//! States: what they are made of, and those that are not for this appliance.

use std::net::UdpSocket;

use horizon_hostnet::Net;
use horizon_model::{
    EgressEntry, EntryBody, EntryId, Inbound, NetworkId, ProblemCode, PublicKey, Secret, SessionEntry,
    SessionId, SessionKind, SessionNetwork, SettingsEntry, TunnelEntry,
};
use horizon_wire::{
    Message,
    envelope::{self, Context},
    key::SigningKey,
    proto::{self, from_controller::Message as Say, to_controller::Message as Said},
    state::{Entries, Numbered, compose},
};
use uuid::Uuid;

use crate::{
    host::in_force,
    kit::{Controller, Program, enrolled, isolated, sh, status},
};

/// A UDP port that is free in this namespace.
pub(crate) fn free_port() -> u16 {
    UdpSocket::bind("[::]:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn base(port: u16) -> Vec<(EntryId, EntryBody)> {
    let ranges = vec!["10.64.0.0/16".parse().unwrap(), "fd00:a::/64".parse().unwrap()];
    vec![
        (EntryId::settings(), EntryBody::Settings(SettingsEntry { heartbeat_seconds: 1 })),
        (
            EntryId::tunnel(),
            EntryBody::Tunnel(TunnelEntry {
                port,
                mtu: 1420,
                addresses: vec!["10.64.0.1/16".parse().unwrap(), "fd00:a::1/64".parse().unwrap()],
            }),
        ),
        (EntryId::egress(), EntryBody::Egress(EgressEntry { masquerade: true, ranges })),
    ]
}

pub(crate) fn session(id: u128, address: &str) -> (EntryId, EntryBody) {
    let id = SessionId(Uuid::from_u128(id));
    let network = SessionNetwork {
        network: NetworkId::ACCESS,
        addresses: vec![address.parse().unwrap()],
        inbound: Inbound::AnswersOnly,
    };
    let session = SessionEntry {
        id,
        kind: SessionKind::Access,
        peer_key: PublicKey([3; 32]),
        secret: Secret::new([4; 32]),
        networks: vec![network],
        rules: Vec::new(),
        rate_limit: Some(1_000_000),
    };
    (EntryId::session(id), EntryBody::Session(Box::new(session)))
}

#[test]
fn a_state_that_is_not_for_us_changes_nothing() {
    isolated("states::a_state_that_is_not_for_us_changes_nothing", || async {
        let dir = tempfile::tempdir().unwrap();
        let mut controller = Controller::new();
        let state = enrolled(&controller, &dir).await;
        let port = free_port();
        controller.change(base(port));
        let net = Net::open().unwrap();
        // The host has no use for IPv6; its tunnel has.
        sh("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
        let _program = Program::run(&state);
        let (mut peer, _) = controller.attach().await;
        peer.say(0, controller.snapshot()).await;
        peer.report(|r| r.generation == 1).await;

        let good = controller.state.clone();
        let next = Numbered { generation: 2, ..good.clone() };
        let empty = Numbered { epoch: 1, generation: 2, entries: Entries::default() };
        let stranger = SigningKey::from_seed(Secret::new([66; 32]));
        let delta = compose(controller.server, &Numbered::default(), &empty).encode_to_vec();
        let mut unsigned = envelope::seal(Context::Ticket, &stranger, delta.clone());
        unsigned.signature.clear();
        let Say::State(mut altered) = controller.signed(&compose(controller.server, &good, &empty)) else {
            panic!()
        };
        altered.payload[20] ^= 1;
        let elsewhere = compose(horizon_model::ServerId(Uuid::from_u128(78)), &Numbered::default(), &empty);
        let mut old = compose(controller.server, &Numbered::default(), &empty);
        old.epoch = 0;
        let stale = Numbered { generation: 1, ..empty.clone() };
        let stale = compose(controller.server, &good, &stale);
        for wrong in [
            Say::State(altered),
            Say::State(proto::Envelope::default()),
            controller.signed(&elsewhere),
            controller.signed(&old),
            controller.signed(&stale),
            controller.signed(&proto::StateDelta::default()),
            controller.sealed(delta[..delta.len() - 3].to_vec()),
        ] {
            peer.say(0, wrong).await;
            let report = peer.report(|r| r.problems.iter().any(|p| p.entry.as_str() == "state")).await;
            assert_eq!((report.generation, report.digest), (1, Some(good.entries.digest())));
        }
        // A key that is not in the KeySet may be in a newer one, which only a new conversation brings.
        for wrong in [envelope::seal(Context::State, &stranger, delta.clone()), unsigned] {
            peer.say(0, Say::State(wrong)).await;
            peer = controller.attach().await.0;
        }
        // A message that breaks the protocol ends the conversation, not the appliance.
        peer.say(0, Say::Challenge(proto::Challenge { id: vec![1; 3], nonce: vec![2; 32], kind: 0 })).await;
        peer = controller.attach().await.0;
        // From another base, or to another result: the whole state is asked for.
        let base = Numbered { generation: 7, ..empty.clone() };
        let mut other_base = compose(controller.server, &base, &Numbered { generation: 8, ..empty.clone() });
        peer.say(0, controller.signed(&other_base)).await;
        let resync = |_, said| match said {
            Said::Resync(resync) => Some(resync.reason),
            _ => None,
        };
        assert!(peer.find(resync).await.contains("another state"));
        other_base = compose(controller.server, &good, &next);
        other_base.digest = vec![0; 32];
        peer.say(0, controller.signed(&other_base)).await;
        peer.find(resync).await;
        assert!(in_force(&net).await);
        let now = status(&state).await;
        assert_eq!((now.state.generation, now.state.digest), (1, Some(good.entries.digest())));

        // An unknown feature and nonsense are named and left out; what else is new takes effect.
        let feature = proto::EntryBody { features: vec!["tunnel.v9".into()], body: None }.encode_to_vec();
        let name = |text: &str| EntryId::new(text).unwrap();
        let raw = [(name("future"), feature), (name("nonsense"), vec![0xff; 9])];
        let raw = raw.map(|(id, bytes)| (id, bytes.into()));
        let entries = good.entries.iter().map(|(id, body)| (id.clone(), body.clone())).chain(raw).collect();
        let mixed = Numbered { epoch: 1, generation: 2, entries };
        peer.say(0, controller.signed(&compose(controller.server, &good, &mixed))).await;
        let report = peer.report(|r| r.generation == 2).await;
        let problem = |id: &str| report.problems.iter().find(|p| p.entry.as_str() == id).unwrap();
        assert_eq!(problem("future").code, ProblemCode::UnknownFeature);
        assert!(problem("future").message.contains("tunnel.v9"));
        assert_eq!(problem("nonsense").code, ProblemCode::Invalid);
        assert_eq!(report.problems.len(), 2);

        // What cannot be written to the disk is in force all the same, and told.
        std::fs::create_dir(state.join("state.new")).unwrap();
        controller.state = Numbered { generation: 3, ..good.clone() };
        peer.say(0, controller.snapshot()).await;
        let report = peer.report(|r| r.generation == 3).await;
        assert_eq!((report.problems.len(), report.problems[0].code), (1, ProblemCode::System));
        assert!(report.problems[0].message.contains("cannot write"), "{:?}", report.problems);
    });
}
