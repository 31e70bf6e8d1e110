//! Routes.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        route::{
            RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
        },
    },
};

use crate::{
    error::NetError,
    net::{self, Net},
};

/// The main routing table.
pub const TABLE_MAIN: u32 = 254;
/// The kernel's metric for IPv6 routes that were given none.
const IPV6_DEFAULT_METRIC: u32 = 1024;

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Sends it on.
    #[default]
    Unicast,
    /// Drops it in silence.
    Blackhole,
    /// Drops it and tells the sender.
    Unreachable,
    /// Drops it and tells the sender that it is forbidden.
    Prohibit,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where it leads.
    pub destination: IpNet,
    /// The table it stands in; [`TABLE_MAIN`] or another.
    pub table: u32,
    /// What it does.
    pub kind: RouteKind,
    /// The number of the link it leads through; `None` for a route that drops.
    pub link: Option<u32>,
    /// The next hop; `None` when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The address it prefers as the source.
    pub source: Option<IpAddr>,
    /// Its metric: lower wins. 0 on IPv4 and 1024 on IPv6 are the defaults.
    pub metric: u32,
    /// Who made it: 2 the kernel, 3 boot, 4 an administrator, 16 a DHCP client.
    pub protocol: u8,
}

impl Route {
    /// Made by the kernel for an address.
    pub const KERNEL: u8 = 2;
    /// Made by an administrator or a program.
    pub const STATIC: u8 = 4;

    /// A route to what is on a link.
    pub fn on_link(destination: IpNet, link: u32) -> Self {
        Self {
            destination,
            table: TABLE_MAIN,
            kind: RouteKind::Unicast,
            link: Some(link),
            gateway: None,
            source: None,
            metric: default_metric(destination),
            protocol: Self::STATIC,
        }
    }

    /// The same route in another table.
    #[must_use]
    pub fn in_table(mut self, table: u32) -> Self {
        self.table = table;
        self
    }

    /// The same route through a next hop.
    #[must_use]
    pub fn through(mut self, gateway: IpAddr) -> Self {
        self.gateway = Some(gateway);
        self
    }

    fn to_message(&self) -> RouteMessage {
        let mut message = match self.destination {
            IpNet::V4(n) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(n.network(), n.prefix_len())
                .table_id(self.table)
                .build(),
            IpNet::V6(n) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(n.network(), n.prefix_len())
                .table_id(self.table)
                .build(),
        };
        message.header.protocol = self.protocol.into();
        message.header.kind = match self.kind {
            RouteKind::Unicast => RouteType::Unicast,
            RouteKind::Blackhole => RouteType::BlackHole,
            RouteKind::Unreachable => RouteType::Unreachable,
            RouteKind::Prohibit => RouteType::Prohibit,
        };
        // IPv4 tells routes to hosts on the link by their scope; IPv6 ignores it.
        if self.kind == RouteKind::Unicast && self.gateway.is_none() && self.destination.addr().is_ipv4() {
            message.header.scope = RouteScope::Link;
        }
        let attributes = &mut message.attributes;
        attributes.extend(self.link.map(RouteAttribute::Oif));
        attributes.extend(self.gateway.map(|g| RouteAttribute::Gateway(address(g))));
        attributes.extend(self.source.map(|s| RouteAttribute::PrefSource(address(s))));
        if self.metric != 0 {
            attributes.push(RouteAttribute::Priority(self.metric));
        }
        message
    }

    fn from_message(message: &RouteMessage) -> Option<Self> {
        // Entries of the neighbour and path-MTU caches are no routes that anybody made.
        if message.header.flags.contains(RouteFlags::Cloned) {
            return None;
        }
        let unspecified: IpNet = match message.header.address_family {
            AddressFamily::Inet => Ipv4Net::default().into(),
            AddressFamily::Inet6 => Ipv6Net::default().into(),
            _ => return None,
        };
        let kind = match message.header.kind {
            RouteType::Unicast => RouteKind::Unicast,
            RouteType::BlackHole => RouteKind::Blackhole,
            RouteType::Unreachable => RouteKind::Unreachable,
            RouteType::Prohibit => RouteKind::Prohibit,
            _ => return None,
        };
        let mut route = Self {
            destination: unspecified,
            table: message.header.table.into(),
            kind,
            link: None,
            gateway: None,
            source: None,
            metric: 0,
            protocol: protocol_number(message.header.protocol),
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(to) => {
                    let length = message.header.destination_prefix_length;
                    route.destination = IpNet::new(ip(to)?, length).ok()?;
                }
                RouteAttribute::Table(table) => route.table = *table,
                RouteAttribute::Oif(link) => route.link = Some(*link),
                RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway),
                RouteAttribute::PrefSource(source) => route.source = ip(source),
                RouteAttribute::Priority(metric) => route.metric = *metric,
                _ => {}
            }
        }
        Some(route)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the route to {}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " through {gateway}")?;
        }
        if let Some(link) = self.link {
            write!(f, " on link {link}")?;
        }
        if self.table != TABLE_MAIN {
            write!(f, " in table {}", self.table)?;
        }
        Ok(())
    }
}

/// How a packet to an address would leave this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The number of the link.
    pub link: u32,
    /// The next hop; `None` when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The source address the host would choose.
    pub source: Option<IpAddr>,
    /// The table that decided.
    pub table: u32,
}

impl Net {
    /// The routes of one table.
    pub async fn routes(&self, table: u32) -> Result<Vec<Route>, NetError> {
        let mut routes = Vec::new();
        for message in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let messages = net::dump(self.handle.route().get(message).execute(), "the routes").await?;
            routes.extend(messages.iter().filter_map(Route::from_message).filter(|r| r.table == table));
        }
        routes.sort();
        Ok(routes)
    }

    /// Adds a route, or replaces the one to the same destination with the same metric in the same table.
    pub async fn add_route(&self, route: &Route) -> Result<(), NetError> {
        let request = self.handle.route().add(route.to_message()).replace();
        request.execute().await.map_err(|e| NetError::netlink("add", route, &e))
    }

    /// Removes a route. That it is not there is no error.
    pub async fn remove_route(&self, route: &Route) -> Result<(), NetError> {
        let mut message = route.to_message();
        // Scope "nowhere" matches any.
        message.header.scope = RouteScope::NoWhere;
        let result = self.handle.route().del(message).execute().await;
        net::absent(result.map_err(|e| NetError::netlink("remove", route, &e)))
    }

    /// How a packet to `destination`, carrying the firewall mark `mark` (0 for none), would leave.
    pub async fn lookup(&self, destination: IpAddr, mark: u32) -> Result<Lookup, NetError> {
        let mut message = match destination {
            IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, 32).build(),
            IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ip, 128).build(),
        };
        if mark != 0 {
            message.attributes.push(RouteAttribute::Mark(mark));
        }
        let action = "look up the route to";
        let mut answers = std::pin::pin!(self.handle.route().get(message).execute());
        let answer = answers.try_next().await.map_err(|e| NetError::netlink(action, destination, &e))?;
        let unreachable = || crate::error::Errno::Kernel(rustix::io::Errno::NETUNREACH.raw_os_error());
        let answer = answer.ok_or_else(|| NetError::new(action, destination, unreachable()))?;
        let mut found = Lookup { link: 0, gateway: None, source: None, table: answer.header.table.into() };
        for attribute in &answer.attributes {
            match attribute {
                RouteAttribute::Oif(link) => found.link = *link,
                RouteAttribute::Gateway(gateway) => found.gateway = ip(gateway),
                RouteAttribute::PrefSource(source) => found.source = ip(source),
                RouteAttribute::Table(table) => found.table = *table,
                _ => {}
            }
        }
        Ok(found)
    }
}

fn default_metric(destination: IpNet) -> u32 {
    if destination.addr().is_ipv4() { 0 } else { IPV6_DEFAULT_METRIC }
}

fn address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn protocol_number(protocol: RouteProtocol) -> u8 {
    protocol.into()
}
