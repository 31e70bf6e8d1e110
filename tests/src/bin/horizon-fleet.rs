//! `horizon-fleet`: a synthetic fleet against a controller of this machine, for as long as is asked for.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use horizon_tests::bench::percentile;
use horizon_tests::fleet::{Group, OrganisationOptions, Returned, Storm, Trial, pause};

/// Simulates appliances: starts a controller on the loopback device, has the fleet register and attach, and measures.
#[derive(Parser)]
struct Args {
    /// How many appliances.
    #[arg(long, default_value_t = 1000)]
    appliances: usize,
    /// Seconds between two heartbeats of an appliance.
    #[arg(long, default_value_t = 30)]
    heartbeat: u64,
    /// Seconds over which the appliances connect first.
    #[arg(long, default_value_t = 30)]
    over: u64,
    /// Seconds between the arrival of the last one and the fleet at rest, and after a storm.
    #[arg(long, default_value_t = 0)]
    settle: u64,
    /// Seconds during which the fleet at rest is watched.
    #[arg(long, default_value_t = 60)]
    watch: u64,
    /// Uses Postgres rather than SQLite.
    #[arg(long)]
    postgres: bool,
    /// Has the appliances register with tokens, rather than to enrol them in bulk before the controller starts.
    #[arg(long)]
    register: bool,
    /// Drops all connections at once, and waits for them.
    #[arg(long)]
    storm: bool,
    /// Kills the controller (SIGKILL), looks for every acknowledged heartbeat, and starts it again.
    #[arg(long)]
    kill: bool,
    /// Kills the database (SIGKILL) at the end, and looks for every acknowledged heartbeat.
    #[arg(long)]
    kill_database: bool,
    /// Verifies the audit trail at the end, which says how fast that goes.
    #[arg(long)]
    audit: bool,
    /// The controller's program; the one beside this unless said.
    #[arg(long)]
    controller: Option<PathBuf>,
    /// Another build of it, which is started after the kill and watched at rest as well: the same fleet, one preparation.
    #[arg(long, requires = "kill")]
    then: Option<PathBuf>,
}

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(900);

fn main() -> Result<()> {
    let args = Args::parse();
    let program = match args.controller {
        Some(path) => path,
        None => {
            std::env::current_exe()?.parent().context("a program is in a folder")?.join("horizon-controller")
        }
    };
    let options = OrganisationOptions {
        appliances: args.appliances,
        heartbeat: Duration::from_secs(args.heartbeat),
        ..OrganisationOptions::default()
    };
    let begin = Instant::now();
    let mut trial = match args.register {
        true => Trial::with_tokens(&program, options, args.postgres, false)?,
        false => Trial::enrolled(&program, options, args.postgres)?,
    };
    say(&format!("prepared in {:.1?}", begin.elapsed()));
    say(&format!("ready: controller {:.0} MB", trial.empty.resident_mb));
    let took = trial.bring_up(Duration::from_secs(args.over), LIMIT);
    say(&format!("{}", trial.fleet.counts(Group::Fleet)));
    let took = took.with_context(|| trial.controller.log())?;
    let now = trial.controller.usage()?;
    say(&format!(
        "registered, attached and verified in {took:.1?}; controller {:.2?} CPU",
        now.cpu - trial.empty.cpu
    ));

    let settle = Duration::from_secs(args.settle);
    let watch = Duration::from_secs(args.watch);
    pause(settle);
    at_rest(&mut trial, watch)?;
    if args.kill {
        trial.fleet.hold(true)?;
        trial.controller.kill()?;
        say(&format!("{} acknowledged heartbeats found after the controller was killed", trial.audit()?));
        if let Some(program) = &args.then {
            trial.controller.replace(program);
        }
        trial.fleet.hold(false)?;
        let returned = trial.storm_of_restart(LIMIT);
        say(&format!("{}", trial.fleet.counts(Group::Fleet)));
        tell("controller killed", &returned.with_context(|| trial.controller.log())?);
        pause(settle);
        if args.then.is_some() {
            at_rest(&mut trial, watch)?;
        }
    }
    if args.storm {
        let returned = trial.storm(Storm::Network, LIMIT);
        say(&format!("{}", trial.fleet.counts(Group::Fleet)));
        tell("network storm", &returned.with_context(|| trial.controller.log())?);
        say(&format!("controller {:.0} MB", trial.controller.usage()?.resident_mb));
        pause(settle);
    }
    if args.kill_database {
        trial.fleet.hold(true)?;
        trial.kill_database()?;
        trial.revive_database()?;
        say(&format!("{} acknowledged heartbeats found after the database was killed", trial.audit()?));
    }
    if args.audit {
        let begin = Instant::now();
        let verified = trial.controller.command(&["audit", "verify"]).output()?;
        let said = String::from_utf8_lossy(&verified.stdout);
        let failed = String::from_utf8_lossy(&verified.stderr);
        say(&format!("audit verify, {} after {:.1?}:\n{said}{failed}", verified.status, begin.elapsed()));
    }
    Ok(())
}

fn at_rest(trial: &mut Trial, watch: Duration) -> Result<()> {
    let steady = trial.steady(watch)?;
    let growth = (steady.controller.resident_mb - trial.empty.resident_mb) * 1e6
        / 1024.0
        / trial.options.appliances as f64;
    say(&format!(
        "at rest over {:.1?}: {:.1} beats/s, p50 {:.2} ms, p99 {:.2} ms; controller {:.2} % CPU, {:.0} MB, {growth:.1} KiB an \
         appliance; fleet {:.2} % CPU; database {:?} % CPU, {:?} bytes/s of log",
        steady.time,
        steady.beats,
        percentile(&steady.latencies, 0.5),
        percentile(&steady.latencies, 0.99),
        steady.controller_cpu,
        steady.controller.resident_mb,
        steady.fleet_cpu,
        steady.database_cpu,
        steady.log_bytes,
    ));
    Ok(())
}

fn tell(what: &str, returned: &Returned) {
    say(&format!(
        "{what}: all back after {:.1?}; each p50 {:.2} s, p99 {:.2} s; controller {:.1?} CPU, fleet {:.1?} CPU; bystanders \
         {} beats, p50 {:.2} ms, p99 {:.2} ms, {} lost",
        returned.all,
        percentile(&returned.each, 0.5),
        percentile(&returned.each, 0.99),
        returned.controller,
        returned.fleet,
        returned.bystanders.len(),
        percentile(&returned.bystanders, 0.5),
        percentile(&returned.bystanders, 0.99),
        returned.bystanders_lost,
    ));
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
