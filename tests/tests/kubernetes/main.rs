//! Horizon on a real API server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod corpus;
