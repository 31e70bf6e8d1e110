//! A controller alone on the loopback device: what a fleet talks to.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::bench::Usage;

/// How long an answer of the metrics' server may take.
const HTTP_LIMIT: Duration = Duration::from_secs(10);
/// The largest answer that is read, in bytes.
const HTTP_MAX: u64 = 8 << 20;
/// Control channels that are allowed at once: more than any fleet has.
const CONNECTIONS: usize = 200_000;

/// A controller with a folder of its own. Dropping it kills it.
pub struct Lone {
    program: PathBuf,
    folder: tempfile::TempDir,
    control: SocketAddr,
    metrics: SocketAddr,
    process: Option<Child>,
}

impl Lone {
    /// Makes a controller's folder with these resource files (name and content) and lines of settings besides those that
    /// place it on free ports of the loopback device.
    pub fn init(program: &Path, resources: &[(String, String)], settings: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("horizon-fleet-").tempdir()?;
        let made = Command::new(program).arg("init").arg(folder.path().join("horizon")).output()?;
        if !made.status.success() {
            bail!("init failed: {}", String::from_utf8_lossy(&made.stderr));
        }
        let (control, metrics) = (free_udp()?, free_tcp()?);
        let lone = Self { program: program.to_owned(), folder, control, metrics, process: None };
        for starter in std::fs::read_dir(lone.resources())? {
            std::fs::remove_file(starter?.path())?;
        }
        for (name, text) in resources {
            std::fs::write(lone.resources().join(name), text)?;
        }
        let places = format!(
            "listen = \"{control}\"\nadvertise = [\"{control}\"]\nmetrics_listen = \"{metrics}\"\nlog_level = \"warn\"\n\
             max_connections = {CONNECTIONS}\n{settings}"
        );
        std::fs::write(lone.config(), places)?;
        Ok(lone)
    }

    /// Has another build of the program take its place when it is started next.
    pub fn replace(&mut self, program: &Path) {
        program.clone_into(&mut self.program);
    }

    /// Where appliances connect.
    pub fn control(&self) -> SocketAddr {
        self.control
    }

    /// The folder of resource files.
    pub fn resources(&self) -> PathBuf {
        self.home().join("resources")
    }

    /// The folder of keys, delivered secrets and, without Postgres, the database.
    pub fn data(&self) -> PathBuf {
        self.home().join("data")
    }

    /// The file of settings.
    pub fn config(&self) -> PathBuf {
        self.home().join("config.toml")
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("horizon")
    }

    /// Writes a file with a secret that a setting names by its name.
    pub fn write_secret(&self, name: &str, text: &str) -> Result<()> {
        let mut file =
            File::options().write(true).create_new(true).mode(0o400).open(self.home().join(name))?;
        Ok(file.write_all(text.as_bytes())?)
    }

    /// A command of the controller's program with its settings.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).arg("--config").arg(self.config()).current_dir(self.home());
        command
    }

    /// Starts it, and says how long it took until it was ready.
    pub fn start(&mut self, limit: Duration) -> Result<Duration> {
        let log = File::options().create(true).append(true).open(self.log_file())?;
        // setpriv replaces itself by the program, which then dies with this thread, whatever ends that.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.program).args(["run", "--config"]);
        command.arg(self.config()).current_dir(self.home());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let begin = Instant::now();
        self.process = Some(command.spawn().context("cannot start the controller")?);
        while !self.http("/readyz").is_ok_and(|(status, _)| status == 200) {
            if let Some(status) = self.process.as_mut().and_then(|process| process.try_wait().ok().flatten())
            {
                bail!("the controller ended ({status}):\n{}", self.log());
            }
            if begin.elapsed() > limit {
                bail!("the controller was not ready within {limit:?}:\n{}", self.log());
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        Ok(begin.elapsed())
    }

    fn running(&mut self) -> Result<&mut Child> {
        self.process.as_mut().context("the controller is not running")
    }

    /// Ends it without asking (SIGKILL).
    pub fn kill(&mut self) -> Result<()> {
        let process = self.running()?;
        process.kill()?;
        process.wait()?;
        self.process = None;
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let process = self.running()?;
        kill_process(Pid::from_child(process), Signal::TERM)?;
        let status = process.wait()?;
        self.process = None;
        Ok(status)
    }

    /// What it takes of the machine.
    pub fn usage(&mut self) -> Result<Usage> {
        Usage::of(self.running()?.id())
    }

    /// Its process id.
    pub fn pid(&mut self) -> Result<u32> {
        Ok(self.running()?.id())
    }

    /// One of its metrics: the sum over all labels that contain `label`.
    pub fn metric(&self, name: &str, label: &str) -> Result<f64> {
        let (status, body) = self.http("/metrics")?;
        if status != 200 {
            bail!("the metrics answer {status}");
        }
        let ours = body.lines().filter(|line| {
            let rest = line.strip_prefix(name).filter(|rest| rest.starts_with([' ', '{']));
            rest.is_some_and(|rest| rest.contains(label))
        });
        Ok(ours.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// The status and body of an answer of the server of metrics and health.
    pub fn http(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.metrics, HTTP_LIMIT)?;
        stream.set_read_timeout(Some(HTTP_LIMIT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.metrics)?;
        let mut answer = String::new();
        stream.take(HTTP_MAX).read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP status")?;
        Ok((status, body.to_owned()))
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("controller.log")
    }

    /// The end of what it has logged.
    pub fn log(&self) -> String {
        let log = std::fs::read(self.log_file()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Lone {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn free_udp() -> Result<SocketAddr> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn free_tcp() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
