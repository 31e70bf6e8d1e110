//! The real program on a real kernel, against a controller that the test plays: what only a controller that misbehaves,
//! falls silent or goes away can show.

#![allow(clippy::unwrap_used, reason = "a failure here is the test's failure")]

mod common;

use std::{net::UdpSocket, path::Path};

use common::{Controller, Neighbour, Program, enrolled, isolated, sh, status, until};
use horizon_hostnet::{Events, Net, Nft, Sysctls, TABLE_MAIN};
use horizon_model::{
    EgressEntry, EntryBody, EntryId, Inbound, Incarnation, NetworkId, ProblemCode, PublicKey, Secret,
    SessionEntry, SessionId, SessionKind, SessionNetwork, SettingsEntry, TunnelEntry,
};
use horizon_wire::{
    Message, audit,
    challenge::{self, Asked},
    envelope,
    envelope::Context,
    heartbeat,
    key::{self, SigningKey},
    keyset,
    proto::{self, ChallengeKind, from_controller::Message as Say, to_controller::Message as Said},
    rotation::{self, KeyClass, Step},
    state::{Entries, Numbered, compose},
};
use nix::sys::signal::Signal;
use uuid::Uuid;

const FORWARD: &str = "net/ipv4/ip_forward";

/// A UDP port that is free in this namespace.
fn free_port() -> u16 {
    UdpSocket::bind("[::]:0").unwrap().local_addr().unwrap().port()
}

fn base(port: u16) -> Vec<(EntryId, EntryBody)> {
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

fn session(id: u128, address: &str) -> (EntryId, EntryBody) {
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

async fn has_address(net: &Net, address: &str) -> bool {
    let Some(link) = net.link("hzn0").await.unwrap() else { return false };
    let address: ipnet::IpNet = address.parse().unwrap();
    link.up && net.addresses().await.unwrap().iter().any(|a| a.link == link.index && a.network == address)
}

async fn has_route(net: &Net, range: &str) -> bool {
    let Some(link) = net.link("hzn0").await.unwrap() else { return false };
    let range: ipnet::IpNet = range.parse().unwrap();
    net.routes(TABLE_MAIN).await.unwrap().iter().any(|r| r.link == Some(link.index) && r.destination == range)
}

async fn has_table() -> bool {
    Nft::default().table("inet", "horizon").await.unwrap().is_some()
}

/// Everything that the base state asks for.
async fn in_force(net: &Net) -> bool {
    has_address(net, "10.64.0.1/16").await
        && has_address(net, "fd00:a::1/64").await
        && has_route(net, "10.64.0.0/16").await
        && has_route(net, "fd00:a::/64").await
        && has_table().await
        && Sysctls::default().read(FORWARD).unwrap() == "1"
        && net.link("hzn0").await.unwrap().is_some_and(|l| l.mtu == 1420)
}

/// Nothing of Horizon.
async fn as_found(net: &Net) -> bool {
    let settings = [FORWARD, "net/ipv6/conf/all/forwarding"].map(|s| Sysctls::default().read(s).unwrap());
    net.link("hzn0").await.unwrap().is_none() && !has_table().await && settings == ["0", "0"]
}

#[test]
fn drift_is_repaired_restarts_go_on_and_stopping_leaves_nothing() {
    isolated("drift_is_repaired_restarts_go_on_and_stopping_leaves_nothing", || async {
        Sysctls::default().write(FORWARD, "0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut controller = Controller::new();
        let state = enrolled(&controller, &dir).await;
        controller.change([base(free_port()), vec![session(1, "10.64.0.2/32")]].concat());
        let (net, mut events) = (Net::open().unwrap(), Events::open().unwrap());
        let program = Program::run(&state);
        let (mut peer, attach) = controller.attach().await;
        assert_eq!((attach.generation, attach.digest.len()), (0, 0));
        peer.say(0, controller.snapshot()).await;
        let report = peer.report(|r| r.generation == 1).await;
        assert_eq!(report.problems, []);
        assert_eq!(report.digest, Some(controller.state.entries.digest()));
        assert!(in_force(&net).await);

        for harm in [
            "ip link delete hzn0",
            "ip address delete 10.64.0.1/16 dev hzn0",
            "ip -6 address delete fd00:a::1/64 dev hzn0",
            "ip route delete 10.64.0.0/16 dev hzn0",
            "ip -6 route delete fd00:a::/64 dev hzn0",
            "ip link set hzn0 mtu 1300",
            "ip link set hzn0 down",
            "nft delete table inet horizon",
            "nft flush chain inet horizon forward",
            "sysctl -qw net.ipv4.ip_forward=0",
        ] {
            let before = status(&state).await.state.repairs;
            sh(harm);
            let started = tokio::time::Instant::now();
            until(&mut events, harm, || async {
                in_force(&net).await && status(&state).await.state.repairs > before
            })
            .await;
            let took = started.elapsed();
            assert!(took.as_secs_f32() < 2.0, "{harm}: {took:?}");
        }
        // An address that nobody declared goes.
        sh("ip address add 192.0.2.1/32 dev hzn0");
        until(&mut events, "foreign address", || async { !has_address(&net, "192.0.2.1/32").await }).await;

        // Killed, with the controller gone: the last good state comes back from disk.
        drop((peer, controller));
        program.signal(Signal::SIGKILL);
        program.ended().await;
        until(&mut events, "the device vanishes with its process", || async {
            net.link("hzn0").await.unwrap().is_none()
        })
        .await;
        let program = Program::run(&state);
        until(&mut events, "the state from disk", || in_force(&net)).await;
        let now = status(&state).await;
        assert_eq!((now.state.generation, now.sessions.len(), now.controller.connected), (1, 1, false));

        program.signal(Signal::SIGTERM);
        assert!(program.ended().await);
        assert!(as_found(&net).await);
    });
}

#[test]
fn nothing_is_open_without_the_packet_filter() {
    isolated("nothing_is_open_without_the_packet_filter", || async {
        Sysctls::default().write(FORWARD, "0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut controller = Controller::new();
        let state = enrolled(&controller, &dir).await;
        controller.change([base(free_port()), vec![session(1, "10.64.0.2/32")]].concat());
        let (net, mut events) = (Net::open().unwrap(), Events::open().unwrap());
        // The real program, until the file `broken` is there.
        let (nft, real, broken) =
            (dir.path().join("fake"), dir.path().join("nft"), dir.path().join("broken"));
        std::fs::copy("/usr/sbin/nft", &real).unwrap();
        let script = format!(
            "#!/bin/sh\n[ -e {} ] && {{ echo no such kernel >&2; exit 1; }}\nexec {} \"$@\"\n",
            broken.display(),
            real.display()
        );
        std::fs::write(&nft, script).unwrap();
        sh(&format!("chmod 755 {}", nft.display()));
        std::fs::write(&broken, "").unwrap();

        let program = Program::run_with_nft(&state, &nft);
        let (mut peer, _) = controller.attach().await;
        peer.say(0, controller.snapshot()).await;
        let report = peer.report(|r| r.generation == 1).await;
        let problem = |id: EntryId| report.problems.iter().find(|p| p.entry == id).unwrap().message.as_str();
        assert!(problem(EntryId::egress()).contains("no such kernel"));
        assert!(problem(session(1, "10.64.0.2/32").0).contains("waits for the packet filter"));
        assert!(report.sessions.is_empty() && as_found(&net).await);

        // It is tried again.
        std::fs::remove_file(&broken).unwrap();
        until(&mut events, "the whole state", || in_force(&net)).await;
        let report = peer.report(|r| r.problems.is_empty()).await;
        assert_eq!(report.sessions.len(), 1);

        // What is open is shut when the filter goes and does not come back.
        std::fs::write(&broken, "").unwrap();
        sh("nft delete table inet horizon");
        until(&mut events, "as it was found", || as_found(&net)).await;
        // A session that ends does end.
        controller.change(base(free_port()));
        peer.say(0, controller.snapshot()).await;
        let report = peer.report(|r| r.generation == 2).await;
        assert!(report.sessions.is_empty(), "{report:?}");
        std::fs::remove_file(&broken).unwrap();
        until(&mut events, "the whole state", || in_force(&net)).await;

        program.signal(Signal::SIGTERM);
        assert!(program.ended().await);
        assert!(as_found(&net).await);
    });
}

#[test]
fn a_host_that_was_no_router_routes_for_the_tunnel_only() {
    isolated("a_host_that_was_no_router_routes_for_the_tunnel_only", || async {
        let dir = tempfile::tempdir().unwrap();
        let mut controller = Controller::new();
        let state = enrolled(&controller, &dir).await;
        controller.change(base(free_port()));
        let (net, mut events) = (Net::open().unwrap(), Events::open().unwrap());
        let (one, two, guest) =
            (Neighbour::new("lan0", 1), Neighbour::new("lan1", 2), Neighbour::new("docker9", 3));
        for (found, reaches) in [("1", true), ("0", false)] {
            Sysctls::default().write(FORWARD, found).unwrap();
            assert_eq!(one.reaches(&two), reaches, "before, with {found}");
            let program = Program::run(&state);
            let (mut peer, _) = controller.attach().await;
            peer.say(0, controller.snapshot()).await;
            peer.report(|r| r.generation == 1 && r.problems.is_empty()).await;
            until(&mut events, "the whole state", || in_force(&net)).await;
            assert_eq!(one.reaches(&two), reaches, "between two networks, with {found}");
            assert_eq!(one.reaches(&guest), reaches, "toward a guest, with {found}");
            assert!(guest.reaches(&two), "a guest goes out, with {found}");
            program.signal(Signal::SIGTERM);
            assert!(program.ended().await);
            assert_eq!(Sysctls::default().read(FORWARD).unwrap(), found);
        }
    });
}

#[test]
fn a_state_that_is_not_for_us_changes_nothing() {
    isolated("a_state_that_is_not_for_us_changes_nothing", || async {
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

#[test]
fn heartbeats_go_on_whatever_is_lost() {
    isolated("heartbeats_go_on_whatever_is_lost", || async {
        let dir = tempfile::tempdir().unwrap();
        let mut controller = Controller::new();
        let state = enrolled(&controller, &dir).await;
        controller.change(base(free_port()));
        let (mut current, mut previous) = (controller.secret.clone(), None::<Secret>);
        for round in 0u8..3 {
            let program = Program::run(&state);
            let (mut peer, attach) = controller.attach().await;
            let run = Incarnation::from_slice(&attach.incarnation).unwrap();
            let (id, nonce) = ([5; 16], [round; 32]);
            peer.say(0, Say::Challenge(proto::Challenge { id: id.to_vec(), nonce: nonce.to_vec(), kind: 0 }))
                .await;
            peer.say(0, controller.snapshot()).await;
            let known = [Some(current.clone()), previous.clone()];
            let known: Vec<_> = known.into_iter().flatten().collect();
            let tag = peer
                .find(|_, said| match said {
                    Said::ChallengeResponse(response) => Some(response.tag),
                    _ => None,
                })
                .await;
            let right = |s: &&Secret| heartbeat::check_answer(s, &id, &nonce, controller.server, run, &tag);
            assert!(known.iter().any(|s| right(&s)), "round {round}");
            for beat in 1u8..=3 {
                let (request, body, payload, tag) = peer.beat().await;
                assert_eq!(body.counter, u64::from(beat));
                assert_eq!(Incarnation::from_slice(&body.incarnation), Some(run));
                assert!(body.factors.len() > 3);
                let known = [Some(current.clone()), previous.clone()];
                let used = known.into_iter().flatten().find(|s| heartbeat::verify(s, &payload, &tag));
                let used = used.unwrap_or_else(|| panic!("round {round}, beat {beat}: the secret is lost"));
                let nonce = [round * 10 + beat; 32];
                current = heartbeat::ratchet(&used, &nonce);
                previous = Some(used);
                // The last acknowledgement of each round is lost with the process.
                if beat < 3 {
                    let ack = proto::HeartbeatAck {
                        counter: body.counter,
                        ratchet_nonce: nonce.to_vec(),
                        checkpoint: None,
                    };
                    peer.say(request, Say::HeartbeatAck(ack)).await;
                }
            }
            program.signal(Signal::SIGKILL);
            program.ended().await;
        }
    });
}

#[test]
fn newer_keysets_are_kept_before_what_they_vouch_for_and_checkpoints_are_witnessed() {
    isolated("newer_keysets_are_kept_before_what_they_vouch_for_and_checkpoints_are_witnessed", || async {
        let dir = tempfile::tempdir().unwrap();
        let mut controller = Controller::new();
        let state = enrolled(&controller, &dir).await;
        controller.change(base(free_port()));
        let program = Program::run(&state);
        let (mut peer, attach) = controller.attach().await;
        assert!(
            peer.features.iter().any(|feature| feature == keyset::FEATURE) && attach.witnesses.is_empty()
        );
        // The key that signs states is replaced, and the state comes right behind.
        let (first, now) =
            (keyset::read(&controller.keyset).unwrap(), jiff::Timestamp::now().as_millisecond());
        let new = SigningKey::from_seed(Secret::new([33; 32]));
        let public = Some(new.public());
        let next = rotation::take(&first, KeyClass::State, Step::Replace, public, now).unwrap();
        let root = &controller.keys[0];
        controller.keyset = next.sign(root, Some(root));
        let old = std::mem::replace(&mut controller.keys[2], new);
        peer.say(0, Say::Keysets(proto::KeySets { keysets: vec![controller.keyset.clone()] })).await;
        peer.say(0, controller.snapshot()).await;
        let held = |_, said| match said {
            Said::KeysetHeld(held) => Some(held.version),
            _ => None,
        };
        assert_eq!(peer.find(held).await, 2);
        assert_eq!(peer.report(|r| r.generation == 1).await.problems, []);
        // Two checkpoints of the audit trail: what the old key signed is not kept.
        let checkpoint = |key: &SigningKey, link| {
            let digest = vec![u8::try_from(link).unwrap(); 32];
            audit::checkpoint(key, &proto::AuditCheckpoint { link, digest, ..Default::default() })
        };
        let good = checkpoint(&controller.keys[2], 7);
        let mut secret = controller.secret.clone();
        for said in [checkpoint(&old, 6), good.clone()] {
            let (request, body, payload, tag) = peer.beat().await;
            assert!(heartbeat::verify(&secret, &payload, &tag));
            let nonce = [u8::try_from(body.counter).unwrap(); 32];
            secret = heartbeat::ratchet(&secret, &nonce);
            let (counter, ratchet_nonce) = (body.counter, nonce.to_vec());
            let ack = proto::HeartbeatAck { counter, ratchet_nonce, checkpoint: Some(said) };
            peer.say(request, Say::HeartbeatAck(ack)).await;
        }
        // Both outlive the process.
        peer.beat().await;
        program.signal(Signal::SIGKILL);
        program.ended().await;
        let program = Program::run(&state);
        let (mut peer, attach) = controller.attach().await;
        assert_eq!(attach.witnesses, [good]);
        // Whoever shows a KeySet that does not follow is left, and met again.
        let gap = keyset::KeySet { version: 4, ..next }.sign(&controller.keys[0], None);
        peer.say(0, Say::Keysets(proto::KeySets { keysets: vec![gap] })).await;
        let (_peer, _) = controller.attach().await;
        drop(program);
    });
}

#[test]
fn the_channel_comes_back_and_probes_are_answered_when_announced() {
    isolated("the_channel_comes_back_and_probes_are_answered_when_announced", || async {
        let dir = tempfile::tempdir().unwrap();
        let mut controller = Controller::new();
        let state = enrolled(&controller, &dir).await;
        let port = free_port();
        controller.change(base(port));
        let _program = Program::run(&state);
        let (mut peer, _) = controller.attach().await;
        peer.say(0, controller.snapshot()).await;
        peer.report(|r| r.generation == 1).await;
        drop(peer);
        // The connection ends without a word, and another comes.
        let (mut peer, attach) = controller.attach().await;
        assert_eq!((attach.epoch, attach.generation), (1, 1));
        assert_eq!(attach.digest, controller.state.entries.digest().0);
        let seen = |_, said| match said {
            Said::DialBackSeen(seen) => Some(seen.nonce),
            _ => None,
        };
        controller.send_probe(port, [1; 16]);
        for nonce in [[2; 16], [3; 16]] {
            let announced =
                proto::DialBack { nonce: nonce.to_vec(), address: String::new(), digest: Vec::new() };
            peer.say(0, Say::DialBack(announced)).await;
            controller.send_probe(port, nonce);
            assert_eq!(peer.find(seen).await, nonce, "only what was announced is confirmed");
        }
        // One whose nonce only the datagram has.
        let digest = key::sha256(&[4; 16]).0.to_vec();
        let announced = proto::DialBack { nonce: Vec::new(), address: String::new(), digest };
        peer.say(0, Say::DialBack(announced)).await;
        controller.send_probe(port, [4; 16]);
        assert_eq!(peer.find(seen).await, [4; 16]);
        assert_eq!(status(&state).await.tunnel.unwrap().reachability, "reached");
    });
}

#[test]
fn challenges_of_every_kind_are_answered_over_this_connection() {
    isolated("challenges_of_every_kind_are_answered_over_this_connection", || async {
        let dir = tempfile::tempdir().unwrap();
        let controller = Controller::new();
        let state = enrolled(&controller, &dir).await;
        let _program = Program::run(&state);
        let (mut peer, attach) = controller.attach().await;
        assert!(peer.features.iter().any(|feature| feature == challenge::FEATURE));
        let incarnation = Incarnation::from_slice(&attach.incarnation).unwrap();
        for (n, kind) in [(1, ChallengeKind::PublicKey), (2, ChallengeKind::Identity)] {
            let (id, nonce) = ([n; 16], [n; 32]);
            let asked = proto::Challenge { id: id.to_vec(), nonce: nonce.to_vec(), kind: kind.into() };
            peer.say(0, Say::Challenge(asked)).await;
            let answer = peer
                .find(|_, said| match said {
                    Said::ChallengeResponse(answer) => Some(answer),
                    _ => None,
                })
                .await;
            let question = Asked { id: &id, nonce: &nonce, kind, server: controller.server, incarnation };
            // No heartbeat was acknowledged: the secret is still the first.
            assert!(question.check(&controller.secret, &answer.payload, &answer.tag));
            let evidence = proto::ChallengeEvidence::decode(&answer.payload[..]).unwrap();
            assert!(key::verify(&peer.key, &question.statement(&peer.binding), &evidence.signature));
            assert_eq!(evidence.factors.is_empty(), kind == ChallengeKind::PublicKey);
            if kind == ChallengeKind::Identity {
                assert!(evidence.quote.is_some() || evidence.problem.contains("TPM"), "{evidence:?}");
            }
        }
    });
}

#[test]
fn enrolling_again_is_harmless_and_mistakes_are_named() {
    isolated("enrolling_again_is_harmless_and_mistakes_are_named", || async {
        let dir = tempfile::tempdir().unwrap();
        let controller = Controller::new();
        let state = enrolled(&controller, &dir).await;
        let enrolment = std::fs::read(state.join("enrolment.json")).unwrap();
        let key = std::fs::read(state.join("identity.key")).unwrap();
        enrolled(&controller, &dir).await;
        assert_eq!(std::fs::read(state.join("enrolment.json")).unwrap(), enrolment);
        assert_eq!(std::fs::read(state.join("identity.key")).unwrap(), key);
        let said = |arguments: &[&str], state: &Path| {
            let output = std::process::Command::new(env!("CARGO_BIN_EXE_horizon-appliance"))
                .args(arguments)
                .arg("--state-dir")
                .arg(state)
                .output()
                .unwrap();
            assert!(!output.status.success(), "{arguments:?}");
            String::from_utf8(output.stderr).unwrap()
        };
        assert!(said(&["enroll", "hzn-key-x"], &state).contains("should start with 'hzn-reg-'"));
        let token = controller.token();
        assert!(said(&["enroll", &token[..60]], &state).contains("copy it again, whole"));
        let other = dir.path().join("other");
        assert!(said(&["run"], &other).contains("horizon-appliance enroll TOKEN"));
        assert!(said(&["status"], &state).contains("horizon-appliance run"));
        let program = Program::run(&state);
        let _attached = controller.attach().await;
        status(&state).await;
        assert!(said(&["run"], &state).contains("another horizon-appliance works in"));
        program.signal(Signal::SIGTERM);
        assert!(program.ended().await);
    });
}

#[test]
fn a_new_address_is_a_reason_to_try_the_controller_at_once() {
    isolated("a_new_address_is_a_reason_to_try_the_controller_at_once", || async {
        let dir = tempfile::tempdir().unwrap();
        let mut controller = Controller::new();
        controller.address = [10, 9, 9, 9].into();
        let home = "ip link add v0 type veth peer name v1; ip link set v1 up; ip link set v0 up";
        let (plug, unplug) = ("ip address add 10.9.9.9/24 dev v0", "ip address delete 10.9.9.9/24 dev v0");
        sh(&format!("{home}; {plug}"));
        let state = enrolled(&controller, &dir).await;
        sh(unplug);
        let _program = Program::run(&state);
        // Nothing leads to the controller, so the attempt would last for many seconds.
        assert!(!status(&state).await.controller.connected);
        sh(plug);
        let started = tokio::time::Instant::now();
        let (_peer, _) = controller.attach().await;
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    });
}

#[test]
fn an_appliance_goes_elsewhere_when_asked_and_comes_back_later() {
    isolated("an_appliance_goes_elsewhere_when_asked_and_comes_back_later", || async {
        let dir = tempfile::tempdir().unwrap();
        let mut controller = Controller::new();
        let mut replica = Controller::new();
        let state = enrolled(&controller, &dir).await;
        for side in [&mut controller, &mut replica] {
            side.change([base(7443), vec![session(1, "10.64.0.2/32")]].concat());
        }
        let _program = Program::run(&state);
        let (mut peer, _) = controller.attach().await;
        peer.say(0, controller.snapshot()).await;
        peer.report(|r| r.generation == 1).await;
        // The other replica takes it in where it was, under the same start of the process; its session goes on.
        let addresses = vec!["127.0.0.1:1".to_owned(), replica.place()];
        peer.say(0, Say::GoElsewhere(proto::GoElsewhere { addresses })).await;
        let (there, attach) = replica.attach().await;
        assert_eq!((attach.generation, &attach.digest[..]), (1, &controller.state.entries.digest().0[..]));
        let now = status(&state).await;
        assert_eq!((now.sessions.len(), now.state.generation), (1, 1));
        // When that one goes without a word, it comes back to the controller that was set up.
        drop((there, replica));
        let (_peer, again) = controller.attach().await;
        assert_eq!(again.incarnation, attach.incarnation);
    });
}

#[test]
fn a_controller_that_falls_silent_is_left_for_another_before_its_connection_times_out() {
    isolated(
        "a_controller_that_falls_silent_is_left_for_another_before_its_connection_times_out",
        || async {
            let dir = tempfile::tempdir().unwrap();
            let mut controller = Controller::new();
            let replica = Controller::new();
            (controller.ping_seconds, controller.others) = (1, vec![replica.place()]);
            let state = enrolled(&controller, &dir).await;
            controller.change(base(7443));
            let _program = Program::run(&state);
            let (mut peer, attach) = controller.attach().await;
            peer.say(0, controller.snapshot()).await;
            peer.report(|r| r.generation == 1).await;
            // Its packets are lost from now on, as if its machine had lost its power.
            let port = controller.place().rsplit_once(':').unwrap().1.to_owned();
            sh(&format!(
            "nft add table inet lost; nft 'add chain inet lost in {{ type filter hook input priority 0; }}'
             nft add rule inet lost in udp dport {port} drop"
        ));
            let since = std::time::Instant::now();
            let (_there, again) = replica.attach().await;
            let took = since.elapsed();
            assert_eq!((again.incarnation, again.generation), (attach.incarnation, 1));
            assert!(took.as_secs() < 15, "{took:?}");
        },
    );
}
