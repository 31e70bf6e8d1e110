//! Processes inside a host.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use super::{Host, PATIENCE, within};

/// A command that has not been started.
pub struct Cmd<'h> {
    host: &'h Host,
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    stdin: Vec<u8>,
    limit: Duration,
}

/// What a finished command left behind.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Output {
    /// Whether it ended with status 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// Both streams, for searching.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl<'h> Cmd<'h> {
    pub(super) fn new(host: &'h Host, program: &OsStr, args: Vec<OsString>) -> Self {
        Self { host, program: program.to_owned(), args, env: Vec::new(), stdin: Vec::new(), limit: PATIENCE }
    }

    /// What the command reads; nothing unless said.
    pub fn stdin(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.stdin = text.into();
        self
    }

    /// One more environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// How long [`Cmd::run`] waits before it kills the command and fails; 60 s unless said.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end.
    pub fn run(self) -> Result<Output> {
        let shown = self.shown();
        let limit = self.limit;
        let files = tempfile::tempdir_in(self.host.dir())?;
        let (out, err) = (files.path().join("out"), files.path().join("err"));
        let begin = Instant::now();
        let mut process = self.start(&out, &err, "cmd".to_owned())?;
        let status = process.wait(limit).with_context(|| format!("{shown} did not end"))?;
        let took = begin.elapsed();
        let read = |path: &Path| {
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())
        };
        Ok(Output { status, stdout: read(&out)?, stderr: read(&err)?, took })
    }

    /// Runs it to a successful end and returns what it printed; anything else is an error that shows both streams.
    pub fn ok(self) -> Result<String> {
        let shown = self.shown();
        let output = self.run()?;
        if !output.success() {
            bail!("{shown} failed ({}):\n{}", output.status, output.text().trim_end());
        }
        Ok(output.stdout)
    }

    /// Runs it to an unsuccessful end and returns all it said; success is the error.
    pub fn refused(self) -> Result<String> {
        let shown = self.shown();
        let output = self.run()?;
        if output.success() {
            bail!("{shown} should have failed, and said:\n{}", output.text().trim_end());
        }
        Ok(output.text())
    }

    /// Starts it; everything it prints goes to `NAME.log` in the host's folder.
    pub fn spawn(self, name: &str) -> Result<Proc> {
        let log = self.host.dir().join(format!("{name}.log"));
        self.start(&log, &log, name.to_owned())
    }

    fn shown(&self) -> String {
        let words: Vec<_> =
            std::iter::once(&self.program).chain(&self.args).map(|w| w.to_string_lossy()).collect();
        format!("[{}] {}", self.host.name(), words.join(" "))
    }

    fn start(self, out: &Path, err: &Path, name: String) -> Result<Proc> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let shown = self.shown();
        let append = |path: &Path| File::options().create(true).append(true).open(path);
        // setpriv replaces itself by the program, which then dies with the host's thread, whatever ends that.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.program).args(&self.args).envs(self.env);
        command.current_dir(self.host.dir()).stdout(append(out)?).stderr(append(err)?);
        let stdin = (!self.stdin.is_empty()).then_some(self.stdin);
        command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child =
            self.host.run(move || command.spawn()).with_context(|| format!("cannot start {shown}"))?;
        if let (Some(text), Some(mut pipe)) = (stdin, child.stdin.take()) {
            // A program that refuses before it reads closes the pipe: its own message says more than EPIPE.
            let _ = pipe.write_all(&text);
        }
        let serial = STARTED.fetch_add(1, Ordering::Relaxed);
        Ok(Proc { child, log: out.to_owned(), shown, name, serial, ended: None })
    }
}

/// A running process of a host; dropping it kills it.
pub struct Proc {
    child: Child,
    log: PathBuf,
    shown: String,
    name: String,
    serial: u32,
    ended: Option<ExitStatus>,
}

impl Proc {
    /// Its process id, on the machine.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The name it was spawned with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A number that no other process of this lab has.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// All it has printed so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits until its log contains `text`; fails early, with the log's end, when the process is gone.
    pub fn wait_for(&mut self, text: &str) -> Result<()> {
        let what = format!("`{text}` in the log of {}", self.shown);
        let found = within(PATIENCE, &what, || {
            if self.log().contains(text) {
                return Some(true);
            }
            (!self.running()).then_some(false)
        });
        match found {
            Ok(true) => Ok(()),
            Ok(false) => bail!("{} ended before it said `{text}`:\n{}", self.shown, self.tail()),
            Err(error) => Err(error.context(self.tail())),
        }
    }

    /// The last lines of its log.
    pub fn tail(&self) -> String {
        horizon_services::tail(&self.log)
    }

    /// Whether it has not ended.
    pub fn running(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended.is_none()
    }

    /// Sends a signal, once it is known that the process is still this one.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.running() { horizon_services::send(&self.child, signal, &self.shown) } else { Ok(()) }
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(PATIENCE).with_context(|| format!("{} ignores SIGTERM", self.shown))
    }

    /// Ends it without asking (SIGKILL).
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait(PATIENCE).map(drop)
    }

    /// Waits for its end; kills it and fails when the limit is over.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        let pidfd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        let timeout = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
        if poll(&mut fds, Some(&timeout))? == 0 {
            let _ = self.child.kill();
            let _ = self.child.wait();
            bail!("{} was killed after {limit:?}", self.shown);
        }
        let status = self.child.wait()?;
        self.ended = Some(status);
        Ok(status)
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
