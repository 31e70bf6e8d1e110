//! The real programs in the lab: what a person would see.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod broker_away;
mod commands;
mod controller_files;
mod devices;
mod dns;
mod drift;
mod identity;
mod keyring;
mod keys;
mod mtu;
mod networks;
mod organisation_keys;
mod policy;
mod rotation;
mod ssh;
mod take_over;
mod tokens;

use std::net::IpAddr;
use std::time::Duration;

use horizon_tests::lab::within;
use horizon_tests::products::Client;
use horizon_tests::services::http_get;

/// How long a change is waited for that is in force within two seconds on a machine that does nothing else. Tests share theirs
/// with compilers: `make bench` measures how long it takes.
const PROMPTLY: Duration = Duration::from_secs(60);

/// How long a stream of packets may be silent before a flow would notice, on a machine that is busy with other tests.
const GAP: Duration = Duration::from_secs(5);

/// Whom the web server at `to` sees when a device asks.
fn seen_by(client: &Client, to: IpAddr) -> Option<IpAddr> {
    http_get(client.host(), to).ok()?.parse().ok()
}

/// Whether a device's client says that it is connected.
fn connected(client: &Client) -> bool {
    client.status().is_ok_and(|status| status["phase"] == "connected")
}

/// How long a visitor of the web server waits for an answer that does not come.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// How long a peer may take to notice that its controller was replaced: the channel's idle time-out, then a backoff.
const RETURN: Duration = Duration::from_secs(75);

/// Connects as soon as it is granted, once appliance and client have found their controller again.
fn connect_eventually(client: &Client, server: &str) {
    let mut refusal = String::new();
    within(RETURN, "a session is granted", || {
        let output = client.cli(["connect", server]).run().ok()?;
        refusal = output.text();
        output.success().then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}; the last refusal was:\n{refusal}"));
}

/// Waits until a device's client says that it is not connected any more.
fn wait_until_ended(client: &Client) {
    within(PROMPTLY, "the session ends", || (!connected(client)).then_some(())).unwrap();
}
