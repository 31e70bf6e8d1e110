//! The channel on the loopback.

mod appliances;
mod changes;
mod detection;
mod device_life;
mod devices;
mod identity;
mod keys;
mod kit;
mod malformed;
mod replicas;
mod rotation;
mod sizes;
