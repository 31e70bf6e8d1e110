//! From what is to what shall be.

use std::collections::{BTreeMap, BTreeSet};

use horizon_model::NetworkId;
use ipnet::IpNet;

use crate::{Action, Desired, DesiredTunnel, Observed, Ruleset, Table, Tun};

const FORWARD_V4: &str = "net/ipv4/ip_forward";
const FORWARD_V6: &str = "net/ipv6/conf/all/forwarding";

/// The actions that lead from `observed` to `desired`, in order: what ends access comes first, the packet filter stands
/// before the device is up and before the kernel forwards, and sessions are admitted last. Empty when all is reached.
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Action> {
    let Some(tunnel) = &desired.tunnel else { return teardown(observed) };
    let mut actions = Vec::new();
    let rebind = observed.listening != Some(tunnel.port);
    if rebind {
        actions.push(Action::Listen(tunnel.port));
    } else {
        let gone = observed.sessions.keys().filter(|id| !desired.sessions.contains_key(*id));
        actions.extend(gone.map(|id| Action::RemoveSession(*id)));
        let gone = observed.networks.difference(&desired.networks);
        actions.extend(gone.map(|id| Action::RemoveNetwork(*id)));
    }
    let filter = filter(tunnel, observed);
    if observed.table != Table::Holds(filter.clone()) {
        actions.push(Action::ApplyRuleset(filter));
    }
    // The device goes with the socket that is closed.
    let tun = if rebind && observed.tun != Tun::Foreign { &Tun::Absent } else { &observed.tun };
    device(tunnel, tun, &mut actions);
    settings(tunnel, &observed.settings, &mut actions);
    let known = |id: &NetworkId| !rebind && observed.networks.contains(id);
    actions.extend(desired.networks.iter().filter(|id| !known(id)).map(|id| Action::AddNetwork(*id)));
    for (id, session) in &desired.sessions {
        if rebind || observed.sessions.get(id) != Some(session) {
            actions.push(Action::UpsertSession(Box::new(session.clone())));
        }
    }
    actions
}

/// What takes the place of the rest of a plan when the packet filter could not be put up: sessions that were to change
/// end, and where no filter is known to stand, the device goes and the kernel forwards no more than it did before.
pub fn shut(planned: &[Action], observed: &Observed) -> Vec<Action> {
    let mut actions = Vec::new();
    // Sessions and device went with a tunnel that was closed.
    if !planned.iter().any(|a| matches!(a, Action::Listen(_))) {
        actions.extend(planned.iter().filter_map(|action| match action {
            Action::UpsertSession(session) if observed.sessions.contains_key(&session.id) => {
                Some(Action::RemoveSession(session.id))
            }
            _ => None,
        }));
        if matches!((&observed.table, &observed.tun), (Table::Absent | Table::Changed, Tun::Present { .. })) {
            actions.push(Action::RemoveTun);
        }
    }
    if !matches!(observed.table, Table::Holds(_)) {
        actions.extend(restored(observed));
    }
    actions
}

/// The actions that leave the host as it was found. The packet filter goes last: it keeps links apart for as long as the
/// kernel forwards.
pub fn teardown(observed: &Observed) -> Vec<Action> {
    let mut actions = Vec::new();
    if observed.listening.is_some() {
        actions.push(Action::StopListening);
    }
    actions.extend(restored(observed));
    if observed.table != Table::Absent {
        actions.push(Action::RemoveRuleset);
    }
    actions
}

/// Forwarding goes back first: while it is on, links need their adjusted router advertisement settings.
fn restored(observed: &Observed) -> impl Iterator<Item = Action> {
    let restore =
        |(name, value): (&String, &String)| Action::Restore { name: name.clone(), value: value.clone() };
    let (forwarding, others): (Vec<_>, Vec<_>) =
        observed.originals.iter().partition(|(name, _)| [FORWARD_V4, FORWARD_V6].contains(&name.as_str()));
    forwarding.into_iter().chain(others).map(restore)
}

/// The packet filter. A host that was no router before is made one for the tunnel only.
fn filter(tunnel: &DesiredTunnel, observed: &Observed) -> Ruleset {
    let was_off = |name: &str| match observed.originals.get(name) {
        Some(former) => former == "0",
        None => tunnel.ruleset.forwards() && observed.settings.get(name).is_some_and(|v| v == "0"),
    };
    tunnel.ruleset.clone().keep_apart(was_off(FORWARD_V4), was_off(FORWARD_V6))
}

fn device(tunnel: &DesiredTunnel, tun: &Tun, actions: &mut Vec<Action>) {
    let create = |actions: &mut Vec<Action>| {
        actions.push(Action::CreateTun(tunnel.mtu));
        actions.extend(tunnel.addresses.iter().map(|a| Action::AddAddress(*a)));
    };
    match tun {
        // Creating over a foreign link fails, and says so.
        Tun::Absent | Tun::Foreign => create(actions),
        Tun::Present { made_with, .. } if *made_with != tunnel.mtu => {
            actions.push(Action::RemoveTun);
            create(actions);
        }
        Tun::Present { mtu, up, addresses, routes, .. } => {
            if *mtu != u32::from(tunnel.mtu) {
                actions.push(Action::SetMtu(tunnel.mtu));
            }
            actions.extend(addresses.difference(&tunnel.addresses).map(|a| Action::RemoveAddress(*a)));
            let missing: BTreeSet<_> = tunnel.addresses.difference(addresses).copied().collect();
            actions.extend(missing.iter().map(|a| Action::AddAddress(*a)));
            if !up {
                actions.push(Action::SetUp);
                return;
            }
            // The kernel makes the route of an address that is added; it has to be made again only after somebody
            // deleted it.
            let wanted: BTreeSet<_> =
                tunnel.addresses.iter().filter(|a| !missing.contains(*a)).filter_map(route_of).collect();
            actions.extend(wanted.difference(routes).map(|r| Action::AddRoute(*r)));
        }
    }
}

/// The range that an address makes reachable; an address alone in its network makes none.
fn route_of(address: &IpNet) -> Option<IpNet> {
    (address.prefix_len() < address.max_prefix_len()).then(|| address.trunc())
}

fn settings(tunnel: &DesiredTunnel, now: &BTreeMap<String, String>, actions: &mut Vec<Action>) {
    let mut set = |name: &str, value: &str| {
        if now.get(name).is_some_and(|v| v != value) {
            actions.push(Action::Set { name: name.to_owned(), value: value.to_owned() });
        }
    };
    if !tunnel.ruleset.forwards() {
        return;
    }
    set(FORWARD_V4, "1");
    // A host that forwards IPv6 ignores router advertisements at "1", and would lose its own default route.
    let listens = |(name, value): &(&String, &String)| name.ends_with("/accept_ra") && *value == "1";
    for (name, _) in now.iter().filter(listens) {
        set(name, "2");
    }
    set(FORWARD_V6, "1");
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
