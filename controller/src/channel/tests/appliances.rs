//! Appliances: registration, proof, heartbeats, states.

use std::time::Duration;

use horizon_model::{
    ApplianceReport, EntryProblem, Incarnation, ProblemCode, Secret, SessionId, Violation, ViolationKind,
};
use horizon_wire::{
    proto::{self, RefusalCode, Role, from_controller::Message as Said, to_controller::Message as Say},
    refusal::Refusal,
};
use uuid::Uuid;

use super::kit::{
    Appliance, Controller, Device, ask, entry, fresh_key, hardware, refusal, register_message, served,
    session, soon,
};
use crate::{channel::ChannelSettings, store::tests::kit::BASICS};

fn quick() -> ChannelSettings {
    ChannelSettings { clone_patience: Duration::from_secs(2), ..ChannelSettings::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_appliance_registers_proves_itself_and_gets_its_state() {
    let controller = Controller::start(BASICS).await;
    let mut appliance = Appliance::enrol(&controller).await;
    assert!(controller.live.presence(appliance.server).is_none(), "not online before it is proved");
    appliance.take_state().await;
    let (state, _) = appliance.held.entries.decode();
    assert_eq!(state.tunnel().unwrap().port, 7443);
    assert_eq!(state.settings().unwrap().heartbeat_seconds, 30);
    assert!(controller.live.presence(appliance.server).unwrap().online);
    // A heartbeat is acknowledged, and the secret moves on with each.
    for _ in 0..3 {
        appliance.beat(Vec::new()).await;
    }
    let facts = controller.store.server_facts(appliance.server).await.unwrap();
    assert_eq!(facts.verified, Some(true));
    assert_eq!(controller.store.list_beats(appliance.server, 10).await.unwrap().len(), 3);
    // A changed declaration arrives as a delta.
    let changed = "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Server'\nmetadata.name = 'berlin'\nspec.tunnel.mtu = 1400\n";
    controller.put(changed).await;
    let before = appliance.held.generation;
    appliance.take_state().await;
    assert_eq!(appliance.held.generation, before + 1);
    assert_eq!(appliance.held.entries.decode().0.tunnel().unwrap().mtu, 1400);
    // Who has the newest state is sent nothing when it returns: the next thing it hears is about something else.
    appliance.reconnect(&controller).await.unwrap();
    let mut challenged = false;
    loop {
        match appliance.next().await.unwrap() {
            Said::Challenge(challenge) => {
                challenged = true;
                appliance.answer(&challenge).await;
            }
            Said::DialBack(_) => break,
            other => panic!("unexpected {other:?}"),
        }
    }
    assert!(challenged);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_state_is_sent_whole() {
    let controller = Controller::start(BASICS).await;
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    let held = std::mem::take(&mut appliance.held);
    let resync = Say::Resync(proto::Resync { reason: "the change starts from another state".into() });
    appliance.channel.requests.notify(resync).await.unwrap();
    appliance.take_state().await;
    assert_eq!(appliance.held, held);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_a_hundred_appliances_with_one_token_exactly_one_is_registered() {
    let mut toml = BASICS.to_owned();
    toml.push_str(
        "[[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'SecurityPolicy'\nmetadata.name = 'open'\n\
         spec.rateLimits.registrationsPerMinute = 1000\n",
    );
    let controller = Controller::start(&toml).await;
    let token = controller.token("berlin-1").await;
    let mut tries = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let key = fresh_key();
        let channel = controller.dial(&key, Role::Appliance).await.unwrap();
        let message = register_message(&token);
        tries.spawn(async move { (soon(channel.requests.request(message)).await, key) });
    }
    let mut winner = None;
    while let Some(done) = tries.join_next().await {
        match done.unwrap() {
            (Ok(Said::Registered(registered)), key) => {
                assert!(winner.replace((registered, key)).is_none(), "two won");
            }
            (other, _) => assert_eq!(refusal(other).code, RefusalCode::Used),
        }
    }
    // The winner's retry gets the same answer.
    let (registered, key) = winner.unwrap();
    let channel = controller.dial(&key, Role::Appliance).await.unwrap();
    let again = soon(channel.requests.request(register_message(&token))).await.unwrap();
    let Said::Registered(again) = again else { panic!("not registered") };
    assert_eq!(again.server_id, registered.server_id);
    assert_eq!(again.verification_secret, registered.verification_secret);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_register_is_told_only_what_their_secret_earns() {
    let controller = Controller::start(BASICS).await;
    let token = controller.token("berlin-1").await;
    let try_with = async |secret: Secret| {
        let channel = controller.dial(&fresh_key(), Role::Appliance).await.unwrap();
        let wrong = horizon_wire::token::RegistrationToken { secret, ..token.clone() };
        refusal(soon(channel.requests.request(register_message(&wrong))).await)
    };
    assert_eq!(try_with(Secret::new([1; 32])).await.code, RefusalCode::Unauthenticated);
    controller.remove("RegistrationKey", "berlin-1").await;
    assert_eq!(try_with(Secret::new([1; 32])).await.code, RefusalCode::Unauthenticated);
    assert_eq!(try_with(token.secret.clone()).await.code, RefusalCode::Revoked);
    assert_eq!(controller.events().await, ["registration_refused"; 3]);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_answer_to_a_challenge_quarantines() {
    let controller = Controller::start(BASICS).await;
    let mut appliance = Appliance::enrol(&controller).await;
    let right = std::mem::replace(&mut appliance.secret, Secret::new([9; 32]));
    let Some(Said::Challenge(challenge)) = appliance.next().await else { panic!("no challenge") };
    appliance.answer(&challenge).await;
    let Some(Said::Refused(refused)) = appliance.next().await else { panic!("not refused") };
    assert_eq!(Refusal::from(refused).code, RefusalCode::Unauthenticated);
    assert!(appliance.next().await.is_none());
    let facts = controller.store.server_facts(appliance.server).await.unwrap();
    assert_eq!((facts.verified, facts.requires_verification), (Some(false), true));
    assert!(controller.events().await.contains(&"challenge_failed".to_owned()));
    // It is not locked out: an approval of the digest gives it a new secret at its next attachment.
    let digest = horizon_crds::IdentityDigest::from(facts.pending_digest.unwrap());
    controller
        .put(&format!(
            "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Approval'\nmetadata.name = 'yes'\n\
             [spec]\nserverRef = 'berlin'\nidentityDigest = '{digest}'\n"
        ))
        .await;
    appliance.reconnect(&controller).await.unwrap();
    let Some(Said::Registered(fresh)) = appliance.next().await else { panic!("no new secret") };
    appliance.secret = Secret::from_slice(&fresh.verification_secret).unwrap();
    assert_ne!(appliance.secret.expose(), right.expose());
    appliance.take_state().await;
    let facts = controller.store.server_facts(appliance.server).await.unwrap();
    assert_eq!((facts.verified, facts.requires_verification), (Some(true), false));
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_that_are_replayed_or_forged_are_refused() {
    let controller = Controller::start(BASICS).await;
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    let beat = appliance.beat_message(Vec::new());
    let requests = appliance.channel.requests.clone();
    soon(requests.request(Say::Heartbeat(beat.clone()))).await.unwrap();
    let refused = refusal(soon(requests.request(Say::Heartbeat(beat))).await);
    assert_eq!(refused.code, RefusalCode::Unauthenticated);
    assert!(controller.events().await.contains(&"heartbeat_replayed".to_owned()));
    let facts = controller.store.server_facts(appliance.server).await.unwrap();
    assert!(!facts.requires_verification, "a replay is not the appliance's fault");

    // The acknowledgement was lost: the secret before still authenticates.
    appliance.reconnect(&controller).await.unwrap();
    loop {
        match appliance.next().await.unwrap() {
            Said::Challenge(challenge) => appliance.answer(&challenge).await,
            Said::DialBack(_) => break,
            other => panic!("unexpected {other:?}"),
        }
    }
    appliance.beat(Vec::new()).await;
    let mut forged = appliance.beat_message(Vec::new());
    forged.tag[0] ^= 1;
    let refused = refusal(soon(appliance.channel.requests.request(Say::Heartbeat(forged))).await);
    assert_eq!(refused.code, RefusalCode::Unauthenticated);
    let facts = controller.store.server_facts(appliance.server).await.unwrap();
    assert_eq!((facts.verified, facts.requires_verification), (Some(false), true));
    assert!(controller.events().await.contains(&"heartbeat_failed".to_owned()));
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_running_copy_is_refused_and_a_restart_is_not() {
    let controller = Controller::with(BASICS, quick()).await;
    let mut first = Appliance::enrol(&controller).await;
    first.take_state().await;
    let second_run = Incarnation(Uuid::new_v4());
    let mut second = Appliance {
        key: first.key.clone(),
        incarnation: second_run,
        server: first.server,
        secret: first.secret.clone(),
        held: first.held.clone(),
        counter: 0,
        channel: controller.dial(&first.key, Role::Appliance).await.unwrap(),
        state_key: first.state_key,
    };
    // The first lives and answers: the newcomer is the clone.
    let (refused, ()) = tokio::join!(second.attach(), async {
        loop {
            match first.next().await.unwrap() {
                Said::Challenge(challenge) => break first.answer(&challenge).await,
                Said::DialBack(_) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    });
    assert_eq!(refusal(refused).code, RefusalCode::Clone);
    assert!(controller.events().await.contains(&"clone".to_owned()));
    first.beat(Vec::new()).await;
    // The first is silent: the newcomer is its successor.
    second.secret = first.secret.clone();
    second.reconnect(&controller).await.unwrap();
    let Some(Said::Challenge(challenge)) = second.next().await else { panic!("no challenge") };
    second.answer(&challenge).await;
    soon(async { while first.channel.inbox.recv().await.is_some() {} }).await;
    second.beat(Vec::new()).await;
    assert_eq!(controller.live.presence(first.server).unwrap().incarnation, second_run);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_takes_the_place_and_proves_nothing_does_not_leave_the_server_online() {
    let controller = Controller::with(BASICS, quick()).await;
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    let server = appliance.server;
    let online = || controller.live.presence(server).unwrap().online;
    assert!(online());
    // The same process connects anew, which puts its old connection out, and is gone before it answers the challenge.
    let old = std::mem::replace(
        &mut appliance.channel,
        controller.dial(&appliance.key, Role::Appliance).await.unwrap(),
    );
    appliance.attach().await.unwrap();
    let mut inbox = old.inbox;
    soon(async { while inbox.recv().await.is_some() {} }).await;
    assert!(online());
    appliance.channel.requests.close("gone");
    soon(async {
        while online() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_appliance_that_was_replaced_is_put_out() {
    let mut toml = BASICS.to_owned();
    toml.push_str(
        "[[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'RegistrationKey'\nmetadata.name = 'berlin-2'\n\
         spec.serverRef = 'berlin'\n",
    );
    let controller = Controller::start(&toml).await;
    let mut stolen = Appliance::enrol(&controller).await;
    stolen.take_state().await;
    let token = controller.token("berlin-2").await;
    let mut successor = Appliance::enrol_with(&controller, &token).await;
    successor.take_state().await;
    soon(async { while stolen.channel.inbox.recv().await.is_some() {} }).await;
    assert_eq!(refusal(stolen.reconnect(&controller).await).code, RefusalCode::Unauthenticated);
    successor.beat(Vec::new()).await;
    assert_eq!(successor.server, stolen.server);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_machine_needs_an_approval_and_takes_no_new_sessions() {
    let (controller, key, mut appliance) = served().await;
    appliance
        .beat(hardware(&[("dmi/board_serial", "a"), ("processor/model", "b"), ("disk/0/serial", "new")]))
        .await;
    let facts = controller.store.server_facts(appliance.server).await.unwrap();
    assert!(!facts.requires_verification, "one disk of three parts is a small change");
    appliance
        .beat(hardware(&[("dmi/board_serial", "x"), ("processor/model", "y"), ("disk/0/serial", "new")]))
        .await;
    let facts = controller.store.server_facts(appliance.server).await.unwrap();
    assert!(facts.requires_verification && facts.pending_digest.is_some());
    assert_eq!(facts.identity_changes.len(), 3);
    let device = Device::enrolled(&controller, &key, "laptop").await;
    assert_eq!(refusal(device.request("berlin", None).await).code, RefusalCode::Unavailable);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_keys_and_ended_servers_do_not_attach() {
    let controller = Controller::start(BASICS).await;
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    let right = std::mem::replace(&mut appliance.key, fresh_key());
    assert_eq!(refusal(appliance.reconnect(&controller).await).code, RefusalCode::Unauthenticated);
    let server = std::mem::replace(&mut appliance.server, horizon_model::ServerId(Uuid::new_v4()));
    appliance.key = right;
    assert_eq!(refusal(appliance.reconnect(&controller).await).code, RefusalCode::Unauthenticated);
    appliance.server = server;
    controller.remove("Server", "berlin").await;
    assert_eq!(refusal(appliance.reconnect(&controller).await).code, RefusalCode::Revoked);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_appliance_gets_no_state_but_its_own() {
    let mut toml = BASICS.to_owned();
    toml.push_str(
        "[[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'Server'\nmetadata.name = 'oslo'\n[resource.spec]\n\
         [[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'RegistrationKey'\nmetadata.name = 'oslo-1'\n\
         spec.serverRef = 'oslo'\n",
    );
    let controller = Controller::start(&toml).await;
    let mut berlin = Appliance::enrol(&controller).await;
    berlin.take_state().await;
    let token = controller.token("oslo-1").await;
    let mut rogue = Appliance::enrol_with(&controller, &token).await;
    rogue.take_state().await;
    let own = std::mem::replace(&mut rogue.server, berlin.server);
    assert_eq!(refusal(rogue.reconnect(&controller).await).code, RefusalCode::Unauthenticated);
    while let Some(said) = rogue.next().await {
        assert!(!matches!(said, Said::State(_)), "{said:?}");
    }
    // Who was asked for notices nothing, and the rogue is still itself.
    berlin.beat(Vec::new()).await;
    rogue.server = own;
    rogue.reconnect(&controller).await.unwrap();
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn violations_become_events_and_problems_end_requests() {
    let (controller, key, mut appliance) = served().await;
    let device = Device::enrolled(&controller, &key, "laptop").await;
    let ticket = session(&device, &mut appliance, "berlin").await;
    let spoofed = |session| Violation { session, kind: ViolationKind::SpoofedSource, count: 1 };
    // What is said of a session that is not the appliance's own counts for nothing.
    let report = async |appliance: &mut Appliance, session| {
        let violations = vec![spoofed(session)];
        appliance.report(ApplianceReport { violations, ..Default::default() }).await;
        // Messages are taken in order, so the report was taken in when the beat is acknowledged.
        appliance.beat(Vec::new()).await;
        controller.events().await.contains(&"spoofed_source".to_owned())
    };
    assert!(!report(&mut appliance, SessionId(Uuid::new_v4())).await);
    assert!(report(&mut appliance, ticket.session).await);
    let end = Say::EndSession(proto::EndSession { session: ticket.session.as_bytes().to_vec() });
    soon(device.requests().request(end)).await.unwrap();
    appliance.lose_session().await;

    let asked = tokio::spawn(ask(device.requests(), "berlin".into(), None));
    let envelope = loop {
        match appliance.next().await.unwrap() {
            Said::State(envelope) => break envelope,
            Said::DialBack(_) => {}
            other => panic!("unexpected {other:?}"),
        }
    };
    appliance.apply(&envelope);
    let id = appliance.sessions()[0];
    let problem =
        EntryProblem { entry: entry(id), code: ProblemCode::System, message: "no more memory".into() };
    appliance.report(ApplianceReport { problems: vec![problem], ..Default::default() }).await;
    let refused = refusal(soon(asked).await.unwrap());
    assert_eq!(refused.code, RefusalCode::Unavailable);
    assert!(refused.message.contains("no more memory"), "{refused}");
    appliance.lose_session().await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dial_back_says_when_the_port_cannot_be_reached() {
    let settings =
        ChannelSettings { probe_patience: Duration::from_millis(10), ..ChannelSettings::default() };
    let controller = Controller::with(BASICS, settings).await;
    let mut hints = controller.live.subscribe();
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    let Some(Said::DialBack(announced)) = appliance.next().await else { panic!("no dial-back") };
    assert_eq!(announced.address, "127.0.0.1:7443");
    let mut unreachable = None;
    while unreachable.is_none() {
        soon(hints.recv()).await.unwrap();
        unreachable = controller.store.server_facts(appliance.server).await.unwrap().unreachable;
    }
    assert!(unreachable.unwrap().contains("UDP 127.0.0.1:7443"));
    // It came late.
    let seen = Say::DialBackSeen(proto::DialBackSeen { nonce: announced.nonce });
    soon(appliance.channel.requests.request(seen)).await.unwrap();
    assert_eq!(controller.store.server_facts(appliance.server).await.unwrap().unreachable, None);
    controller.stop().await;
}
