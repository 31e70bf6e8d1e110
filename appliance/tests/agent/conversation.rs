//! What is said while the channel stands: heartbeats, keys, probes, challenges.

use horizon_model::{Incarnation, Secret};
use horizon_wire::{
    Message, audit,
    challenge::{self, Asked},
    heartbeat,
    key::{self, SigningKey},
    keyset,
    proto::{self, ChallengeKind, from_controller::Message as Say, to_controller::Message as Said},
    rotation::{self, KeyClass, Step},
};
use nix::sys::signal::Signal;

use crate::{
    kit::{Controller, Program, enrolled, isolated, status},
    states::{base, free_port},
};

#[test]
fn heartbeats_go_on_whatever_is_lost() {
    isolated("conversation::heartbeats_go_on_whatever_is_lost", || async {
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
    isolated(
        "conversation::newer_keysets_are_kept_before_what_they_vouch_for_and_checkpoints_are_witnessed",
        || async {
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
        },
    );
}

#[test]
fn the_channel_comes_back_and_probes_are_answered_when_announced() {
    isolated("conversation::the_channel_comes_back_and_probes_are_answered_when_announced", || async {
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
    isolated("conversation::challenges_of_every_kind_are_answered_over_this_connection", || async {
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
