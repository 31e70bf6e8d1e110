//! The real program on a real kernel, against a controller that the test plays: what only a controller that misbehaves,
//! falls silent or goes away can show.

#![allow(clippy::unwrap_used, reason = "a failure here is the test's failure")]

mod conversation;
mod finding;
mod host;
mod kit;
mod states;
