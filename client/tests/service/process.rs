//! The programs under test, with files of their own.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use horizon_client_core::{session::Phase, status::Status};
use rustix::process::{Pid, Signal, kill_process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_horizon");
/// How long anything may take before the test is called broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// Looks again and again until something is so.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// What a finished command left.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A folder with all that the client keeps.
pub(crate) struct Bench(tempfile::TempDir);

impl Bench {
    /// A host whose resolver's file is a link, as systemd-resolved makes it.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("stub.conf"), "nameserver 192.0.2.53\nsearch example.org\n").unwrap();
        std::os::unix::fs::symlink("stub.conf", dir.path().join("resolv.conf")).unwrap();
        Self(dir)
    }

    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.0.path().join("resolv.conf")
    }

    /// Leaves a journal, as a service that was killed does.
    pub(crate) fn write_journal(&self, bytes: &[u8]) {
        let state = self.0.path().join("state");
        fs::create_dir_all(&state).unwrap();
        fs::write(state.join("journal.json"), bytes).unwrap();
    }

    fn socket(&self) -> PathBuf {
        self.0.path().join("run/client.sock")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("--socket").arg(self.socket()).env_remove("SSH_CONNECTION");
        command
    }

    fn places(&self, command: &mut Command) {
        command.arg("--state-dir").arg(self.0.path().join("state"));
        command.arg("--resolv-conf").arg(self.resolv_conf());
    }

    /// Starts the service and waits until it is ready.
    pub(crate) fn service(&self, more: &[&str]) -> Service {
        let mut command = self.command();
        command.args(["service", "run"]);
        self.places(&mut command);
        command.args(more).env("HORIZON_LOG", "debug").stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (ready, is_ready) = mpsc::channel();
        let log = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                eprintln!("service: {line}");
                if line.contains("the service is ready") {
                    let _ = ready.send(());
                }
            }
        });
        is_ready.recv_timeout(PATIENCE).expect("the service starts");
        Service { child }
    }

    /// Starts a second service on the same socket and waits for its end.
    pub(crate) fn horizon_service_again(&self) -> Output {
        let mut command = self.command();
        command.args(["service", "run"]);
        self.places(&mut command);
        run(command, "")
    }

    pub(crate) fn horizon_repair(&self) -> Output {
        let mut command = self.command();
        command.args(["service", "repair"]);
        self.places(&mut command);
        run(command, "")
    }

    pub(crate) fn horizon(&self, args: &[&str]) -> Output {
        self.horizon_with(args, "")
    }

    pub(crate) fn horizon_with(&self, args: &[&str], stdin: &str) -> Output {
        let mut command = self.command();
        command.args(args);
        run(command, stdin)
    }

    pub(crate) fn horizon_over_ssh(&self, args: &[&str]) -> Output {
        let mut command = self.command();
        command.args(args).env("SSH_CONNECTION", "198.51.100.7 50122 127.0.0.1 22");
        run(command, "")
    }

    pub(crate) fn status(&self) -> Status {
        let output = self.horizon(&["status", "-o", "json"]);
        assert_eq!(output.code, 0, "{output:?}");
        serde_json::from_str(&output.stdout).unwrap()
    }

    pub(crate) fn is_connected(&self) -> bool {
        let output = self.horizon(&["status", "-o", "json"]);
        let status: Option<Status> = serde_json::from_str(&output.stdout).ok();
        status.is_some_and(|s| s.phase == Phase::Connected)
    }

    /// Whether no session is open and the host has been put back.
    pub(crate) fn is_at_rest(&self) -> bool {
        matches!(self.status().phase, Phase::Disconnected | Phase::Failed)
    }

    pub(crate) fn eventually_connected(&self) {
        eventually("the session", || self.is_connected());
    }

    pub(crate) fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).unwrap()
    }
}

fn run(mut command: Command, stdin: &str) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that reads nothing closes its end.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A running service; killed when dropped.
pub(crate) struct Service {
    child: Child,
}

impl Service {
    /// The supervised processes.
    pub(crate) fn children(&self) -> Vec<Pid> {
        let pid = self.child.id();
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        text.split_ascii_whitespace().filter_map(|w| Pid::from_raw(w.parse().ok()?)).collect()
    }

    pub(crate) fn child(&self) -> Pid {
        self.children()[0]
    }

    pub(crate) fn kill_child(&self, pid: Pid) {
        kill_process(pid, Signal::KILL).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Tells the service to stop and waits until it has.
    pub(crate) fn stop(&mut self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }

    /// Kills the service and its supervisor, so that neither can put anything back.
    pub(crate) fn kill_all(&mut self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
        let worker = self.child();
        kill_process(worker, Signal::KILL).unwrap();
        kill_process(self.pid(), Signal::KILL).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // The child of a killed supervisor ends by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
