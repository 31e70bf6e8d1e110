//! Devices: enrolment, sessions, takeover, and how sessions end.

use std::time::Duration;

use horizon_controller_core::{GrantFacts, grant};
use horizon_model::{ApplianceReport, NetworkId, SessionUsage, TaggedSecret};
use horizon_wire::{
    convert,
    proto::{self, RefusalCode, from_controller::Message as Said, to_controller::Message as Say},
};
use jiff::Timestamp;

use super::kit::{Appliance, Controller, Device, ask, refusal, served, session, soon};
use crate::{
    channel::ChannelSettings,
    live::Hint,
    store::{EndReason, NewSession, SessionOutcome, tests::kit::BASICS},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_enrols_and_gets_a_session_through_its_appliance() {
    let (controller, key, mut appliance) = served().await;
    let mut device = Device::connect(&controller).await;
    let refused = refusal(device.request("berlin", None).await);
    assert_eq!(refused.code, RefusalCode::Unauthenticated);
    let Said::DeviceEnrolled(enrolled) = device.enrol(&key, "laptop").await.unwrap() else {
        panic!("not enrolled")
    };
    assert_eq!(enrolled.user, "ana");
    let list = soon(device.requests().request(Say::ListServers(proto::ListServers {}))).await.unwrap();
    let Said::Servers(list) = list else { panic!("no list") };
    assert_eq!((list.servers[0].name.as_str(), list.servers[0].available), ("berlin", true), "{list:?}");

    let ticket = session(&device, &mut appliance, "berlin").await;
    assert_eq!(ticket.appliance_key, appliance.key.public());
    assert_eq!(ticket.device_key, device.key.public());
    assert_eq!(ticket.networks[0].addresses[0].to_string(), "100.96.0.2/16");
    assert!(ticket.addresses.contains(&"192.0.2.7:7443".parse().unwrap()));
    let (state, _) = appliance.held.entries.decode();
    let admitted = state.sessions().next().unwrap().clone();
    assert_eq!((admitted.id, admitted.peer_key), (ticket.session, device.key.public()));
    assert_eq!(admitted.secret.expose(), ticket.secret.expose());
    assert_eq!(admitted.networks[0].network, NetworkId::ACCESS);
    // What it carries is noted.
    let usage = SessionUsage {
        session: ticket.session,
        connected: true,
        remote: None,
        bytes_sent: 5,
        bytes_received: 7,
        rtt_micros: 90,
    };
    appliance.report(ApplianceReport { sessions: vec![usage], ..Default::default() }).await;
    appliance.beat(Vec::new()).await;
    let shown = &controller.store.list_sessions(10).await.unwrap()[0];
    assert_eq!((shown.status.as_str(), shown.connected, shown.bytes_sent), ("active", true, 5));
    // The same device asks again: a new session replaces the old one, with the same address.
    let again = session(&device, &mut appliance, "berlin").await;
    assert_ne!(again.session, ticket.session);
    assert_eq!(again.networks[0].addresses, ticket.networks[0].addresses);
    let end = Say::EndSession(proto::EndSession { session: again.session.as_bytes().to_vec() });
    soon(device.requests().request(end)).await.unwrap();
    assert_eq!(device.session_ended().await.session, again.session.as_bytes());
    appliance.lose_session().await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_outgrows_what_can_be_sent_loses_sessions_and_is_sent() {
    let settings = ChannelSettings { state_bytes: 2048, ..ChannelSettings::default() };
    let controller = Controller::with(BASICS, settings).await;
    let key = controller.personal("ana-1").await;
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    let mut device = Device::enrolled(&controller, &key, "laptop").await;
    let ticket = session(&device, &mut appliance, "berlin").await;
    let wider: String =
        (0..100).map(|n| format!("[[spec.destinations]]\ncidr = \"10.{n}.0.0/16\"\n")).collect();
    let policy = "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"AccessPolicy\"\nmetadata.name = \"all\"\n\
                  [spec]\nservers = [\"*\"]\nsubjects.users = [\"ana\"]\n";
    controller.put(&format!("{policy}{wider}")).await;
    let ended = device.session_ended().await;
    assert_eq!(ended.session, ticket.session.as_bytes());
    assert!(ended.reason.contains("more than its state can hold"), "{}", ended.reason);
    appliance.lose_session().await;
    assert!(appliance.held.entries.size() <= 2048);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_policy_ends_the_session_at_once() {
    let (controller, key, mut appliance) = served().await;
    let mut device = Device::enrolled(&controller, &key, "laptop").await;
    let ticket = session(&device, &mut appliance, "berlin").await;
    let started = std::time::Instant::now();
    controller.remove("AccessPolicy", "all").await;
    let ended = device.session_ended().await;
    appliance.lose_session().await;
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(ended.session, ticket.session.as_bytes());
    assert!(ended.reason.contains("policy"), "{}", ended.reason);
    // What is refused now names the document that would allow it.
    let refused = refusal(device.request("berlin", None).await);
    assert_eq!(refused.code, RefusalCode::Policy);
    assert!(refused.remedy.contains("kind = \"AccessPolicy\""), "{}", refused.remedy);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoking_a_device_or_a_key_ends_its_session() {
    let (controller, key, mut appliance) = served().await;
    let mut device = Device::enrolled(&controller, &key, "laptop").await;
    session(&device, &mut appliance, "berlin").await;
    let id = controller.store.list_devices(1).await.unwrap()[0].id;
    let revocation = |kind: &str, name: &str, of: &str| {
        format!(
            "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Revocation'\nmetadata.name = '{name}'\n[spec]\n\
             reason = 'lost'\ntarget.kind = '{kind}'\ntarget.name = '{of}'\n"
        )
    };
    controller.put(&revocation("Device", "lost-laptop", &id.to_string())).await;
    assert!(device.session_ended().await.reason.contains("revoked"));
    appliance.lose_session().await;
    assert_eq!(refusal(device.request("berlin", None).await).code, RefusalCode::Revoked);
    assert_eq!(refusal(device.enrol(&key, "laptop").await).code, RefusalCode::Revoked);

    let mut other = Device::enrolled(&controller, &key, "phone").await;
    session(&other, &mut appliance, "berlin").await;
    controller.put(&revocation("PersonalKey", "lost-key", "ana-1")).await;
    assert!(other.session_ended().await.reason.contains("revoked"));
    assert_eq!(refusal(other.request("berlin", None).await).code, RefusalCode::Revoked);
    assert_eq!(refusal(Device::connect(&controller).await.enrol(&key, "x").await).code, RefusalCode::Revoked);
    // A wrong secret of the same key is told nothing.
    let wrong = (key.0, TaggedSecret::new(&[7; 32], [7; 4]));
    let refused = refusal(Device::connect(&controller).await.enrol(&wrong, "x").await);
    assert_eq!(refused.code, RefusalCode::Unauthenticated);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_taken_over_when_its_user_agrees() {
    let (controller, key, mut appliance) = served().await;
    let mut first = Device::enrolled(&controller, &key, "laptop").await;
    let ticket = session(&first, &mut appliance, "berlin").await;
    let second = Device::enrolled(&controller, &key, "phone").await;
    let Said::Conflict(conflict) = second.request("berlin", None).await.unwrap() else {
        panic!("no conflict")
    };
    let conflict = convert::decode_conflict(conflict).unwrap();
    assert_eq!((conflict.session, conflict.device_name.as_str()), (ticket.session, "laptop"));
    // Consent to end another session than the live one is no consent.
    let stale = horizon_model::SessionId(uuid::Uuid::new_v4());
    assert!(matches!(second.request("berlin", Some(stale)).await.unwrap(), Said::Conflict(_)));

    let asked = tokio::spawn(ask(second.requests(), "berlin".into(), Some(conflict.session)));
    appliance.lose_session().await;
    let id = appliance.take_session().await;
    let taken = second.ticket(&soon(asked).await.unwrap().unwrap());
    assert_eq!(taken.session, id);
    assert_ne!(taken.networks[0].addresses, ticket.networks[0].addresses);
    let ended = first.session_ended().await;
    assert_eq!(ended.session, ticket.session.as_bytes());
    assert!(ended.reason.contains("phone"), "{}", ended.reason);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_appliance_that_says_nothing_about_a_takeover_is_noted() {
    let settings = ChannelSettings { session_patience: Duration::from_secs(3), ..ChannelSettings::default() };
    let controller = Controller::with(BASICS, settings).await;
    let key = controller.personal("ana-1").await;
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    let first = Device::enrolled(&controller, &key, "laptop").await;
    let ticket = session(&first, &mut appliance, "berlin").await;
    let second = Device::enrolled(&controller, &key, "phone").await;
    // Its channel is up, and it takes in nothing.
    let refused = refusal(second.request("berlin", Some(ticket.session)).await);
    assert_eq!(refused.code, RefusalCode::Unavailable);
    assert!(controller.events().await.contains(&"unconfirmed_takeover".to_owned()));
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_on_a_lost_appliance_is_taken_over_after_a_while() {
    let mut toml = BASICS.to_owned();
    toml.push_str(
        "[[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'Server'\nmetadata.name = 'paris'\n[resource.spec]\n\
         [[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'RegistrationKey'\nmetadata.name = 'paris-1'\n\
         spec.serverRef = 'paris'\n",
    );
    let settings = ChannelSettings { takeover_grace: Duration::from_secs(3), ..ChannelSettings::default() };
    let controller = Controller::with(&toml, settings).await;
    let key = controller.personal("ana-1").await;
    let mut berlin = Appliance::enrol(&controller).await;
    berlin.take_state().await;
    let token = controller.token("paris-1").await;
    let mut paris = Appliance::enrol_with(&controller, &token).await;
    paris.take_state().await;
    let first = Device::enrolled(&controller, &key, "laptop").await;
    let ticket = session(&first, &mut berlin, "berlin").await;
    let second = Device::enrolled(&controller, &key, "phone").await;
    berlin.channel.requests.close("gone");
    let server = berlin.server;
    soon(async {
        let mut hints = controller.live.subscribe();
        while controller.live.presence(server).unwrap().online {
            hints.recv().await.unwrap();
        }
    })
    .await;
    let refused = refusal(second.request("paris", Some(ticket.session)).await);
    assert_eq!(refused.code, RefusalCode::Unavailable);
    let wait = Duration::from_secs(refused.retry_after_seconds.into());
    assert!(wait <= Duration::from_secs(4));
    tokio::time::sleep(wait).await;
    let asked = tokio::spawn(ask(second.requests(), "paris".into(), Some(ticket.session)));
    paris.take_session().await;
    second.ticket(&soon(asked).await.unwrap().unwrap());
    assert!(controller.events().await.contains(&"unconfirmed_takeover".to_owned()));
    assert_eq!(controller.store.list_sessions(9).await.unwrap()[1].status, "interrupted");
    // The lost appliance drops its session when it returns.
    berlin.reconnect(&controller).await.unwrap();
    berlin.lose_session().await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_no_appliance_takes_in_fail() {
    let settings = ChannelSettings { session_patience: Duration::from_secs(1), ..ChannelSettings::default() };
    let controller = Controller::with(BASICS, settings).await;
    let key = controller.personal("ana-1").await;
    let device = Device::enrolled(&controller, &key, "laptop").await;
    assert_eq!(
        refusal(device.request("berlin", None).await).code,
        RefusalCode::Unavailable,
        "no appliance yet"
    );
    assert_eq!(refusal(device.request("paris", None).await).code, RefusalCode::NotFound);
    assert_eq!(refusal(device.request("\u{7}no name", None).await).code, RefusalCode::NotFound);
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    // It reads the state and says nothing.
    assert_eq!(refusal(device.request("berlin", None).await).code, RefusalCode::Unavailable);
    assert_eq!(controller.store.list_sessions(1).await.unwrap()[0].status, "failed");
    // It wakes up, sees the session come and go, and the next one works.
    let mut asked = tokio::spawn(ask(device.requests(), "berlin".into(), None));
    let answer = loop {
        tokio::select! {
            answer = &mut asked => break answer.unwrap(),
            _ = appliance.take_state() => {}
        }
    };
    device.ticket(&answer.unwrap());
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_sessions_time_out_once_the_device_is_gone() {
    let settings = ChannelSettings {
        session_idle: Duration::from_millis(1),
        sweep: Duration::from_millis(50),
        ..ChannelSettings::default()
    };
    let controller = Controller::with(BASICS, settings).await;
    let key = controller.personal("ana-1").await;
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    let device = Device::enrolled(&controller, &key, "laptop").await;
    session(&device, &mut appliance, "berlin").await;
    device.channel.requests.close("bye");
    drop(device);
    appliance.lose_session().await;
    assert_eq!(controller.store.list_sessions(1).await.unwrap()[0].status, "timeout");
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_ended_before_its_appliance_heard_of_it_keeps_nobody_waiting() {
    let (controller, key, mut appliance) = served().await;
    // What it said before, that it applied the state, has arrived too.
    appliance.beat(Vec::new()).await;
    let laptop = Device::enrolled(&controller, &key, "laptop").await;
    let record = controller.store.device_by_key(laptop.key.public()).await.unwrap().unwrap();
    let facts = GrantFacts::POLICY_ONLY;
    let granted = grant(&controller.index(), facts, record.user, appliance.server).unwrap();
    let wish = NewSession { device: &record, grant: &granted, client: "198.51.100.9".parse().unwrap() };
    let outcome = controller.store.request_session(&wish, Timestamp::now()).await.unwrap();
    let SessionOutcome::Requested { session: unheard, .. } = outcome else { panic!("{outcome:?}") };
    let reason = EndReason::broker("its replica died");
    controller.store.end_session(unheard.id, &reason, Timestamp::now()).await.unwrap();
    let mut hints = controller.live.subscribe();
    controller.live.publish_here(Hint::ServerChanged(appliance.server));
    soon(async {
        while !controller.store.session_released(unheard.id).await.unwrap() {
            tokio::select! {
                _ = hints.recv() => {}
                // In case a sweep was quicker than the end.
                _ = appliance.take_state() => {}
            }
        }
    })
    .await;
    let tablet = Device::enrolled(&controller, &key, "tablet").await;
    session(&tablet, &mut appliance, "berlin").await;
    assert!(!controller.events().await.contains(&"unconfirmed_takeover".to_owned()));
    controller.stop().await;
}
