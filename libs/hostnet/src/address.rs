//! Addresses of links.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};

use crate::{
    error::NetError,
    net::{self, Net},
};

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The number of the link.
    pub link: u32,
    /// The address, with the length of its network's prefix.
    pub network: IpNet,
    /// Whether it is valid on its link only (`fe80::/10`, `169.254.0.0/16` by scope).
    pub link_local: bool,
    /// Whether it is valid on this host only (`127.0.0.1`, `::1`).
    pub host_local: bool,
}

impl Address {
    fn from_message(message: &AddressMessage) -> Option<Self> {
        let find = |want_local: bool| {
            message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(ip) if want_local => Some(*ip),
                AddressAttribute::Address(ip) if !want_local => Some(*ip),
                _ => None,
            })
        };
        // On a point-to-point link IFA_ADDRESS is the peer's and IFA_LOCAL one's own; IPv6 has only IFA_ADDRESS.
        let ip: IpAddr = find(true).or_else(|| find(false))?;
        Some(Self {
            link: message.header.index,
            network: IpNet::new(ip, message.header.prefix_len).ok()?,
            link_local: message.header.scope == AddressScope::Link,
            host_local: message.header.scope == AddressScope::Host,
        })
    }
}

impl Net {
    /// All addresses, ordered by link.
    pub async fn addresses(&self) -> Result<Vec<Address>, NetError> {
        let messages = net::dump(self.handle.address().get().execute(), "the addresses").await?;
        let mut addresses: Vec<_> = messages.iter().filter_map(Address::from_message).collect();
        addresses.sort();
        Ok(addresses)
    }

    /// Adds an address to a link. That it is there already is no error.
    pub async fn add_address(&self, link: &str, network: IpNet) -> Result<(), NetError> {
        let index = self.link_index(link).await?;
        let request = self.handle.address().add(index, network.addr(), network.prefix_len());
        let object = || format!("the address {network} to {link}");
        net::present(request.execute().await.map_err(|e| NetError::netlink("add", object(), &e)))
    }

    /// Removes an address from a link. That it, or the link, is not there is no error.
    pub async fn remove_address(&self, link: &str, network: IpNet) -> Result<(), NetError> {
        let Some(link_index) = self.link(link).await?.map(|l| l.index) else { return Ok(()) };
        let messages = net::dump(self.handle.address().get().execute(), "the addresses").await?;
        let found = messages
            .into_iter()
            .find(|m| Address::from_message(m).is_some_and(|a| a.link == link_index && a.network == network));
        let Some(message) = found else { return Ok(()) };
        let object = || format!("the address {network} from {link}");
        let result = self.handle.address().del(message).execute().await;
        net::absent(result.map_err(|e| NetError::netlink("remove", object(), &e)))
    }
}
