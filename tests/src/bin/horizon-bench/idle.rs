//! What the programs take while nothing happens.

use std::time::Duration;

use anyhow::Result;
use horizon_tests::bench::{Figure, Report, Usage};
use horizon_tests::lab::Lab;
use horizon_tests::products::{World, WorldOptions};

use super::Bench;

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut world = World::start(Lab::new()?, bench.programs.clone(), &WorldOptions::default())?;
    let mut laptop = world.device("laptop", "ada")?;
    laptop.connect("gateway")?;
    let programs = [
        ("controller", world.controller.process()?.pid(), "under 50 MB"),
        ("appliance", world.appliance.process()?.pid(), "under 20 MB"),
        ("client service", laptop.service()?.pid(), "under 20 MB"),
    ];
    // Two heartbeats and what else comes round in a minute.
    let (settle, time) = if bench.quick { (1, 5) } else { (10, 60) };
    std::thread::park_timeout(Duration::from_secs(settle));
    let before = programs.map(|(_, pid, _)| Usage::of(pid));
    std::thread::park_timeout(Duration::from_secs(time));
    for ((name, pid, aim), before) in programs.into_iter().zip(before) {
        let after = Usage::of(pid)?;
        let cpu = after.cpu_percent_since(&before?);
        report.add(Figure::new(
            format!("idle memory, {name} with one session"),
            "MB",
            after.resident_mb,
            aim,
            1,
        ));
        let title = format!("idle processor use over {time} s, {name} with one session");
        report.add(Figure::new(title, "% of a core", cpu, "under 0.2 %", 1));
    }
    Ok(())
}
