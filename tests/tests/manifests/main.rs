//! What manifests/ holds, given to the programs it is meant for: a real API server, helm, Redis and Postgres, and the code
//! with which other projects read what manifests/ has for them.
//!
//! Not exercised, for want of nodes and networks: whether a NetworkPolicy, a PodDisruptionBudget, topology spread and a load
//! balancer do what they say. The API server only validates them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod apply;
mod published;
mod roles;
mod running;
mod services;
mod tools;
mod used;
