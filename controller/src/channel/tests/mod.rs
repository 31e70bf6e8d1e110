//! The channel on the loopback.

mod appliances;
mod changes;
mod devices;
mod kit;
mod malformed;
mod replicas;
mod sizes;
