//! The controller: reads what an organisation declares, keeps it in the store, tells appliances what concerns them, and
//! grants people sessions.

// Conversations are futures in futures down to the connections of the database and of Redis.
#![recursion_limit = "256"]

pub mod account;
pub mod api;
pub mod app;
pub mod attestation;
pub mod backup;
pub mod channel;
pub mod cli;
pub mod config;
pub mod deliver;
pub mod detect;
pub mod engine;
pub mod export;
pub mod geo;
pub mod http;
pub mod init;
pub mod keys;
pub mod kubernetes;
pub mod live;
pub mod log;
pub mod metrics;
pub mod notify;
mod parties;
mod patient;
pub mod replica;
pub mod rest;
pub mod rotation;
pub mod sealing;
pub mod source;
pub mod stop;
pub mod store;
