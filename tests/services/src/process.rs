//! Processes of a fixture.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::site::Keeper;

/// How long a fixture waits for anything before it calls it broken. Generous: tests share the machine with compilers.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Asks again every few milliseconds until `check` answers, or [`PATIENCE`] is over; `what` names it in the error.
pub fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check() {
            return Ok(value);
        }
        if Instant::now() > end {
            bail!("waited {PATIENCE:?} in vain for this: {what}");
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Whom a process runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum As {
    /// The user of this process.
    Caller,
    /// Somebody who is not root, if need be by a user namespace in which root has another number: what PostgreSQL
    /// insists on. Files belong to the caller; System V shared memory goes with the process, however that ends.
    NotRoot,
}

/// A program with its arguments, not yet started.
pub(crate) struct Program {
    words: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    who: As,
}

impl Program {
    pub(crate) fn new<A: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        let mut words = vec![program.as_ref().to_owned()];
        words.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        Self { words, env: Vec::new(), who: As::Caller }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.words.push(arg.as_ref().to_owned());
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.words.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    pub(crate) fn run_as(mut self, who: As) -> Self {
        self.who = who;
        self
    }

    fn shown(&self) -> String {
        self.words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    /// setpriv replaces itself by the program, which then dies with the keeper's thread, whatever ends that. A new
    /// user namespace may cost the mark, so it is set on either side of one.
    fn command(&self, folder: &Path) -> Command {
        const MARK: [&str; 3] = ["--pdeathsig", "KILL", "--"];
        let mut command = Command::new("setpriv");
        command.args(MARK);
        if self.who == As::NotRoot && rustix::process::geteuid().is_root() {
            command.args([
                "unshare",
                "--ipc",
                "--user",
                "--map-user=1000",
                "--map-group=1000",
                "--",
                "setpriv",
            ]);
            command.args(MARK);
        }
        command.args(&self.words).envs(self.env.iter().map(|(name, value)| (name, value)));
        for name in
            ["KUBECONFIG", "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGSERVICE", "PGDATA"]
        {
            if self.env.iter().all(|(set, _)| set != name) {
                command.env_remove(name);
            }
        }
        // No configuration in anybody's home folder is read.
        command.env("HOME", folder).current_dir(folder);
        command
    }

    /// Starts it; everything it prints is appended to `NAME.log` in the fixture's folder.
    pub(crate) fn spawn(self, keeper: &Keeper, name: &str) -> Result<Process> {
        let log = keeper.folder().join(format!("{name}.log"));
        let append = || File::options().create(true).append(true).open(&log);
        let mut command = self.command(keeper.folder());
        command.stdin(Stdio::null()).stdout(append()?).stderr(append()?);
        let child = keeper.spawn(command)?;
        Ok(Process { child, log, shown: self.shown(), ended: None })
    }

    /// Runs it to a successful end and returns what it printed; anything else is an error that shows both streams.
    pub(crate) fn ok(self, keeper: &Keeper, stdin: &[u8]) -> Result<String> {
        let shown = self.shown();
        let output = self.output(keeper, stdin)?;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let err = String::from_utf8_lossy(&output.stderr);
            bail!("{shown} failed ({}):\n{out}{}", output.status, err.trim_end());
        }
        Ok(out)
    }

    /// Runs it to its end.
    pub(crate) fn output(self, keeper: &Keeper, stdin: &[u8]) -> Result<std::process::Output> {
        let mut command = self.command(keeper.folder());
        command.stdin(if stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = keeper.spawn(command)?;
        let pipe = child.stdin.take();
        std::thread::scope(|scope| {
            // A program that refuses before it reads closes the pipe: its own message says more than EPIPE.
            scope.spawn(|| pipe.map(|mut pipe| pipe.write_all(stdin)));
            child.wait_with_output().with_context(|| format!("{} did not end", self.shown()))
        })
    }
}

/// The last lines of a log; nothing of one that is not there.
pub fn tail(log: &Path) -> String {
    let log = std::fs::read(log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// Sends a signal to a process that has not been waited for; `shown` names it in the error.
pub fn send(child: &Child, signal: Signal, shown: &str) -> Result<()> {
    kill_process(Pid::from_child(child), signal).with_context(|| format!("cannot signal {shown}"))
}

/// A running process of a fixture; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    shown: String,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of what it has printed.
    pub fn tail(&self) -> String {
        tail(&self.log)
    }

    /// Whether it has not ended.
    pub fn running(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended.is_none()
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.running() { send(&self.child, signal, &self.shown) } else { Ok(()) }
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        until(&format!("the end of {}", self.shown), || {
            self.running();
            self.ended
        })
    }

    /// Ends it without asking (SIGKILL), frozen or not.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait().map(drop)
    }

    /// Memory it holds: its proportional share of pages, in bytes.
    pub fn memory(&self) -> Result<u64> {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid()))?;
        let line = rollup.lines().find(|line| line.starts_with("Pss:")).context("no Pss in smaps_rollup")?;
        let kib: u64 = line.split_whitespace().nth(1).context("no number after Pss")?.parse()?;
        Ok(kib * 1024)
    }

    /// Waits until `check` answers; fails early, with the log's end, when the process is gone.
    pub(crate) fn ready<T>(&mut self, mut check: impl FnMut() -> Option<T>) -> Result<T> {
        let shown = self.shown.clone();
        let found = until(&format!("{shown} is ready"), || match check() {
            Some(value) => Some(Some(value)),
            None => (!self.running()).then_some(None),
        });
        match found {
            Ok(Some(value)) => Ok(value),
            Ok(None) => bail!("{shown} ended before it was ready:\n{}", self.tail()),
            Err(error) => Err(error.context(self.tail())),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
