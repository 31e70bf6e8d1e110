//! What the host and the tunnel are now.

use std::collections::{BTreeMap, BTreeSet};

use horizon_model::{NetworkId, SessionEntry, SessionId};
use ipnet::IpNet;

use crate::Ruleset;

/// A look at the host and the tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The TUN device.
    pub tun: Tun,
    /// The nftables table.
    pub table: Table,
    /// Kernel settings by their names under `/proc/sys`, with slashes. What the kernel lacks is absent.
    pub settings: BTreeMap<String, String>,
    /// Kernel settings that were changed, as they were before the first change.
    pub originals: BTreeMap<String, String>,
    /// The UDP port that the tunnel listens on.
    pub listening: Option<u16>,
    /// Virtual networks that the tunnel knows.
    pub networks: BTreeSet<NetworkId>,
    /// Sessions that the tunnel admits.
    pub sessions: BTreeMap<SessionId, SessionEntry>,
}

/// The TUN device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tun {
    /// There is no link of its name.
    #[default]
    Absent,
    /// A link of its name exists that this process did not make.
    Foreign,
    /// It is there.
    Present {
        /// The MTU it was made with, in bytes; what the tunnel reckons with.
        made_with: u16,
        /// The MTU it has, in bytes.
        mtu: u32,
        /// Whether it is up.
        up: bool,
        /// Its addresses, without those of link scope.
        addresses: BTreeSet<IpNet>,
        /// The ranges that the main table leads through it.
        routes: BTreeSet<IpNet>,
    },
}

/// The nftables table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Table {
    /// There is none.
    #[default]
    Absent,
    /// There is one, and it is not known what it says.
    Changed,
    /// It is as it was after this rule set was applied.
    Holds(Ruleset),
}
