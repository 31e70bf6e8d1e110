//! From the `connect` command to the first packet through the tunnel.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use horizon_tests::bench::{Figure, Report, percentile};
use horizon_tests::lab::Lab;
use horizon_tests::products::{World, WorldOptions};
use horizon_tests::services::{Probe, WhoAmI};

use super::Bench;

const LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut world = World::start(Lab::new()?, bench.programs.clone(), &WorldOptions::default())?;
    let laptop = world.device("laptop", "ada")?;
    let far = WhoAmI::start(&world.web_host)?;
    let mut probe = Probe::new(laptop.host(), &far)?;
    let (egress, home) = (world.appliance.host().v4(), world.home.router().v4());
    let mut times = Vec::new();
    for n in 0..bench.runs(100) {
        probe.watch(LIMIT, |seen| (seen?.source == home).then_some(()))?;
        let begin = Instant::now();
        let mut connect = laptop.cli(["connect", "gateway"]).spawn("connect")?;
        let through =
            probe.watch(LIMIT, |seen| seen.filter(|seen| seen.source == egress).map(|seen| seen.came));
        times.push((through.with_context(|| format!("connection {n}"))? - begin).as_secs_f64() * 1e3);
        connect.wait(LIMIT)?;
        laptop.disconnect()?;
    }
    let runs = times.len();
    let title = |what: &str| format!("`horizon connect` to the first packet through the tunnel, {what}");
    report.add(Figure::new(title("p50"), "ms", percentile(&times, 0.5), "under 60 ms", runs));
    report.add(Figure::new(title("p99"), "ms", percentile(&times, 0.99), "under 200 ms", runs));
    Ok(())
}
