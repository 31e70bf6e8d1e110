//! The Kubernetes side against a real API server, which all tests here share: each has a namespace of its own.
#![expect(clippy::unwrap_used, reason = "a test that finds nothing fails")]

mod delivery;
mod faults;
mod flow;
mod kit;
mod leases;
mod schema;
mod statuses;
