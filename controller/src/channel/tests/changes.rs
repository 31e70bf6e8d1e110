//! What becomes of live sessions when what was declared changes, or who carries them.

use horizon_model::{ApplianceReport, Incarnation, SessionUsage};
use horizon_wire::proto::{RefusalCode, from_controller::Message as Said};
use uuid::Uuid;

use super::kit::{Appliance, Controller, Device, refusal, served, session};
use crate::store::tests::kit::BASICS;

/// The largest change of one session, in bytes.
const MAX_CHANGE: usize = 2048;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_narrowed_policy_narrows_the_session() {
    let (controller, key, mut appliance) = served().await;
    let device = Device::enrolled(&controller, &key, "laptop").await;
    let ticket = session(&device, &mut appliance, "berlin").await;
    controller
        .put(
            "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'AccessPolicy'\nmetadata.name = 'all'\n[spec]\nservers = ['*']\n\
             subjects.users = ['ana']\n[[spec.destinations]]\ncidr = '192.0.2.0/24'\nprotocol = 'tcp'\nports = ['443']\n",
        )
        .await;
    let bytes = appliance.take_state().await;
    assert!(bytes < MAX_CHANGE, "{bytes} bytes");
    let (state, _) = appliance.held.entries.decode();
    let narrowed = state.sessions().next().unwrap();
    assert_eq!(narrowed.id, ticket.session);
    assert_eq!(narrowed.rules.len(), 1);
    assert_eq!(narrowed.rules[0].prefix.to_string(), "192.0.2.0/24");
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_with_the_range_of_its_addresses() {
    let (controller, key, mut appliance) = served().await;
    let mut device = Device::enrolled(&controller, &key, "laptop").await;
    session(&device, &mut appliance, "berlin").await;
    controller
        .put(
            "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Server'\nmetadata.name = 'berlin'\n\
             spec.egress.addressRanges = ['10.77.0.0/24']\n",
        )
        .await;
    assert!(device.session_ended().await.reason.contains("addresses"));
    appliance.lose_session().await;
    let again = session(&device, &mut appliance, "berlin").await;
    assert_eq!(again.networks[0].addresses[0].to_string(), "10.77.0.2/24");
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_virtual_networks_hold_addresses_in_each() {
    let toml = BASICS.replace("metadata.name = \"berlin\"\n[resource.spec]", "metadata.name = \"berlin\"\n[resource.spec]\ncapabilities = [\"vpn\", \"lanEmulation\"]\nnetworks = [\"games\"]").replace(
        "servers = [\"*\"]",
        "servers = [\"*\"]\ncapabilities = [\"vpn\", \"lanEmulation\"]\nnetworks = [\"games\"]",
    ) + "\n[[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'VirtualNetwork'\nmetadata.name = 'games'\n\
         spec.addressRanges = ['10.9.0.0/24']\n";
    let controller = Controller::start(&toml).await;
    let key = controller.personal("ana-1").await;
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    let device = Device::enrolled(&controller, &key, "laptop").await;
    let ticket = session(&device, &mut appliance, "berlin").await;
    let networks: Vec<_> = ticket.networks.iter().map(|n| (n.id.0, n.name.as_str())).collect();
    assert_eq!(networks, [(0, ""), (1, "games")]);
    assert!(ticket.networks[1].addresses[0].to_string().ends_with("/24"));
    assert_eq!(controller.store.addresses_in_use(ticket.networks[1].id).await.unwrap(), 1);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_appliance_keeps_its_sessions_and_carries_no_connection_yet() {
    let (controller, key, mut appliance) = served().await;
    let device = Device::enrolled(&controller, &key, "laptop").await;
    let ticket = session(&device, &mut appliance, "berlin").await;
    let usage = SessionUsage {
        session: ticket.session,
        connected: true,
        remote: None,
        bytes_sent: 1,
        bytes_received: 1,
        rtt_micros: 1,
    };
    appliance.report(ApplianceReport { sessions: vec![usage], ..Default::default() }).await;
    appliance.beat(Vec::new()).await;
    let connected = async || controller.store.list_sessions(1).await.unwrap()[0].connected;
    assert!(connected().await);
    appliance.channel.requests.close("restart");
    appliance.incarnation = Incarnation(Uuid::new_v4());
    appliance.reconnect(&controller).await.unwrap();
    assert!(!connected().await);
    // It held the newest state, and is sent nothing but a challenge.
    loop {
        match appliance.next().await.unwrap() {
            Said::Challenge(challenge) => appliance.answer(&challenge).await,
            Said::DialBack(_) => break,
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(appliance.sessions(), [ticket.session]);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_passes_to_another_user_leaves_its_session() {
    let toml = BASICS.to_owned()
        + "\n[[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'User'\nmetadata.name = 'ben'\n[resource.spec]\n\
           [[resource]]\napiVersion = 'horizon.dev/v1alpha1'\nkind = 'PersonalKey'\nmetadata.name = 'ben-1'\n\
           spec.userRef = 'ben'\n";
    let controller = Controller::start(&toml).await;
    let (ana, ben) = (controller.personal("ana-1").await, controller.personal("ben-1").await);
    let mut appliance = Appliance::enrol(&controller).await;
    appliance.take_state().await;
    let device = Device::enrolled(&controller, &ana, "laptop").await;
    session(&device, &mut appliance, "berlin").await;
    device.enrol(&ben, "laptop").await.unwrap();
    appliance.lose_session().await;
    assert_eq!(refusal(device.request("berlin", None).await).code, RefusalCode::Policy);
    controller.stop().await;
}
