//! Which target an address leads to: longest prefix first.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;

/// A routing table. Hosts are prefixes of full length, so that the common look-up is one probe of a hash table.
#[derive(Clone, Debug)]
pub struct RouteTable<T> {
    routes: HashMap<IpNet, T>,
    /// Prefix lengths in use with the number of routes of each, longest first, for IPv4 and IPv6.
    lengths: [Vec<(u8, usize)>; 2],
}

impl<T> Default for RouteTable<T> {
    fn default() -> Self {
        Self { routes: HashMap::new(), lengths: [Vec::new(), Vec::new()] }
    }
}

impl<T: Copy + Eq> RouteTable<T> {
    /// Leads `prefix` to `target`, in place of where it led before.
    pub fn insert(&mut self, prefix: IpNet, target: T) {
        let prefix = prefix.trunc();
        if self.routes.insert(prefix, target).is_some() {
            return;
        }
        let lengths = &mut self.lengths[family(prefix.addr())];
        match lengths.iter().position(|(length, _)| *length <= prefix.prefix_len()) {
            Some(at) if lengths[at].0 == prefix.prefix_len() => lengths[at].1 += 1,
            Some(at) => lengths.insert(at, (prefix.prefix_len(), 1)),
            None => lengths.push((prefix.prefix_len(), 1)),
        }
    }

    /// Removes `prefix` if it leads to `target`; a newer owner of the prefix keeps it.
    pub fn remove(&mut self, prefix: IpNet, target: T) {
        let prefix = prefix.trunc();
        if self.routes.get(&prefix) != Some(&target) {
            return;
        }
        self.routes.remove(&prefix);
        let lengths = &mut self.lengths[family(prefix.addr())];
        if let Some(at) = lengths.iter().position(|(length, _)| *length == prefix.prefix_len()) {
            lengths[at].1 -= 1;
            if lengths[at].1 == 0 {
                lengths.remove(at);
            }
        }
    }

    /// The target of the longest prefix that contains `address`.
    pub fn lookup(&self, address: IpAddr) -> Option<T> {
        self.lengths[family(address)].iter().find_map(|(length, _)| {
            let prefix = IpNet::new(address, *length).ok()?.trunc();
            self.routes.get(&prefix).copied()
        })
    }
}

fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix() -> impl Strategy<Value = IpNet> {
        // Few distinct bits, so that prefixes overlap often.
        (any::<[bool; 4]>(), 0u8..=32).prop_map(|(bits, length)| {
            let address = bits.iter().fold(0u32, |a, b| (a << 8) | u32::from(*b));
            IpNet::new(IpAddr::V4(address.into()), length).unwrap().trunc()
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_search(
            operations in prop::collection::vec((any::<bool>(), prefix(), 0u8..3), 0..60),
            wanted in prop::collection::vec(prefix(), 1..20),
        ) {
            let mut table = RouteTable::default();
            let mut model: Vec<(IpNet, u8)> = Vec::new();
            for (insert, prefix, target) in operations {
                if insert {
                    table.insert(prefix, target);
                    model.retain(|(p, _)| *p != prefix);
                    model.push((prefix, target));
                } else {
                    table.remove(prefix, target);
                    model.retain(|route| *route != (prefix, target));
                }
            }
            for address in wanted.iter().map(|p| p.addr()) {
                let expected = model.iter().filter(|(p, _)| p.contains(&address)).max_by_key(|(p, _)| p.prefix_len());
                prop_assert_eq!(table.lookup(address), expected.map(|(_, target)| *target));
            }
        }
    }
}
