//! The packet filter and address translation, as one nftables table that is replaced whole.

use std::fmt::Write;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The family of the appliance's table.
pub const TABLE_FAMILY: &str = "inet";
/// The name of the appliance's table. Nothing outside it is touched.
pub const TABLE_NAME: &str = "horizon";
/// Links of containers and virtual machines on this host. Who runs them relies on forwarding whoever switched it on.
const GUESTS: [&str; 9] = ["docker", "podman", "br-", "virbr", "cni", "flannel", "cali", "lxc", "lxd"];

/// What the table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    tun: String,
    v4: Vec<Ipv4Net>,
    v6: Vec<Ipv6Net>,
    inbound: Vec<IpNet>,
    masquerade: bool,
    forward: bool,
    apart: [bool; 2],
}

impl Ruleset {
    /// Nothing is forwarded from or to the tunnel.
    pub fn closed(tun: &str) -> Self {
        let (v4, v6, inbound) = Default::default();
        Self { tun: tun.to_owned(), v4, v6, inbound, masquerade: false, forward: false, apart: [false; 2] }
    }

    /// What comes from the tunnel under an address of `ranges` is forwarded, under the host's own address if
    /// `masquerade`; toward the tunnel only answers are.
    pub fn open(tun: &str, ranges: &[IpNet], masquerade: bool) -> Self {
        let mut set = Self { masquerade, forward: true, ..Self::closed(tun) };
        for range in IpNet::aggregate(&ranges.to_vec()) {
            match range {
                IpNet::V4(n) => set.v4.push(n),
                IpNet::V6(n) => set.v6.push(n),
            }
        }
        set.v4.sort();
        set.v6.sort();
        set
    }

    /// Lets the other side open flows toward these addresses in the tunnel, where anything is forwarded.
    pub fn admit(&mut self, addresses: impl IntoIterator<Item = IpNet>) {
        self.inbound.extend(addresses);
        self.inbound.sort();
        self.inbound.dedup();
    }

    /// Keeps the host's other links apart for IPv4, for IPv6: what the kernel did not forward before the tunnel needed it
    /// to, it does not forward now either. Guests of the host, ports that another program publishes (destination
    /// address translation) and answers are left alone.
    #[must_use]
    pub fn keep_apart(mut self, v4: bool, v6: bool) -> Self {
        self.apart = [v4, v6];
        self
    }

    /// Whether the kernel has to forward packets.
    pub fn forwards(&self) -> bool {
        self.forward
    }

    /// The script that replaces the table as one transaction.
    pub fn script(&self) -> String {
        let tun = &self.tun;
        let mut forward = String::new();
        let mut translate = String::new();
        let mut range = |family: &str, list: Vec<String>| {
            if list.is_empty() {
                return;
            }
            let list = list.join(", ");
            // Writing to a String cannot fail.
            let _ = writeln!(
                forward,
                "    iifname \"{tun}\" oifname != \"{tun}\" {family} saddr {{ {list} }} accept"
            );
            if self.masquerade {
                let _ =
                    writeln!(translate, "    oifname != \"{tun}\" {family} saddr {{ {list} }} masquerade");
            }
        };
        range("ip", self.v4.iter().map(ToString::to_string).collect());
        range("ip6", self.v6.iter().map(ToString::to_string).collect());
        if self.forward {
            for address in &self.inbound {
                let family = if address.addr().is_ipv4() { "ip" } else { "ip6" };
                let _ = writeln!(
                    forward,
                    "    iifname != \"{tun}\" oifname \"{tun}\" {family} daddr {} accept",
                    address.trunc()
                );
            }
        }
        let between = self.between();
        let table = format!("{TABLE_FAMILY} {TABLE_NAME}");
        format!(
            "table {table}\n\
             delete table {table}\n\
             table {table} {{\n\
             \x20 chain clamp {{\n\
             \x20   type filter hook forward priority mangle; policy accept;\n\
             \x20   oifname \"{tun}\" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu\n\
             \x20   iifname \"{tun}\" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu\n\
             \x20 }}\n\
             {between}\
             \x20 chain forward {{\n\
             \x20   type filter hook forward priority filter; policy accept;\n\
             \x20   iifname != \"{tun}\" oifname != \"{tun}\" goto between\n\
             \x20   ct state invalid drop\n\
             \x20   oifname \"{tun}\" ct state established,related accept\n\
             {forward}\
             \x20   drop\n\
             \x20 }}\n\
             \x20 chain translate {{\n\
             \x20   type nat hook postrouting priority srcnat; policy accept;\n\
             {translate}\
             \x20 }}\n\
             }}\n"
        )
    }

    /// The chain for what is neither from nor to the tunnel. At its end, the kernel goes on as if this table were not
    /// there.
    fn between(&self) -> String {
        let mut chain = "  chain between {\n".to_owned();
        if self.apart.contains(&true) {
            chain += "    ct state established,related return\n    ct status dnat return\n";
            // Between the ports of one bridge, packets come by where bridges are made to ask (br_netfilter).
            chain += "    meta iifkind \"bridge\" meta oifkind \"bridge\" return\n";
            // One rule for each: some versions of nft cannot list a set of patterns.
            for name in GUESTS {
                let _ = writeln!(chain, "    iifname \"{name}*\" return");
            }
        }
        for (apart, family) in self.apart.iter().zip(["ipv4", "ipv6"]) {
            if *apart {
                let _ = writeln!(chain, "    meta nfproto {family} drop");
            }
        }
        chain + "  }\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges() -> Vec<IpNet> {
        ["fd00:a::/64", "10.64.0.0/17", "10.64.128.0/17"].iter().map(|r| r.parse().unwrap()).collect()
    }

    #[test]
    fn ranges_are_merged_and_ordered_so_that_equal_wishes_are_equal_tables() {
        let mut turned = ranges();
        turned.reverse();
        assert_eq!(Ruleset::open("hzn0", &ranges(), true), Ruleset::open("hzn0", &turned, true));
        let script = Ruleset::open("hzn0", &ranges(), true).script();
        assert!(script.contains("ip saddr { 10.64.0.0/16 } masquerade"), "{script}");
        assert!(script.contains("ip6 saddr { fd00:a::/64 } masquerade"), "{script}");
    }

    #[test]
    fn flows_from_outside_reach_only_who_admits_them() {
        let mut ruleset = Ruleset::open("hzn0", &ranges(), true);
        assert!(!ruleset.script().contains("daddr"));
        ruleset.admit(["10.64.0.9/32".parse().unwrap()]);
        assert!(
            ruleset.script().contains("iifname != \"hzn0\" oifname \"hzn0\" ip daddr 10.64.0.9/32 accept")
        );
    }

    #[test]
    fn links_are_kept_apart_where_the_kernel_did_so_before() {
        let script = |v4, v6| Ruleset::open("hzn0", &ranges(), true).keep_apart(v4, v6).script();
        let families = |script: &str| ["ipv4", "ipv6"].map(|f| script.contains(&format!("nfproto {f} drop")));
        for apart in [[false, false], [true, false], [false, true], [true, true]] {
            assert_eq!(families(&script(apart[0], apart[1])), apart);
        }
        assert!(script(true, false).contains("iifname \"docker*\" return"));
        assert!(script(false, false).contains("chain between {\n  }"), "the host's own business");
    }

    #[test]
    fn without_masquerade_or_egress_nothing_is_translated() {
        assert!(!Ruleset::open("hzn0", &ranges(), false).script().contains("masquerade"));
        let closed = Ruleset::closed("hzn0").script();
        assert!(!closed.contains("masquerade") && !closed.contains("saddr"), "{closed}");
    }
}
