//! What any engine must do: every operation and constraint of the store.

pub(crate) mod kit;
mod devices;
mod facts;
mod registration;
mod resources;
mod sessions;
mod tables;
