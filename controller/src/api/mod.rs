//! The controller's own interface: HTTP and JSON over a Unix socket, for the CLI and other programs of this machine.

mod actor;
mod change;
pub mod client;
mod compare;
mod diff;
mod error;
mod issue;
pub mod model;
mod read;
mod reasons;
mod server;
mod socket;
mod strings;
#[cfg(test)]
mod tests;

pub use error::ApiError;
pub use server::{Api, serve};
pub use socket::{SocketError, bind};
pub use strings::Strings;
