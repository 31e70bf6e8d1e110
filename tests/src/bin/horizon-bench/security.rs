//! Keys and tokens when many try at once.

use std::time::Duration;

use anyhow::{Result, bail};
use horizon_tests::bench::{Figure, Report, percentile};
use horizon_tests::fleet::rotation::{RotationOptions, rotate};
use horizon_tests::fleet::security::{FloodOptions, RevokeOptions, WRONG, flood, one_token, revoke};

use super::{Bench, say};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(600);

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    say("  one token in many hands ...");
    token(bench, report)?;
    say("  a flood of wrong keys ...");
    wrong_keys(bench, report)?;
    say("  keys are revoked ...");
    revoked(bench, report)?;
    say("  keys of every kind rotate ...");
    rotated(bench, report)
}

fn rotated(bench: &Bench, report: &mut Report) -> Result<()> {
    let options = RotationOptions {
        simulated: if bench.quick { 50 } else { 1000 },
        real: if bench.quick { 2 } else { 8 },
        overlap: Duration::from_secs(if bench.quick { 2 } else { 10 }),
    };
    let (simulated, real) = (options.simulated, options.real);
    for rotated in rotate(&bench.programs, options, LIMIT)? {
        if let Some(reason) = rotated.broken.first() {
            bail!("{} of {real} TCP connections broke: {reason}", rotated.broken.len());
        }
        let keys = rotated.keys;
        let title = |what: &str| {
            format!("{keys} rotate, {simulated} simulated and {real} real appliances with flows: {what}")
        };
        let broken = rotated.broken.len() as f64;
        report.add(Figure::new(title("flows that broke"), "connections", broken, "0", real));
        let longest = percentile(&rotated.silences, 1.0);
        report.add(Figure::new(title("longest gap in a flow"), "ms", longest, "no aim", real));
        let channels = rotated.channels as f64;
        report.add(Figure::new(title("channels made anew"), "channels", channels, "no aim", simulated));
        report.add(Figure::new(
            title("until the last old key was gone"),
            "s",
            rotated.time.as_secs_f64(),
            "no aim",
            1,
        ));
    }
    Ok(())
}

fn token(bench: &Bench, report: &mut Report) -> Result<()> {
    let callers = if bench.quick { 200 } else { 10_000 };
    let one = one_token(&bench.programs.controller, callers, true, LIMIT)?;
    if one.successes != 1 {
        bail!("{} of {callers} appliances registered with one token", one.successes);
    }
    let title = |what: &str| format!("one registration token used by {callers} at once: {what}");
    report.add(Figure::new(title("who got a server by it"), "callers", one.successes as f64, "1", callers));
    report.add(Figure::new(title("until all have an answer"), "s", one.time.as_secs_f64(), "no aim", 1));
    Ok(())
}

fn wrong_keys(bench: &Bench, report: &mut Report) -> Result<()> {
    let options = FloodOptions {
        at_once: if bench.quick { 8 } else { 64 },
        keys: if bench.quick { 8 } else { 128 },
        time: Duration::from_secs(if bench.quick { 3 } else { 30 }),
        postgres: true,
    };
    let flood = flood(&bench.programs.controller, options, LIMIT)?;
    if flood.let_in > 0 {
        bail!("{} wrong keys were let in", flood.let_in);
    }
    let at_once = options.at_once;
    let mut add =
        |what: String, unit, value, runs| report.add(Figure::new(what, unit, value, "no aim", runs));
    let title = |what: &str| format!("devices that enrol with right keys, {at_once} at once: {what}");
    add(title("enrolled"), "per s", flood.right, 1);
    let runs = flood.bystanders_of_right.len();
    add(
        title("heartbeats of appliances meanwhile, p50"),
        "ms",
        percentile(&flood.bystanders_of_right, 0.5),
        runs,
    );
    add(
        title("heartbeats of appliances meanwhile, p99"),
        "ms",
        percentile(&flood.bystanders_of_right, 0.99),
        runs,
    );
    let [before, most] = flood.memory_of_right;
    add(title("controller's memory before"), "MB", before, 1);
    add(title("the most it was"), "MB", most, 1);
    add(title("controller's processor"), "% of a core", flood.cpu_of_right, 1);
    let title = |what: &str| format!("flood of wrong keys, {WRONG} a second at most: {what}");
    add(title("refused"), "per s", flood.wrong, 1);
    add(title("refused for another reason"), "tries", flood.otherwise as f64, 1);
    let runs = flood.honest.len();
    add(title("a device that enrols meanwhile, p50"), "ms", percentile(&flood.honest, 0.5), runs);
    add(title("a device that enrols meanwhile, p99"), "ms", percentile(&flood.honest, 0.99), runs);
    add(title("devices that could not"), "devices", flood.honest_failed as f64, runs);
    let runs = flood.bystanders.len();
    add(title("heartbeats of appliances meanwhile, p50"), "ms", percentile(&flood.bystanders, 0.5), runs);
    add(title("heartbeats of appliances meanwhile, p99"), "ms", percentile(&flood.bystanders, 0.99), runs);
    add(title("appliances that lost their connection"), "appliances", flood.bystanders_lost as f64, 1);
    add(title("controller's memory before"), "MB", flood.memory_before, 1);
    add(title("the most it was"), "MB", flood.memory, 1);
    add(title("controller's processor"), "% of a core", flood.cpu, 1);
    Ok(())
}

fn revoked(bench: &Bench, report: &mut Report) -> Result<()> {
    let options = RevokeOptions {
        appliances: if bench.quick { 5 } else { 100 },
        sessions: if bench.quick { 20 } else { 1000 },
        single: if bench.quick { 5 } else { 200 },
        postgres: true,
    };
    let done = revoke(&bench.programs.controller, options, LIMIT)?;
    let (sessions, appliances) = (options.sessions, options.appliances);
    let title = |what: &str| format!("{sessions} sessions on {appliances} appliances: {what}");
    let mut add = |what: &str, value, runs| report.add(Figure::new(title(what), "ms", value, "no aim", runs));
    let runs = done.single.len();
    add("one key revoked until device and appliance know, p50", percentile(&done.single, 0.5), runs);
    add("one key revoked until device and appliance know, p99", percentile(&done.single, 0.99), runs);
    add("of that the command, p50", percentile(&done.command, 0.5), runs);
    let runs = done.together.len();
    add("all others revoked at once until a device knows, p50", percentile(&done.together, 0.5), runs);
    add("all others revoked at once until a device knows, p99", percentile(&done.together, 0.99), runs);
    add("until the last device and appliance know", done.all.as_secs_f64() * 1e3, 1);
    Ok(())
}
