//! The controller's own interface: HTTP/1.1 and JSON over a Unix socket, for the CLI and other programs of this machine.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/KIND?namespace=` | [`model::List`] of [`model::Object`]; KIND is the plural, the kind or its short name |
//! | `GET /v1/KIND/NAME?namespace=` | [`model::Detail`]; the namespace is `default` unless named |
//! | `GET /v1/{sessions,devices,events,audit}?limit=` | [`model::List`] of records, the newest first |
//! | `GET /v1/status` | [`model::Status`] |
//! | `POST /v1/tokens` | [`model::TokenRequest`] to [`model::Issued`] |
//! | `POST /v1/invitations` | [`model::InvitationRequest`] to [`model::Issued`] |
//! | `POST /v1/approvals` | [`model::ApprovalRequest`] to [`model::Recorded`] |
//! | `POST /v1/revocations` | [`model::RevocationRequest`] to [`model::Recorded`] |
//! | `POST /v1/diff` | [`model::DiffRequest`] to [`model::Diff`] |
//! | `POST /v1/prune-confirmations` | [`model::Done`] |
//!
//! Whatever is refused is answered with an [`ApiError`]: `{"message": …, "remedy": …}`. The socket has mode 0600, and the
//! account at its other end is the actor in the audit trail. Requests are bounded in size (64 KiB; 64 MiB for `diff`), in
//! time (30 s) and in number (64 connections).

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
