//! The appliance: enrols with a controller, keeps its host at the state that the controller declares, and carries
//! people's traffic. The decisions are in `horizon-appliance-core`; this crate observes, performs and converses.

mod agent;
mod args;
mod diagnose;
mod enroll;
mod facts;
mod host;
mod link;
mod metrics;
mod out;
mod outbox;
mod privilege;
mod prove;
mod signals;
mod status;
mod store;
mod tpm;
mod tunnel;

use std::{
    io::{self, IsTerminal, Read},
    process::ExitCode,
};

use anyhow::Context;
use jiff::Timestamp;
use tracing_subscriber::EnvFilter;

pub use agent::{RunError, RunOptions, run};
pub use args::{Arguments, Command, Common, LogFormat, Output};
pub use enroll::{EnrolError, enrol};
pub use facts::HostFacts;
pub use host::HostError;
pub use status::{
    ControllerStatus, SOCKET, SessionStatus, StateStatus, Status, StatusError, TunnelStatus, ask,
};
pub use store::{Enrolment, StoreError};

/// Longer than any token.
const MAX_TOKEN_BYTES: u64 = 16 * 1024;

/// Carries out a command line.
pub fn start(arguments: Arguments) -> ExitCode {
    metrics::started();
    match perform(arguments) {
        Ok(code) => code,
        Err(error) => {
            // The last word, also where logging is switched off.
            let _ = io::Write::write_fmt(&mut io::stderr(), format_args!("horizon-appliance: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

fn perform(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let common = arguments.common;
    log(&common)?;
    if matches!(arguments.command, Command::Run { .. }) {
        // Before there are threads.
        let hardened = horizon_hardening::harden(horizon_hardening::Program::Appliance);
        tracing::debug!(?hardened, "what the system allows against leaks of keys");
    }
    let host = HostFacts { root: common.host_root.clone(), image: common.image_file.clone() };
    // One thread is enough for what little there is to do, and sleeps when there is nothing.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match arguments.command {
            Command::Enroll { token, force } => {
                let token = read_token(&token)?;
                let enrolment = Box::pin(enrol(common.state_dir, &token, force, &host)).await?;
                out::print(&format!(
                    "Enrolled as {} ({}).\nStart it with: horizon-appliance run\n",
                    enrolment.server_name, enrolment.server_id
                ));
            }
            Command::Run { tun, advertise, tpm } => {
                let state_dir = common.state_dir;
                Box::pin(run(RunOptions { state_dir, tun, advertise, host, tpm })).await?;
            }
            Command::Status { output } => {
                let status = ask(&common.state_dir).await?;
                match output {
                    Output::Json => out::json(&status)?,
                    Output::Table => out::print(&out::status(&status, Timestamp::now())),
                }
            }
            Command::Witnesses => {
                let kept = store::Store::existing(&common.state_dir)?.witnesses()?;
                let lines: String = kept.iter().map(|kept| out::witness(kept) + "\n").collect();
                out::print(&lines);
            }
            Command::Diagnose { output } => {
                let checks = Box::pin(diagnose::diagnose(&common.state_dir)).await;
                match output {
                    Output::Json => out::json(&checks)?,
                    Output::Table => out::print(&diagnose::text(&checks)),
                }
                if checks.iter().any(|c| c.verdict == diagnose::Verdict::Failed) {
                    return Ok(ExitCode::FAILURE);
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn log(common: &Common) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&common.log)
        .context("--log is no filter such as 'info' or 'info,horizon_tunnel=debug'")?;
    let base = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match common.log_format {
        LogFormat::Json => base.json().init(),
        LogFormat::Text => base.with_ansi(io::stderr().is_terminal()).init(),
    }
    Ok(())
}

/// The token itself, or what `-` and `@FILE` stand for.
fn read_token(given: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    if given == "-" {
        io::stdin()
            .lock()
            .take(MAX_TOKEN_BYTES)
            .read_to_string(&mut text)
            .context("cannot read the token")?;
    } else if let Some(path) = given.strip_prefix('@') {
        let file =
            std::fs::File::open(path).with_context(|| format!("cannot open the token's file {path}"))?;
        file.take(MAX_TOKEN_BYTES)
            .read_to_string(&mut text)
            .with_context(|| format!("cannot read {path}"))?;
    } else {
        given.clone_into(&mut text);
    }
    Ok(text.trim().to_owned())
}
