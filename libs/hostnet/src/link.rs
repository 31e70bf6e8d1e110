//! Links (network interfaces).

use rtnetlink::{
    LinkUnspec,
    packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};

use crate::{
    error::{Errno, NetError},
    net::{self, Net},
};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number, unique in the namespace and never reused soon.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is set up (administratively).
    pub up: bool,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// Whether it is the loopback link.
    pub loopback: bool,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Its hardware address, if it has one.
    pub hardware_address: Option<Vec<u8>>,
    /// What the kernel calls its kind (`tun`, `veth`, `bridge`); `None` for hardware.
    pub kind: Option<String>,
}

impl Link {
    fn from_message(message: &LinkMessage) -> Option<Self> {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            loopback: flags.contains(LinkFlags::Loopback),
            mtu: 0,
            hardware_address: None,
            kind: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(address) if address.iter().any(|b| *b != 0) => {
                    link.hardware_address = Some(address.clone());
                }
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind_name(kind)),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }
}

fn kind_name(kind: &InfoKind) -> String {
    kind.to_string()
}

impl Net {
    /// All links, in the order of their numbers.
    pub async fn links(&self) -> Result<Vec<Link>, NetError> {
        let messages = net::dump(self.handle.link().get().execute(), "the links").await?;
        let mut links: Vec<_> = messages.iter().filter_map(Link::from_message).collect();
        links.sort_by_key(|l| l.index);
        Ok(links)
    }

    /// The link of a name, `None` when there is none.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetError> {
        // By name the kernel answers with an error when there is none; the dump is as cheap on a host's few links.
        Ok(self.links().await?.into_iter().find(|l| l.name == name))
    }

    /// The number of a link, an error when there is none.
    pub async fn link_index(&self, name: &str) -> Result<u32, NetError> {
        let absent = || Errno::Kernel(rustix::io::Errno::NODEV.raw_os_error());
        match self.link(name).await? {
            Some(link) => Ok(link.index),
            None => Err(NetError::new("find", format_args!("the link {name}"), absent())),
        }
    }

    /// Sets a link up or down.
    pub async fn set_link_up(&self, name: &str, up: bool) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_name(name);
        let message = if up { message.up() } else { message.down() }.build();
        let object = || format!("the link {name} {}", if up { "up" } else { "down" });
        self.handle.link().set(message).execute().await.map_err(|e| NetError::netlink("set", object(), &e))
    }

    /// Sets the MTU of a link, in bytes.
    pub async fn set_link_mtu(&self, name: &str, mtu: u32) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_name(name).mtu(mtu).build();
        let object = || format!("the MTU of {name} to {mtu}");
        self.handle.link().set(message).execute().await.map_err(|e| NetError::netlink("set", object(), &e))
    }

    /// Deletes a link. That there is none is no error.
    pub async fn delete_link(&self, name: &str) -> Result<(), NetError> {
        let Some(link) = self.link(name).await? else { return Ok(()) };
        let result = self.handle.link().del(link.index).execute().await;
        net::absent(result.map_err(|e| NetError::netlink("delete", format_args!("the link {name}"), &e)))
    }
}
