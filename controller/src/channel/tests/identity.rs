//! Who an appliance is: challenges of every type, quotes, places, copies, and the approval that mends it.

use std::{net::UdpSocket, sync::Arc, time::Duration};

use horizon_crds::IdentityDigest;
use horizon_model::{ApplianceReport, Incarnation, Secret, SessionId, SessionUsage};
use horizon_wire::{
    Message as _,
    challenge::{self, Asked},
    key::sha256,
    proto::{
        self, ChallengeKind, RefusalCode, Role, from_controller::Message as Said,
        to_controller::Message as Say,
    },
    refusal::Refusal,
};
use uuid::Uuid;

use super::kit::{Appliance, Controller, hardware, refusal, soon};
use crate::{
    attestation::testing::SoftTpm,
    channel::ChannelSettings,
    geo::{Geo, mmdb},
    store::tests::kit::BASICS,
};

/// What the kit's appliances register with.
fn machine() -> Vec<proto::Factor> {
    hardware(&[("dmi/board_serial", "a"), ("processor/model", "b"), ("disk/0/serial", "c")])
}

/// An appliance that answers every type of challenge.
struct Capable {
    appliance: Appliance,
    tpm: Option<SoftTpm>,
}

impl Capable {
    async fn connect(&mut self, controller: &Controller) {
        let key = self.appliance.key.clone();
        let dialled = controller.dial_with(&key, Role::Appliance, &[challenge::FEATURE]).await;
        self.appliance.channel = dialled.unwrap();
        self.appliance.attach().await.unwrap();
    }

    /// Enrols as any appliance does, and comes back with the newer program.
    async fn enrol(controller: &Controller) -> Self {
        let mut capable = Self { appliance: Appliance::enrol(controller).await, tpm: None };
        capable.connect(controller).await;
        capable
    }

    /// The challenge that comes next, whatever else does.
    async fn challenged(&mut self) -> proto::Challenge {
        loop {
            match self.appliance.next().await.expect("the controller ended the conversation") {
                Said::Challenge(challenge) => return challenge,
                Said::DialBack(_) | Said::State(_) => {}
                Said::Registered(fresh) => {
                    self.appliance.secret = Secret::from_slice(&fresh.verification_secret).unwrap();
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    fn answer_to(&self, challenge: &proto::Challenge, binding: [u8; 32]) -> Say {
        let (id, nonce) = (challenge.id[..].try_into().unwrap(), challenge.nonce[..].try_into().unwrap());
        let (server, incarnation) = (self.appliance.server, self.appliance.incarnation);
        let asked = Asked { id: &id, nonce: &nonce, kind: challenge.kind(), server, incarnation };
        let evidence = proto::ChallengeEvidence {
            signature: self.appliance.key.sign(&asked.statement(&binding)),
            factors: machine(),
            quote: self.tpm.as_ref().map(|tpm| tpm.quote(&asked.quoted(&binding))),
            problem: String::new(),
        };
        let payload = evidence.encode_to_vec();
        let tag = asked.tag(&self.appliance.secret, &payload);
        Say::ChallengeResponse(proto::ChallengeResponse { id: challenge.id.clone(), tag, payload })
    }

    async fn answer(&self, challenge: &proto::Challenge) {
        let binding = self.appliance.channel.requests.binding().unwrap();
        let answer = self.answer_to(challenge, binding);
        self.appliance.channel.requests.notify(answer).await.unwrap();
    }

    /// Answers what is asked at the arrival, and waits until that was taken in.
    async fn prove(&mut self) {
        let challenge = self.challenged().await;
        assert_eq!(challenge.kind(), ChallengeKind::Identity);
        self.answer(&challenge).await;
        self.appliance.beat(machine()).await;
    }

    /// The refusal with which the conversation ends.
    async fn refused(&mut self) -> Refusal {
        loop {
            match self.appliance.next().await.expect("the controller ended the conversation") {
                Said::Refused(refused) => return refused.into(),
                Said::DialBack(_) | Said::State(_) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }
}

async fn quarantined(controller: &Controller, capable: &Capable) -> bool {
    controller.store.server_facts(capable.appliance.server).await.unwrap().requires_verification
}

/// Approves what waits.
async fn approve(controller: &Controller, appliance: &Appliance, name: &str) {
    let pending = controller.store.server_facts(appliance.server).await.unwrap().pending_digest.unwrap();
    let digest = IdentityDigest::from(pending);
    let document = format!(
        "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Approval'\nmetadata.name = '{name}'\n\
         [spec]\nserverRef = 'berlin'\nidentityDigest = '{digest}'\n"
    );
    controller.put(&document).await;
}

async fn challenges(controller: &Controller, appliance: &Appliance) -> Vec<(String, bool)> {
    let listed = controller.store.list_challenges(appliance.server, 100).await.unwrap();
    listed.into_iter().map(|c| (c.kind, c.right)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_asked_at_each_attachment() {
    let controller = Controller::start(BASICS).await;
    let mut capable = Capable::enrol(&controller).await;
    // Hanging up leads to the same question again.
    for _ in 0..3 {
        assert_eq!(capable.challenged().await.kind(), ChallengeKind::Identity);
        capable.connect(&controller).await;
    }
    capable.prove().await;
    assert_eq!(
        challenges(&controller, &capable.appliance).await,
        [("identity_verification".to_owned(), true)]
    );
    let facts = controller.store.server_facts(capable.appliance.server).await.unwrap();
    assert_eq!((facts.verified, facts.requires_verification), (Some(true), false));
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_again_or_late_proves_nothing() {
    let controller = Controller::start(BASICS).await;
    let mut capable = Capable::enrol(&controller).await;
    let first = capable.challenged().await;
    let stale = capable.answer_to(&first, capable.appliance.channel.requests.binding().unwrap());
    // Late: in another conversation it answers nothing that is asked there.
    capable.connect(&controller).await;
    capable.appliance.channel.requests.notify(stale.clone()).await.unwrap();
    let second = capable.challenged().await;
    let requests = capable.appliance.channel.requests.clone();
    soon(requests.request(stale)).await.unwrap();
    assert!(challenges(&controller, &capable.appliance).await.is_empty());
    // Over another connection: signed for one that the controller is not at the other end of.
    let relayed = capable.answer_to(&second, [9; 32]);
    assert_eq!(refusal(soon(requests.request(relayed)).await).code, RefusalCode::Unauthenticated);
    assert!(quarantined(&controller, &capable).await);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tpm_waits_for_an_approval_and_a_wrong_quote_is_refused() {
    let controller = Controller::start(BASICS).await;
    let mut capable = Capable::enrol(&controller).await;
    capable.tpm = Some(SoftTpm::new());
    capable.prove().await;
    assert!(!quarantined(&controller, &capable).await, "the first is taken in");
    capable.connect(&controller).await;
    capable.prove().await;
    assert!(!quarantined(&controller, &capable).await);
    // Another one; then none at all.
    for (n, next) in [Some(SoftTpm::new()), None].into_iter().enumerate() {
        capable.tpm = next;
        capable.connect(&controller).await;
        capable.prove().await;
        let facts = controller.store.server_facts(capable.appliance.server).await.unwrap();
        assert!(facts.requires_verification);
        assert_eq!(facts.identity_changes[0].name, "tpm/key");
        approve(&controller, &capable.appliance, &format!("tpm-{n}")).await;
        assert_eq!(capable.refused().await.code, RefusalCode::Unavailable);
        capable.connect(&controller).await;
        capable.prove().await;
        assert!(!quarantined(&controller, &capable).await);
    }
    // A quote that was made for another question.
    let other = SoftTpm::new();
    capable.connect(&controller).await;
    let challenge = capable.challenged().await;
    let (id, nonce) = (challenge.id[..].try_into().unwrap(), challenge.nonce[..].try_into().unwrap());
    let (server, incarnation) = (capable.appliance.server, capable.appliance.incarnation);
    let asked = Asked { id: &id, nonce: &nonce, kind: ChallengeKind::Identity, server, incarnation };
    let binding = capable.appliance.channel.requests.binding().unwrap();
    let payload = proto::ChallengeEvidence {
        signature: capable.appliance.key.sign(&asked.statement(&binding)),
        factors: machine(),
        quote: Some(other.quote(&[0; 32])),
        problem: String::new(),
    }
    .encode_to_vec();
    let tag = asked.tag(&capable.appliance.secret, &payload);
    let answer = Say::ChallengeResponse(proto::ChallengeResponse { id: challenge.id.clone(), tag, payload });
    let refused = refusal(soon(capable.appliance.channel.requests.request(answer)).await);
    assert_eq!(refused.code, RefusalCode::Unauthenticated);
    assert!(quarantined(&controller, &capable).await);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_appliance_that_forgets_what_it_can_is_quarantined() {
    let controller = Controller::start(BASICS).await;
    let mut capable = Capable::enrol(&controller).await;
    capable.prove().await;
    // It comes back and says that it is an older program, which is asked for less.
    capable.appliance.reconnect(&controller).await.unwrap();
    capable.appliance.take_challenge().await;
    capable.appliance.beat(machine()).await;
    assert!(quarantined(&controller, &capable).await);
    assert!(controller.events().await.contains(&"challenges_withdrawn".to_owned()));
    // A downgrade on purpose is approved.
    approve(&controller, &capable.appliance, "older").await;
    assert_eq!(capable.refused().await.code, RefusalCode::Unavailable);
    capable.appliance.reconnect(&controller).await.unwrap();
    let challenge = capable.challenged().await;
    assert_eq!(challenge.kind(), ChallengeKind::Unspecified);
    capable.appliance.answer(&challenge).await;
    capable.appliance.beat(machine()).await;
    assert!(!quarantined(&controller, &capable).await);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approval_reaches_an_appliance_that_is_connected() {
    let controller = Controller::start(BASICS).await;
    let mut capable = Capable::enrol(&controller).await;
    capable.prove().await;
    let other = hardware(&[("dmi/board_serial", "x"), ("processor/model", "y"), ("disk/0/serial", "c")]);
    capable.appliance.beat(other).await;
    assert!(quarantined(&controller, &capable).await);
    let before = capable.appliance.secret.clone();
    approve(&controller, &capable.appliance, "yes").await;
    let refused = capable.refused().await;
    assert_eq!((refused.code, refused.retry_after_seconds), (RefusalCode::Unavailable, 1));
    capable.connect(&controller).await;
    let challenge = capable.challenged().await;
    assert_ne!(capable.appliance.secret.expose(), before.expose(), "new credentials came with the approval");
    // Under the old ones nothing is proved any more.
    capable.answer(&challenge).await;
    capable.appliance.beat(Vec::new()).await;
    let facts = controller.store.server_facts(capable.appliance.server).await.unwrap();
    assert_eq!(facts.verified, Some(true));
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_country_quarantines_and_what_an_appliance_says_of_itself_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("geo.mmdb");
    let be_in = |country, city| {
        let entry = mmdb::Entry { country: Some(country), city: Some(city), ..Default::default() };
        std::fs::write(&path, mmdb::write(&[("127.0.0.0/8", entry)])).unwrap();
    };
    be_in("DE", "Berlin");
    let geo = Geo::open(vec![path.clone()]).unwrap();
    let controller = Controller::located(BASICS, geo.clone()).await;
    let mut capable = Capable::enrol(&controller).await;
    capable.prove().await;
    let facts = controller.store.server_facts(capable.appliance.server).await.unwrap();
    assert_eq!(facts.location.as_deref(), Some("Berlin, DE"));
    // The city is a small change.
    be_in("DE", "Hamburg an der Elbe");
    assert!(geo.refresh().unwrap());
    capable.connect(&controller).await;
    capable.prove().await;
    assert!(!quarantined(&controller, &capable).await);
    be_in("FR", "Paris");
    assert!(geo.refresh().unwrap());
    capable.connect(&controller).await;
    let mut claims = machine();
    claims.push(proto::Factor { kind: "geolocation".into(), name: "country".into(), value: "DE".into() });
    let challenge = capable.challenged().await;
    capable.answer(&challenge).await;
    capable.appliance.beat(claims).await;
    let facts = controller.store.server_facts(capable.appliance.server).await.unwrap();
    assert!(facts.requires_verification);
    let change = &facts.identity_changes[0];
    assert_eq!((change.from.as_deref(), change.to.as_deref()), (Some("DE"), Some("FR")));
    assert_eq!(facts.location.as_deref(), Some("Paris, FR"));
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_was_rolled_back_is_exposed_by_the_ratchet() {
    let controller = Controller::start(BASICS).await;
    let mut capable = Capable::enrol(&controller).await;
    capable.prove().await;
    let snapshot = capable.appliance.secret.clone();
    for _ in 0..3 {
        capable.appliance.beat(machine()).await;
    }
    let (right, original) = (capable.appliance.secret.clone(), capable.appliance.incarnation);
    // The original stops, and the snapshot starts somewhere else.
    capable.appliance.channel.requests.close("stopped");
    (capable.appliance.secret, capable.appliance.incarnation) = (snapshot, Incarnation(Uuid::new_v4()));
    capable.connect(&controller).await;
    let challenge = capable.challenged().await;
    capable.answer(&challenge).await;
    assert_eq!(capable.refused().await.code, RefusalCode::Unauthenticated);
    assert!(quarantined(&controller, &capable).await, "nobody has shown the secret in force since");
    assert!(controller.events().await.contains(&"challenge_failed".to_owned()));
    // The original comes back: it is not the one that is shut out.
    (capable.appliance.secret, capable.appliance.incarnation) = (right, original);
    capable.connect(&controller).await;
    capable.prove().await;
    assert!(!quarantined(&controller, &capable).await);
    assert!(controller.events().await.contains(&"copy_exposed".to_owned()));
    let facts = controller.store.server_facts(capable.appliance.server).await.unwrap();
    assert_eq!((facts.verified, facts.pending_digest), (Some(true), None));
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_of_what_was_never_granted_quarantine() {
    let controller = Controller::start(BASICS).await;
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    let invented = SessionUsage {
        session: SessionId(Uuid::new_v4()),
        connected: true,
        remote: None,
        bytes_sent: 10,
        bytes_received: 10,
        rtt_micros: 1,
    };
    appliance.report(ApplianceReport { sessions: vec![invented], ..Default::default() }).await;
    soon(async {
        while !controller.events().await.contains(&"sessions_misreported".to_owned()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let facts = controller.store.server_facts(appliance.server).await.unwrap();
    assert_eq!((facts.verified, facts.requires_verification), (Some(false), true));
    assert!(challenges(&controller, &appliance).await.contains(&("behavior_verification".to_owned(), false)));
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_capability_is_checked_through_itself() {
    let tunnel = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = tunnel.local_addr().unwrap().port();
    let toml = BASICS.replacen("[resource.spec]\n", &format!("[resource.spec]\ntunnel.port = {port}\n"), 1);
    let settings = ChannelSettings {
        challenge_pace: Some(Duration::from_millis(60)),
        probe_patience: Duration::from_secs(1),
        ..ChannelSettings::default()
    };
    let controller = Controller::with(&toml, settings).await;
    let mut capable = Capable::enrol(&controller).await;
    let (tunnel, mut answers, mut failed, mut expected) = (Arc::new(tunnel), true, 0, None::<Vec<u8>>);
    tunnel.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    loop {
        match capable.appliance.next().await.expect("the controller ended the conversation") {
            Said::Challenge(challenge) if challenge.kind() == ChallengeKind::Unspecified => {
                capable.appliance.answer(&challenge).await;
            }
            Said::Challenge(challenge) => capable.answer(&challenge).await,
            Said::State(envelope) => {
                capable.appliance.apply(&envelope);
                capable.appliance.report(ApplianceReport::default()).await;
            }
            Said::DialBack(announced) => {
                assert_eq!(announced.address, format!("127.0.0.1:{port}"));
                if !announced.digest.is_empty() {
                    assert!(announced.nonce.is_empty(), "only the datagram has it");
                    expected = Some(announced.digest.clone());
                }
                if !answers {
                    continue;
                }
                let socket = tunnel.clone();
                // What was sent again for an earlier one may still lie there.
                let nonce = tokio::task::spawn_blocking(move || {
                    loop {
                        let mut datagram = [0; 64];
                        let length = socket.recv(&mut datagram).unwrap();
                        let nonce = datagram[horizon_channel::PROBE_PREFIX.len()..length].to_vec();
                        if nonce == announced.nonce || sha256(&nonce).0[..] == announced.digest[..] {
                            return nonce;
                        }
                    }
                });
                let seen = Say::DialBackSeen(proto::DialBackSeen { nonce: soon(nonce).await.unwrap() });
                capable.appliance.channel.requests.notify(seen).await.unwrap();
            }
            other => panic!("unexpected {other:?}"),
        }
        let all = challenges(&controller, &capable.appliance).await;
        let checks =
            |right: bool| all.iter().filter(|c| **c == ("capability_check".to_owned(), right)).count();
        // Once it worked, the port is closed. On a busy machine one may have come too late before.
        if answers && checks(true) > 0 {
            (answers, failed) = (false, checks(false));
        }
        if !answers && checks(false) > failed {
            break;
        }
    }
    assert!(expected.is_some());
    assert!(controller.events().await.contains(&"capability_check_failed".to_owned()));
    let facts = controller.store.server_facts(capable.appliance.server).await.unwrap();
    assert!(!facts.requires_verification && facts.unreachable.is_some(), "a firewall is no impostor");
    let kinds = challenges(&controller, &capable.appliance).await;
    assert!(kinds.iter().all(|(kind, right)| *right || kind == "capability_check"), "{kinds:?}");
    controller.stop().await;
}
