//! What any engine must do: every operation and constraint of the store.

mod devices;
mod facts;
pub(crate) mod kit;
mod registration;
mod resources;
mod sessions;
mod tables;
