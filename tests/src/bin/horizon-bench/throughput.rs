//! iperf3 through the tunnel, beside the bare link and wireguard-go.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use horizon_tests::bench::{Direction, Figure, Iperf, Report, WireGuard, percentile};
use horizon_tests::lab::{Host, Lab};
use horizon_tests::products::{Client, World, WorldOptions};

use super::{Bench, say};

const LOADS: [(u8, Direction, &str); 4] = [
    (1, Direction::Up, "1 stream, client sends"),
    (4, Direction::Up, "4 streams, client sends"),
    (1, Direction::Down, "1 stream, appliance sends"),
    (4, Direction::Down, "4 streams, appliance sends"),
];

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut world = World::start(Lab::new()?, bench.programs.clone(), &WorldOptions::default())?;
    // The device is on the public network, as the hosts of the other contenders are: no router in between.
    let device = world.lab.public_host("device")?;
    let mut client = Client::new(device, &bench.programs);
    client.start()?;
    client.add_key(&world.controller.invite("ada")?)?;
    client.connect("gateway")?;
    let appliance = world.appliance.host();
    let inside = overlay_address(appliance, &world.appliance.device()?)?;
    let ours = Iperf::serve(appliance, inside)?;

    let (a, b) = (world.lab.public_host("a")?, world.lab.public_host("b")?);
    let bare = Iperf::serve(&b, b.v4())?;
    let cache = bench.out.parent().unwrap_or(Path::new(".")).join("wireguard-go");
    let wireguard = match WireGuard::install(&cache) {
        Ok((program, version)) => {
            let tunnel = WireGuard::start(&program, &a, &b)?;
            Some((Iperf::serve(&b, [10, 99, 0, 2].into())?, version, tunnel))
        }
        Err(error) => {
            say(&format!("without wireguard-go: {error:#}"));
            None
        }
    };

    let (rounds, seconds) = if bench.quick { (1, 2) } else { (3, 5) };
    for (streams, direction, load) in LOADS {
        let (mut own, mut link, mut other) = (Vec::new(), Vec::new(), Vec::new());
        // Interleaved, so that what the machine does meanwhile happens to all.
        for _ in 0..rounds {
            own.push(ours.tcp(client.host(), streams, direction, seconds)?);
            link.push(bare.tcp(&a, streams, direction, seconds)?);
            if let Some((iperf, _, _)) = &wireguard {
                other.push(iperf.tcp(&a, streams, direction, seconds)?);
            }
        }
        let figure = |aim| Figure::new(format!("TCP, {load}"), "Gb/s", percentile(&own, 0.5), aim, rounds);
        if let Some((_, version, _)) = &wireguard {
            let name = format!("wireguard-go {}", version.rsplit('-').nth(1).unwrap_or(version));
            report.add(figure("above wireguard-go").against(name, percentile(&other, 0.5)));
        }
        report.add(figure("no aim").against("bare veth", percentile(&link, 0.5)));
    }
    Ok(())
}

/// The appliance's own address inside the tunnel.
fn overlay_address(host: &Host, device: &str) -> Result<IpAddr> {
    let addresses = host.ip_show(&format!("-o -4 addr show dev {device}"))?;
    let address = addresses.split_whitespace().skip_while(|word| *word != "inet").nth(1);
    let address =
        address.and_then(|a| a.split('/').next()).context("the appliance has no overlay address")?;
    Ok(address.parse()?)
}
