//! What the hosts of the lab's internet offer, in a few lines each.

mod echo;
mod names;
mod stream;
mod web;
mod whoami;

pub use echo::{UdpEcho, udp_ask};
pub use names::{NameServer, resolve};
pub use stream::{Stream, TcpEcho};
pub use web::{WebServer, http, http_get};
pub use whoami::{Probe, Seen, WhoAmI};
