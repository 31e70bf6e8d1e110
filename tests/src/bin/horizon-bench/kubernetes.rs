//! An organisation in a Kubernetes API server: the start of a controller, and the way of one change.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use horizon_services::{KubeApi, KubeOptions};
use horizon_tests::bench::{Figure, Report, percentile};
use horizon_tests::fleet::{Group, Lone, OrganisationOptions, Trial, kubernetes};
use serde_json::json;

use super::{Bench, say};

/// How many objects the API server holds.
const OBJECTS: usize = 10_000;
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(600);
/// For how long no status may have been waiting before a controller counts as settled.
const QUIET: Duration = Duration::from_secs(5);

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    // One appliance is concerned by the changes, the others are not, and say nothing by themselves meanwhile.
    let calm = Duration::from_secs(300);
    let options = OrganisationOptions {
        appliances: if bench.quick { 20 } else { 200 },
        bystanders: 1,
        heartbeat: calm,
        bystander_heartbeat: calm,
    };
    let count = if bench.quick { 500 } else { OBJECTS };
    let kube = KubeApi::start(KubeOptions { crds: true, ..KubeOptions::default() })?;
    say(&format!("  {count} objects are declared ..."));
    kubernetes::declare(&kube, &options, count)?;
    let (mut controller, database) = kubernetes::controller(&bench.programs.controller, &kube)?;
    say("  the controller starts ...");
    start(report, &mut controller, &kube, count, "with an empty database")?;
    let mut trial = kubernetes::trial(controller, database, &kube, options)?;
    trial.bring_up(Duration::from_secs(2), LIMIT).with_context(|| trial.controller.log())?;
    settle(&trial.controller)?;
    changes(bench, report, &trial, &kube, count)?;
    trial.controller.stop()?;
    start(report, &mut trial.controller, &kube, count, "again")
}

/// Requests that the controller has made of the API server.
fn requests(controller: &Lone) -> Result<f64> {
    controller.metric("horizon_controller_kubernetes_requests_total", "")
}

/// Waits until no status has been waiting to be written for a while. Returns how many requests were made by then.
fn settle(controller: &Lone) -> Result<f64> {
    let end = Instant::now() + LIMIT;
    let mut since = Instant::now();
    while since.elapsed() < QUIET && Instant::now() < end {
        std::thread::park_timeout(Duration::from_millis(100));
        if controller.metric("horizon_controller_kubernetes_status_queue", "")? > 0.0 {
            since = Instant::now();
        }
    }
    requests(controller)
}

fn start(report: &mut Report, controller: &mut Lone, kube: &KubeApi, count: usize, how: &str) -> Result<()> {
    let title = |what: &str| format!("controller's start {how}, {count} objects in Kubernetes: {what}");
    let audited = kube.audited()?.len();
    let took = controller.start(LIMIT)?;
    let at_once = requests(controller)?;
    let begin = Instant::now();
    report.add(Figure::new(title("ready after"), "s", took.as_secs_f64(), "no aim", 1));
    report.add(Figure::new(title("requests until then"), "requests", at_once, "no aim", 1));
    let ready = controller.usage()?;
    report.add(Figure::new(title("memory when ready"), "MB", ready.resident_mb, "no aim", 1));
    let all = settle(controller)?;
    let rest = begin.elapsed().saturating_sub(QUIET);
    report.add(Figure::new(title("statuses written after"), "s", rest.as_secs_f64(), "no aim", 1));
    report.add(Figure::new(title("requests until then, all told"), "requests", all, "no aim", 1));
    let audited = kube.audited()?.len() - audited;
    report.add(Figure::new(title("the same by the audit log"), "requests", audited as f64, "no aim", 1));
    let settled = controller.usage()?;
    report.add(Figure::new(title("memory then"), "MB", settled.resident_mb, "no aim", 1));
    Ok(())
}

fn changes(bench: &Bench, report: &mut Report, trial: &Trial, kube: &KubeApi, count: usize) -> Result<()> {
    let others = trial.fleet.counts(Group::Fleet);
    let (mut all, mut told) = (Vec::new(), Vec::new());
    for n in 0..bench.runs(200) {
        let states = trial.fleet.counts(Group::Bystanders).states;
        let change = json!({
            "apiVersion": "horizon.dev/v1alpha1", "kind": "Server",
            "metadata": {"name": "bystander-0", "namespace": "bystanders"},
            "spec": {"tunnel": {"port": 7443 + n % 2 + 1}},
        });
        let begin = Instant::now();
        kube.kubectl_with(&change.to_string(), ["apply", "--server-side", "--force-conflicts", "-f", "-"])?;
        told.push(begin.elapsed().as_secs_f64() * 1e3);
        trial
            .fleet
            .wait(Group::Bystanders, "the change is applied", LIMIT, |counts| counts.states > states)
            .with_context(|| format!("change {n}: {}", trial.controller.log()))?;
        all.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    let runs = all.len();
    let title = |what: &str| format!("`kubectl apply` of one change, {count} objects: {what}");
    let figure = |what: &str, values: &[f64], share| {
        Figure::new(title(what), "ms", percentile(values, share), "no aim", runs)
    };
    report.add(
        figure("to applied on the appliance, p50", &all, 0.5)
            .against("of it kubectl", percentile(&told, 0.5)),
    );
    report.add(
        figure("to applied on the appliance, p99", &all, 0.99)
            .against("of it kubectl", percentile(&told, 0.99)),
    );
    let after = trial.fleet.counts(Group::Fleet);
    let bytes = (after.unasked_bytes - others.unasked_bytes) as f64;
    let title = title(&format!("bytes sent to the {} appliances not concerned", trial.options.appliances));
    report.add(Figure::new(title, "bytes", bytes, "0", runs));
    Ok(())
}
