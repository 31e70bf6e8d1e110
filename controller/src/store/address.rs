//! Addresses of sessions: the lowest free one of each range, and the same one again for the same device.

use std::{collections::HashSet, net::IpAddr};

use horizon_controller_core::{GrantedNetwork, appliance_address};
use horizon_model::{DeviceId, NetworkId, ServerId};
use ipnet::IpNet;
use jiff::Timestamp;

use super::{
    StoreError,
    dialect::{Connection, query},
    row::{Columns as _, millis},
};

/// Addresses of the access network are unique per server, those of a virtual network wherever it is switched.
fn scope(server: ServerId, network: NetworkId) -> String {
    if network == NetworkId::ACCESS { format!("server/{server}") } else { format!("network/{network}") }
}

/// The lowest address of a range that nobody holds. The network's own address, the broadcast address of IPv4 and the
/// reserved ones are nobody's.
fn lowest_free(range: IpNet, reserved: Option<IpAddr>, taken: &HashSet<IpAddr>) -> Option<IpAddr> {
    range
        .hosts()
        .find(|address| *address != range.network() && Some(*address) != reserved && !taken.contains(address))
}

/// Gives a device an address in each range of a network: the one it held before, the lowest free one, or, when all are
/// taken, the one whose device has been away longest. `None` when all are in use.
pub(super) async fn lease(
    db: &mut Connection,
    server: ServerId,
    network: &GrantedNetwork,
    device: DeviceId,
    now: Timestamp,
) -> Result<Option<Vec<IpAddr>>, StoreError> {
    let scope = scope(server, network.id);
    // Addresses that are free now are given to nobody else meanwhile.
    db.serialise(&scope).await?;
    let rows = query("SELECT address, device_id FROM address_leases WHERE scope = $1")
        .bind(&scope)
        .fetch_all(&mut *db)
        .await?;
    let (mut taken, mut own) = (HashSet::new(), Vec::new());
    for row in &rows {
        let address: IpAddr = row.parsed("address")?;
        taken.insert(address);
        if row.parsed::<DeviceId>("device_id")? == device {
            own.push(address);
        }
    }
    let mut held = Vec::new();
    for range in &network.ranges {
        let reserved = (network.id == NetworkId::ACCESS)
            .then(|| appliance_address(*range))
            .flatten()
            .map(|net| net.addr());
        let before = own.iter().copied().find(|a| range.contains(a) && Some(*a) != reserved);
        let address = match before.or_else(|| lowest_free(*range, reserved, &taken)) {
            Some(address) => address,
            None => match longest_unused(db, &scope, *range).await? {
                Some(address) => address,
                None => return Ok(None),
            },
        };
        taken.insert(address);
        query(
            "INSERT INTO address_leases (scope, address, device_id, last_used) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (scope, address) DO UPDATE SET device_id = excluded.device_id, last_used = excluded.last_used",
        )
        .bind(&scope)
        .bind(address.to_string())
        .bind(device.to_string())
        .bind(millis(now))
        .execute(&mut *db)
        .await?;
        held.push(address);
    }
    Ok(Some(held))
}

async fn longest_unused(
    db: &mut Connection,
    scope: &str,
    range: IpNet,
) -> Result<Option<IpAddr>, StoreError> {
    let rows = query(
        "SELECT address FROM address_leases WHERE scope = $1 AND NOT EXISTS (SELECT 1 FROM connections c \
         WHERE c.device_id = address_leases.device_id AND c.status IN ('requested', 'active')) ORDER BY last_used, address",
    )
    .bind(scope)
    .fetch_all(&mut *db)
    .await?;
    for row in &rows {
        let address: IpAddr = row.parsed("address")?;
        if range.contains(&address) {
            return Ok(Some(address));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_host_is_found() {
        let taken = |list: &[&str]| -> HashSet<IpAddr> { list.iter().map(|a| a.parse().unwrap()).collect() };
        let four: IpNet = "10.0.0.0/29".parse().unwrap();
        let first = Some("10.0.0.1".parse().unwrap());
        let free = |list: &[&str]| lowest_free(four, first, &taken(list)).map(|a| a.to_string());
        assert_eq!(free(&[]).as_deref(), Some("10.0.0.2"));
        assert_eq!(free(&["10.0.0.2", "10.0.0.4"]).as_deref(), Some("10.0.0.3"));
        assert_eq!(free(&["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]), None);
        let six: IpNet = "fd00::/64".parse().unwrap();
        assert_eq!(lowest_free(six, None, &taken(&["fd00::1"])), Some("fd00::2".parse().unwrap()));
    }
}
