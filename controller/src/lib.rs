//! The controller: reads what an organisation declares, keeps it in the store, tells appliances what concerns them, and
//! grants people sessions.

pub mod api;
pub mod app;
pub mod channel;
pub mod cli;
pub mod config;
pub mod deliver;
pub mod engine;
pub mod export;
pub mod http;
pub mod init;
pub mod keys;
pub mod kubernetes;
pub mod live;
pub mod log;
pub mod metrics;
pub mod replica;
pub mod source;
pub mod stop;
pub mod store;
