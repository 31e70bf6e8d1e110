//! What the client decides, without any input or output: the session's state machine, which changes a session asks of
//! the host and how they are undone, how the resolver's file is rewritten, what is said to people, and the protocol
//! between the service and its front ends. Time and randomness are arguments.

pub mod backoff;
pub mod failure;
pub mod ipc;
pub mod journal;
pub mod plan;
pub mod resolv;
pub mod session;
pub mod settings;
pub mod ssh;
pub mod status;
