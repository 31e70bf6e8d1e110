//! One host: a thread that lives in namespaces of its own.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};

use super::isolate;
use super::process::Cmd;

type Job = Box<dyn FnOnce() + Send>;

/// A host of the lab: network, mount and host-name namespaces, `/etc`, `/run` and `/var/lib` of its own.
///
/// A thread of this process is the host's only permanent inhabitant: it runs what [`Host::run`] hands it, starts the
/// host's processes (which die with it), and takes the namespaces with it when it ends.
pub struct Host {
    name: String,
    dir: PathBuf,
    netns: PathBuf,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
}

impl Host {
    /// A host with a loopback device and nothing else. `lab` is the folder that holds its files.
    pub(super) fn new(name: &str, lab: &Path) -> Result<Self> {
        let dir = lab.join(name);
        std::fs::create_dir(&dir).with_context(|| format!("cannot make host {name}"))?;
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::sync_channel(1);
        let (thread_name, thread_dir) = (name.to_owned(), dir.clone());
        let thread = std::thread::Builder::new().name(format!("host {name}")).spawn(move || {
            let made = isolate::isolate(&thread_name, &thread_dir);
            let failed = made.is_err();
            let tid = rustix::thread::gettid().as_raw_nonzero();
            let netns = PathBuf::from(format!("/proc/{}/task/{tid}/ns/net", std::process::id()));
            if ready.send(made.map(|()| netns)).is_err() || failed {
                return;
            }
            while let Ok(job) = inbox.recv() {
                job();
            }
        })?;
        let netns = is_ready.recv().context("the host's thread died")??;
        let host = Self {
            name: name.to_owned(),
            dir,
            netns,
            jobs: Some(jobs),
            thread: Some(thread),
            v4: Ipv4Addr::UNSPECIFIED,
            v6: Ipv6Addr::UNSPECIFIED,
        };
        host.ip("link set lo up")?;
        Ok(host)
    }

    /// The name it was made with; also its host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its first IPv4 address.
    pub fn v4(&self) -> IpAddr {
        self.v4.into()
    }

    /// Its first global IPv6 address.
    pub fn v6(&self) -> IpAddr {
        self.v6.into()
    }

    /// A folder of its own, visible from every host, for configuration, state and logs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path that opens its network namespace while the host lives.
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// Runs a closure inside the host. A socket opened there stays in the host, wherever it is used.
    pub fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> R {
        let (done, result) = mpsc::sync_channel(1);
        let job: Job = Box::new(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            let _ = done.send(outcome);
        });
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        match result.recv() {
            Ok(Ok(value)) if sent => value,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            _ => panic!("host {} is gone", self.name),
        }
    }

    /// A command to run inside the host.
    pub fn cmd<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Cmd<'_> {
        Cmd::new(self, program.as_ref(), args.into_iter().map(|a| a.as_ref().to_owned()).collect())
    }

    /// `ip` with the words of `line`; its output is discarded.
    pub fn ip(&self, line: &str) -> Result<()> {
        self.cmd("ip", line.split_whitespace()).ok().map(drop)
    }

    /// What `ip` with the words of `line` prints.
    pub fn ip_show(&self, line: &str) -> Result<String> {
        self.cmd("ip", line.split_whitespace()).ok()
    }

    /// Sets a kernel setting of the host's own network: `set("ipv4/ip_forward", "1")`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let (path, value) = (Path::new("/proc/sys/net").join(name), value.to_owned());
        let shown = path.clone();
        self.run(move || std::fs::write(path, value))
            .with_context(|| format!("host {}: cannot write {}", self.name, shown.display()))
    }

    /// Switches routing between its links on or off, for both families.
    pub fn forwarding(&self, on: bool) -> Result<()> {
        let value = if on { "1" } else { "0" };
        self.sysctl("ipv4/ip_forward", value)?;
        self.sysctl("ipv6/conf/all/forwarding", value)
    }

    /// Puts the host's addresses (/24 and /64) on a link and adds default routes.
    pub(super) fn address(&self, device: &str, via4: Option<Ipv4Addr>, via6: Option<Ipv6Addr>) -> Result<()> {
        self.ip(&format!("addr add {}/24 dev {device}", self.v4))?;
        self.ip(&format!("addr add {}/64 dev {device} nodad", self.v6))?;
        if let Some(via) = via4 {
            self.ip(&format!("route add default via {via}"))?;
        }
        if let Some(via) = via6 {
            self.ip(&format!("-6 route add default via {via}"))?;
        }
        Ok(())
    }

    /// What the host's network looks like, as a person would list it: to compare before and after.
    pub fn network_picture(&self) -> Result<String> {
        let mut picture = String::new();
        for line in
            ["-o -br link", "-o addr", "rule", "route show table all", "-6 rule", "-6 route show table all"]
        {
            picture.push_str(&format!("# ip {line}\n{}", self.ip_show(line)?));
        }
        picture.push_str(&format!("# nft\n{}", self.cmd("nft", ["list", "ruleset"]).ok()?));
        for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/conf/all/rp_filter"] {
            let path = Path::new("/proc/sys/net").join(name);
            let value = self.run(move || std::fs::read_to_string(path))?;
            picture.push_str(&format!("# {name} {value}"));
        }
        let resolv = self.run(|| std::fs::read_to_string("/etc/resolv.conf"))?;
        picture.push_str(&format!("# resolv.conf\n{resolv}"));
        Ok(picture)
    }

    /// Cuts or restores one of its links.
    pub fn set_link(&self, device: &str, up: bool) -> Result<()> {
        self.ip(&format!("link set {device} {}", if up { "up" } else { "down" }))
    }

    /// Reads a file as the host sees it.
    pub fn read(&self, path: impl Into<PathBuf>) -> Result<String> {
        let path = path.into();
        let shown = path.clone();
        self.run(move || std::fs::read_to_string(path))
            .with_context(|| format!("cannot read {}", shown.display()))
    }

    /// Writes a file as the host sees it.
    pub fn write(&self, path: impl Into<PathBuf>, text: impl Into<String>) -> Result<()> {
        let (path, text) = (path.into(), text.into());
        let shown = path.clone();
        self.run(move || std::fs::write(path, text))
            .with_context(|| format!("cannot write {}", shown.display()))
    }

    /// Fails unless the host's programs are there; named so that a missing package is named too.
    pub fn require(&self, program: &str) -> Result<()> {
        let found = self.cmd("sh", ["-c", &format!("command -v {program}")]).run()?;
        if !found.success() {
            bail!("{program} is not installed: run `make setup`");
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The thread's end is the parent-death signal of the host's processes.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
