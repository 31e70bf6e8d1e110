//! The Kubernetes side against a real API server, which all tests here share: each has a namespace of its own.

mod delivery;
mod faults;
mod flow;
mod kit;
mod leases;
mod schema;
mod statuses;
