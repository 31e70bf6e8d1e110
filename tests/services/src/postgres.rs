//! A PostgreSQL server.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};

use crate::options::PostgresOptions;
use crate::pki::Authority;
use crate::process::{As, Process, Program, until};
use crate::programs::postgres_folder;
use crate::site::Keeper;

/// The superuser and its password.
const ADMIN: (&str, &str) = ("postgres", "admin");

/// The password of every role that [`Postgres::role`] makes.
const PASSWORD: &str = "a-password";

/// What fills a full disk.
const FILLER: &str = "filler";

/// A PostgreSQL server with a data folder of its own.
#[derive(Debug)]
pub struct Postgres {
    process: Mutex<Process>,
    programs: PathBuf,
    data: PathBuf,
    address: SocketAddr,
    authority: Option<Authority>,
    keeper: Keeper,
}

impl Postgres {
    /// The server that the tests of one process share: make a database of your own in it, and do not stop it.
    pub fn shared() -> Result<&'static Self> {
        static SHARED: OnceLock<Result<Postgres, String>> = OnceLock::new();
        let shared = SHARED
            .get_or_init(|| Self::start(&PostgresOptions::default()).map_err(|error| format!("{error:#}")));
        shared.as_ref().map_err(|error| anyhow!("{error}"))
    }

    /// Makes a data folder and starts a server on it; takes about 2 seconds.
    pub fn start(options: &PostgresOptions) -> Result<Self> {
        let programs = postgres_folder()?;
        let keeper = Keeper::new(&options.site, "postgres-")?;
        let address = keeper.free()?;
        let data = keeper.folder().join("data");
        std::fs::create_dir(&data)?;
        if let Some(bytes) = options.disk {
            keeper.small_disk(&data, bytes)?;
        }
        // A disk of its own is its mount point, which initdb wants to be empty: the data goes into a folder in it.
        let data = data.join("cluster");
        let password = keeper.folder().join("password");
        std::fs::write(&password, ADMIN.1)?;
        Program::new(
            programs.join("initdb"),
            ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"],
        )
        .args(["--username", ADMIN.0, "--pwfile"])
        .arg(&password)
        .arg("--pgdata")
        .arg(&data)
        .run_as(As::NotRoot)
        .ok(&keeper, b"")?;
        let authority = options.tls.then(|| Authority::new(&keeper, "postgres-ca")).transpose()?;
        let mut settings = vec![
            ("listen_addresses", address.ip().to_string()),
            ("port", address.port().to_string()),
            ("unix_socket_directories", String::new()),
            ("max_connections", options.connections.to_string()),
            ("fsync", if options.fsync { "on" } else { "off" }.into()),
            // In the data folder, which goes with the fixture, not in the machine's shared memory.
            ("dynamic_shared_memory_type", "mmap".into()),
            ("log_min_messages", "warning".into()),
            ("log_line_prefix", "%m %u@%d ".into()),
        ];
        let mut host = "host";
        if let Some(authority) = &authority {
            let server = authority.server(&keeper, "postgres", address.ip(), &[])?;
            settings.push(("ssl", "on".into()));
            settings.push(("ssl_cert_file", server.certificate.display().to_string()));
            settings.push(("ssl_key_file", server.key.display().to_string()));
            host = "hostssl";
        }
        settings.extend(options.settings.iter().map(|(name, value)| (name.as_str(), value.clone())));
        let lines =
            settings.iter().map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''")));
        let (config, access) = (lines.collect::<String>(), format!("{host} all all all scram-sha-256\n"));
        let (to, main) = (data.clone(), config);
        // The disk may be one that only the keeper sees.
        keeper.run(move || -> std::io::Result<()> {
            std::fs::write(to.join("postgresql.auto.conf"), main)?;
            std::fs::write(to.join("pg_hba.conf"), access)
        })??;
        let process = Self::spawn(&keeper, &programs, &data)?;
        let postgres = Self { process: Mutex::new(process), programs, data, address, authority, keeper };
        postgres.wait_until_ready(&mut *postgres.process()?)?;
        Ok(postgres)
    }

    fn spawn(keeper: &Keeper, programs: &Path, data: &Path) -> Result<Process> {
        Program::new(programs.join("postgres"), ["-D"])
            .arg(data)
            .run_as(As::NotRoot)
            .spawn(keeper, "postgres")
    }

    fn wait_until_ready(&self, process: &mut Process) -> Result<()> {
        let address = self.address;
        process.ready(|| {
            let listens = self.keeper.run(move || TcpStream::connect(address).is_ok()).ok()?;
            (listens && self.psql("select 1").is_ok()).then_some(())
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate (PEM) of the authority that signed the server's, when TLS was asked for.
    pub fn authority(&self) -> Option<&Path> {
        self.authority.as_ref().map(|authority| authority.certificate.as_path())
    }

    /// The superuser's URL of a database; `postgres` exists.
    pub fn admin_url(&self, database: &str) -> String {
        self.url(ADMIN.0, ADMIN.1, database, self.address)
    }

    /// The URL of a database for a role that [`Postgres::role`] has made.
    pub fn role_url(&self, role: &str, database: &str) -> String {
        self.url(role, PASSWORD, database, self.address)
    }

    /// A URL that names `address` instead of the server's own: that of a [`crate::Proxy`].
    pub fn url(&self, user: &str, password: &str, database: &str, address: SocketAddr) -> String {
        let tls = self.authority().map_or(String::new(), |authority| {
            format!("?sslmode=verify-full&sslrootcert={}", authority.display())
        });
        format!("postgres://{user}:{password}@{address}/{database}{tls}")
    }

    /// Makes a role that may log in; `attributes` is more SQL, e.g. `"IN ROLE reader"`. Returns its password.
    pub fn role(&self, name: &str, attributes: &str) -> Result<&'static str> {
        self.psql(&format!("create role {name} login password '{PASSWORD}' {attributes}"))?;
        Ok(PASSWORD)
    }

    /// Makes an empty database that no other test of this process has, and returns its name.
    pub fn fresh_database(&self) -> Result<String> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.psql(&format!("create database {name}"))?;
        Ok(name)
    }

    /// Runs SQL in the database `postgres` as the superuser; returns rows as lines, columns split by `|`.
    pub fn psql(&self, sql: &str) -> Result<String> {
        self.psql_in("postgres", sql)
    }

    /// As [`Postgres::psql`], in another database. All statements are one transaction.
    pub fn psql_in(&self, database: &str, sql: &str) -> Result<String> {
        Program::new(self.programs.join("psql"), ["--no-psqlrc", "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .arg(self.admin_url(database))
            .env("PGCONNECT_TIMEOUT", "10")
            .ok(&self.keeper, b"")
    }

    /// One of PostgreSQL's programs (`pg_dump`, `pgbench`), connected as the superuser; returns what it prints.
    pub fn tool<const N: usize>(&self, program: &str, args: [&str; N]) -> Result<String> {
        self.connected(self.programs.join(program)).args(args).ok(&self.keeper, b"")
    }

    fn connected(&self, program: impl AsRef<std::ffi::OsStr>) -> Program {
        Program::new(program, [""; 0])
            .env("PGHOST", self.address.ip().to_string())
            .env("PGPORT", self.address.port().to_string())
            .env("PGUSER", ADMIN.0)
            .env("PGPASSWORD", ADMIN.1)
    }

    /// Runs a script of bash that uses `psql` as the superuser, with more variables; returns what it prints.
    pub fn script(&self, script: &Path, variables: &[(&str, &str)]) -> Result<String> {
        let mut program = self.connected("bash").arg(script);
        for (name, value) in variables {
            program = program.env(name, value);
        }
        program.ok(&self.keeper, b"")
    }

    /// The server and its processes at this moment, the server first.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let server = self.process()?.pid();
        Ok(std::iter::once(server).chain(children(server)).collect())
    }

    /// Ends every process of the server without asking, as a crash of the machine does.
    pub fn kill(&self) -> Result<()> {
        let mut process = self.process()?;
        let backends = children(process.pid());
        process.kill()?;
        signal_all(&backends, Signal::KILL);
        until("all of PostgreSQL is gone", || backends.iter().all(|pid| !alive(*pid)).then_some(()))
    }

    /// Starts it again after [`Postgres::kill`], on the same address and data, and waits until it has recovered.
    pub fn revive(&self) -> Result<()> {
        let mut process = self.process()?;
        *process = Self::spawn(&self.keeper, &self.programs, &self.data)?;
        self.wait_until_ready(&mut process)
    }

    /// Freezes all of it (SIGSTOP): connections stay open and nothing is answered.
    pub fn freeze(&self) -> Result<()> {
        signal_all(&self.pids()?, Signal::STOP);
        Ok(())
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) -> Result<()> {
        signal_all(&self.pids()?, Signal::CONT);
        Ok(())
    }

    /// Ends all connections but the caller's own, as a failing network or `pg_terminate_backend` does.
    pub fn drop_connections(&self) -> Result<()> {
        let all = "select pg_terminate_backend(pid) from pg_stat_activity \
            where pid <> pg_backend_pid() and backend_type = 'client backend'";
        self.psql(all).map(drop)
    }

    /// Fills the disk (see [`PostgresOptions::disk`]) to its last byte.
    pub fn fill_disk(&self) -> Result<()> {
        let filler = self.data.join("..").join(FILLER);
        self.keeper.run(move || -> Result<()> {
            let mut file = std::fs::File::create(&filler)?;
            let endless = &mut std::io::repeat(0);
            match std::io::copy(endless, &mut file) {
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => Ok(()),
                other => other.map(drop).context("cannot fill the disk"),
            }
        })?
    }

    /// Makes room on a full disk again.
    pub fn free_disk(&self) -> Result<()> {
        let filler = self.data.join("..").join(FILLER);
        self.keeper.run(move || std::fs::remove_file(filler))?.context("the disk was not full")
    }

    /// The end of what it has logged.
    pub fn log(&self) -> Result<String> {
        Ok(self.process()?.tail())
    }

    fn process(&self) -> Result<MutexGuard<'_, Process>> {
        self.process.lock().map_err(|_| anyhow!("a thread panicked while it held PostgreSQL"))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Backends of a killed server live on for a moment, and write into a folder that is being removed.
        let _ = self.kill();
    }
}

fn signal_all(pids: &[u32], signal: Signal) {
    for pid in pids.iter().filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?)) {
        let _ = kill_process(pid, signal);
    }
}

fn alive(pid: u32) -> bool {
    state(pid).is_some_and(|(state, _)| state != "Z")
}

fn children(parent: u32) -> Vec<u32> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| state(*pid).is_some_and(|(_, of)| of == parent)).collect()
}

/// A process's state letter and its parent.
fn state(pid: u32) -> Option<(String, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut words = stat.rsplit_once(") ")?.1.split(' ');
    Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
}
