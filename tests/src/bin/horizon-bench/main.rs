//! `make bench`: the figures, on this machine, in one run.

mod connect;
mod edits;
mod fleet;
mod idle;
mod kubernetes;
mod security;
mod start;
mod store;
mod throughput;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use horizon_tests::bench::Report;
use horizon_tests::lab::become_lab_root;
use horizon_tests::products::Programs;

/// Measures the programs beside this one, in a lab of network namespaces.
#[derive(Parser)]
struct Args {
    /// Where the figures go, one JSON file per benchmark.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Fewer and shorter runs, to see that the benchmarks work.
    #[arg(long)]
    quick: bool,
    /// Which benchmarks; all of them unless said.
    benchmarks: Vec<Benchmark>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Benchmark {
    /// Controller start with many resources.
    Start,
    /// From an edited file to an appliance that acts on it.
    Edits,
    /// From `connect` to the first packet.
    Connect,
    /// iperf3 through the tunnel.
    Throughput,
    /// Memory and processor use at rest.
    Idle,
    /// The store on SQLite and on Postgres, beside what the engines do when asked plainly.
    Store,
    /// An organisation in a Kubernetes API server: a controller's start, and the way of a change.
    Kubernetes,
    /// Keys and tokens when many try at once.
    Security,
    /// Many appliances: at rest, and how they come back.
    Fleet,
}

impl Benchmark {
    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Edits => "edits",
            Self::Connect => "connect",
            Self::Throughput => "throughput",
            Self::Idle => "idle",
            Self::Store => "store",
            Self::Kubernetes => "kubernetes",
            Self::Security => "security",
            Self::Fleet => "fleet",
        }
    }
}

/// What every benchmark is given.
struct Bench {
    programs: Programs,
    out: PathBuf,
    quick: bool,
}

impl Bench {
    /// A number of runs: fewer when quick.
    fn runs(&self, full: usize) -> usize {
        if self.quick { full.div_ceil(20).max(2) } else { full }
    }
}

fn main() -> Result<()> {
    become_lab_root()?;
    let args = Args::parse();
    let bench = Bench { programs: Programs::beside_this()?, out: args.out, quick: args.quick };
    let chosen = if args.benchmarks.is_empty() { Benchmark::value_variants() } else { &args.benchmarks };
    for benchmark in chosen {
        say(&format!("{} ...", benchmark.name()));
        let mut report = Report::default();
        let measured = match benchmark {
            Benchmark::Start => start::measure(&bench, &mut report),
            Benchmark::Edits => edits::measure(&bench, &mut report),
            Benchmark::Connect => connect::measure(&bench, &mut report),
            Benchmark::Throughput => throughput::measure(&bench, &mut report),
            Benchmark::Idle => idle::measure(&bench, &mut report),
            Benchmark::Store => store::measure(&bench, &mut report),
            Benchmark::Kubernetes => kubernetes::measure(&bench, &mut report),
            Benchmark::Security => security::measure(&bench, &mut report),
            Benchmark::Fleet => fleet::measure(&bench, &mut report),
        };
        measured.with_context(|| format!("benchmark {}", benchmark.name()))?;
        report.write(&bench.out, benchmark.name())?;
        say(&report.table());
    }
    say(&format!("Figures are in {}.", bench.out.display()));
    Ok(())
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
