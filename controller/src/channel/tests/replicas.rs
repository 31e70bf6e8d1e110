//! Several replicas over one store: leases, clones, sessions and departures across them.

use std::{sync::Arc, time::Duration};

use horizon_model::{Incarnation, SessionId};
use horizon_wire::proto::{RefusalCode, Role, from_controller::Message as Said};
use uuid::Uuid;

use super::kit::{Appliance, Controller, Device, ask, refusal, session, soon};
use crate::{
    channel::ChannelSettings,
    live::{
        Hint, Live,
        testing::{Joined, bus},
    },
    store::{
        StateNumbering,
        tests::kit::{BASICS, conformance},
    },
};

conformance!(
    an_appliance_that_reconnects_elsewhere_takes_its_channel_along,
    a_replica_that_lost_the_channel_finds_out_by_what_it_writes,
    a_clone_at_another_replica_is_refused_while_the_first_lives,
    a_restart_takes_the_place_of_one_that_is_silent_or_whose_replica_died,
    an_appliance_that_is_registered_anew_puts_the_old_one_out_everywhere,
    sessions_are_granted_and_taken_over_across_three_replicas,
    sessions_are_granted_and_taken_over_when_every_hint_is_lost,
    a_replica_whose_resources_are_older_undoes_nothing,
    a_replica_that_leaves_sends_everybody_to_another,
    only_the_leader_ends_what_timed_out,
);

/// So many replicas, and their live layers.
async fn replicas(number: usize, settings: ChannelSettings) -> (Vec<Controller>, Vec<Arc<Joined>>) {
    let lives = bus(number, false);
    let all = lives.iter().map(|live| Arc::clone(live) as Arc<dyn Live>).collect();
    (Controller::replicas(BASICS, settings, all).await, lives)
}

fn settings() -> ChannelSettings {
    ChannelSettings { changes: Duration::from_millis(100), ..ChannelSettings::default() }
}

async fn stop(replicas: Vec<Controller>) {
    for replica in replicas {
        replica.stop().await;
    }
}

/// Serves until the controller ends the conversation.
async fn ended(appliance: &mut Appliance) {
    while let Some(said) = appliance.next().await {
        if let Said::Challenge(challenge) = said {
            appliance.answer(&challenge).await;
        }
    }
}

async fn an_appliance_that_reconnects_elsewhere_takes_its_channel_along() {
    let (all, _) = replicas(2, settings()).await;
    let [a, b] = &all[..] else { unreachable!() };
    let mut appliance = Appliance::enrol(a).await;
    appliance.take_state().await;
    let server = appliance.server;
    let first = a.store.channel_of(server).await.unwrap().unwrap();
    assert_eq!((first.replica, first.incarnation), (a.replica, appliance.incarnation));
    let mut old = appliance.hand_over(b).await;
    appliance.attach().await.unwrap();
    let second = b.store.channel_of(server).await.unwrap().unwrap();
    assert!(second.replica == b.replica && second.lease > first.lease);
    // The old replica is told, and lets the old connection go.
    soon(async { while old.inbox.recv().await.is_some() {} }).await;
    // It held the newest state: the next change is the next it hears of, and it comes from its new replica.
    let changed = "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Server'\nmetadata.name = 'berlin'\nspec.tunnel.mtu = 1400\n";
    a.put(changed).await;
    b.follow().await;
    let generation = appliance.held.generation;
    appliance.take_state().await;
    assert_eq!(appliance.held.generation, generation + 1);
    appliance.beat(Vec::new()).await;
    assert!(a.live.presence(server).unwrap().online);
    stop(all).await;
}

async fn a_replica_that_lost_the_channel_finds_out_by_what_it_writes() {
    let (all, lives) = replicas(2, settings()).await;
    let [a, b] = &all[..] else { unreachable!() };
    // No hint tells the old replica.
    lives[0].set_lossy(true);
    let mut appliance = Appliance::enrol(a).await;
    appliance.take_state().await;
    let mut beats = appliance.beat_message(Vec::new());
    let mut old = appliance.hand_over(b).await;
    appliance.attach().await.unwrap();
    appliance.take_challenge().await;
    assert!(a.live.presence(appliance.server).unwrap().online);
    // A beat over the old connection changes nothing and ends it.
    beats.payload.shrink_to_fit();
    let sent = old.requests.request(horizon_wire::proto::to_controller::Message::Heartbeat(beats));
    assert!(soon(sent).await.is_err());
    soon(async { while old.inbox.recv().await.is_some() {} }).await;
    appliance.beat(Vec::new()).await;
    assert!(a.live.presence(appliance.server).unwrap().online);
    assert_eq!(a.store.list_beats(appliance.server, 9).await.unwrap().len(), 1);
    stop(all).await;
}

async fn a_clone_at_another_replica_is_refused_while_the_first_lives() {
    let (all, _) = replicas(2, settings()).await;
    let [a, b] = &all[..] else { unreachable!() };
    let mut first = Appliance::enrol(a).await;
    first.take_state().await;
    let channel = b.dial(&first.key, Role::Appliance).await.unwrap();
    let mut clone = first.copy(channel);
    clone.incarnation = Incarnation(Uuid::new_v4());
    let attach = tokio::spawn(async move {
        let attached = clone.attach().await;
        (clone, attached)
    });
    first.take_challenge().await;
    let (_, refused) = soon(attach).await.unwrap();
    assert_eq!(refusal(refused).code, RefusalCode::Clone);
    assert!(a.events().await.contains(&"clone".to_owned()));
    first.beat(Vec::new()).await;
    stop(all).await;
}

async fn a_restart_takes_the_place_of_one_that_is_silent_or_whose_replica_died() {
    let settings = ChannelSettings { clone_patience: Duration::from_secs(2), ..settings() };
    let (mut all, lives) = replicas(2, settings).await;
    let [a, b] = &mut all[..] else { unreachable!() };
    let mut first = Appliance::enrol(a).await;
    first.take_state().await;
    // Its process was killed and started again; the old connection still stands, and nobody answers over it.
    let channel = b.dial(&first.key, Role::Appliance).await.unwrap();
    let mut second = first.copy(channel);
    second.incarnation = Incarnation(Uuid::new_v4());
    second.attach().await.unwrap();
    ended(&mut first).await;
    second.take_challenge().await;
    // Its replica is dead as far as the store knows: nobody is asked.
    b.seem_dead().await;
    let mut hints = lives[0].subscribe();
    let channel = a.dial(&second.key, Role::Appliance).await.unwrap();
    let mut third = second.copy(channel);
    third.incarnation = Incarnation(Uuid::new_v4());
    third.attach().await.unwrap();
    while let Ok(hint) = hints.try_recv() {
        assert!(!matches!(hint, Hint::ProveAlive { .. }), "{hint:?}");
    }
    stop(all).await;
}

async fn an_appliance_that_is_registered_anew_puts_the_old_one_out_everywhere() {
    let (all, _) = replicas(2, settings()).await;
    let [a, b] = &all[..] else { unreachable!() };
    let mut old = Appliance::enrol(a).await;
    old.take_state().await;
    a.put(
        "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'RegistrationKey'\nmetadata.name = 'berlin-2'\n\
         spec.serverRef = 'berlin'\n",
    )
    .await;
    b.follow().await;
    let token = b.token("berlin-2").await;
    let mut new = Appliance::enrol_with(b, &token).await;
    ended(&mut old).await;
    new.take_state().await;
    stop(all).await;
}

async fn across(lossy: bool) {
    let (all, lives) = replicas(3, settings()).await;
    let [a, b, c] = &all[..] else { unreachable!() };
    lives[0].set_lossy(lossy);
    let key = a.personal("ana-1").await;
    let mut appliance = Appliance::enrol(a).await;
    appliance.take_state().await;
    // The device is at another replica than the appliance.
    let mut first = Device::enrolled(b, &key, "laptop").await;
    let ticket = session(&first, &mut appliance, "berlin").await;
    // And the device that takes over is at a third.
    let second = Device::enrolled(c, &key, "phone").await;
    assert!(matches!(second.request("berlin", None).await.unwrap(), Said::Conflict(_)));
    let asked = tokio::spawn(ask(second.requests(), "berlin".into(), Some(ticket.session)));
    // The old session is removed and the appliance has said so before the new one is granted.
    appliance.lose_session().await;
    let id: SessionId = appliance.take_session().await;
    assert_eq!(second.ticket(&soon(asked).await.unwrap().unwrap()).session, id);
    let ended = first.session_ended().await;
    assert_eq!(ended.session, ticket.session.as_bytes());
    assert!(ended.reason.contains("phone"), "{}", ended.reason);
    stop(all).await;
}

async fn sessions_are_granted_and_taken_over_across_three_replicas() {
    across(false).await;
}

async fn sessions_are_granted_and_taken_over_when_every_hint_is_lost() {
    across(true).await;
}

async fn a_replica_whose_resources_are_older_undoes_nothing() {
    let (all, _) = replicas(2, settings()).await;
    let [a, b] = &all[..] else { unreachable!() };
    let mut appliance = Appliance::enrol(a).await;
    appliance.take_state().await;
    let changed = "apiVersion = 'horizon.dev/v1alpha1'\nkind = 'Server'\nmetadata.name = 'berlin'\nspec.tunnel.mtu = 1400\n";
    a.put(changed).await;
    appliance.take_state().await;
    let held = (appliance.held.generation, appliance.held.entries.digest());
    // The other replica has not heard of the change yet.
    drop(appliance.hand_over(b).await);
    appliance.attach().await.unwrap();
    appliance.take_challenge().await;
    appliance.beat(Vec::new()).await;
    assert_eq!(a.store.server(appliance.server).await.unwrap().unwrap().state_generation, held.0);
    // Once it has, it goes on from there.
    b.follow().await;
    loop {
        match appliance.next().await.unwrap() {
            Said::DialBack(_) => break,
            Said::Challenge(challenge) => appliance.answer(&challenge).await,
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!((appliance.held.generation, appliance.held.entries.digest()), held);
    let lease = a.store.channel_of(appliance.server).await.unwrap().unwrap().lease;
    let older =
        a.store.number_state(appliance.server, lease, horizon_model::Digest([7; 32]), Default::default());
    assert!(matches!(older.await.unwrap(), StateNumbering::Stale(_)));
    stop(all).await;
}

async fn a_replica_that_leaves_sends_everybody_to_another() {
    let (mut all, _) = replicas(2, settings()).await;
    let (b, a) = (all.pop().unwrap(), all.pop().unwrap());
    let key = a.personal("ana-1").await;
    let mut appliance = Appliance::enrol(&a).await;
    appliance.take_state().await;
    let mut device = Device::enrolled(&a, &key, "laptop").await;
    let ticket = session(&device, &mut appliance, "berlin").await;
    let (there, server) = (b.address(), appliance.server);
    let leave = async {
        a.leave(&b).await;
        b
    };
    let go = async {
        let told = loop {
            match appliance.next().await.unwrap() {
                Said::GoElsewhere(go) => break go.addresses,
                Said::Challenge(challenge) => appliance.answer(&challenge).await,
                Said::DialBack(_) => {}
                other => panic!("unexpected {other:?}"),
            }
        };
        assert_eq!(told, std::slice::from_ref(&there));
        appliance.channel.requests.close("going");
        match soon(device.channel.inbox.recv()).await {
            Some(Said::GoElsewhere(go)) => assert_eq!(go.addresses, [there]),
            other => panic!("unexpected {other:?}"),
        }
        device.channel.requests.close("going");
    };
    let (b, ()) = soon(Box::pin(async { tokio::join!(leave, go) })).await;
    assert!(b.store.channel_of(server).await.unwrap().is_none(), "it was given back");
    appliance.reconnect(&b).await.unwrap();
    appliance.take_challenge().await;
    // The session went on meanwhile.
    assert_eq!(appliance.sessions(), [ticket.session]);
    assert!(b.store.live_session(ticket.session).await.unwrap().is_some());
    b.stop().await;
}

async fn only_the_leader_ends_what_timed_out() {
    let settings = ChannelSettings {
        session_idle: Duration::from_millis(1),
        sweep: Duration::from_millis(50),
        ..settings()
    };
    // The second does not lead; alone it ends nothing.
    let (mut all, _) = replicas(2, settings).await;
    let (b, a) = (all.pop().unwrap(), all.pop().unwrap());
    let key = a.personal("ana-1").await;
    let mut appliance = Appliance::enrol(&b).await;
    appliance.take_state().await;
    let device = Device::enrolled(&b, &key, "laptop").await;
    let ticket = session(&device, &mut appliance, "berlin").await;
    // It ends once the leader sees that its device is gone, and the follower has its appliance told.
    device.channel.requests.close("bye");
    drop(device);
    appliance.lose_session().await;
    let reason = a.store.session_end(ticket.session).await.unwrap().unwrap();
    assert!(reason.contains("nothing used it"), "{reason}");
    stop(vec![a, b]).await;
}
