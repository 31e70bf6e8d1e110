//! Controllers as processes of their own, on one Postgres database, with least privilege.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use horizon_services::Postgres;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// How long anything is waited for that has no deadline of its own.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until the answer is there.
pub(crate) fn until<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// An organisation in files, and a database for its controllers.
pub(crate) struct Fleet<'a> {
    dir: tempfile::TempDir,
    postgres: &'a Postgres,
    database: String,
}

/// The user that owns the tables, and the one that may only use them.
const OWNER: &str = "horizon_owner";
const RUNNER: &str = "horizon_runner";

fn program() -> Command {
    // Ends with the test, whatever ends that.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", env!("CARGO_BIN_EXE_horizon-controller")]);
    // The environment of whoever runs the tests says nothing here.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HORIZON_")) {
        command.env_remove(name);
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn write_secret(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o400)).unwrap();
}

impl Fleet<'static> {
    /// On the Postgres that tests share, with a schema that is up to date.
    pub(crate) fn new() -> Self {
        static ROLES: OnceLock<()> = OnceLock::new();
        let postgres = Postgres::shared().unwrap();
        ROLES.get_or_init(|| roles(postgres));
        let fleet = Self::on(postgres);
        fleet.migrate();
        fleet
    }
}

/// Makes the users of the database.
pub(crate) fn roles(postgres: &Postgres) {
    postgres.psql("create role horizon_run").unwrap();
    postgres.role(OWNER, "").unwrap();
    postgres.role(RUNNER, "in role horizon_run").unwrap();
}

impl<'a> Fleet<'a> {
    /// On a Postgres whose users were made, with an empty database.
    pub(crate) fn on(postgres: &'a Postgres) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let org = dir.path().join("org");
        succeeded(
            &program().args(["init", org.to_str().unwrap(), "--advertise", "192.0.2.1"]).output().unwrap(),
        );
        let database = postgres.fresh_database().unwrap();
        postgres.psql(&format!("alter database {database} owner to {OWNER}")).unwrap();
        write_secret(&dir.path().join("run-url"), &postgres.role_url(RUNNER, &database));
        write_secret(&dir.path().join("migration-url"), &postgres.role_url(OWNER, &database));
        Self { dir, postgres, database }
    }

    /// Brings the schema up to date.
    pub(crate) fn migrate(&self) -> String {
        let settings = self.settings("migration");
        succeeded(&program().args(["migrate", "--config", settings.to_str().unwrap()]).output().unwrap())
    }

    fn settings(&self, replica: &str) -> PathBuf {
        let (path, data) = (self.dir.path().join(format!("{replica}.toml")), self.dir.path().join(replica));
        if !data.exists() {
            fs::create_dir(&data).unwrap();
            fs::create_dir(data.join("keys")).unwrap();
            for key in fs::read_dir(self.dir.path().join("org/data/keys")).unwrap() {
                let key = key.unwrap();
                fs::copy(key.path(), data.join("keys").join(key.file_name())).unwrap();
            }
        }
        let text = format!(
            "resources = \"org/resources\"\ndata = \"{replica}\"\nreplica = \"{replica}\"\ndebounce = \"5ms\"\n\
             database_url_file = \"run-url\"\nmigration_url_file = \"migration-url\"\nadvertise = [\"{replica}.example.org\"]\n\
             listen = \"127.0.0.1:0\"\nmetrics_listen = \"127.0.0.1:0\"\nlog_level = \"info,horizon_controller=debug\"\n"
        );
        fs::write(&path, text).unwrap();
        path
    }

    /// Starts a controller and waits until it is ready.
    pub(crate) fn start(&self, replica: &str) -> Controller {
        self.start_with(replica, &[])
    }

    /// The same, with variables of the environment.
    pub(crate) fn start_with(&self, replica: &str, environment: &[(String, String)]) -> Controller {
        let settings = self.settings(replica);
        let log = self.dir.path().join(format!("{replica}.log"));
        let append = || fs::File::options().create(true).append(true).open(&log).unwrap();
        let before = fs::read_to_string(&log).unwrap_or_default().len();
        let child = program()
            .args(["run", "--config", settings.to_str().unwrap()])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(append())
            .stderr(append())
            .spawn()
            .unwrap();
        let mut controller = Controller { child, settings, log, since: before, metrics: String::new() };
        controller.metrics = until("the controller runs", || {
            let log = controller.log();
            assert!(controller.child.try_wait().unwrap().is_none(), "the controller ended:\n{log}");
            let rest = log.split_once("the controller runs")?.1.split_once("metrics=")?.1;
            Some(rest.split_whitespace().next()?.to_owned())
        });
        until("the controller is ready", || (controller.readiness().0 == 200).then_some(()));
        controller
    }

    /// Runs a controller that is expected to end by itself; returns what it says.
    pub(crate) fn refused(&self, replica: &str) -> String {
        let settings = self.settings(replica);
        let output = program().args(["run", "--config", settings.to_str().unwrap()]).output().unwrap();
        assert!(!output.status.success());
        text(&output.stderr)
    }

    /// Declares a user.
    pub(crate) fn declare(&self, user: &str) {
        let text = format!(
            "apiVersion = \"horizon.dev/v1alpha1\"\nkind = \"User\"\nmetadata.name = \"{user}\"\n[spec]\n"
        );
        fs::write(self.dir.path().join(format!("org/resources/{user}.toml")), text).unwrap();
    }

    /// Declares it no longer.
    pub(crate) fn forget(&self, user: &str) {
        fs::remove_file(self.dir.path().join(format!("org/resources/{user}.toml"))).unwrap();
    }

    /// Asks the database.
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.postgres.psql_in(&self.database, sql).unwrap().trim().to_owned()
    }

    /// How often users were written down.
    pub(crate) fn user_changes(&self) -> String {
        self.sql("select count(*) from audit_logs where target_type = 'User'")
    }
}

/// A controller's process. Dropping it kills it.
pub(crate) struct Controller {
    child: Child,
    settings: PathBuf,
    log: PathBuf,
    since: usize,
    metrics: String,
}

impl Controller {
    /// What it logged.
    pub(crate) fn log(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        text(log.get(self.since..).unwrap_or_default())
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Kills it at once, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has ended.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        until("the controller ends", || self.child.try_wait().unwrap())
    }

    /// Runs a command that talks to it.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Output {
        program()
            .args(arguments)
            .args(["--config", self.settings.to_str().unwrap()])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// The same for a command that must succeed; returns what it printed.
    pub(crate) fn tell(&self, arguments: &[&str]) -> String {
        succeeded(&self.ask(arguments))
    }

    /// How it does.
    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.tell(&["status", "-o", "json"])).unwrap()
    }

    /// Whether it has a user in force.
    pub(crate) fn has(&self, user: &str) -> bool {
        self.ask(&["get", "user", user]).status.success()
    }

    /// Whether it leads, by its own figures.
    pub(crate) fn leads(&self) -> bool {
        self.figure("leader") == Some(1)
    }

    /// One of its figures.
    pub(crate) fn figure(&self, name: &str) -> Option<i64> {
        let (_, text) = self.http("/metrics")?;
        let prefix = format!("horizon_controller_{name} ");
        text.lines().find_map(|line| line.strip_prefix(&prefix)?.parse().ok())
    }

    /// Its answer to whether it is ready.
    pub(crate) fn readiness(&self) -> (u16, String) {
        self.http("/readyz").unwrap_or((0, String::new()))
    }

    fn http(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(&self.metrics).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let status = answer.split_whitespace().nth(1)?.parse().ok()?;
        Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // It may be over already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log());
        }
    }
}

/// A wall clock that can be stepped, for controllers that are started with its environment.
pub(crate) struct WallClock {
    dir: tempfile::TempDir,
}

impl WallClock {
    /// One that is right.
    pub(crate) fn new() -> Self {
        let clock = Self { dir: tempfile::tempdir().unwrap() };
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/replicas/wall_clock.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(clock.library()).arg(source);
        succeeded(&compiler.output().unwrap());
        clock.step(0);
        clock
    }

    /// How many seconds it is off from now on.
    pub(crate) fn step(&self, seconds: i64) {
        let file = fs::File::options().create(true).truncate(false).write(true).open(self.offset()).unwrap();
        file.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }

    /// What a controller is started with.
    pub(crate) fn environment(&self) -> [(String, String); 2] {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        [
            ("LD_PRELOAD".to_owned(), text(self.library())),
            ("WALL_CLOCK_OFFSET".to_owned(), text(self.offset())),
        ]
    }

    fn library(&self) -> PathBuf {
        self.dir.path().join("wall_clock.so")
    }

    fn offset(&self) -> PathBuf {
        self.dir.path().join("offset")
    }
}
