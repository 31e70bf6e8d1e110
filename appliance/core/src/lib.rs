//! The decisions of an appliance, without any input or output: what its state asks of the host, which actions lead
//! there from what was observed, how to leave the host as it was found, when to try the controller again, how the
//! verification secret moves on, and which facts tell this machine from another.

mod action;
mod addresses;
mod backoff;
mod beats;
mod desired;
mod identity;
mod observed;
mod plan;
mod reach;
mod ruleset;
pub mod tpm;

pub use action::Action;
pub use addresses::{HostAddress, MAX_ADVERTISED, advertised};
pub use backoff::Backoff;
pub use beats::{AckError, Beats, Secrets};
pub use desired::{DEFAULT_HEARTBEAT_SECONDS, Desired, DesiredTunnel, resolve};
pub use identity::{Disk, Facts, NetworkCard, describe, is_own_or_passing};
pub use observed::{Observed, Table, Tun};
pub use plan::{plan, shut, teardown};
pub use reach::Reachability;
pub use ruleset::{Ruleset, TABLE_FAMILY, TABLE_NAME};
