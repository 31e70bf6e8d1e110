//! Peers that do not keep to the protocol: each is refused or dropped, and the controller goes on.

use horizon_channel::ConnectError;
use horizon_wire::proto::{
    self, RefusalCode, Role, from_controller::Message as Said, to_controller::Message as Say,
};

use super::kit::{Appliance, Controller, Device, fresh_key, refusal, soon};
use crate::{channel::ChannelSettings, store::tests::kit::BASICS};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_without_a_role_are_refused() {
    let controller = Controller::start(BASICS).await;
    match controller.dial(&fresh_key(), Role::Unspecified).await {
        Err(ConnectError::Refused(refusal)) => assert_eq!(refusal.code, RefusalCode::Malformed),
        other => panic!("expected a refusal, got {other:?}"),
    }
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_in_the_wrong_order_or_shape_end_the_conversation() {
    let controller = Controller::start(BASICS).await;
    let heartbeat = || Say::Heartbeat(proto::Heartbeat { payload: vec![1], tag: vec![2] });
    let attach = |server_id: Vec<u8>, incarnation: Vec<u8>, capability: &str| {
        Say::Attach(proto::Attach {
            server_id,
            incarnation,
            capabilities: vec![capability.into()],
            ..Default::default()
        })
    };
    let register = |secret: Vec<u8>, hostname: &str, factors: usize| {
        let factor = proto::Factor { kind: "hardware_fingerprint".into(), ..Default::default() };
        Say::Register(proto::Register {
            key_name: "berlin-1".into(),
            secret,
            hostname: hostname.into(),
            factors: vec![factor; factors],
            ..Default::default()
        })
    };
    let messages = [
        heartbeat(),
        Say::ListServers(proto::ListServers {}),
        attach(vec![1; 3], vec![1; 16], "vpn"),
        attach(vec![1; 16], Vec::new(), "vpn"),
        attach(vec![1; 16], vec![1; 16], "teleport"),
        register(vec![1; 31], "box", 0),
        register(vec![1; 32], "bo\u{0}x", 0),
        register(vec![1; 32], &"b".repeat(300), 0),
        register(vec![1; 32], "box", 200),
    ];
    for message in messages {
        let shown = format!("{message:?}");
        let channel = controller.dial(&fresh_key(), Role::Appliance).await.unwrap();
        let refused = refusal(soon(channel.requests.request(message)).await);
        assert_eq!(refused.code, RefusalCode::Malformed, "{shown}");
    }
    // A device that says something wrong is refused that, and stays.
    let device = Device::connect(&controller).await;
    assert_eq!(refusal(soon(device.requests().request(heartbeat())).await).code, RefusalCode::Malformed);
    let end = Say::EndSession(proto::EndSession { session: vec![1; 15] });
    assert_eq!(refusal(soon(device.requests().request(end)).await).code, RefusalCode::Unauthenticated);
    // The controller is unharmed.
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_that_breaks_a_rule_ends_the_conversation() {
    let controller = Controller::start(BASICS).await;
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    let report = proto::Report { digest: vec![1; 5], ..Default::default() };
    let refused = refusal(soon(appliance.channel.requests.request(Say::Report(report))).await);
    assert_eq!(refused.code, RefusalCode::Malformed);
    controller.stop().await;
}

/// Room is made for what is announced: for strangers, of whom there may be many, for less than for appliances of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_not_shown_whose_appliance_it_is_sends_no_long_messages() {
    let controller = Controller::start(BASICS).await;
    let long = proto::Report { addresses: vec!["x".repeat(200); 500], ..Default::default() };
    let mut stranger = controller.dial(&fresh_key(), Role::Appliance).await.unwrap();
    stranger.requests.notify(Say::Report(long.clone())).await.unwrap();
    let Some(Said::Refused(refused)) = soon(stranger.inbox.recv()).await else { panic!("not refused") };
    assert!(refused.message.contains("above the limit"), "{}", refused.message);
    // From one of ours it is read, and refused for what it says.
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    let refused = refusal(soon(appliance.channel.requests.request(Say::Report(long))).await);
    assert!(!refused.message.contains("above the limit"), "{}", refused.message);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_large_messages_and_too_many_are_refused() {
    let settings = ChannelSettings { messages_per_second: 5, ..ChannelSettings::default() };
    let controller = Controller::with(BASICS, settings).await;
    let mut device = Device::connect(&controller).await;
    let large = proto::EnrolDevice { name: "x".repeat(300 * 1024), ..Default::default() };
    device.requests().notify(Say::EnrolDevice(large)).await.unwrap();
    let Some(Said::Refused(refused)) = soon(device.channel.inbox.recv()).await else { panic!("not refused") };
    assert_eq!(refused.code(), RefusalCode::Malformed);
    assert!(soon(device.channel.inbox.recv()).await.is_none());

    let mut device = Device::connect(&controller).await;
    for _ in 0..30 {
        // The controller may have ended it by now.
        let _ = device.requests().notify(Say::ListServers(proto::ListServers {})).await;
    }
    let mut code = None;
    while let Some(said) = soon(device.channel.inbox.recv()).await {
        if let Said::Refused(refused) = said {
            code = Some(refused.code());
        }
    }
    assert_eq!(code, Some(RefusalCode::Limit));
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_that_fail_too_often_are_locked_out() {
    let mut toml = BASICS.to_owned();
    toml.push_str(
        "[[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'SecurityPolicy'\nmetadata.name = 'strict'\n\
         [resource.spec.lockout]\nthreshold = 3\n",
    );
    let controller = Controller::start(&toml).await;
    let key = controller.personal("ana-1").await;
    let mut appliance = Appliance::enrol(&controller).await;
    let wrong = (key.0, horizon_model::TaggedSecret::new(&[7; 32], [7; 4]));
    for _ in 0..3 {
        let device = Device::connect(&controller).await;
        assert_eq!(refusal(device.enrol(&wrong, "x").await).code, RefusalCode::Unauthenticated);
    }
    assert!(controller.events().await.contains(&"locked_out".to_owned()));
    // Not even the right secret helps now; who proves a key that is known is not concerned.
    let device = Device::connect(&controller).await;
    assert_eq!(refusal(device.enrol(&key, "x").await).code, RefusalCode::Limit);
    appliance.reconnect(&controller).await.unwrap();
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_networks_are_cut_off_and_get_no_answer() {
    let controller = Controller::start(BASICS).await;
    let mut device = Device::connect(&controller).await;
    controller
        .put(
            "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'SecurityPolicy'\nmetadata.name = 'closed'\n\
             spec.blockedNetworks = ['127.0.0.0/8']\n",
        )
        .await;
    let Some(Said::Refused(refused)) = soon(device.channel.inbox.recv()).await else { panic!("not refused") };
    assert_eq!(refused.code(), RefusalCode::Policy);
    assert!(soon(device.channel.inbox.recv()).await.is_none());
    let key = fresh_key();
    let dialled =
        tokio::time::timeout(std::time::Duration::from_millis(500), controller.dial(&key, Role::Device))
            .await;
    assert!(dialled.is_err(), "{dialled:?}");
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_do_not_keep_out_who_is_known() {
    let settings = ChannelSettings { connections: 12, ..ChannelSettings::default() };
    let controller = Controller::with(BASICS, settings).await;
    let personal = controller.personal("ana-1").await;
    let device = Device::enrolled(&controller, &personal, "laptop").await;
    let appliance = Appliance::enrol(&controller).await;
    device.channel.requests.close("away");
    appliance.channel.requests.close("away");
    let mut strangers = Vec::new();
    for _ in 0..6 {
        strangers.push(Device::connect(&controller).await);
    }
    match controller.dial(&fresh_key(), Role::Device).await {
        Err(ConnectError::Refused(refusal)) => assert_eq!(refusal.code, RefusalCode::Limit),
        other => panic!("not refused: {other:?}"),
    }
    for (key, role) in [(&device.key, Role::Device), (&appliance.key, Role::Appliance)] {
        controller.dial(key, role).await.unwrap();
    }
    controller.stop().await;
}
