//! Makes and undoes the changes that a plan asks of the host.

use std::{path::Path, time::Duration};

use horizon_client_core::{
    failure::Failure,
    journal::Journal,
    plan::{self, Change, MARK, Observed, TABLE_MAIN},
    ssh,
};
use horizon_hostnet::{Family, Net, NetError, Route, RouteKind, Rule, Sysctls};
use thiserror::Error;

use super::resolver;
use super::store::{Store, StoreError};

/// The port of SSH logins.
const SSH_PORT: u16 = 22;

/// The metric that every other route beats.
const LAST_METRIC: u32 = u32::MAX;

/// A change that could not be made or undone.
#[derive(Debug, Error)]
pub(super) enum HostError {
    /// The kernel refused.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The resolver's file.
    #[error("cannot change {path}: {cause}")]
    Resolver {
        /// Which file.
        path: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The journal.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        Failure::failed(error.to_string(), "the host has been put back as it was")
    }
}

/// What the plan needs to know of the host now. It cannot tell which login the session was asked for from.
pub(super) async fn observe(net: &Net) -> Result<Observed, HostError> {
    let links = net.links().await?;
    let strict = |link: &str| {
        let value = |who: &str| {
            let read = Sysctls::default().read(&format!("net/ipv4/conf/{who}/rp_filter"));
            read.ok().and_then(|v| v.parse::<u8>().ok()).unwrap_or(0)
        };
        // The kernel takes the higher of both.
        value("all").max(value(link)) == 1
    };
    let routes = net.routes(TABLE_MAIN).await?;
    let on_link =
        routes.iter().filter(|r| r.kind == RouteKind::Unicast && r.link.is_some() && r.gateway.is_none());
    let tables =
        ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    Ok(Observed {
        on_link: on_link.map(|r| r.destination).collect(),
        ssh_peer: None,
        ssh_connected: tables.iter().flat_map(|t| ssh::established(t, SSH_PORT)).collect(),
        strict_reverse_path: links.iter().any(|l| l.up && !l.loopback && strict(&l.name)),
    })
}

/// Makes changes in their order. The device of the plan must exist.
pub(super) async fn make(net: &Net, changes: &[Change]) -> Result<(), HostError> {
    for change in changes {
        match change {
            // Made by whoever holds its descriptor.
            Change::Device { .. } => {}
            Change::Address { device, address } => net.add_address(device, *address).await?,
            Change::Route { .. } => {
                if let Some(route) = route(net, change).await? {
                    add_route(net, &route).await?;
                }
            }
            Change::Rule { .. } => {
                if let Some(rule) = rule(change) {
                    net.add_rule(&rule).await?;
                }
            }
        }
    }
    Ok(())
}

/// Adds a route. Its source may be an IPv6 address that the kernel has not yet finished adding; then it is waited for.
async fn add_route(net: &Net, route: &Route) -> Result<(), NetError> {
    const TRIES: u32 = 100;
    const PAUSE: Duration = Duration::from_millis(2);
    let tentative = route.source.is_some_and(|s| s.is_ipv6());
    for _ in 0..TRIES {
        match net.add_route(route).await {
            Err(error) if tentative => tracing::debug!(%error, "trying again"),
            result => return result,
        }
        tokio::time::sleep(PAUSE).await;
    }
    net.add_route(route).await
}

/// Undoes changes, the last first. What is gone already is no error; what fails is passed over and the first failure
/// returned, so that as much as possible is put back.
pub(super) async fn undo(net: &Net, changes: &[Change]) -> Result<(), HostError> {
    let mut first = Ok(());
    for change in plan::inverse(changes) {
        let result = match change {
            Change::Device { name, .. } => net.delete_link(name).await.map_err(HostError::from),
            Change::Address { device, address } => {
                net.remove_address(device, *address).await.map_err(HostError::from)
            }
            Change::Route { .. } => match route(net, change).await {
                Ok(Some(route)) => net.remove_route(&route).await.map_err(HostError::from),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            },
            Change::Rule { .. } => match rule(change) {
                Some(rule) => net.remove_rule(&rule).await.map_err(HostError::from),
                None => Ok(()),
            },
        };
        if let Err(error) = result {
            tracing::warn!(%error, ?change, "a change could not be undone");
            first = first.and(Err(error));
        }
    }
    first
}

/// Puts back what the journal of a former run names, and forgets the journal. Whether there was anything.
pub(super) async fn repair(store: &Store) -> Result<bool, HostError> {
    let Some(journal) = store.journal()? else { return Ok(false) };
    tracing::warn!(changes = journal.changes.len(), "a former run did not put the host back; repairing");
    let net = Net::open()?;
    put_back(&net, &journal).await?;
    store.set_journal(None)?;
    Ok(true)
}

/// Undoes all that a journal names.
pub(super) async fn put_back(net: &Net, journal: &Journal) -> Result<(), HostError> {
    let resolver = match &journal.resolver {
        Some(change) => resolver::restore(&change.path, &change.original)
            .map(|restored| {
                if !restored {
                    tracing::info!(path = %change.path.display(), "not Horizon's any more; left as it is");
                }
            })
            .map_err(|e| resolver_error(&change.path, e)),
        None => Ok(()),
    };
    let changes = undo(net, &journal.changes).await;
    resolver.and(changes)
}

pub(super) fn resolver_error(path: &Path, cause: std::io::Error) -> HostError {
    HostError::Resolver { path: path.display().to_string(), cause }
}

/// The kernel's form of a route; `None` when its device is gone, and the route with it.
async fn route(net: &Net, change: &Change) -> Result<Option<Route>, HostError> {
    let Change::Route { table, to, device, source } = change else { return Ok(None) };
    let link = match device {
        Some(device) => match net.link(device).await? {
            Some(link) => Some(link.index),
            None => return Ok(None),
        },
        None => None,
    };
    let mut route = Route::on_link(*to, link.unwrap_or_default()).in_table(*table);
    if link.is_none() {
        route.link = None;
        route.kind = RouteKind::Unreachable;
        route.metric = LAST_METRIC;
    }
    route.source = *source;
    Ok(Some(route))
}

fn rule(change: &Change) -> Option<Rule> {
    let Change::Rule { family, priority, table, unmarked_only, ignore_default, to } = change else {
        return None;
    };
    let family = match family {
        plan::Family::V4 => Family::V4,
        plan::Family::V6 => Family::V6,
    };
    let mut rule = Rule::new(family, *priority, *table);
    rule.invert = *unmarked_only;
    rule.mark = unmarked_only.then_some((MARK, u32::MAX));
    rule.suppress_prefix_length = ignore_default.then_some(0);
    rule.destination = *to;
    Some(rule)
}
