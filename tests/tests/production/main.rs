//! Production in the lab: what happens to people when a part of it fails, and what the API server sees of Horizon.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod api_server;
mod clock;
mod database;
mod objects;
mod redis;
mod replicas;
mod worlds;

use std::net::IpAddr;
use std::time::Duration;

use horizon_tests::lab::within;
use horizon_tests::production::{Cluster, Estate};
use horizon_tests::products::Client;
use horizon_tests::services::http_get;
use serde_json::{Value, json};

/// Within which time something is in force once all parts work. Production promises less; tests share the machine.
const SOON: Duration = Duration::from_secs(60);

/// How long peers may take to notice that their replica is gone, and to find another.
const RETURN: Duration = Duration::from_secs(75);

/// Whom the web server sees when a device asks.
fn seen_by(client: &Client, estate: &Estate) -> Option<IpAddr> {
    http_get(client.host(), estate.web_host.v4()).ok()?.parse().ok()
}

/// Asserts that a device's session carries its traffic.
#[track_caller]
fn assert_served(client: &Client, estate: &Estate) {
    assert_eq!(seen_by(client, estate), Some(estate.appliance.host().v4()), "{}", client.log());
}

/// Takes the web server out of the policy or puts it back, and waits until that is in force in a live session.
#[track_caller]
fn allow(estate: &Estate, client: &Client, allowed: bool, limit: Duration) {
    let cidr = if allowed { "0.0.0.0/0" } else { "192.0.2.0/24" };
    let destinations = json!({"spec": {"destinations": [{"cidr": cidr}, {"cidr": "::/0"}]}});
    estate.cluster.patch("accesspolicy", "friends", &destinations).unwrap();
    let what = if allowed { "the web server is allowed" } else { "the web server is forbidden" };
    within(limit, what, || (seen_by(client, estate).is_some() == allowed).then_some(()))
        .unwrap_or_else(|error| panic!("{error}\n{}", estate.logs()));
}

/// A change is in force, and its opposite.
#[track_caller]
fn assert_in_force(estate: &Estate, client: &Client, limit: Duration) {
    allow(estate, client, false, limit);
    allow(estate, client, true, limit);
}

/// A user, for tests that need many.
fn user(name: &str) -> Value {
    json!({"apiVersion": "horizon.dev/v1alpha1", "kind": "User", "metadata": {"name": name}, "spec": {}})
}

/// Waits until the controller has shown in an object's status that it has seen its newest generation.
#[track_caller]
fn wait_until_observed(cluster: &Cluster, kind: &str, name: &str, limit: Duration) -> Value {
    within(limit, &format!("{kind} {name} is observed"), || {
        let object = cluster.object(kind, name).ok()?;
        let generation = &object["metadata"]["generation"];
        (object["status"]["observedGeneration"] == *generation).then_some(object)
    })
    .unwrap()
}
