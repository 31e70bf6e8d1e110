//! The store's operations on SQLite and on Postgres, each beside what the engine does when it is asked plainly.

use std::collections::HashMap;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use horizon_tests::bench::{Figure, Report};
use serde_json::Value;

use super::Bench;

/// What is done plainly, and compared with.
const PLAIN: [&str; 3] = ["plain update", "plain insert", "pgbench simple update"];

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let folder = std::env::current_exe()?;
    let program = folder.parent().context("a program is in a folder")?.join("examples/store_bench");
    if !program.exists() {
        bail!("{} is missing: run `make bench`, which builds it", program.display());
    }
    let servers = if bench.quick { "100" } else { "1000" };
    let output = Command::new(program).arg(servers).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("the benchmark of the store failed ({})", output.status);
    }
    let lines: Vec<Value> = String::from_utf8(output.stdout)?
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
        .collect::<Result<_>>()?;
    let mut plain = HashMap::new();
    for line in &lines {
        let (engine, operation) = (text(line, "engine"), text(line, "operation"));
        let at_once = at_once(line);
        if let Some(rate) = line["perSecond"].as_f64() {
            let figure =
                Figure::new(title(&engine, &operation, at_once), "per s", rate, "no aim", count(line));
            if operation == "plain update" {
                plain.insert((engine.clone(), at_once), rate);
            }
            let baseline = plain.get(&(engine, at_once)).filter(|_| !PLAIN.contains(&operation.as_str()));
            report.add(match baseline {
                Some(baseline) => figure.against("plain update", *baseline),
                None => figure,
            });
            if let Some(micros) = line["p99Micros"].as_f64().filter(|_| at_once > 1) {
                let title = title(&text(line, "engine"), &format!("{operation}, p99"), at_once);
                report.add(Figure::new(title, "ms", micros / 1e3, "no aim", count(line)));
            }
        } else if let Some(millis) = line["millis"].as_f64() {
            report.add(Figure::new(title(&engine, &operation, at_once), "ms", millis, "no aim", 1));
        }
    }
    Ok(())
}

fn title(engine: &str, operation: &str, at_once: u64) -> String {
    let engine = if engine == "sqlite" { "SQLite" } else { "Postgres" };
    format!("{engine}, {at_once} at once: {operation}")
}

fn text(line: &Value, field: &str) -> String {
    line[field].as_str().unwrap_or_default().to_owned()
}

/// How many did it at the same time; a number or its digits.
fn at_once(line: &Value) -> u64 {
    let concurrency = &line["concurrency"];
    concurrency.as_u64().or_else(|| concurrency.as_str()?.parse().ok()).unwrap_or(1)
}

fn count(line: &Value) -> usize {
    line["count"].as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(1)
}
