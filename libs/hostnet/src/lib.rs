//! The network configuration of a Linux host: links, addresses, routes and rules over rtnetlink (RFC 3549), nftables
//! tables, kernel settings, and notice of changes to any of them.
//!
//! Everything here acts on the network namespace of the thread that opened it. Operations are asynchronous and need a
//! running tokio runtime; adding what is there and removing what is gone are no errors, so that each may be repeated.

mod address;
mod error;
mod events;
mod link;
mod net;
mod nft;
mod route;
mod rule;
mod sysctl;

pub use address::Address;
pub use error::{Errno, NetError};
pub use events::{Changes, Events};
pub use link::Link;
pub use net::Net;
pub use nft::{BaseChain, MAX_SCRIPT_BYTES, Nft, NftError, TableListing};
pub use route::{Lookup, Route, RouteKind, TABLE_MAIN};
pub use rule::{Family, Rule};
pub use sysctl::{SysctlError, Sysctls};
