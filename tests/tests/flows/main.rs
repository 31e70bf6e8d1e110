//! The flows of the project's first description, one file for each, told in its own words: a test walks through a flow, and
//! each step has the name it has there. What a step promises is looked for where people and machines would: in the row of the
//! database, in the status of the resource, in the event or the audit trail, and on the wire.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod broker_unavailability;
mod change_detection;
mod client_connection;
mod connection_termination;
mod key_rotation;
mod kit;
mod multi_device;
mod ongoing_verification;
mod server_registration;
