//! Many appliances: what they cost at rest, and how they come back.

use std::time::Duration;

use anyhow::{Context, Result};
use horizon_tests::bench::{Figure, Report, percentile};
use horizon_tests::fleet::{Group, OrganisationOptions, Returned, Storm, Trial, pause};

use super::{Bench, say};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(900);
/// What a group of this many is aimed at.
const LARGEST: usize = 100_000;

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let sizes: &[usize] = if bench.quick { &[500] } else { &[10_000, LARGEST] };
    sizes
        .iter()
        .try_for_each(|&size| of_size(bench, report, size).with_context(|| format!("{size} appliances")))
}

fn of_size(bench: &Bench, report: &mut Report, size: usize) -> Result<()> {
    let options = OrganisationOptions { appliances: size, ..OrganisationOptions::default() };
    say(&format!("  {size} appliances are enrolled ..."));
    let mut trial = Trial::enrolled(&bench.programs.controller, options, true)?;
    let log = |trial: &Trial| trial.controller.log();
    say("  they connect ...");
    // Over at least one interval, so that their heartbeats are as evenly spread as in a fleet that has long been there.
    let over = Duration::from_secs(if bench.quick { 5 } else { 30 }).max(Duration::from_millis(size as u64));
    trial.bring_up(over, LIMIT).with_context(|| log(&trial))?;
    let settle = Duration::from_secs(if bench.quick { 2 } else { 60 });
    pause(settle);
    say("  at rest ...");
    at_rest(bench, report, &mut trial).with_context(|| log(&trial))?;
    say("  the network goes and comes back ...");
    let returned = trial.storm(Storm::Network, LIMIT).with_context(|| log(&trial))?;
    came_back(report, &trial, "the network fails for all at once", &returned);
    pause(settle);
    say("  the controller is killed ...");
    trial.fleet.hold(true)?;
    trial.controller.kill()?;
    found(report, &trial, "the controller")?;
    trial.fleet.hold(false)?;
    let returned = trial.storm_of_restart(LIMIT).with_context(|| log(&trial))?;
    came_back(report, &trial, "kill -9 of the controller", &returned);
    pause(settle);
    say("  the database is killed ...");
    trial.fleet.hold(true)?;
    trial.kill_database()?;
    trial.revive_database()?;
    found(report, &trial, "Postgres")
}

/// Looks for every appliance's newest acknowledged heartbeat; one that is missing is an error.
fn found(report: &mut Report, trial: &Trial, killed: &str) -> Result<()> {
    let size = trial.options.appliances;
    let title =
        format!("{size} appliances, kill -9 of {killed}: newest acknowledged heartbeats found afterwards");
    let all = (trial.members(Group::Fleet) + trial.members(Group::Bystanders)) as f64;
    let found = trial.audit()? as f64;
    report.add(Figure::new(title, "appliances", found, "of all", 1).against("appliances", all));
    Ok(())
}

fn at_rest(bench: &Bench, report: &mut Report, trial: &mut Trial) -> Result<()> {
    let size = trial.options.appliances;
    let steady = trial.steady(Duration::from_secs(if bench.quick { 5 } else { 120 }))?;
    let beats = steady.latencies.len();
    let title = |what: &str| format!("{size} appliances at rest: {what}");
    let aim = |aim: &'static str| if size == LARGEST { aim } else { "no aim" };
    let expected = size as f64 / trial.options.heartbeat.as_secs_f64();
    report.add(
        Figure::new(title("heartbeats, each acknowledged when durable"), "per s", steady.beats, "all", beats)
            .against("due", expected),
    );
    let latency = |share| percentile(&steady.latencies, share);
    report.add(Figure::new(title("acknowledgement p50"), "ms", latency(0.5), "no aim", beats));
    report.add(Figure::new(title("acknowledgement p99"), "ms", latency(0.99), aim("under 200 ms"), beats));
    let cpu = steady.controller_cpu;
    report.add(Figure::new(title("controller's processor"), "% of a core", cpu, aim("under 25 %"), 1));
    let kib = |megabytes: f64| megabytes * 1e6 / 1024.0 / size as f64;
    let (all, grown) =
        (steady.controller.resident_mb, steady.controller.resident_mb - trial.empty.resident_mb);
    report.add(Figure::new(
        title("controller's memory, all told, for each"),
        "KiB",
        kib(all),
        aim("under 60 KiB"),
        1,
    ));
    report.add(Figure::new(title("of that, since they connected"), "KiB", kib(grown), "no aim", 1));
    if let Some(cpu) = steady.database_cpu {
        report.add(Figure::new(title("Postgres' processor"), "% of a core", cpu, "no aim", 1));
    }
    if let Some(bytes) = steady.log_bytes {
        report.add(Figure::new(title("Postgres' write-ahead log"), "MB/s", bytes / 1e6, "no aim", 1));
        let each = bytes / steady.beats.max(1.0);
        report.add(Figure::new(title("the same for a heartbeat"), "bytes", each, "no aim", 1));
    }
    let title = title("the simulation's own processor, which shares the machine");
    report.add(Figure::new(title, "% of a core", steady.fleet_cpu, "no aim", 1));
    Ok(())
}

fn came_back(report: &mut Report, trial: &Trial, what: &str, returned: &Returned) {
    let (size, runs) = (trial.options.appliances, returned.each.len());
    let title = |figure: &str| format!("{size} appliances, {what}: {figure}");
    let mut add =
        |figure: &str, unit, value| report.add(Figure::new(title(figure), unit, value, "no aim", runs));
    add("until all are back and verified", "s", returned.all.as_secs_f64());
    add("until one is back, p50", "s", percentile(&returned.each, 0.5));
    add("until one is back, p99", "s", percentile(&returned.each, 0.99));
    add("controller's processor time for one", "ms", returned.controller.as_secs_f64() * 1e3 / size as f64);
    add("the simulation's own for one", "ms", returned.fleet.as_secs_f64() * 1e3 / size as f64);
    if !returned.bystanders.is_empty() {
        add("acknowledgements to others meanwhile, p50", "ms", percentile(&returned.bystanders, 0.5));
        add("acknowledgements to others meanwhile, p99", "ms", percentile(&returned.bystanders, 0.99));
        add("others that lost their connection", "appliances", returned.bystanders_lost as f64);
    }
}
