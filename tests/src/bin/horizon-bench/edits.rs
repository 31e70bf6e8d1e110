//! From a saved file to an appliance that acts on it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use horizon_tests::bench::{Figure, Report, percentile};
use horizon_tests::lab::{Host, Lab};
use horizon_tests::products::{Appliance, World, WorldOptions};
use horizon_tests::services::{Probe, WhoAmI};

use super::Bench;
use super::start::{RESOURCES, organisation};

const LIMIT: Duration = Duration::from_secs(20);
/// How long no packet may have come back before the destination counts as forbidden.
const SILENCE: Duration = Duration::from_millis(100);

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let folder = tempfile::tempdir()?;
    organisation(folder.path(), RESOURCES)?;
    let second =
        "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"Server\"\nmetadata.name = \"bystander\"\n[spec]\n";
    std::fs::write(folder.path().join("bystander.toml"), second)?;
    let calm = "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"SecurityPolicy\"\nmetadata.name = \"default\"\n\
                [spec]\nheartbeatInterval = \"5m\"\n";
    std::fs::write(folder.path().join("security.toml"), calm)?;
    let options = WorldOptions { resources: folder.path().to_owned(), ..WorldOptions::default() };
    let mut world = World::start(Lab::new()?, bench.programs.clone(), &options)?;
    let mut bystander = Appliance::new(world.lab.public_host("bystander")?, &bench.programs);
    bystander.enroll(&world.controller.token("bystander")?)?;
    bystander.start()?;
    bystander.wait_until_applied()?;
    let laptop = world.device("laptop", "ada")?;
    laptop.connect("gateway")?;
    let far = WhoAmI::start(&world.web_host)?;
    let mut probe = Probe::new(laptop.host(), &far)?;
    probe.watch(LIMIT, |seen| seen.map(drop)).context("no traffic at first")?;

    let idle = received_over(bystander.host(), Duration::from_secs(10))?;
    let before = received(bystander.host())?;
    let begin = Instant::now();
    let mut times = Vec::new();
    for n in 0..bench.runs(200) {
        let (from, to) =
            if n % 2 == 0 { ("0.0.0.0/0", "192.0.2.0/24") } else { ("192.0.2.0/24", "0.0.0.0/0") };
        let edited = Instant::now();
        world.controller.edit("policy.toml", from, to)?;
        let forbid = n % 2 == 0;
        let (mut last, mut heard) = (edited, edited);
        let took = probe.watch(LIMIT, |seen| {
            match seen.filter(|seen| seen.sent > edited) {
                Some(seen) if forbid => (last, heard) = (seen.sent.max(last), seen.came),
                Some(seen) => return Some(seen.sent - edited),
                None => {}
            }
            (forbid && heard.elapsed() > SILENCE).then(|| last - edited)
        });
        times.push(took.with_context(|| format!("edit {n}"))?.as_secs_f64() * 1e3);
    }
    let elapsed = begin.elapsed();
    let bytes = (received(bystander.host())? - before) as f64;
    let expected = idle * elapsed.as_secs_f64();

    let runs = times.len();
    let title = |what: &str| format!("edit of one file to applied, {RESOURCES} resources, {what}");
    report.add(Figure::new(
        title("p50"),
        "ms",
        percentile(&times, 0.5),
        "under 150 ms, debounce included",
        runs,
    ));
    report.add(Figure::new(
        title("p99"),
        "ms",
        percentile(&times, 0.99),
        "under 500 ms, debounce included",
        runs,
    ));
    let figure = Figure::new(
        "bytes an appliance not concerned received meanwhile",
        "bytes",
        bytes,
        "no more than at rest",
        runs,
    );
    report.add(figure.against("at rest for as long", expected));
    Ok(())
}

/// Bytes that came in on the host's link.
fn received(host: &Host) -> Result<u64> {
    let links: serde_json::Value = serde_json::from_str(&host.ip_show("-s -j link show eth0")?)?;
    links[0]["stats64"]["rx"]["bytes"].as_u64().context("no statistics")
}

/// Bytes a second that come in anyway.
fn received_over(host: &Host, time: Duration) -> Result<f64> {
    let (before, begin) = (received(host)?, Instant::now());
    std::thread::park_timeout(time);
    Ok((received(host)? - before) as f64 / begin.elapsed().as_secs_f64())
}
