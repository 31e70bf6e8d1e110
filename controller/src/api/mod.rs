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
//! | `POST /v1/keyrotations` | [`model::RotationRequest`] to [`model::Recorded`] |
//! | `POST /v1/revocations` | [`model::RevocationRequest`] to [`model::Recorded`] |
//! | `GET /v1/devices/ID` | [`model::DeviceDetail`] |
//! | `POST /v1/devicedecisions` | [`model::DeviceDecisionRequest`] to [`model::Recorded`] |
//! | `POST /v1/diff` | [`model::DiffRequest`] to [`model::Diff`] |
//! | `GET /v1/{anomalies,blocks,flags,notifications,reports}?limit=`, `GET /v1/{tasks,services}` | [`model::List`] of records, the newest first |
//! | `POST /v1/blocks`, `POST /v1/unblocks` | `{range, reason, severity, for}`, `{range}` to [`model::Done`] |
//! | `POST /v1/events/ID/handling`, `POST /v1/anomalies/ID/feedback`, `POST /v1/notifications/ID` | `{note}`, `{falsePositive, note}`, `{action}` to the record |
//! | `POST /v1/flags`, `POST /v1/flag-clearings` | `{kind, namespace, name, reason}` to [`model::Done`] |
//! | `GET /v1/admins`, `POST /v1/admins`, `POST /v1/admins/NAME/{suspend,activate,unlock,reset-password,reset-totp}` | accounts of administrators |
//! | `POST /v1/prune-confirmations` | [`model::Done`] |
//!
//! Whatever is refused is answered with an [`ApiError`]: `{"message": …, "remedy": …}`. The socket has mode 0600, and the
//! account at its other end is the actor in the audit trail. Requests are bounded in size (64 KiB; 64 MiB for `diff`), in
//! time (30 s) and in number (64 connections).

mod actor;
mod admins;
pub(crate) mod change;
pub mod client;
mod compare;
pub(crate) mod devices;
mod diff;
mod error;
pub(crate) mod handover;
pub(crate) mod issue;
pub mod model;
pub(crate) mod read;
mod reasons;
pub(crate) mod rotate;
pub(crate) mod security;
pub(crate) mod server;
mod socket;
mod strings;
#[cfg(test)]
mod tests;

pub use error::ApiError;
pub use server::{Api, serve};
pub use socket::{SocketError, bind};
pub use strings::Strings;
