//! The three programs, as a person would use them: by their command lines, inside hosts.

mod appliance;
mod client;
mod clock;
mod controller;
mod programs;
mod world;

pub use appliance::Appliance;
pub use client::Client;
pub use clock::Clock;
pub use controller::Controller;
pub use programs::{Programs, repository};
pub use world::{World, WorldOptions};
