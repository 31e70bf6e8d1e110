//! `audit verify`: whether the audit trail is as it was written.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use horizon_wire::{audit, proto};

use super::{
    args::{AuditVerifyArgs, Output},
    backup::{OpenArgs, opener},
    write_value,
};
use crate::{
    app,
    config::Config,
    store::{AuditReport, Database, verify_audit},
};

/// The largest file of witnesses, in bytes.
const MAX_FILE: u64 = 16 << 20;
/// The most files of a directory.
const MAX_FILES: usize = 10_000;

/// Verifies and tells.
pub(super) async fn verify(
    file: Option<&Path>,
    args: AuditVerifyArgs,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let AuditVerifyArgs { database, backup, key_file, passphrase_file, witnesses, output, settings } = args;
    let mut kept = Vec::new();
    for path in &witnesses {
        read_witnesses(path, &mut kept)
            .with_context(|| format!("cannot read the witnesses in {}", path.display()))?;
    }
    let now = jiff::Timestamp::now();
    let report = match (backup, database) {
        (Some(from), _) => {
            let opener = opener(&OpenArgs { from: from.clone(), key_file, passphrase_file })?;
            crate::backup::verify_audit(&from, &opener, &kept, now).await?
        }
        (None, Some(path)) => {
            anyhow::ensure!(path.is_file(), "there is no file {}", path.display());
            verify_audit(Database::Sqlite(path), &kept, now).await?
        }
        (None, None) => verify_audit(app::database(&Config::load(file, settings)?)?, &kept, now).await?,
    };
    match output {
        Output::Table | Output::Wide => tell(&report, &kept, out)?,
        output => write_value(out, &report, output)?,
    }
    Ok(if report.found == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(report: &AuditReport, witnesses: &[proto::Envelope], out: &mut dyn Write) -> io::Result<()> {
    for finding in &report.findings {
        writeln!(out, "{}: {}", finding.kind, finding.message)?;
    }
    if report.found > report.findings.len() as u64 {
        writeln!(out, "… and {} more", report.found - report.findings.len() as u64)?;
    }
    let verdict = if report.found == 0 {
        "The audit trail is as it was written"
    } else {
        "The audit trail was altered"
    };
    writeln!(
        out,
        "{verdict}: {} rows under {} links, {} not sealed yet, {} links whose rows were let go as their time was over; {} \
         signed checkpoints and {} of {} witnesses agree ({:.0} rows a second).",
        report.rows,
        report.links,
        report.unsealed,
        report.dropped,
        report.checkpoints,
        report.witnesses,
        witnesses.len(),
        report.rows as f64 / report.seconds.max(1e-6),
    )?;
    if witnesses.is_empty() {
        writeln!(
            out,
            "Without --witnesses, whoever has the state-signing key could have computed all of it anew."
        )?;
    }
    Ok(())
}

fn read_witnesses(path: &PathBuf, kept: &mut Vec<proto::Envelope>) -> anyhow::Result<()> {
    if path.is_dir() {
        let mut files =
            fs::read_dir(path)?.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>()?;
        files.sort();
        anyhow::ensure!(files.len() <= MAX_FILES, "there are more than {MAX_FILES} files");
        for file in files.iter().filter(|file| file.is_file()) {
            read_witnesses(file, kept)?;
        }
        return Ok(());
    }
    anyhow::ensure!(fs::metadata(path)?.len() <= MAX_FILE, "it is larger than {MAX_FILE} bytes");
    let text = fs::read_to_string(path)?;
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let checkpoint = audit::from_line(line).with_context(|| {
            format!("line {} is not what `horizon-appliance witnesses` prints", number + 1)
        })?;
        kept.push(checkpoint);
    }
    Ok(())
}
