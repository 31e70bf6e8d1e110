//! What any engine must do, on each of them: every operation and constraint of the store.

mod adoption;
mod channels;
mod devices;
mod facts;
mod faults;
pub(crate) mod kit;
mod leaders;
pub(crate) mod place;
mod registration;
mod resources;
mod roles;
mod sessions;
mod tables;
