//! A parent that does nothing but watch the service: when it dies, however it dies, the host is put back at once and
//! the service started again.

use std::{
    os::unix::process::ExitStatusExt,
    process::{ExitCode, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::Context;
use horizon_client_core::backoff::Backoff;
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};

use super::{Settings, random, repair, run, runtime};

/// Says to the program that it is the supervised child.
const CHILD: &str = "HORIZON_SUPERVISED_BY";
/// First and longest pause before the service is started again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// A service that lived this long was well, and its next failure is the first again.
const WELL: Duration = Duration::from_secs(60);

/// Runs the service as a child of this process, and repairs after it.
pub fn supervise(settings: &Settings) -> anyhow::Result<ExitCode> {
    if let Ok(parent) = std::env::var(CHILD) {
        return serve_supervised(settings, &parent);
    }
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    loop {
        let began = Instant::now();
        let outcome = runtime()?.block_on(watch())?;
        if let Outcome::Stopped(status) = outcome {
            return Ok(exit_code(status));
        }
        let Outcome::Died(status) = outcome else { continue };
        tracing::error!(%status, "the service died; putting the host back");
        if let Err(error) = repair(settings) {
            tracing::error!(%error, "the host could not be put back completely; the next start tries again");
        }
        if began.elapsed() > WELL {
            backoff.reset();
        }
        let pause = backoff.pause(random());
        if runtime()?.block_on(rest(pause))? {
            return Ok(exit_code(status));
        }
    }
}

/// The child's side: it goes when its parent goes, and puts the host back on its way out.
fn serve_supervised(settings: &Settings, parent: &str) -> anyhow::Result<ExitCode> {
    set_parent_process_death_signal(Some(Signal::TERM))
        .context("cannot ask to be told of the parent's end")?;
    let alive = rustix::process::getppid().is_some_and(|p| p.as_raw_nonzero().to_string() == parent);
    if !alive {
        anyhow::bail!("the supervisor is gone already");
    }
    run(settings)?;
    Ok(ExitCode::SUCCESS)
}

enum Outcome {
    /// It ended because it was told to, or because it could not start.
    Stopped(ExitStatus),
    /// It was killed or crashed.
    Died(ExitStatus),
}

async fn watch() -> anyhow::Result<Outcome> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut child = start()?;
    let mut told = false;
    loop {
        tokio::select! {
            status = child.wait() => {
                let status = status.context("cannot wait for the service")?;
                // An exit code of its own means that it said why it cannot run: again would be no better.
                let crashed = status.signal().is_some() || status.code() == Some(101);
                return Ok(if crashed && !told { Outcome::Died(status) } else { Outcome::Stopped(status) });
            }
            _ = terminate.recv() => { told = true; forward(&child); }
            _ = interrupt.recv() => { told = true; forward(&child); }
        }
    }
}

fn start() -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(CHILD, std::process::id().to_string())
        // glibc would keep the large buffers of closed connections for later; the service has no later use for them.
        .env("MALLOC_MMAP_THRESHOLD_", "131072")
        .env("MALLOC_ARENA_MAX", "2")
        .spawn()
        .context("cannot start the service")
}

fn forward(child: &Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended already.
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// Waits before the next start; whether the process was told to stop meanwhile.
async fn rest(pause: Duration) -> anyhow::Result<bool> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        () = tokio::time::sleep(pause) => false,
        _ = terminate.recv() => true,
        _ = interrupt.recv() => true,
    })
}

fn exit_code(status: ExitStatus) -> ExitCode {
    ExitCode::from(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1))
}
