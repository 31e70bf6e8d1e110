//! Policy routing rules: which table a packet is looked up in.

use std::fmt;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::{
    IpVersion,
    packet_route::{
        AddressFamily,
        route::RouteHeader,
        rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
    },
};

use crate::{
    error::NetError,
    net::{self, Net},
};

/// Of which version of the Internet protocol a rule speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A rule that sends packets to a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// The version of the protocol.
    pub family: Family,
    /// Its place in the order; lower is asked first.
    pub priority: u32,
    /// The table.
    pub table: u32,
    /// The mark a packet must carry, and the bits of it that count.
    pub mark: Option<(u32, u32)>,
    /// Whether the rule holds for what does not match instead.
    pub invert: bool,
    /// Ignore what the table answers when its prefix is this long or shorter; 0 ignores default routes.
    pub suppress_prefix_length: Option<u32>,
    /// Where a packet must come from.
    pub source: Option<IpNet>,
    /// Where a packet must go.
    pub destination: Option<IpNet>,
}

impl Rule {
    /// A rule for every packet.
    pub fn new(family: Family, priority: u32, table: u32) -> Self {
        Self {
            family,
            priority,
            table,
            mark: None,
            invert: false,
            suppress_prefix_length: None,
            source: None,
            destination: None,
        }
    }

    fn to_message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = match self.family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        message.header.action = RuleAction::ToTable;
        message.header.table = u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        if self.invert {
            message.header.flags |= RuleFlags::Invert;
        }
        let attributes = &mut message.attributes;
        attributes.push(RuleAttribute::Priority(self.priority));
        attributes.push(RuleAttribute::Table(self.table));
        if let Some((mark, mask)) = self.mark {
            attributes.push(RuleAttribute::FwMark(mark));
            attributes.push(RuleAttribute::FwMask(mask));
        }
        attributes.extend(self.suppress_prefix_length.map(RuleAttribute::SuppressPrefixLen));
        if let Some(source) = self.source {
            message.header.src_len = source.prefix_len();
            attributes.push(RuleAttribute::Source(source.network()));
        }
        if let Some(destination) = self.destination {
            message.header.dst_len = destination.prefix_len();
            attributes.push(RuleAttribute::Destination(destination.network()));
        }
        message
    }

    /// `None` for rules of another sort than those that this type can say.
    fn from_message(message: &RuleMessage) -> Option<Self> {
        let (family, any): (_, IpNet) = match message.header.family {
            AddressFamily::Inet => (Family::V4, Ipv4Net::default().into()),
            AddressFamily::Inet6 => (Family::V6, Ipv6Net::default().into()),
            _ => return None,
        };
        if message.header.action != RuleAction::ToTable {
            return None;
        }
        let mut rule = Self::new(family, 0, message.header.table.into());
        rule.invert = message.header.flags.contains(RuleFlags::Invert);
        let (mut mark, mut mask) = (0, 0);
        let prefix = |ip, length| IpNet::new(ip, length).ok().filter(|n| *n != any);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Table(table) => rule.table = *table,
                RuleAttribute::FwMark(value) => mark = *value,
                RuleAttribute::FwMask(value) => mask = *value,
                // The kernel says "all ones" for a rule that suppresses nothing.
                RuleAttribute::SuppressPrefixLen(length) if *length != u32::MAX => {
                    rule.suppress_prefix_length = Some(*length);
                }
                RuleAttribute::Source(ip) => rule.source = prefix(*ip, message.header.src_len),
                RuleAttribute::Destination(ip) => rule.destination = prefix(*ip, message.header.dst_len),
                RuleAttribute::Iifname(_)
                | RuleAttribute::Oifname(_)
                | RuleAttribute::UidRange(_)
                | RuleAttribute::IpProtocol(_)
                | RuleAttribute::SourcePortRange(_)
                | RuleAttribute::DestinationPortRange(_) => return None,
                _ => {}
            }
        }
        rule.mark = (mask != 0).then_some((mark, mask));
        Some(rule)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {:?} rule {} for table {}", self.family, self.priority, self.table)
    }
}

impl Net {
    /// The rules of both families that send packets to a table, in their order.
    pub async fn rules(&self) -> Result<Vec<Rule>, NetError> {
        let mut rules = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let messages = net::dump(self.handle.rule().get(version).execute(), "the rules").await?;
            rules.extend(messages.iter().filter_map(Rule::from_message));
        }
        rules.sort_by_key(|r| (r.family, r.priority));
        Ok(rules)
    }

    /// Adds a rule. That it is there already is no error.
    pub async fn add_rule(&self, rule: &Rule) -> Result<(), NetError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule.to_message();
        net::present(request.execute().await.map_err(|e| NetError::netlink("add", rule, &e)))
    }

    /// Removes a rule. That it is not there is no error.
    pub async fn remove_rule(&self, rule: &Rule) -> Result<(), NetError> {
        let result = self.handle.rule().del(rule.to_message()).execute().await;
        net::absent(result.map_err(|e| NetError::netlink("remove", rule, &e)))
    }
}
