//! Blocked addresses, to be looked up for every first packet.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;
use jiff::Timestamp;

/// Ranges of addresses, each until a time. A lookup costs one step for each length of prefix that occurs, however many
/// ranges there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockSet {
    ranges: HashMap<IpNet, Option<Timestamp>>,
    /// The lengths of prefixes that occur, the shortest first, of IPv4 and IPv6.
    lengths: [Vec<u8>; 2],
}

impl BlockSet {
    /// Of ranges with the time each ends at; `None` for those that do not end.
    pub fn new(ranges: impl IntoIterator<Item = (IpNet, Option<Timestamp>)>) -> Self {
        let mut set = Self::default();
        for (range, until) in ranges {
            let range = canonical(range.trunc());
            let lengths = &mut set.lengths[usize::from(range.addr().is_ipv6())];
            if let Err(at) = lengths.binary_search(&range.prefix_len()) {
                lengths.insert(at, range.prefix_len());
            }
            let known = set.ranges.entry(range).or_insert(until);
            // The longer one holds.
            *known = match (*known, until) {
                (Some(a), Some(b)) => Some(a.max(b)),
                _ => None,
            };
        }
        set
    }

    /// The range that holds an address at a time, if one does.
    pub fn find(&self, address: IpAddr, now: Timestamp) -> Option<IpNet> {
        let address = address.to_canonical();
        let lengths = &self.lengths[usize::from(address.is_ipv6())];
        lengths.iter().find_map(|length| {
            let range = IpNet::new(address, *length).ok()?.trunc();
            let until = self.ranges.get(&range)?;
            until.is_none_or(|until| until > now).then_some(range)
        })
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

/// A range of addresses of IPv4 that are written as IPv6, as the range of IPv4.
fn canonical(range: IpNet) -> IpNet {
    match range {
        IpNet::V6(six) if six.prefix_len() >= 96 => match IpAddr::V6(six.addr()).to_canonical() {
            four @ IpAddr::V4(_) => IpNet::new(four, six.prefix_len() - 96).unwrap_or(range),
            IpAddr::V6(_) => range,
        },
        _ => range,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_are_found_until_they_end() {
        let set = BlockSet::new([
            (net("192.0.2.7/32"), Some(at(10))),
            (net("198.51.100.0/24"), None),
            (net("2001:db8::/64"), Some(at(20))),
        ]);
        let find = |text: &str, second| set.find(text.parse().unwrap(), at(second)).map(|n| n.to_string());
        assert_eq!(find("192.0.2.7", 9).as_deref(), Some("192.0.2.7/32"));
        assert_eq!(find("::ffff:192.0.2.7", 9).as_deref(), Some("192.0.2.7/32"));
        assert_eq!(find("192.0.2.7", 10), None);
        assert_eq!(find("198.51.100.200", 1_000_000).as_deref(), Some("198.51.100.0/24"));
        assert_eq!(find("2001:db8::1", 19).as_deref(), Some("2001:db8::/64"));
        assert_eq!(find("2001:db8:0:1::1", 19), None);
        assert_eq!(find("192.0.2.8", 0), None);
        assert_eq!((set.len(), set.is_empty()), (3, false));
    }

    proptest! {
        #[test]
        fn it_finds_what_looking_through_all_finds(
            ranges in prop::collection::vec((any::<u32>(), 0_u8..=32, prop::option::of(0_i64..100)), 0..40),
            addresses in prop::collection::vec(any::<u32>(), 0..40),
            now in 0_i64..100,
        ) {
            let ranges: Vec<_> = ranges.into_iter().map(|(address, length, until)| {
                let range = IpNet::new(IpAddr::V4(address.into()), length).unwrap().trunc();
                (range, until.map(at))
            }).collect();
            let set = BlockSet::new(ranges.clone());
            let near = ranges.iter().map(|(range, _)| range.addr());
            for address in addresses.into_iter().map(|a| IpAddr::V4(a.into())).chain(near) {
                let by_all = ranges.iter().any(|(range, until)| {
                    range.contains(&address) && until.is_none_or(|until| until > at(now))
                });
                prop_assert_eq!(set.find(address, at(now)).is_some(), by_all);
            }
        }
    }
}
