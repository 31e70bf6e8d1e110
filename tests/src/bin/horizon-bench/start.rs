//! How fast a controller is ready, and how much memory it has taken then.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use horizon_tests::bench::{Figure, Report, Usage, percentile};
use horizon_tests::lab::{Lab, within};
use horizon_tests::products::Controller;

use super::Bench;

/// How many resources an organisation of the benchmarks has.
pub(crate) const RESOURCES: usize = 10_000;

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let folder = tempfile::tempdir()?;
    organisation(folder.path(), RESOURCES)?;
    let mut lab = Lab::new()?;
    let mut controller = Controller::init(lab.public_host("controller")?, &bench.programs, folder.path())?;

    let first = start(&mut controller)?;
    let mut times = Vec::new();
    let mut memory = Vec::new();
    for _ in 0..bench.runs(11) {
        controller.process()?.stop()?;
        times.push(start(&mut controller)?);
        memory.push(Usage::of(controller.process()?.pid())?.resident_mb);
    }
    let runs = times.len();
    let title = |what: &str| format!("controller {what}, {RESOURCES} resources in as many files");
    report.add(Figure::new(title("ready after start"), "s", percentile(&times, 0.5), "under 1.5 s", runs));
    report.add(Figure::new(title("ready after its very first start"), "s", first, "no aim", 1));
    report.add(Figure::new(
        title("resident memory when ready"),
        "MB",
        percentile(&memory, 0.5),
        "under 150 MB",
        runs,
    ));
    Ok(())
}

/// Starts the controller and returns the seconds until it says that it is ready.
fn start(controller: &mut Controller) -> Result<f64> {
    let begin = Instant::now();
    controller.spawn()?;
    within(Duration::from_secs(120), "the controller is ready", || controller.is_ready().then_some(()))?;
    Ok(begin.elapsed().as_secs_f64())
}

/// Writes the quickstart's three documents and as many people, in groups with policies, as make up `count` resources.
pub(crate) fn organisation(folder: &Path, count: usize) -> Result<()> {
    let head = |kind: &str, name: &str| {
        format!(
            "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"{kind}\"\nmetadata.name = \"{name}\"\n[spec]\n"
        )
    };
    let write = |name: &str, text: String| std::fs::write(folder.join(format!("{name}.toml")), text);
    write("server", head("Server", "gateway"))?;
    write("user", head("User", "ada") + "groups = [\"friends\"]\n")?;
    let everywhere = "destinations = [{ cidr = \"0.0.0.0/0\" }, { cidr = \"::/0\" }]\n";
    write(
        "policy",
        format!(
            "{}subjects.groups = [\"friends\"]\nservers = [\"gateway\"]\n{everywhere}",
            head("AccessPolicy", "friends")
        ),
    )?;
    for n in 3..count {
        // One policy per ten people, after them.
        let group = n / 11;
        let name = format!("r{n}");
        let text = if n % 11 == 10 {
            let one = "destinations = [{ cidr = \"192.0.2.0/24\", protocol = \"tcp\", ports = [\"443\"] }]\n";
            format!(
                "{}subjects.groups = [\"g{group}\"]\nservers = [\"gateway\"]\n{one}",
                head("AccessPolicy", &name)
            )
        } else {
            format!("{}displayName = \"Person {n}\"\ngroups = [\"g{group}\"]\n", head("User", &name))
        };
        write(&name, text)?;
    }
    Ok(())
}
