//! One end of a tunnel from flags, so that its speed can be measured between two network namespaces.
//!
//! Both ends derive their keys from `--seed`, so nothing has to be exchanged:
//!
//! ```text
//! ip netns exec a bench_peer accept --tun h0 --address 10.9.0.1/24 --listen 10.0.0.1:7000
//! ip netns exec b bench_peer dial   --tun h0 --address 10.9.0.2/24 --peer 10.0.0.1:7000
//! ```

use std::{net::SocketAddr, process::Command, sync::mpsc};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use horizon_tunnel::{
    Attachment, Delivery, DestinationRules, Identity, Inbound, NetworkConfig, NetworkId, Role, Secret32,
    SessionConfig, SessionId, SessionLimits, TunDevice, Tunnel, TunnelConfig,
};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    side: Side,
    /// Name of the TUN device to create.
    #[arg(long, global = true, default_value = "hzn0")]
    tun: String,
    /// Address and prefix length of the device.
    #[arg(long, global = true, default_value = "10.9.0.1/24")]
    address: String,
    /// MTU of the device.
    #[arg(long, global = true, default_value_t = 1420)]
    mtu: u16,
    /// Largest UDP payload that is tried.
    #[arg(long, global = true, default_value_t = 1472)]
    udp_payload: u16,
    /// Refuse what the peer sends unasked.
    #[arg(long, global = true)]
    answers_only: bool,
    /// Read and write single packets.
    #[arg(long, global = true)]
    no_offload: bool,
    /// Both ends' keys and the session secret are made from it. For measurements only.
    #[arg(long, global = true, default_value_t = 1)]
    seed: u8,
    /// Print the tunnel's counters when standard input gets a line.
    #[arg(long, global = true)]
    stats: bool,
}

#[derive(Subcommand)]
enum Side {
    /// Wait for the other end.
    Accept {
        /// UDP address to listen on.
        #[arg(long, default_value = "0.0.0.0:7000")]
        listen: SocketAddr,
    },
    /// Dial the other end.
    Dial {
        /// Its addresses.
        #[arg(long, required = true)]
        peer: Vec<SocketAddr>,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let accept = Identity::from_seed(&[arguments.seed; 32])?;
    let dial = Identity::from_seed(&[arguments.seed ^ 0xff; 32])?;
    let (own, peer, role, listen) = match &arguments.side {
        Side::Accept { listen } => (accept, dial, Role::Accept, Some(*listen)),
        Side::Dial { peer } => (dial, accept, Role::Dial { addresses: peer.clone() }, None),
    };
    let mut config = TunnelConfig::new(own);
    if let Some(listen) = listen {
        config.listen = listen;
    }
    config.transport.max_udp_payload = arguments.udp_payload;

    let (sender, events) = mpsc::channel();
    let tunnel = Tunnel::start(config, Box::new(move |event| drop(sender.send(event))))?;
    let handle = tunnel.handle();
    handle.set_network(NetworkConfig { id: NetworkId::ACCESS, delivery: Delivery::Tun })?;
    handle.attach_tun(device(&arguments)?)?;
    handle.upsert_session(SessionConfig {
        id: SessionId([arguments.seed; 16]),
        secret: Secret32::new([arguments.seed; 32]),
        peer_key: peer.public_key(),
        role,
        attachments: vec![Attachment {
            network: NetworkId::ACCESS,
            peer_addresses: vec!["0.0.0.0/0".parse()?, "::/0".parse()?],
            from_peer: DestinationRules::allow_all(),
            inbound: if arguments.answers_only { Inbound::AnswersOnly } else { Inbound::Any },
        }],
        limits: SessionLimits::default(),
    })?;
    tracing::info!(listening = %tunnel.local_addr(), "started");
    if arguments.stats {
        std::thread::spawn(move || {
            for _ in std::io::stdin().lines() {
                tracing::info!(stats = ?handle.stats());
            }
        });
    }
    for event in events {
        tracing::info!(?event);
    }
    Ok(())
}

fn device(arguments: &Arguments) -> Result<TunDevice> {
    let device = TunDevice::create(&arguments.tun, arguments.mtu, !arguments.no_offload)?;
    let status = Command::new("ip")
        .args(["address", "add", &arguments.address, "dev", &arguments.tun])
        .status()
        .context("cannot run `ip`: install iproute2")?;
    ensure!(status.success(), "cannot set the address of {}", arguments.tun);
    Ok(device)
}
