//! Horizon's client: a privileged service that holds the device key, the session and every change of the host, and a
//! command line that speaks to it over a Unix socket. What is decided is decided in `horizon-client-core`.
//!
//! Platforms: Linux.

pub mod cli;
mod keep;
pub mod service;
