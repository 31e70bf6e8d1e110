//! Replicas that have nothing but a Postgres database between them.

use horizon_model::{Incarnation, PublicKey, ServerId};
use jiff::Timestamp;
use uuid::Uuid;

use super::kit::{Replica, device, hint, until};
use crate::{
    live::{Hint, Live as _},
    store::{
        ReplicaId, ReplicaInfo, Revision, Store,
        tests::{
            kit::{self, Kit},
            place::{ENGINE, On},
        },
    },
};

async fn beat(store: &Store, replica: ReplicaId) {
    let info =
        ReplicaInfo { name: "one".into(), addresses: Vec::new(), draining: false, version: "0".into() };
    store.replica_beat(replica, &info).await.unwrap();
}

/// Keeps replicas alive until it is dropped.
struct Alive(tokio::task::JoinHandle<()>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn alive(store: Store, replicas: &[&Replica]) -> Alive {
    let ids: Vec<_> = replicas.iter().map(|replica| replica.id).collect();
    Alive(tokio::spawn(async move {
        loop {
            for id in &ids {
                beat(&store, *id).await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
    }))
}

async fn attach(store: &Store, replica: &Replica, server: ServerId) -> i64 {
    let (run, now) = (Incarnation(Uuid::from_u128(7)), Timestamp::now());
    let holder = store.channel_of(server).await.unwrap().map(|holder| holder.lease);
    let lease = kit::attach(store, server, replica.id, run, holder, now).await.unwrap().lease;
    replica.live.server_online(server, run, lease, now);
    lease.0
}

async fn scenario() {
    let kit = Kit::with_basics().await;
    let server = kit.register(PublicKey([5; 32])).await.server;
    let (one, two) = (kit.replica().await, kit.replica().await);
    let (a, b) = (Replica::on(one.clone()), Replica::on(two.clone()));
    a.hears("database").await;
    b.hears("database").await;
    let both = alive(one.clone(), &[&a, &b]);

    let mut at_b = b.live.subscribe();
    a.live.publish(Hint::ResourcesChanged(Revision(7)));
    hint(&mut at_b, &Hint::ResourcesChanged(Revision(7))).await;
    attach(&one, &a, server).await;
    hint(&mut at_b, &Hint::PresenceChanged { server }).await;
    assert!(b.sees(server));
    // It moves.
    let lease = attach(&two, &b, server).await;
    until("both know", || [&a, &b].iter().all(|r| r.live.presence(server).unwrap().lease.0 == lease)).await;

    a.live.device_online(device(1), true);
    until("the device is seen", || b.live.is_device_online(device(1))).await;
    a.live.device_online(device(1), false);
    until("it is gone", || !b.live.is_device_online(device(1))).await;

    // A third one knows from its start; the one that goes takes its own along.
    let third = kit.replica().await;
    let c = Replica::on(third.clone());
    until("it knows", || c.sees(server)).await;
    let dead = b.id;
    b.die();
    drop(both);
    let _rest = alive(one.clone(), &[&a, &c]);
    third.remove_replica(dead).await.unwrap();
    until("it is gone", || !a.sees(server) && !c.sees(server)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_work_together_over_postgres() {
    ENGINE.scope(On::Postgres, scenario()).await;
}
