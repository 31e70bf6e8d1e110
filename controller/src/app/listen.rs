//! Where the controller listens, and what it tells others about it.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::net::TcpListener;

use super::RunError;
use crate::{
    channel::{ChannelOptions, ChannelServer, ChannelSettings},
    config::{Config, RestConfig},
    init::host_addresses,
    rest::Certified,
};

/// Listens for appliances and clients: at the address of the settings, or, where that is every address of both families
/// and the machine has no IPv6, at every address of IPv4.
pub(super) fn listen(
    config: &Config,
    options: impl Fn(SocketAddr) -> ChannelOptions,
) -> Result<ChannelServer, RunError> {
    let listen = config.listen;
    let every_ipv4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, listen.port()));
    let no_ipv6 = |error: &io::Error| {
        let errno = rustix::io::Errno::from_io_error(error);
        matches!(errno, Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL))
    };
    let started = match ChannelServer::start(options(listen)) {
        Err(error) if listen.ip() == Ipv6Addr::UNSPECIFIED && no_ipv6(&error) => {
            tracing::info!("this machine has no IPv6: listening at IPv4 addresses only");
            ChannelServer::start(options(every_ipv4))
        }
        started => started,
    };
    started.map_err(|error| RunError::Listen { setting: "listen", address: listen, error })
}

/// Listens for the REST API, where it is to be served, and reads its certificate.
pub(super) async fn rest(config: &RestConfig) -> Result<Option<(TcpListener, Certified)>, RunError> {
    let Some(address) = config.listen else { return Ok(None) };
    let certified = Certified::open(config)?;
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|error| RunError::Listen { setting: "rest_listen", address, error })?;
    Ok(Some((listener, certified)))
}

pub(super) fn channel_settings(config: &Config) -> ChannelSettings {
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    ChannelSettings {
        connections: count(config.limits.connections),
        handshakes_at_once: count(config.limits.handshakes),
        messages_per_second: config.limits.messages_per_second,
        challenge_patience: config.timeouts.challenge,
        session_patience: config.timeouts.session_grant,
        session_idle: config.timeouts.session_idle,
        takeover_grace: config.timeouts.takeover_grace,
        ..ChannelSettings::default()
    }
}

/// What tokens name: what the settings say, else the addresses of this machine.
pub(super) fn advertise(config: &Config) -> Vec<String> {
    if !config.advertise.is_empty() {
        return config.advertise.clone();
    }
    let port = config.listen.port();
    let mut addresses: Vec<String> = if config.listen.ip().is_unspecified() {
        host_addresses().into_iter().map(|ip| SocketAddr::from((ip, port)).to_string()).collect()
    } else {
        vec![config.listen.to_string()]
    };
    if addresses.is_empty() {
        addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string());
    }
    tracing::info!(
        ?addresses,
        "nothing is advertised in the settings: tokens name the addresses of this machine"
    );
    addresses
}

/// Which of the advertised addresses are those of this machine, for replicas that are reached one by one. All of them
/// where none is: they are names, or those of a balancer.
pub(super) fn own(advertised: &[String]) -> Vec<String> {
    let here = host_addresses();
    let is_here = |address: &&String| {
        let parsed = address.parse::<SocketAddr>();
        parsed.is_ok_and(|address| address.ip().is_loopback() || here.contains(&address.ip()))
    };
    let own: Vec<String> = advertised.iter().filter(is_here).cloned().collect();
    if own.is_empty() { advertised.to_vec() } else { own }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_knows_its_own_addresses_among_those_of_all() {
        let list = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let all = list(&["192.0.2.1:7440", "127.0.0.1:7440", "[2001:db8::1]:7440"]);
        assert_eq!(own(&all), ["127.0.0.1:7440"]);
        let balancer = list(&["vpn.example.org:7440", "192.0.2.1:7440"]);
        assert_eq!(own(&balancer), balancer);
    }
}
