//! Devices that are blocked, copied or forgotten while they are connected, and what they share.

use std::time::Duration;

use horizon_model::{ApplianceReport, DeviceId, SessionUsage};
use horizon_wire::proto::{
    self, RefusalCode, from_controller::Message as Said, to_controller::Message as Say,
};

use super::kit::{Appliance, Controller, Device, refusal, served, session, soon};
use crate::{channel::ChannelSettings, store::tests::kit::BASICS};

fn decision(name: &str, device: DeviceId, verdict: &str) -> String {
    format!(
        "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'DeviceDecision'\nmetadata.name = '{name}'\n[spec]\n\
         device = '{device}'\ndecision = '{verdict}'\nreason = 'it was seen elsewhere'\n"
    )
}

fn hello(fingerprint: &str) -> Say {
    Say::DeviceHello(proto::DeviceHello {
        os_version: "13".into(),
        app_version: "0.1.0".into(),
        hardware_fingerprint: fingerprint.into(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_device_loses_its_session_at_once_and_is_refused_when_it_reconnects() {
    let (controller, key, mut appliance) = served().await;
    let mut device = Device::enrolled(&controller, &key, "laptop").await;
    let ticket = session(&device, &mut appliance, "berlin").await;
    controller.put(&decision("no", ticket.device, "block")).await;
    let ended = device.session_ended().await;
    appliance.lose_session().await;
    assert!(ended.reason.contains("blocked"), "{}", ended.reason);
    // Over the same connection, over a new one, and with its personal key.
    assert_eq!(refusal(device.request("berlin", None).await).code, RefusalCode::Policy);
    let channel = controller.dial(&device.key, proto::Role::Device).await.unwrap();
    device.channel = channel;
    let refused = refusal(device.request("berlin", None).await);
    assert!(refused.message.contains("blocked"), "{}", refused.message);
    let list = soon(device.requests().request(Say::ListServers(proto::ListServers {}))).await;
    assert_eq!(refusal(list).code, RefusalCode::Policy);
    let refused = refusal(device.enrol(&key, "laptop").await);
    assert!(refused.message.contains("it was seen elsewhere"), "{}", refused.message);
    controller.put(&decision("yes", ticket.device, "allow")).await;
    session(&device, &mut appliance, "berlin").await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_device_key_on_another_machine_gets_no_session_until_an_admin_allows_it() {
    let (controller, key, mut appliance) = served().await;
    let device = Device::enrolled(&controller, &key, "laptop").await;
    device.requests().notify(hello("sha256:00")).await.unwrap();
    let ticket = session(&device, &mut appliance, "berlin").await;
    // The thief has the key, and another machine.
    let channel = controller.dial(&device.key, proto::Role::Device).await.unwrap();
    channel.requests.notify(hello("sha256:ff")).await.unwrap();
    let asked = proto::RequestSession { server: "berlin".into(), take_over: Vec::new() };
    let refused = refusal(soon(channel.requests.request(Say::RequestSession(asked))).await);
    assert_eq!(refused.code, RefusalCode::Policy);
    assert!(refused.message.contains("suspicious"), "{}", refused.message);
    assert!(controller.events().await.contains(&"device_machine_changed".to_owned()));
    // The session that was there goes on.
    let live = controller.store.live_session(ticket.session).await.unwrap();
    assert!(live.is_some_and(|row| row.traits.suspicious));
    controller.put(&decision("fine", ticket.device, "allow")).await;
    session(&device, &mut appliance, "berlin").await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_may_speak_of_some_devices_only() {
    let (controller, key, mut appliance) = served().await;
    let mut device = Device::enrolled(&controller, &key, "laptop").await;
    let ticket = session(&device, &mut appliance, "berlin").await;
    let policy = |condition: &str| {
        format!(
            "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'AccessPolicy'\nmetadata.name = 'all'\n[spec]\nservers = ['*']\n\
             subjects.users = ['ana']\n{condition}\n[[spec.destinations]]\ncidr = '0.0.0.0/0'\n"
        )
    };
    controller.put(&policy("devices.platforms = ['openbsd']")).await;
    let ended = device.session_ended().await;
    assert!(ended.reason.contains("do not speak of this device"), "{}", ended.reason);
    appliance.lose_session().await;
    assert_eq!(refusal(device.request("berlin", None).await).code, RefusalCode::Policy);
    controller.put(&policy(&format!("devices.ids = ['{}']", ticket.device))).await;
    session(&device, &mut appliance, "berlin").await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_device_waits_for_the_appliance_after_a_session_ended_without_a_takeover() {
    let settings = ChannelSettings { session_patience: Duration::from_secs(3), ..ChannelSettings::default() };
    let controller = Controller::with(BASICS, settings).await;
    let key = controller.personal("ana-1").await;
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    let first = Device::enrolled(&controller, &key, "laptop").await;
    let ticket = session(&first, &mut appliance, "berlin").await;
    let second = Device::enrolled(&controller, &key, "phone").await;
    // The appliance reads no more, so it still admits what its device has just ended.
    let end = Say::EndSession(proto::EndSession { session: ticket.session.as_bytes().to_vec() });
    soon(first.requests().request(end)).await.unwrap();
    let refused = refusal(second.request("berlin", None).await);
    assert_eq!(refused.code, RefusalCode::Unavailable);
    assert!(controller.events().await.contains(&"unconfirmed_takeover".to_owned()));
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_pass_through_the_controller_as_they_are_and_only_forward() {
    let controller = Controller::start(BASICS).await;
    let key = controller.personal("ana-1").await;
    let device = Device::enrolled(&controller, &key, "laptop").await;
    let put = |base_version, content: &[u8]| {
        Say::PutSettings(proto::PutSettings { base_version, content: content.to_vec(), keys: Vec::new() })
    };
    let ask = async |message| match soon(device.requests().request(message)).await.unwrap() {
        Said::UserSettings(view) => view,
        other => panic!("unexpected {other:?}"),
    };
    assert_eq!(ask(Say::GetSettings(proto::GetSettings {})).await.version, 0);
    assert_eq!(ask(put(0, b"sealed")).await.version, 1);
    let view = ask(put(0, b"late")).await;
    assert_eq!((view.version, &view.content[..]), (1, &b"sealed"[..]));
    assert_eq!(view.devices.len(), 1);
    let large = soon(device.requests().request(put(1, &[0; 9_000]))).await;
    assert_eq!(refusal(large).code, RefusalCode::Malformed);
    // Nobody who is not enrolled.
    let stranger = Device::connect(&controller).await;
    let refused = refusal(soon(stranger.requests().request(put(1, b"x"))).await);
    assert_eq!(refused.code, RefusalCode::Unauthenticated);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_only_one_end_knows_ends_when_it_stays_so() {
    let settings = ChannelSettings {
        look_pace: Some(Duration::from_millis(50)),
        look_patience: Duration::from_millis(300),
        ..ChannelSettings::default()
    };
    let controller = Controller::with(BASICS, settings).await;
    let key = controller.personal("ana-1").await;
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    let mut device = Device::enrolled(&controller, &key, "laptop").await;
    let ticket = session(&device, &mut appliance, "berlin").await;
    let (mut asked, mut ended) = (0, None);
    let served = async {
        while ended.is_none() || !appliance.sessions().is_empty() {
            tokio::select! {
                said = appliance.channel.inbox.recv() => match said.expect("the conversation goes on") {
                    Said::Challenge(challenge) => appliance.answer(&challenge).await,
                    Said::State(envelope) => {
                        appliance.apply(&envelope);
                        appliance.report(ApplianceReport::default()).await;
                    }
                    Said::CheckSession(check) => {
                        assert_eq!(check.session, ticket.session.as_bytes());
                        let usage = SessionUsage {
                            session: ticket.session,
                            connected: true,
                            remote: None,
                            bytes_sent: 0,
                            bytes_received: 0,
                            rtt_micros: 0,
                        };
                        let report = ApplianceReport { sessions: vec![usage], ..ApplianceReport::default() };
                        appliance.report(report).await;
                    }
                    _ => {}
                },
                said = device.channel.inbox.recv() => match said.expect("the conversation goes on") {
                    Said::CheckSession(check) => {
                        asked += 1;
                        // At first both say the same.
                        let report = proto::SessionReport {
                            session: check.session,
                            connected: asked <= 3,
                            bytes_sent: 0,
                            bytes_received: 0,
                        };
                        device.channel.requests.notify(Say::SessionReport(report)).await.unwrap();
                    }
                    Said::SessionEnded(over) => ended = Some(over),
                    _ => {}
                },
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), served).await.expect("the session ends");
    assert!(asked > 3, "it ended after {asked} questions, of which both agreed in three");
    let reason = ended.unwrap().reason;
    assert!(reason.contains("only one of its ends knows it"), "{reason}");
    assert!(controller.events().await.contains(&"session_one_sided".to_owned()));
    controller.stop().await;
}
