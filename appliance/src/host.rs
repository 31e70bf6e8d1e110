//! Observing and changing the host and the tunnel: the hands of the plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv6Addr,
    sync::Arc,
};

use horizon_appliance_core::{
    Action, HostAddress, Observed, Ruleset, TABLE_FAMILY, TABLE_NAME, Table, Tun, is_own_or_passing,
};
use horizon_hostnet::{
    Net, NetError, Nft, NftError, Route, RouteKind, SysctlError, Sysctls, TABLE_MAIN, TableListing,
};
use horizon_model::{NetworkId, SessionEntry, SessionId};
use horizon_tunnel::{
    Delivery, Identity, NetworkConfig, RulesError, Snapshot, StartError, Stopped, TunDevice, TunError,
    Tunnel, TunnelConfig, TunnelLimits, UpsertError,
};
use ipnet::IpNet;
use thiserror::Error;

use crate::{
    signals::Signals,
    store::{Originals, Store, StoreError},
    tunnel,
};

const FORWARDING: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The kernel's metric for the routes of IPv6 addresses.
const IPV6_ADDRESS_METRIC: u32 = 256;
const ENDED: &str = "ended by the controller";
/// The most sessions of a tunnel, somewhat above the highest limit that a Server can declare.
const MAX_SESSIONS: usize = 10_240;

/// Why a look or a step failed.
#[derive(Debug, Error)]
pub enum HostError {
    /// Links, addresses, routes.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The packet filter.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// A kernel setting.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The tunnel's socket.
    #[error("{0}; free the port, or change the Server's tunnel port")]
    Start(#[from] StartError),
    /// The TUN device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The name of the TUN device is taken.
    #[error(
        "a link named {0} exists that this appliance did not make; remove it (ip link delete {0}), or choose another name with --tun"
    )]
    ForeignLink(String),
    /// A session's rules.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// A session.
    #[error(transparent)]
    Session(#[from] UpsertError),
    /// The tunnel's thread ended.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The tunnel is not there.
    #[error("the tunnel is not open")]
    NoTunnel,
}

/// The host, and the tunnel on it.
pub(crate) struct Host {
    net: Net,
    nft: Nft,
    sysctls: Sysctls,
    store: Store,
    tun: String,
    identity: Identity,
    fwmark: Option<u32>,
    signals: Arc<Signals>,
    open: Option<Open>,
    table: Table,
    applied: Option<(Ruleset, TableListing)>,
    table_stale: bool,
    originals: Originals,
}

/// The running tunnel and what was told to it.
struct Open {
    tunnel: Tunnel,
    port: u16,
    device: Option<Device>,
    networks: BTreeSet<NetworkId>,
    sessions: BTreeMap<SessionId, SessionEntry>,
}

struct Device {
    index: u32,
    mtu: u16,
}

impl Host {
    /// Takes the host of this thread's network namespace. Nothing is changed yet.
    pub(crate) fn open(
        store: Store,
        tun: String,
        identity: Identity,
        fwmark: Option<u32>,
        signals: Arc<Signals>,
    ) -> Result<Self, HostError> {
        let boot_id = fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
        // What another start of the system left has been set anew since.
        let left = store.originals()?.filter(|o| o.boot_id == boot_id);
        Ok(Self {
            net: Net::open()?,
            nft: Nft::default(),
            sysctls: Sysctls::default(),
            store,
            tun,
            identity,
            fwmark,
            signals,
            open: None,
            table: Table::Changed,
            applied: None,
            table_stale: true,
            originals: left.unwrap_or_else(|| Originals { boot_id, settings: BTreeMap::new() }),
        })
    }

    /// The connection to the kernel.
    pub(crate) fn net(&self) -> &Net {
        &self.net
    }

    /// Has the packet filter looked at again by the next [`Host::observe`].
    pub(crate) fn doubt_table(&mut self) {
        self.table_stale = true;
    }

    /// What the tunnel has counted; `None` while it is not open.
    pub(crate) fn snapshot(&self) -> Option<Snapshot> {
        self.open.as_ref()?.tunnel.handle().stats().ok()
    }

    /// Sessions that were told to the tunnel and that it does not have, because it is full. They are told again by the
    /// next plan.
    pub(crate) fn untaken(&mut self) -> Vec<SessionId> {
        let Some(snapshot) = self.snapshot() else { return Vec::new() };
        let Some(open) = &mut self.open else { return Vec::new() };
        let there: BTreeSet<_> = snapshot.sessions.iter().map(|s| s.id).collect();
        let lacking = |id: &&SessionId| !there.contains(&tunnel::session_id(**id));
        let untaken: Vec<_> = open.sessions.keys().filter(lacking).copied().collect();
        for id in &untaken {
            open.sessions.remove(id);
        }
        untaken
    }

    /// The addresses of the host, without those of the tunnel and of passing links.
    pub(crate) async fn addresses(&self) -> Result<Vec<HostAddress>, HostError> {
        let links = self.net.links().await?;
        let usable = |index| links.iter().find(|l| l.index == index && l.up && l.carrier);
        let name = |index| usable(index).map(|l| l.name.clone());
        let all = self.net.addresses().await?.into_iter();
        let named = all.filter_map(|a| Some(HostAddress { link: name(a.link)?, address: a.network.addr() }));
        Ok(named.filter(|a| a.link != self.tun && !is_own_or_passing(&a.link)).collect())
    }

    /// Looks at everything that the plan speaks of.
    pub(crate) async fn observe(&mut self) -> Result<Observed, HostError> {
        if self.table_stale {
            let listing = self.nft.table(TABLE_FAMILY, TABLE_NAME).await;
            self.table_stale = listing.is_err();
            self.table = match listing {
                Ok(None) => Table::Absent,
                Ok(Some(now)) => match &self.applied {
                    Some((ruleset, then)) if *then == now => Table::Holds(ruleset.clone()),
                    _ => Table::Changed,
                },
                // What cannot be seen is not relied on; the attempt to replace it says why. What is to end still ends.
                Err(error) => {
                    tracing::debug!(%error, "cannot look at the packet filter");
                    Table::Changed
                }
            };
        }
        let tun = self.observe_tun().await?;
        let open = self.open.as_ref();
        Ok(Observed {
            tun,
            table: self.table.clone(),
            settings: self.observe_settings(),
            originals: self.originals.settings.clone(),
            listening: open.map(|o| o.port),
            networks: open.map(|o| o.networks.clone()).unwrap_or_default(),
            sessions: open.map(|o| o.sessions.clone()).unwrap_or_default(),
        })
    }

    async fn observe_tun(&self) -> Result<Tun, HostError> {
        let Some(link) = self.net.link(&self.tun).await? else { return Ok(Tun::Absent) };
        let device = self.open.as_ref().and_then(|o| o.device.as_ref());
        let Some(device) = device.filter(|d| d.index == link.index) else { return Ok(Tun::Foreign) };
        let own = |a: &horizon_hostnet::Address| a.link == link.index && !a.link_local;
        let addresses = self.net.addresses().await?.into_iter().filter(own).map(|a| a.network).collect();
        let through =
            |r: &Route| r.link == Some(link.index) && r.kind == RouteKind::Unicast && r.gateway.is_none();
        let routes = self.net.routes(TABLE_MAIN).await?.into_iter().filter(through);
        Ok(Tun::Present {
            made_with: device.mtu,
            mtu: link.mtu,
            up: link.up,
            addresses,
            routes: routes.map(|r| r.destination.trunc()).collect(),
        })
    }

    fn observe_settings(&self) -> BTreeMap<String, String> {
        let read = |name: &str| Some((name.to_owned(), self.sysctls.read(name).ok()?));
        let mut settings: BTreeMap<_, _> = FORWARDING.into_iter().filter_map(read).collect();
        let links = self.sysctls.per_link("ipv6", "accept_ra").unwrap_or_default();
        let links = links.into_iter().filter(|(link, _)| *link != self.tun && link != "lo");
        settings.extend(links.map(|(link, value)| (format!("net/ipv6/conf/{link}/accept_ra"), value)));
        settings
    }

    /// Takes one step.
    pub(crate) async fn perform(&mut self, action: &Action) -> Result<(), HostError> {
        let result = self.step(action).await;
        if matches!(result, Err(HostError::Stopped(_) | HostError::Session(UpsertError::Stopped(_)))) {
            // Without its thread the tunnel is gone; the next plan opens it again.
            self.open = None;
        }
        result
    }

    async fn step(&mut self, action: &Action) -> Result<(), HostError> {
        match action {
            Action::Listen(port) => self.listen(*port),
            Action::StopListening => {
                self.close();
                Ok(())
            }
            Action::ApplyRuleset(ruleset) => self.apply(ruleset).await,
            Action::RemoveRuleset => {
                self.nft.delete_table(TABLE_FAMILY, TABLE_NAME).await?;
                (self.table, self.applied) = (Table::Absent, None);
                Ok(())
            }
            Action::RemoveTun => self.remove_tun(),
            Action::CreateTun(mtu) => self.create_tun(*mtu).await,
            Action::SetMtu(mtu) => Ok(self.net.set_link_mtu(&self.tun, (*mtu).into()).await?),
            Action::SetUp => Ok(self.net.set_link_up(&self.tun, true).await?),
            Action::AddAddress(address) => Ok(self.net.add_address(&self.tun, *address).await?),
            Action::RemoveAddress(address) => Ok(self.net.remove_address(&self.tun, *address).await?),
            Action::AddRoute(range) => self.add_route(*range).await,
            Action::Set { name, value } => self.set(name, value),
            Action::Restore { name, value } => self.restore(name, value),
            Action::AddNetwork(id) => {
                let network = NetworkConfig { id: tunnel::network_id(*id), delivery: Delivery::Switch };
                let open = self.tunnel()?;
                open.tunnel.handle().set_network(network)?;
                open.networks.insert(*id);
                Ok(())
            }
            Action::RemoveNetwork(id) => {
                let open = self.tunnel()?;
                open.tunnel.handle().remove_network(tunnel::network_id(*id))?;
                open.networks.remove(id);
                Ok(())
            }
            Action::UpsertSession(session) => {
                let config = tunnel::session_config(session)?;
                let open = self.tunnel()?;
                open.tunnel.handle().upsert_session(config)?;
                open.sessions.insert(session.id, (**session).clone());
                Ok(())
            }
            Action::RemoveSession(id) => {
                let open = self.tunnel()?;
                open.tunnel.handle().remove_session(tunnel::session_id(*id), ENDED)?;
                open.sessions.remove(id);
                Ok(())
            }
        }
    }

    fn tunnel(&mut self) -> Result<&mut Open, HostError> {
        self.open.as_mut().ok_or(HostError::NoTunnel)
    }

    fn listen(&mut self, port: u16) -> Result<(), HostError> {
        self.close();
        let signals = self.signals.clone();
        let config = TunnelConfig {
            listen: (Ipv6Addr::UNSPECIFIED, port).into(),
            fwmark: self.fwmark,
            limits: TunnelLimits { sessions: MAX_SESSIONS, ..TunnelLimits::default() },
            ..TunnelConfig::new(self.identity.clone())
        };
        let tunnel = Tunnel::start(config, Box::new(move |event| signals.take(event)))?;
        let access = NetworkConfig { id: horizon_tunnel::NetworkId::ACCESS, delivery: Delivery::Tun };
        tunnel.handle().set_network(access)?;
        let (networks, sessions) = Default::default();
        self.open = Some(Open { tunnel, port, device: None, networks, sessions });
        Ok(())
    }

    /// Tells the peers, and closes the tunnel. Its device vanishes with it.
    pub(crate) fn close(&mut self) {
        if let Some(open) = self.open.take() {
            open.tunnel.shutdown();
        }
    }

    async fn apply(&mut self, ruleset: &Ruleset) -> Result<(), HostError> {
        self.nft.apply(&ruleset.script()).await?;
        let now = self.nft.table(TABLE_FAMILY, TABLE_NAME).await?;
        self.applied = now.map(|listing| (ruleset.clone(), listing));
        self.table_stale = true;
        Ok(())
    }

    fn remove_tun(&mut self) -> Result<(), HostError> {
        let open = self.tunnel()?;
        open.device = None;
        open.tunnel.handle().detach_tun()?;
        // Commands are carried out in order, so with the answer the device is gone.
        open.tunnel.handle().stats()?;
        Ok(())
    }

    async fn create_tun(&mut self, mtu: u16) -> Result<(), HostError> {
        if self.net.link(&self.tun).await?.is_some() {
            return Err(HostError::ForeignLink(self.tun.clone()));
        }
        self.remove_tun()?;
        let device = TunDevice::create(&self.tun, mtu, true)?;
        let index = self.net.link_index(&self.tun).await?;
        // Where IPv6 is switched off for new links, it is still wanted in the tunnel. A kernel without it has no such
        // setting, and says so when an address is added.
        let _ = self.sysctls.ensure(&format!("net/ipv6/conf/{}/disable_ipv6", self.tun), "0");
        let open = self.tunnel()?;
        open.tunnel.handle().attach_tun(device)?;
        open.device = Some(Device { index, mtu });
        Ok(())
    }

    /// Makes the route of an address again, as the kernel had made it. If the address went too since the host was looked
    /// at, nothing is made: the address brings its route when it is back, and a second one beside it would stay.
    async fn add_route(&self, range: IpNet) -> Result<(), HostError> {
        let index = self.net.link_index(&self.tun).await?;
        let own = |a: &horizon_hostnet::Address| a.link == index && a.network.trunc() == range;
        let addresses = self.net.addresses().await?;
        let Some(address) = addresses.iter().find(|a| own(a)) else { return Ok(()) };
        let mut route = Route::on_link(range, index);
        route.protocol = Route::KERNEL;
        if range.addr().is_ipv6() {
            route.metric = IPV6_ADDRESS_METRIC;
        } else {
            route.source = Some(address.network.addr());
        }
        Ok(self.net.add_route(&route).await?)
    }

    /// What a setting was is on disk before it is changed, so that a crash does not lose it.
    fn set(&mut self, name: &str, value: &str) -> Result<(), HostError> {
        let former = self.sysctls.read(name)?;
        if !self.originals.settings.contains_key(name) {
            self.originals.settings.insert(name.to_owned(), former);
            self.store.set_originals(&self.originals)?;
        }
        Ok(self.sysctls.write(name, value)?)
    }

    fn restore(&mut self, name: &str, value: &str) -> Result<(), HostError> {
        match self.sysctls.write(name, value) {
            // The link is gone, and its settings with it.
            Err(e) if !e.is_absent() => return Err(e.into()),
            _ => {}
        }
        self.originals.settings.remove(name);
        Ok(self.store.set_originals(&self.originals)?)
    }
}
