//! The lab: hosts, routers and an "internet" made of Linux namespaces, in which the real programs run.
//!
//! Everything vanishes with the process: namespaces have no name and no file, and children die with their host.

pub mod bench;
pub mod fleet;
pub mod journey;
pub mod lab;
pub mod production;
pub mod products;
pub mod services;
pub mod story;
