//! The channel on the loopback.

mod appliances;
mod devices;
mod kit;
mod malformed;
