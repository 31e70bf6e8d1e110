//! What any engine must do, on each of them: every operation and constraint of the store.

mod admins;
mod adoption;
mod audit;
mod channels;
mod copy;
mod detection;
mod device_life;
mod devices;
mod facts;
mod faults;
mod keysets;
pub(crate) mod kit;
mod leaders;
pub(crate) mod place;
mod registration;
mod resources;
mod roles;
mod rotation;
mod sealing;
mod sessions;
mod tables;
mod takeover_model;
